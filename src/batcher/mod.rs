//! Batcher: one per device, on its own arbiter; owns the running sequences, the KV blocks and the prefix cache of its device.
//!
//! Accepts [`Assign`] from the scheduler, [`StepDone`](crate::executor::StepDone) from its executor, [`AddModel`] and
//! [`RemoveModel`] from models. Forms steps under one token budget shared by decodes and prefill chunks; two at most in flight.

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::executor::{DeviceId, LoadedModel, ModelBudget, ModelId};
use crate::reply::SharedStream;
use crate::request::{Handle, SequenceId};

/// One token series being generated, as the policies see it.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Our id.
    pub id: SequenceId,
    /// Which model.
    pub model: ModelId,
    /// Prompt, then completion.
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: u32,
    /// The end is forced after so many completion tokens (already cut to the context).
    pub max_tokens: u32,
    /// No end token before so many.
    pub min_tokens: u32,
    /// End tokens do not end it.
    pub ignore_eos: bool,
    /// How it samples.
    pub sampling: Sampling,
    /// 0 to 255, 255 first.
    pub priority: u8,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Starts counted from 1; grows with every start after a failure.
    pub attempt: u32,
    /// Failed steps that it was part of.
    pub failed_steps: u32,
    /// Its flags: cancelled, stopped.
    pub handle: Arc<Handle>,
}

/// Checked sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// Above 0 to 1.
    pub top_p: f32,
    /// 0 to 1.
    pub min_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
}

/// Gives a sequence to the device. Sent only within the device's credit.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Assign {
    /// What to run.
    pub sequence: Sequence,
    /// Where its tokens go.
    pub stream: SharedStream,
}

/// A model's weights are on the device.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AddModel {
    /// Which.
    pub model: ModelId,
    /// What it may take in a step.
    pub budget: ModelBudget,
    /// What it has.
    pub loaded: LoadedModel,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
}

/// Stops giving credit for a model; answers when the last sequence of it has left and no step of it is in flight.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RemoveModel {
    /// Which.
    pub model: ModelId,
    /// The answer.
    pub done: oneshot::Sender<()>,
}

/// The device's actors are to be built again. Sent to the node, once, after the sequences went back to the scheduler.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct DeviceFailed {
    /// Which.
    pub device: DeviceId,
    /// Which build of its actors, so that a late message does not hit the next one.
    pub generation: u64,
    /// For log and health.
    pub reason: String,
    /// The process must restart for this device to work again.
    pub sticky: bool,
}

/// The actor.
pub struct Batcher;

impl actix::Actor for Batcher {
    type Context = actix::Context<Self>;
}

impl actix::Handler<Assign> for Batcher {
    type Result = ();

    fn handle(&mut self, _: Assign, _: &mut Self::Context) {}
}
