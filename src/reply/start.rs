//! What a stream is made with.

use std::sync::Arc;

use super::prompt::PromptShown;
use crate::clock::Timestamp;
use crate::request::{Handle, SampleSoFar, Sink};
use crate::telemetry::Metrics;
use crate::tokenizer::IncrementalDecoder;

/// The right to be in the node; dropping it gives the right back.
pub trait Permit: Send {
    /// The request is on a device. Comes again after each [`returned`](Self::returned).
    fn scheduled(&mut self);
    /// Its device has failed: it waits for one again, with all its tokens, because their KV has gone with the device.
    fn returned(&mut self);
    /// So many more tokens are done for it, the prompt's with the first.
    fn computed(&mut self, tokens: u32);
}

/// What a stream is made with.
pub struct StreamStart {
    /// How others reach the request.
    pub handle: Arc<Handle>,
    /// Where the answer goes.
    pub sink: Box<dyn Sink>,
    /// Of the completion, with the prompt behind it.
    pub decoder: IncrementalDecoder,
    /// Checked stop strings.
    pub stop: Vec<String>,
    /// The stop string, or the token, that ends the completion is shown.
    pub include_stop: bool,
    /// Events say how likely each token was, with so many alternatives; none: not even that.
    pub num_logprobs: Option<u32>,
    /// What goes back of the prompt, if anything does.
    pub prompt: Option<PromptShown>,
    /// What the completion has already.
    pub begun: SampleSoFar,
    /// The number of the start that this is, counted from 1.
    pub attempt: u32,
    /// So many tokens come before a stop string counts.
    pub min_tokens: u32,
    /// False: one event with everything.
    pub stream: bool,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// When the door had the request; all times count from here.
    pub accepted_at: Timestamp,
    /// For the receipt.
    pub node_id: Arc<str>,
    /// Where its times and end are counted.
    pub metrics: Arc<Metrics>,
    /// Dropped at the end.
    pub permit: Box<dyn Permit>,
}
