//! A completion that was begun elsewhere.

use super::Stream;
use crate::clock::Timestamp;
use crate::request::{FinishReason, SampleSoFar};

impl Stream {
    /// Takes in what the completion has already. Of a stream, events have gone out with it; of text that could be shown and was not
    /// told, the next event has the rest.
    pub(super) fn bring(&mut self, begun: &SampleSoFar) {
        self.take_in(&begun.tokens, begun.tokens.len());
        self.num_tokens = begun.tokens.len() as u32;
        self.num_brought = self.num_tokens;
        if self.streams {
            let mut text = String::new();
            self.text.take_shown(&mut text);
            self.text.take_logprobs();
            self.next.clear();
            let told = begun.text_len.unwrap_or(usize::MAX).min(text.len());
            self.next.text.push_str(text.get(told..).unwrap_or_default());
        }
    }

    /// What it came with is the whole completion.
    pub fn end_as_brought(&mut self, reason: FinishReason, now: Timestamp) {
        self.finish(reason, None, now);
    }
}
