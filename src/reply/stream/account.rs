//! What a request's end says of it: why, how many tokens, what it cost.

use super::Stream;
use crate::clock::Timestamp;
use crate::request::{Ended, FinishReason, Receipt, Usage};

impl Stream {
    pub(super) fn ended(&self, reason: FinishReason) -> Ended {
        Ended { reason, completion_tokens: self.num_tokens }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.num_prompt_tokens,
            completion_tokens: self.num_tokens,
            total_tokens: self.num_prompt_tokens.saturating_add(self.num_tokens),
            cached_tokens: self.cached_tokens,
        }
    }

    pub(super) fn receipt(&self, now: Timestamp) -> Receipt {
        Receipt {
            node_id: self.node_id.as_ref().to_owned(),
            device: self.device.as_ref().map_or_else(String::new, |d| d.as_str().to_owned()),
            attempt: self.attempt,
            queue_ms: self.times.queue_ms(now),
            prefill_ms: self.times.prefill_ms(now),
            decode_ms: self.times.decode_ms(),
            cached_tokens: self.cached_tokens,
            prefill_tokens: self.num_prompt_tokens - self.cached_tokens,
            exact: None,
        }
    }
}
