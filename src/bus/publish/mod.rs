//! What the node publishes, from the stages' calls to NATS's confirmation.
//!
//! * `sink` what stages call · `stream` what waits for one request, its events joined · `outbox` everything that waits
//! * `writer` what sends it · `window` what NATS has not confirmed
//! * `probe` asking NATS whether anybody listens · `caller_inbox` the same for a caller who takes the first message for the answer

mod caller_inbox;
mod outbox;
mod probe;
mod sink;
mod stream;
mod window;
mod writer;

pub(super) use outbox::{Control, Outbox, OutgoingRefusal, ServedAlias};
pub(super) use probe::ListenerProbe;
pub(super) use sink::{BusSink, SinkStart};
pub(super) use stream::{StreamTarget, SubjectStream};
pub(super) use writer::{Writer, WriterStart};
