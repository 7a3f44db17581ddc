//! One request's stream: sampled ids in, events out. (Placeholder: counts and ends, nothing more.)

use crate::clock::Timestamp;
use crate::error::Error;
use crate::executor::DeviceId;
use crate::request::FinishReason;

/// What a stream is made with.
pub struct StreamStart;

/// See the module.
#[derive(Default)]
pub struct Stream {
    attempt: u32,
    taken: u32,
    ended: Option<FinishReason>,
}

#[allow(missing_docs)]
impl Stream {
    pub fn scheduled(&mut self, _: &DeviceId, _: u32, _: Timestamp) {}

    pub fn push(
        &mut self,
        attempt: u32,
        token_ids: &[u32],
        finish: Option<FinishReason>,
        _: Timestamp,
    ) {
        if attempt >= self.attempt && self.ended.is_none() {
            self.taken += token_ids.len() as u32;
            self.ended = finish;
        }
    }

    pub fn cancel(&mut self, _: Timestamp) {
        self.ended.get_or_insert(FinishReason::Cancelled);
    }

    pub fn fail(&mut self, _: Error, _: Timestamp) {
        self.ended.get_or_insert(FinishReason::Failed);
    }

    pub fn restart(&mut self, attempt: u32) -> u32 {
        self.attempt = attempt;
        self.taken
    }

    pub fn ended(&self) -> Option<FinishReason> {
        self.ended
    }
}
