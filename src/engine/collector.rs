//! The events of one request become one answer.

use std::time::Duration;

use super::Answer;
use crate::error::{Error, Kind, Result};
use crate::request::{Event, FinishReason, Receipt, RequestId, TokenLogprob, Usage};

/// Gathers events into an [`Answer`].
#[derive(Default)]
pub(super) struct Collector {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Option<Vec<TokenLogprob>>,
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    last: Option<(FinishReason, Usage, Receipt)>,
}

impl Collector {
    /// Takes the next event; true after the last one.
    pub(super) fn take(&mut self, event: Event) -> Result<bool> {
        self.text.push_str(&event.text);
        self.token_ids.extend(event.token_ids);
        if let Some(entries) = event.logprobs {
            self.logprobs.get_or_insert_default().extend(entries);
        }
        if let Some(entries) = event.prompt_logprobs {
            self.prompt_logprobs.get_or_insert_default().extend(entries);
        }
        match event.finish_reason {
            None => Ok(false),
            Some(FinishReason::Failed) => {
                Err(event.error.unwrap_or_else(|| Error::internal("failed without an error")))
            }
            Some(FinishReason::Cancelled) => Err(Error::new(Kind::Cancelled, "cancelled")),
            Some(reason) => {
                let usage = event.usage.unwrap_or_default();
                self.last = Some((reason, usage, event.receipt.unwrap_or_default()));
                Ok(true)
            }
        }
    }

    pub(super) fn finish(self, request_id: RequestId, latency: Duration) -> Result<Answer> {
        let (finish_reason, usage, receipt) =
            self.last.ok_or_else(|| Error::internal("no last event"))?;
        Ok(Answer {
            request_id,
            generated_text: self.text,
            token_ids: self.token_ids,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            finish_reason,
            usage,
            latency,
            receipt,
        })
    }
}
