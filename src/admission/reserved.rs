//! A request between its reservation and the scheduler. Dropped anywhere on that way, it is refused, not lost.

use std::sync::Arc;

use super::ledger::RequestPermit;
use super::validate::Checked;
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::models::ServedModel;
use crate::request::{DefaultLength, Ended, FinishReason, Handle, Sink};
use crate::telemetry::Metrics;

/// What admission knows of a request beside its prompt.
pub(super) struct Reserved {
    pub(super) handle: Arc<Handle>,
    pub(super) model: Arc<ServedModel>,
    pub(super) checked: Checked,
    /// The field that the prompt came in.
    pub(super) prompt_field: &'static str,
    pub(super) stream: bool,
    pub(super) priority: u8,
    pub(super) default_length: DefaultLength,
    pub(super) received_at: Timestamp,
    pub(super) metrics: Arc<Metrics>,
    /// None once it has gone on, or was refused.
    pub(super) hold: Option<Hold>,
}

/// What goes on with the request: the answer's way and the right to be here.
pub(super) struct Hold {
    pub(super) sink: Box<dyn Sink>,
    pub(super) permit: RequestPermit,
}

impl Reserved {
    /// Whether nobody wants the answer any more.
    pub(super) fn is_unwanted(&self) -> bool {
        self.handle.is_cancelled() || self.hold.as_ref().is_none_or(|hold| hold.sink.is_closed())
    }

    /// Says no; the permit goes back before those who wait for the end are told.
    pub(super) fn refuse(mut self, error: &Error) {
        self.end(error);
    }

    fn end(&mut self, error: &Error) {
        let Some(mut hold) = self.hold.take() else { return };
        self.metrics.refused(error.kind);
        hold.sink.refused(error);
        drop(hold);
        let reason = match error.kind {
            Kind::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Failed,
        };
        self.handle.end(Ended { reason, completion_tokens: 0 });
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.end(&Error::new(Kind::Unavailable, "the node stops").with_retry_after_ms(1_000));
    }
}

/// What a cancelled request is told that was not accepted yet.
pub(super) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "cancelled before it was accepted")
}
