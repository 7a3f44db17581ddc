//! What an answer cost: usage and receipt, over all its choices.

use serde::Serialize;

use super::choices::{Finished, TokensSoFar};
use crate::request::{Receipt, Usage};

/// Usage and receipt of an answer: the sum over its choices.
#[derive(Debug, Default)]
pub struct Bill {
    usage: Usage,
    receipt: Option<Box<Receipt>>,
}

impl Bill {
    /// Adds a choice, which has its prompt's usage and receipt if it is the last of that.
    pub fn add(&mut self, finished: &mut Finished) {
        let (sum, usage) = (&mut self.usage, &finished.usage);
        sum.prompt_tokens += usage.prompt_tokens;
        sum.completion_tokens += usage.completion_tokens;
        sum.total_tokens += usage.total_tokens;
        sum.cached_tokens += usage.cached_tokens;
        Receipt::join(&mut self.receipt, finished.receipt.take());
    }

    /// Tokens that were sampled.
    pub fn completion_tokens(&self) -> u32 {
        self.usage.completion_tokens
    }

    /// The tokens, as OpenAI's clients read them.
    pub fn usage(&self) -> WireUsage {
        (&self.usage).into()
    }

    /// What the stages said it cost.
    pub fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_deref()
    }
}

/// OpenAI's `usage` object.
#[derive(Serialize)]
pub struct WireUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<&Usage> for WireUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens,
            prompt_tokens_details: Some(PromptDetails { cached_tokens: usage.cached_tokens }),
        }
    }
}

/// As vLLM counts in mid-stream: what was found in the prefix cache is not known yet.
impl From<TokensSoFar> for WireUsage {
    fn from(TokensSoFar { prompt_tokens, completion_tokens }: TokensSoFar) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
        }
    }
}

/// An end of a choice, for the tests of bill and wire.
#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::request::FinishReason;

    pub(in crate::http) fn finished(device: &str, queue_ms: f64) -> Finished {
        Finished {
            reason: FinishReason::Length,
            usage: Usage {
                prompt_tokens: 3,
                completion_tokens: 2,
                total_tokens: 5,
                cached_tokens: 1,
            },
            receipt: Some(Box::new(Receipt {
                node_id: "n".to_owned(),
                device: device.to_owned(),
                attempt: 1,
                queue_ms,
                prefill_ms: 1.0,
                decode_ms: 2.0,
                cached_tokens: 1,
                prefill_tokens: 2,
                exact: None,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::finished;
    use super::*;

    #[test]
    fn a_bill_adds_up_and_names_every_device_once() {
        let mut bill = Bill::default();
        for (device, queue_ms) in [("cpu:0", 1.0), ("cpu:1", 4.0), ("cpu:0", 2.0)] {
            bill.add(&mut finished(device, queue_ms));
        }
        bill.add(&mut Finished { receipt: None, ..finished("", 0.0) });
        assert_eq!((bill.usage.total_tokens, bill.usage.cached_tokens), (20, 4));
        let receipt = bill.receipt.expect("three receipts");
        assert_eq!(receipt.device, "cpu:0,cpu:1");
        assert_eq!((receipt.queue_ms, receipt.prefill_ms, receipt.decode_ms), (4.0, 3.0, 6.0));
    }
}
