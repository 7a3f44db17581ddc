//! Reply: one per device, on its own arbiter; turns sampled ids into events.
//!
//! Accepts one [`Deliver`] per step for all its sequences. What belongs to one request (incremental detokenizer, stop strings,
//! timings, sink) is its [`Stream`], which travels with the sequence; the actor itself has no state that could be lost. A stream whose
//! last owner drops it unfinished ends as failed, so no accepted request is ever silent.

use std::sync::{Arc, Mutex};

use actix::Message;

use crate::clock::Timestamp;
use crate::request::FinishReason;

mod actor;
mod stop;
mod stream;
mod times;

pub use actor::{MAILBOX_CAPACITY, Reply};
pub use stop::{StopMatch, StopMatcher};
pub use stream::{Permit, Stream, StreamStart};

/// A request's stream, shared by its sequence (wherever that is) and the deliveries under way.
pub type SharedStream = Arc<Mutex<Stream>>;

/// What one step gave all its sequences.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver {
    /// One for every sequence with something new.
    pub deliveries: Vec<Delivery>,
    /// When the step ended on the device.
    pub at: Timestamp,
}

/// What one step gave one sequence.
pub struct Delivery {
    /// Whose.
    pub stream: SharedStream,
    /// The start these tokens belong to; a stream that has started again ignores an older one.
    pub attempt: u32,
    /// Sampled, in order; may be empty with a finish.
    pub token_ids: Vec<u32>,
    /// Set in the last one, when the batcher knows the end (end token, length, cancel).
    pub finish: Option<FinishReason>,
}

#[cfg(test)]
pub(crate) mod testing;
