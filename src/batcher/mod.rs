//! Batcher: one per device, on its own arbiter; owns the running sequences, the KV blocks and the prefix cache of its device.
//!
//! Accepts [`Assign`] from the scheduler, [`StepDone`](crate::executor::StepDone) from its executor, [`AddModel`] and
//! [`RemoveModel`] from models, [`Attach`], [`SweepLanes`] and [`Depart`] from the node. Tells the scheduler its [`Credit`]. Forms steps
//! under one budget of tokens and time shared by decodes and prefill chunks; two at most in flight.
//!
//! `actor.rs` and `mailboxes.rs` are the shell. [`StepLoop`] is what happens after every event, whoever the neighbours are.
//! [`Batching`] is the policy: it shares the steps out over lanes (one per model), a lane chooses its rows (`plan.rs`), `kv/` keeps
//! blocks and prefix cache.

use std::sync::Arc;
use std::time::Duration;

use actix::{Message, Recipient};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::executor::{LoadedModel, RunStep};
use crate::ids::{DeviceId, ModelId};
use crate::memory::ModelBudget;
use crate::reply::SharedStream;
use crate::sequence::Sequence;
use crate::settings;

mod actor;
mod gathering;
mod kv;
mod lane;
mod mailboxes;
mod newcomers;
mod plan;
mod policy;
#[cfg(test)]
pub(crate) mod probe;
mod seated;
mod settle;
mod step_batch;
mod step_budget;
mod step_gap;
mod step_loop;
#[cfg(test)]
mod tests;
mod unsent;

pub use actor::{Batcher, BatcherStart};
pub use lane::LaneSpec;
pub use mailboxes::Links;
pub use policy::{Batching, Defect, MAX_STEPS_IN_FLIGHT, Occupancy, PlannedStep, Refused};
pub use seated::{Departure, Output, Started};
pub use step_loop::{Failure, StepLoop, Turn};
pub use unsent::{Neighbours, Sent, Unsent};

/// Gives a sequence to the device. Sent only within the device's credit.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Assign {
    /// What to run.
    pub sequence: Sequence,
    /// Where its tokens go.
    pub stream: SharedStream,
}

/// What a device can take of one model, sent whenever it changes; replaces the credit sent before.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Credit {
    /// The device that has the credit.
    pub device: DeviceId,
    /// Which build of the device's actors.
    pub generation: u64,
    /// The model that it is for.
    pub model: ModelId,
    /// Assignments received so far from the scheduler: those sent since are still to be subtracted.
    pub assigned: u64,
    /// Free seats.
    pub seats: u32,
    /// Free or evictable KV blocks, those promised to sequences that are here taken off.
    pub free_blocks: u32,
    /// All KV blocks of the model: what needs more can never run here.
    pub total_blocks: u32,
    /// Positions of one block.
    pub block_size: u32,
    /// Completion tokens that the memory estimate of a newcomer counts with (see [`blocks_needed`](crate::sequence::blocks_needed)).
    pub reserve_tokens: u32,
    /// False while the model is being removed from this device.
    pub open: bool,
}

/// Sequences of a device that failed; they wait again, with what they have generated. Those that failed twice are not here.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Returned {
    /// The device that they come from.
    pub device: DeviceId,
    /// With their streams.
    pub sequences: Vec<(Sequence, SharedStream)>,
}

/// A model's weights are on the device.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AddModel {
    /// The model that was loaded.
    pub model: ModelId,
    /// What metrics and the log call it.
    pub name: Arc<str>,
    /// What it may take in a step.
    pub budget: ModelBudget,
    /// Its KV blocks and its memory on the device.
    pub loaded: LoadedModel,
    /// The widest window of its layers, where every layer has one.
    pub window: Option<u32>,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
}

/// Stops giving credit for a model; answers when the last sequence of it has left and no step of it is in flight.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RemoveModel {
    /// The model to give up.
    pub model: ModelId,
    /// The answer.
    pub done: oneshot::Sender<()>,
}

/// Ends sequences that were cancelled at once, not with the next step: there may be none.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SweepLanes;

/// The device's actors are to end: everything is given back, as after a failure, and no step is formed any more. Answers when all
/// that was to be sent has left.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Depart {
    /// Why, for the log.
    pub reason: &'static str,
    /// The answer.
    pub done: oneshot::Sender<()>,
}

/// The executor, which is started after its batcher because it answers to it. No step is formed before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Attach {
    /// Where steps go.
    pub executor: Recipient<RunStep>,
}

/// The device's actors are to be built again. Sent to the node, once, after the sequences went back to the scheduler.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct DeviceFailed {
    /// The device that failed.
    pub device: DeviceId,
    /// Which build of its actors, so that a late message does not hit the next one.
    pub generation: u64,
    /// For log and health.
    pub reason: String,
    /// The process must restart for this device to work again.
    pub sticky: bool,
}

/// Settings of every batcher: section `[batcher]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most sequences of one model that run at once. More give more tokens/s and a longer gap between two tokens
    /// of each. Absent: 32, on GPUs 256.
    #[serde(alias = "max_num_seqs")]
    #[schemars(range(min = 1, max = 4_096), extend("x-aliases" = ["max_num_seqs"]))]
    pub max_batch_size: Option<u32>,
    /// Most tokens of one step, decodes and prefill chunks together, at least `max_batch_size`. More
    /// prefill faster; the running sequences wait for the longest step, but see `step_time_target_ms`. Absent: 512, on GPUs
    /// 2,048.
    #[serde(alias = "max_num_batched_tokens")]
    #[schemars(range(min = 1, max = 1_048_576), extend("x-aliases" = ["max_num_batched_tokens"]))]
    pub max_step_tokens: Option<u32>,
    /// Milliseconds that a step is to take while sequences decode in it: the gap between two of their tokens. Prompts get
    /// what is left of it, by what steps cost on this device, which is fitted while it runs. Less means shorter gaps and
    /// more steps for a prompt. A step takes longer where decodes alone need more than half of it, and where for each sequence
    /// that decodes more than four wait for their prompts. 0: no bound but `max_step_tokens`.
    #[schemars(range(max = 60_000))]
    pub step_time_target_ms: u32,
    /// Positions of one KV block (a power of two, on GPUs 16 to 128). Smaller blocks waste less and share more; tables
    /// grow longer.
    #[schemars(range(min = 1, max = 256))]
    pub block_size: u32,
    /// Keep the KV of finished prompts for others that begin alike. Costs a hash per block and no memory that is needed
    /// elsewhere.
    #[serde(alias = "enable_prefix_caching")]
    #[schemars(extend("x-aliases" = ["enable_prefix_caching"]))]
    pub enable_prefix_cache: bool,
    /// Completion tokens counted for a new sequence beside its prompt (less if its `max_tokens` is less). More avoid
    /// pre-emption; fewer let more sequences run at once.
    #[schemars(range(max = 1_048_576))]
    pub reserve_tokens: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_batch_size: None,
            max_step_tokens: None,
            step_time_target_ms: 50,
            block_size: 16,
            enable_prefix_cache: true,
            reserve_tokens: 64,
        }
    }
}

impl Config {
    /// Most sequences and most tokens of a step, on a GPU or another device. What is not set gives way to what is: every running
    /// sequence decodes in every step, so the tokens must hold them all.
    pub fn largest_step(&self, on_gpu: bool) -> (u32, u32) {
        let (sequences, tokens) = if on_gpu { (256, 2_048) } else { (32, 512) };
        match (self.max_batch_size, self.max_step_tokens) {
            (Some(sequences), Some(tokens)) => (sequences, tokens),
            (Some(sequences), None) => (sequences, tokens.max(sequences)),
            (None, Some(tokens)) => (sequences.min(tokens), tokens),
            (None, None) => (sequences, tokens),
        }
    }

    /// See [`Config::step_time_target_ms`]; none: a step takes the time that its tokens take.
    pub fn step_time_target(&self) -> Option<Duration> {
        let target = Duration::from_millis(self.step_time_target_ms.into());
        (!target.is_zero()).then_some(target)
    }

    /// Whether every value is in range, for a node on GPUs or on other devices.
    ///
    /// # Errors
    /// One line for each wrong key: its name, what is expected and what was given.
    pub fn check(&self, on_gpu: bool) -> Result<(), Vec<String>> {
        let mut wrong = settings::out_of_range("batcher", self);
        let (sequences, tokens) = self.largest_step(on_gpu);
        if tokens < sequences {
            wrong.push(format!(
                "batcher.max_step_tokens: expected at least max_batch_size ({sequences}), got {tokens}"
            ));
        }
        // As `cpp/ops/attention/cuda/attention_cuda.cu` has it.
        let (least, most) = if on_gpu { (16, 128) } else { (1, 256) };
        let in_range = |size: &u32| (1..=256).contains(size); // else it is said above
        let fits = self.block_size.is_power_of_two() && (least..=most).contains(&self.block_size);
        if in_range(&self.block_size) && !fits {
            let (got, place) = (self.block_size, if on_gpu { "on GPUs " } else { "" });
            wrong.push(format!(
                "batcher.block_size: expected {place}a power of two from {least} to {most}, got {got}"
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}
