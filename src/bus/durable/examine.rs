//! What the log says of a job's request, before the node decides what to do with it.

use std::sync::Arc;

use super::context::DurableContext;
use super::hub::Word;
use super::job::{PulledJob, ReadJob, UnreadableJob};
use super::reader::{self, ReadFault};
use crate::ids::RequestId;
use crate::log::{History, StoredRecord};

/// A job and what there is of its request.
pub(super) struct Examined {
    pub job: PulledJob,
    pub read: Result<ReadJob, UnreadableJob>,
    /// None: a log that no node can have written.
    pub history: Option<History>,
}

impl Examined {
    /// Whether both are of one job, which the queue gave out twice.
    pub fn is_of(&self, other: &Self) -> bool {
        self.job.queued == other.job.queued && self.id() == other.id()
    }

    /// The request's id, where it is known.
    pub fn id(&self) -> Option<&RequestId> {
        match &self.read {
            Ok(read) => Some(&read.id),
            Err(unreadable) => unreadable.id.as_ref(),
        }
    }
}

/// Reads a job and its log, and tells the hub. A log that cannot be read now leaves the job to be given out again.
pub(super) async fn examine(shared: Arc<DurableContext>, job: PulledJob) {
    let read = job.read(shared.max_request_bytes);
    let mut examined = Examined { job, read, history: Some(History::default()) };
    if let Some(id) = examined.id() {
        let subject = shared.subjects.log(id.as_str());
        examined.history = match reader::after(&shared.jetstream, &subject, 0).await {
            Ok(records) => history_of(records),
            Err(fault @ ReadFault::Body(..)) => {
                tracing::error!(request_id = %id, %fault, "a log that no node wrote");
                None
            }
            Err(ReadFault::Unavailable(error)) => {
                tracing::debug!(request_id = %id, error, "a log is not read; its job comes again");
                return;
            }
        };
    }
    shared.say(Word::Examined(Box::new(examined)));
}

/// None for a log that no node can have written.
pub(super) fn history_of(records: Vec<StoredRecord>) -> Option<History> {
    let history = History::read(records);
    history.inspect_err(|broken| tracing::error!(%broken, "a log that no node wrote")).ok()
}
