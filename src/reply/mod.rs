//! Reply: one per device, on its own arbiter; turns sampled ids into events.
//!
//! Accepts one [`Deliver`] per step for all its sequences. What belongs to one request (incremental detokenizer, stop strings,
//! timings, sink) is its [`Stream`], which travels with the sequence; the actor itself has no state that could be lost. A stream whose
//! last owner drops it unfinished ends as failed, so no accepted request is ever silent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Message;

use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::request::{FinishReason, Scores, Token};

mod actor;
mod prompt;
mod samples;
mod start;
mod stop;
mod stream;
mod text;
mod times;

pub use actor::{MAILBOX_CAPACITY, Reply};
pub use prompt::PromptShown;
pub use samples::{Best, Sample, SamplesStart};
pub use start::{Permit, StreamStart};
pub use stop::{StopMatch, StopMatcher};
pub use stream::Stream;

/// A request's stream, shared by its sequence (wherever that is) and the deliveries under way.
pub type SharedStream = Arc<Mutex<Stream>>;

/// A stream under its lock. One that panicked keeps its counts; its end is still to be told.
pub(crate) fn lock(stream: &SharedStream) -> MutexGuard<'_, Stream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one step gave all its sequences.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver {
    /// One for every sequence with something new.
    pub deliveries: Vec<Delivery>,
    /// When the step ended on the device.
    pub at: Timestamp,
}

/// What one step gave one sequence. `S` is the sequence's stream, or what a simulator has in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery<S = SharedStream> {
    /// The stream of the sequence.
    pub stream: S,
    /// The start the token belongs to; a stream that has started again ignores an older one.
    pub attempt: u32,
    /// Of the prompt's tokens from the second on, once, with the first token or the finish in its place; empty where nobody wants them.
    pub prompt_scores: Vec<Scores>,
    /// None with a finish alone.
    pub token: Option<Token>,
    /// Set in the last one, when the batcher knows the end (end token, length, cancel, fault).
    pub finish: Option<FinishReason>,
    /// Why it failed.
    pub fault: Option<RowFault>,
}

impl<S> Delivery<S> {
    /// An end without a token.
    pub fn end(stream: S, attempt: u32, finish: FinishReason) -> Self {
        Self {
            stream,
            attempt,
            prompt_scores: Vec::new(),
            token: None,
            finish: Some(finish),
            fault: None,
        }
    }
}

/// Why no token could be sampled for a sequence. It ends that sequence alone: the step and the device are sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFault {
    /// The model's logits are no numbers.
    NotANumber,
    /// Those for the prompt, which is scored, are none.
    PromptNotANumber,
    /// What the request bans and allows leaves no token.
    NothingLeft,
}

impl RowFault {
    /// What the client is told; `position` is the token's index in the completion.
    pub fn error(self, position: u32) -> Error {
        match self {
            RowFault::NotANumber => Error::internal(format!(
                "the model's logits for token {position} of the completion are not numbers (NaN or infinite)"
            )),
            RowFault::PromptNotANumber => Error::internal(
                "the model's logits for the prompt are not numbers (NaN or infinite)",
            ),
            RowFault::NothingLeft => Error::new(
                Kind::Invalid,
                format!(
                    "no token is left to sample as token {position} of the completion: allowed and banned tokens, bad words, \
                     logit_bias and min_tokens together exclude every one"
                ),
            ),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
