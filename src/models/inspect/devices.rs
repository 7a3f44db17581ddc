//! The devices of this machine, and what of a model fits on each.

use serde::Serialize;

use super::{ModelShape, StepLimits};
use crate::bridge::DeviceError;
use crate::executor::DeviceId;
use crate::models::memory::{
    ALIGNMENT_SLACK, MemorySizes, ModelNeed, available_bytes, engine_need, plan,
};
use crate::{batcher, executor};

/// A device that this machine has.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceHere {
    /// As the configuration names it.
    pub id: DeviceId,
    /// What a model could take of it now.
    pub free_bytes: u64,
    /// Of a step there, by the default configuration.
    pub limits: StepLimits,
}

/// Every device of this machine that a model could be put on; one whose memory cannot be read is left out.
pub fn devices_here() -> Vec<DeviceHere> {
    let cpu = available_bytes().map(|free_bytes| DeviceHere {
        id: DeviceId::new("cpu:0"),
        free_bytes,
        limits: default_limits(),
    });
    cpu.into_iter().collect()
}

/// What a device has for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Which device.
    pub device: DeviceId,
    /// What it has free now.
    pub free_bytes: u64,
    /// What the weights take there, in the engine's layout.
    pub weight_bytes: u64,
    /// Scratch of a step.
    pub workspace_bytes: u64,
    /// Whether weights and workspace fit.
    pub fits: bool,
    /// Tokens whose keys and values fit into what is then left, in whole blocks.
    pub kv_tokens: u64,
    /// How many sequences of `max_seq_len` that is.
    pub sequences: u64,
    /// The KV cache in tokens that a node takes if nothing is configured.
    pub kv_tokens_by_default: u64,
}

impl DeviceHere {
    /// What of a model of this shape fits.
    ///
    /// # Errors
    /// For a shape that the engine does not run.
    pub fn fit(&self, shape: &ModelShape, max_seq_len: u32) -> Result<Fit, DeviceError> {
        let need = engine_need(shape, &self.limits, max_seq_len)?;
        let fixed = need.weight_bytes + need.workspace_bytes + ALIGNMENT_SLACK;
        let left = self.free_bytes.checked_sub(fixed);
        let block_size = u64::from(self.limits.block_size);
        let blocks = left.unwrap_or(0) / need.kv_bytes_per_block.max(1);
        let wanted = ModelNeed::of(shape, &self.limits, max_seq_len)?;
        let default = plan(&[wanted], MemorySizes::default(), self.free_bytes, 1);
        let default_bytes = default.kv_bytes.first().copied().unwrap_or(0);
        Ok(Fit {
            device: self.id.clone(),
            free_bytes: self.free_bytes,
            weight_bytes: need.weight_bytes,
            workspace_bytes: need.workspace_bytes,
            fits: left.is_some(),
            kv_tokens: blocks * block_size,
            sequences: blocks / u64::from(max_seq_len).div_ceil(block_size),
            kv_tokens_by_default: default_bytes / need.kv_bytes_per_block.max(1) * block_size,
        })
    }
}

/// Keys and values of one token, by the engine's reckoning.
pub(super) fn kv_bytes_per_token(shape: &ModelShape, max_seq_len: u32) -> Result<u64, DeviceError> {
    let limits = default_limits();
    let need = engine_need(shape, &limits, max_seq_len)?;
    Ok(need.kv_bytes_per_block / u64::from(limits.block_size))
}

/// Of a node with nothing configured.
fn default_limits() -> StepLimits {
    let batcher = batcher::Config::default();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    StepLimits {
        block_size: batcher.block_size,
        max_batch_size: batcher.max_batch_size,
        max_step_tokens: batcher.max_step_tokens,
        num_threads: executor::Config::default().threads_per_device(cores),
    }
}
