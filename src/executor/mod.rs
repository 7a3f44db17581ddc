//! Executor: one per device, on its own OS thread; owns the device, runs steps, decides nothing.
//!
//! Accepts [`RunStep`], [`LoadModel`], [`UnloadModel`]; answers each step with a [`StepDone`] to the batcher, in order. Two steps at
//! most are in its mailbox. After a failed step (an exception or a panic, caught here) the device's memory is not trusted any more:
//! every further step is answered with [`StepFailure::Skipped`] until the node rebuilds the device. A model is loaded tensor by tensor
//! between steps, so those of other models go on.
//!
//! The node makes a device with [`Maker::new`] and starts its executor with [`start`].

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::bridge::ffi::{MemoryStats, SamplerSpec, StepBatch, StepOutput};
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::checkpoint::Checkpoint;
use crate::clock::Timestamp;
use crate::ids::ModelId;
use crate::memory::ModelBudget;

mod actor;
mod config;
mod cost_fit;
mod cost_model;
mod engine_device;
mod exactness;
mod faults;
mod maker;
mod sim_device;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use actor::{Executor, ExecutorHandle, ExecutorStart, start};
pub use config::{Config, Fault, FaultKind, GpuDevices, IsaChoice};
pub use cost_fit::CostFit;
pub use cost_model::{CostModel, StepWork};
pub use engine_device::load_tensor;
pub use faults::FaultPlan;
pub use maker::{Maker, MemoryReading};

/// Runs one step of one model.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RunStep {
    /// The batcher's number of the step, growing.
    pub step: u64,
    /// The model whose weights and blocks the step uses.
    pub model: ModelId,
    /// Sequences that got a seat since the step before; bound before this one runs.
    pub bindings: Vec<SeatBinding>,
    /// The flat arrays; `batch.model` is filled in by the executor.
    pub batch: Box<StepBatch>,
    /// For the answer: whatever is in it is overwritten, and its arrays keep their memory.
    pub output: Box<StepOutput>,
}

/// A sequence's sampler for its seat. What the seat was bound to before is forgotten.
#[derive(Debug, Clone, PartialEq)]
pub struct SeatBinding {
    /// Which seat of the model's.
    pub seat: u32,
    /// What the sequence wants.
    pub sampler: Arc<SamplerSpec>,
    /// How many of `token_ids` are the prompt.
    pub num_prompt_tokens: u32,
    /// All tokens so far: after a pre-emption or a failure some of the completion are known.
    pub token_ids: Vec<u32>,
}

/// A step's answer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StepDone {
    /// The number given.
    pub step: u64,
    /// What was sampled and how long the device took, or why not.
    pub result: Result<Box<StepOutput>, StepFailure>,
    /// The arrays, to be filled again.
    pub batch: Box<StepBatch>,
    /// When it was done.
    pub ended: Timestamp,
}

/// Why a step gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepFailure {
    /// The engine threw.
    #[error("device error: {0}")]
    Device(DeviceError),
    /// The executor panicked.
    #[error("panic: {0}")]
    Panic(String),
    /// Not run: a step before it failed.
    #[error("not run, a step before it failed")]
    Skipped,
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStage {
    /// Weights are copied.
    Weights {
        /// Copied so far.
        done_bytes: u64,
        /// To be copied.
        total_bytes: u64,
    },
    /// The weights are there; steps are run so that the first requests do not pay for them, and on a GPU graphs are recorded.
    WarmUp {
        /// Run so far.
        done_steps: u32,
        /// To be run.
        total_steps: u32,
    },
}

/// Told how far a load is. Called on the executor's thread; must not block.
pub type LoadProgress = Arc<dyn Fn(LoadStage) + Send + Sync>;

/// Loads a checkpoint onto the device.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LoadModel {
    /// The name for later messages.
    pub model: ModelId,
    /// The mapped files.
    pub checkpoint: Arc<Checkpoint>,
    /// What it may take.
    pub limits: ModelBudget,
    /// Told after every part.
    pub progress: Option<LoadProgress>,
    /// The answer; dropped unanswered if the device has failed meanwhile and is to be rebuilt.
    pub done: oneshot::Sender<Result<LoadedModel, DeviceError>>,
}

/// What a model took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedModel {
    /// KV blocks to be given out.
    pub num_blocks: u32,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes of KV blocks.
    pub kv_bytes: u64,
    /// The pool after loading.
    pub memory: MemoryStats,
}

/// Gives a model's memory back. The batcher has no step of it in flight.
#[derive(Message)]
#[rtype(result = "()")]
pub struct UnloadModel {
    /// The model to unload.
    pub model: ModelId,
    /// The answer: the pool after that; dropped unanswered as with [`LoadModel`].
    pub done: oneshot::Sender<Result<MemoryStats, DeviceError>>,
}

/// What the executor needs of a device; `cpu` is the engine, `sim` a cost model. Lives on one thread.
pub trait Device {
    /// Takes memory for a model. One load at a time; after an error of it or of `load_next`, [`Device::unload`] clears up.
    ///
    /// # Errors
    /// `out_of_memory` if the pool has not enough; `other` for a shape that the engine does not run.
    fn begin_load(&mut self, load: DeviceLoad) -> Result<(), DeviceError>;
    /// Does the next part of a load that was begun: a tensor, a step of the warm-up.
    ///
    /// # Errors
    /// Names the tensor.
    fn load_next(&mut self, model: ModelId) -> Result<LoadState, DeviceError>;
    /// Gives a model's memory back, loaded or half loaded.
    ///
    /// # Errors
    /// `other` if the model is not there.
    fn unload(&mut self, model: ModelId) -> Result<(), DeviceError>;
    /// Binds a seat, for the steps that are run or submitted from here on.
    ///
    /// # Errors
    /// As [`Device::run`].
    fn bind(&mut self, model: ModelId, binding: &SeatBinding) -> Result<(), DeviceError>;
    /// Runs one step; `output` is overwritten.
    ///
    /// # Errors
    /// Whatever the engine threw; the device's memory is not to be trusted then.
    fn run(
        &mut self,
        model: ModelId,
        batch: &mut StepBatch,
        output: &mut StepOutput,
    ) -> Result<(), DeviceError>;
    /// Where the device computes beside this thread: its steps by halves, two under way at most. `None`: only [`Device::run`].
    fn pipeline(&mut self) -> Option<&mut dyn Pipeline> {
        None
    }
    /// The memory pool's state.
    ///
    /// # Errors
    /// Whatever the engine threw.
    fn memory(&self) -> Result<MemoryStats, DeviceError>;
}

/// A device that runs one step while the next is handed over. Errors are those of [`Device::run`].
pub trait Pipeline {
    /// Starts a step.
    ///
    /// # Errors
    /// As [`Device::run`].
    fn submit(&mut self, model: ModelId, batch: &mut StepBatch) -> Result<(), DeviceError>;
    /// Whether [`Pipeline::take`] would not wait.
    ///
    /// # Errors
    /// As [`Device::run`].
    fn has_ended(&mut self) -> Result<bool, DeviceError>;
    /// Waits for the oldest step; `output` is overwritten.
    ///
    /// # Errors
    /// As [`Device::run`].
    fn take(&mut self, output: &mut StepOutput) -> Result<(), DeviceError>;
}

/// The arguments of [`Device::begin_load`].
pub struct DeviceLoad {
    /// The name for later calls.
    pub model: ModelId,
    /// The mapped files.
    pub checkpoint: Arc<Checkpoint>,
    /// What it may take.
    pub budget: ModelBudget,
}

/// What a part of a load came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadState {
    /// Call again.
    More(LoadStage),
    /// Steps may follow.
    Done(LoadedModel),
}

impl DeviceError {
    /// An error of ours at the device's border.
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: DeviceErrorCode::Other, message: message.into() }
    }
}
