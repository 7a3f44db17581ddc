//! A device that computes: the engine behind the bridge.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use crate::bridge::ffi::{
    Backend, Context, DeviceOptions, MemoryStats, ModelLimits, ModelPlan, StepBatch, StepOutput,
};
use crate::bridge::{DeviceError, ffi};
use crate::checkpoint::{Checkpoint, LoadFormat, TensorView};
use crate::gpu::{self, PrimaryContext};
use crate::memory;

use super::{Device, DeviceLoad, LoadStage, LoadState, LoadedModel, Pipeline, SeatBinding};
use crate::ids::ModelId;

/// Random weights are the same on every device and in every run.
const DUMMY_SEED: u64 = 0;

/// The engine's context; made, used and dropped on the executor's thread.
pub(super) struct EngineDevice {
    context: cxx::UniquePtr<Context>,
    /// Of a GPU; given back after what was made in it.
    _primary: Option<PrimaryContext>,
    backend: Backend,
    /// The engine's handles of loaded models, and of the one being loaded.
    handles: HashMap<ModelId, u32>,
    loading: Option<Loading>,
}

struct Loading {
    model: ModelId,
    plan: ModelPlan,
    checkpoint: Arc<Checkpoint>,
    /// The next tensor's index.
    next: usize,
    done_bytes: u64,
    /// Of the warm-up, run so far.
    done_steps: u32,
}

impl EngineDevice {
    /// # Errors
    /// `out_of_memory` if the pool cannot be reserved; `other` if the machine has not the instruction set.
    pub(super) fn on_cpu(options: &DeviceOptions) -> Result<Self, DeviceError> {
        let device = Self::new(options, None)?;
        let DeviceOptions { num_threads, pool_bytes, .. } = *options;
        let isa = device.context.isa();
        tracing::debug!(?isa, threads = num_threads, pool_bytes, "CPU device is up");
        Ok(device)
    }

    /// # Errors
    /// `out_of_memory` if the pool cannot be reserved; `other` if the machine has not the card.
    pub(super) fn on_gpu(ordinal: u32, options: &DeviceOptions) -> Result<Self, DeviceError> {
        let primary = gpu::enter(ordinal).map_err(DeviceError::other)?;
        let device = Self::new(options, Some(primary))?;
        tracing::debug!(ordinal, pool_bytes = options.pool_bytes, "GPU device is up");
        Ok(device)
    }

    fn new(options: &DeviceOptions, primary: Option<PrimaryContext>) -> Result<Self, DeviceError> {
        let context = ffi::new_context(options)?;
        let backend = options.backend;
        Ok(Self { context, _primary: primary, backend, handles: HashMap::new(), loading: None })
    }

    fn handle(&self, model: ModelId) -> Result<u32, DeviceError> {
        self.handles
            .get(&model)
            .copied()
            .ok_or_else(|| DeviceError::other(format!("model {} is not on this device", model.0)))
    }

    /// The next part of the warm-up, when all weights are there.
    fn finish(&mut self, mut loading: Loading) -> Result<LoadState, DeviceError> {
        let steps_left = self.context.pin_mut().finish_model_part(loading.plan.model)?;
        if steps_left > 0 {
            loading.done_steps += 1;
            let total_steps = loading.done_steps + steps_left;
            let stage = LoadStage::WarmUp { done_steps: loading.done_steps, total_steps };
            self.loading = Some(loading);
            return Ok(LoadState::More(stage));
        }
        Ok(LoadState::Done(LoadedModel {
            num_blocks: loading.plan.num_blocks,
            weight_bytes: loading.plan.weight_bytes,
            kv_bytes: loading.plan.kv_bytes,
            memory: self.context.memory_stats()?,
        }))
    }
}

/// Hands what a tensor becomes to a model of the engine.
///
/// # Errors
/// What of the values contradicts the checkpoint's configuration, or the engine's reason to refuse them.
pub fn load_tensor(
    mut engine: Pin<&mut Context>,
    model: u32,
    tensor: TensorView<'_>,
) -> Result<(), DeviceError> {
    for part in tensor.parts() {
        let part = part.map_err(|error| DeviceError::other(error.to_string()))?;
        engine.as_mut().set_tensor(model, &part.slot, &part.rows()).map_err(|error| {
            let error = DeviceError::from(error);
            let message = format!("tensor {}: {}", tensor.expected.name, error.message);
            DeviceError { message, ..error }
        })?;
    }
    Ok(())
}

impl Device for EngineDevice {
    fn begin_load(&mut self, load: DeviceLoad) -> Result<(), DeviceError> {
        let budget = &load.budget;
        let limits = ModelLimits {
            block_size: budget.block_size,
            kv_bytes: budget.kv_bytes,
            max_batch_size: budget.max_batch_size,
            max_step_tokens: budget.max_step_tokens,
            max_seq_len: budget.max_seq_len,
            end_token_ids: load.checkpoint.end_token_ids().to_vec(),
        };
        let spec = load.checkpoint.decoder().spec_for(budget.max_seq_len);
        let spec = memory::spec_on(self.backend, spec)?;
        let plan = self.context.pin_mut().add_model(&spec, &limits)?;
        self.handles.insert(load.model, plan.model);
        self.loading = Some(Loading {
            model: load.model,
            plan,
            checkpoint: load.checkpoint,
            next: 0,
            done_bytes: 0,
            done_steps: 0,
        });
        Ok(())
    }

    fn load_next(&mut self, model: ModelId) -> Result<LoadState, DeviceError> {
        let Some(mut loading) = self.loading.take().filter(|loading| loading.model == model) else {
            return Err(DeviceError::other(format!("model {} is not being loaded", model.0)));
        };
        let total_bytes = loading.checkpoint.total_bytes();
        if loading.checkpoint.load_format() == LoadFormat::Dummy {
            if loading.next == 0 {
                self.context.pin_mut().fill_random(loading.plan.model, DUMMY_SEED)?;
                loading.next = 1;
            }
            return self.finish(loading);
        }
        let Some(tensor) = loading.checkpoint.tensor(loading.next) else {
            return self.finish(loading);
        };
        load_tensor(self.context.pin_mut(), loading.plan.model, tensor)?;
        loading.done_bytes += tensor.data.len() as u64;
        loading.checkpoint.release(loading.next);
        loading.next += 1;
        let stage = LoadStage::Weights { done_bytes: loading.done_bytes, total_bytes };
        self.loading = Some(loading);
        Ok(LoadState::More(stage))
    }

    fn unload(&mut self, model: ModelId) -> Result<(), DeviceError> {
        let handle = self.handle(model)?;
        self.handles.remove(&model);
        self.loading = self.loading.take().filter(|loading| loading.model != model);
        Ok(self.context.pin_mut().remove_model(handle)?)
    }

    fn bind(&mut self, model: ModelId, binding: &SeatBinding) -> Result<(), DeviceError> {
        let handle = self.handle(model)?;
        let SeatBinding { seat, sampler, num_prompt_tokens, token_ids } = binding;
        let prompt_len = *num_prompt_tokens;
        Ok(self.context.pin_mut().bind_seat(handle, *seat, sampler, prompt_len, token_ids)?)
    }

    fn run(
        &mut self,
        model: ModelId,
        batch: &mut StepBatch,
        output: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        batch.model = self.handle(model)?;
        Ok(self.context.pin_mut().run_step(batch, output)?)
    }

    fn pipeline(&mut self) -> Option<&mut dyn Pipeline> {
        (self.context.max_in_flight() > 1).then_some(self as &mut dyn Pipeline)
    }

    fn memory(&self) -> Result<MemoryStats, DeviceError> {
        Ok(self.context.memory_stats()?)
    }
}

impl Pipeline for EngineDevice {
    fn submit(&mut self, model: ModelId, batch: &mut StepBatch) -> Result<(), DeviceError> {
        batch.model = self.handle(model)?;
        Ok(self.context.pin_mut().submit_step(batch)?)
    }

    fn has_ended(&mut self) -> Result<bool, DeviceError> {
        Ok(self.context.pin_mut().step_has_ended()?)
    }

    fn take(&mut self, output: &mut StepOutput) -> Result<(), DeviceError> {
        Ok(self.context.pin_mut().take_step(output)?)
    }
}
