//! The events of one request become one answer.

use std::time::Duration;

use super::{Answer, Choice};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::request::{Event, FinishReason, Receipt, Usage};

/// Gathers events into an [`Answer`].
#[derive(Default)]
pub(super) struct Collector {
    choices: Vec<Choice>,
    last: Option<(Usage, Receipt)>,
}

impl Collector {
    /// Takes the next event; true after the last one.
    pub(super) fn take(&mut self, event: Event) -> Result<bool> {
        let index = event.index as usize;
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, Choice::default);
        }
        let choice = &mut self.choices[index];
        choice.generated_text.push_str(&event.text);
        choice.token_ids.extend(event.token_ids);
        if let Some(entries) = event.logprobs {
            choice.logprobs.get_or_insert_default().extend(entries);
        }
        if let Some(entries) = event.prompt_logprobs {
            choice.prompt_logprobs.get_or_insert_default().extend(entries);
        }
        match event.finish_reason {
            Some(FinishReason::Failed) => {
                let unsaid = || Error::internal("failed without an error");
                return Err(event.error.map_or_else(unsaid, |error| *error));
            }
            Some(FinishReason::Cancelled) => return Err(Error::new(Kind::Cancelled, "cancelled")),
            Some(reason) => choice.finish_reason = Some(reason),
            None => {}
        }
        self.last = event.usage.map(|usage| (usage, *event.receipt.unwrap_or_default()));
        Ok(self.last.is_some())
    }

    pub(super) fn finish(self, request_id: RequestId, latency: Duration) -> Result<Answer> {
        let lost = || Error::internal("no last event");
        let (usage, receipt) = self.last.ok_or_else(lost)?;
        let mut choices = self.choices.into_iter();
        let first = choices.next().ok_or_else(lost)?;
        Ok(Answer {
            request_id,
            generated_text: first.generated_text,
            token_ids: first.token_ids,
            logprobs: first.logprobs,
            prompt_logprobs: first.prompt_logprobs,
            finish_reason: first.finish_reason.ok_or_else(lost)?,
            usage,
            latency,
            receipt,
            others: choices.collect(),
        })
    }
}
