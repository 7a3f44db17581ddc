//! The wire: bytes ↔ types, the two encodings, and the names of subjects and headers. Pure.

mod decode;
mod encode;

pub use decode::{Decoded, Undecodable, decode};
pub use encode::{CancelAnswer, Encoding, RequestStatus, Subjects, encode_event};

pub(super) use decode::LAYOUT;
pub(super) use encode::{
    OwnerAnswer, OwnerMessage, accepted, error_headers, probe_headers, refusal,
};
