//! What a request has behind it when it comes.

use super::{FinishReason, Token};

/// Nothing, or the beginning of a completion that was made elsewhere. It goes on as if it had been made here: the events that follow
/// begin at the next token, and an answer in one piece has all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SoFar {
    /// One for each of the request's samples that has begun, in their order; none for those behind the last that has.
    pub samples: Vec<SampleSoFar>,
    /// The number of the start that this is, counted from 1; events say it.
    pub attempt: u32,
    /// A start before this one ended without a token: the request may be why, so it runs alone until it has got further.
    pub is_suspect: bool,
}

/// What there is of one completion.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleSoFar {
    /// Its tokens, with their scores where the request wants log probabilities and one answer, or the best of several.
    pub tokens: Vec<Token>,
    /// Bytes of its text that its client has, where it streams, the prompt's echo included. None: all that could be shown.
    pub text_len: Option<usize>,
    /// Log probabilities of the prompt's tokens that its client has.
    pub prompt_logprobs_told: usize,
    /// It has ended.
    pub finish_reason: Option<FinishReason>,
}

impl Default for SoFar {
    fn default() -> Self {
        Self { samples: Vec::new(), attempt: 1, is_suspect: false }
    }
}

impl SoFar {
    /// Of a request with one sample.
    pub fn of(begun: SampleSoFar, attempt: u32) -> Self {
        Self { samples: vec![begun], attempt, is_suspect: false }
    }

    /// What there is of a sample.
    pub fn sample(&self, index: usize) -> SampleSoFar {
        self.samples.get(index).cloned().unwrap_or_default()
    }
}
