//! The devices of this machine, and what of a model fits on each.

use serde::Serialize;

use super::{DecoderSpec, StepLimits};
use crate::bridge::DeviceError;
use crate::bridge::ffi::{Backend, MemoryNeed};
use crate::gpu;
use crate::ids::DeviceId;
use crate::memory::{
    ALIGNMENT_SLACK, KvDtype, MemorySizes, ModelNeed, available_bytes, engine_need, plan, spec_on,
    widened,
};

/// A device that this machine has.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceHere {
    /// As the configuration names it.
    pub id: DeviceId,
    /// Of a GPU: what it is.
    pub card: Option<gpu::Card>,
    /// Why no model can be put there.
    pub refused: Option<String>,
    /// What nobody has taken at this moment.
    pub free_bytes: u64,
    /// What a node reserves there if nothing is configured; absent where that follows from the model.
    pub pool_bytes: Option<u64>,
    /// Of a step there, by the default configuration.
    pub limits: StepLimits,
}

/// Every device of this machine: GPUs, those too that cannot be used, then the processor.
pub fn devices_here() -> Vec<DeviceHere> {
    let cards = (0..).zip(gpu::cards().unwrap_or_default());
    let gpus = cards.map(|(ordinal, card)| DeviceHere::gpu(ordinal, card, gpu::memory(ordinal)));
    let cpu = available_bytes().map(|free_bytes| DeviceHere {
        id: DeviceId::new("cpu:0"),
        card: None,
        refused: None,
        free_bytes,
        pool_bytes: None,
        limits: default_limits(Backend::Cpu),
    });
    gpus.chain(cpu).collect()
}

/// What a device has for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The device's name, as in the configuration.
    pub device: DeviceId,
    /// Of a GPU: name, PCI bus id and NUMA node.
    #[serde(flatten)]
    pub card: Option<gpu::Card>,
    /// What it has free now.
    pub free_bytes: u64,
    /// Why the engine does not run the model there, whatever the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Codes that are held in 16 bits there, for lack of kernels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_in_16_bits: Vec<String>,
    /// What the weights take there, in the engine's layout.
    pub weight_bytes: u64,
    /// Scratch of a step.
    pub workspace_bytes: u64,
    /// Whether weights and workspace fit into what a node may take there.
    pub fits: bool,
    /// What is missing for that.
    pub short_bytes: u64,
    /// Tokens whose keys and values fit into what is then left, in whole blocks.
    pub kv_tokens: u64,
    /// How many sequences of `max_seq_len` that is.
    pub sequences: u64,
    /// The KV cache in tokens that a node takes if nothing is configured.
    pub kv_tokens_by_default: u64,
}

impl DeviceHere {
    /// A GPU, and what was read of its memory or why that failed.
    pub(super) fn gpu(ordinal: u32, card: &gpu::Card, memory: Result<gpu::Memory, String>) -> Self {
        let unreadable = memory.as_ref().err().cloned();
        Self {
            id: DeviceId::new(&format!("cuda:{ordinal}")),
            card: Some(card.clone()),
            refused: card.why_not().or(unreadable),
            free_bytes: memory.as_ref().map_or(0, |memory| memory.free_bytes),
            // A full card gives nothing.
            pool_bytes: Some(memory.and_then(gpu::pool_of).unwrap_or(0)),
            limits: default_limits(Backend::Cuda),
        }
    }

    /// What of a model fits.
    pub fn fit(&self, spec: &DecoderSpec, max_seq_len: u32) -> Fit {
        let need = match &self.refused {
            Some(reason) => Err(reason.clone()),
            None => self.check_codes(spec).and_then(|()| {
                engine_need(spec, &self.limits, max_seq_len).map_err(|error| error.message)
            }),
        };
        match need {
            Ok(need) => {
                let widened = widened(self.limits.backend, spec).unwrap_or_default();
                let held_in_16_bits = widened.iter().map(ToString::to_string).collect();
                Fit { held_in_16_bits, ..self.fit_of(&need, max_seq_len) }
            }
            Err(reason) => {
                let refused = Some(reason);
                Fit { refused, fits: false, ..self.fit_of(&MemoryNeed::default(), max_seq_len) }
            }
        }
    }

    /// As the engine does once it has the card.
    fn check_codes(&self, spec: &DecoderSpec) -> Result<(), String> {
        let Some(card) = &self.card else { return Ok(()) };
        let (major, minor) = card.capability;
        let held = spec_on(self.limits.backend, spec.clone()).map_err(|error| error.message)?;
        if held.has_codes() && major != 9 {
            return Err(format!(
                "weights: quantized ones want a GPU of compute capability 9.0, got {major}.{minor}"
            ));
        }
        Ok(())
    }

    fn fit_of(&self, need: &MemoryNeed, max_seq_len: u32) -> Fit {
        let fixed_bytes = need.weight_bytes + need.workspace_bytes + ALIGNMENT_SLACK;
        let usable = self.pool_bytes.unwrap_or(self.free_bytes);
        let block_size = u64::from(self.limits.block_size);
        let blocks_of = |bytes: u64| bytes.checked_div(need.kv_bytes_per_block).unwrap_or(0);
        let blocks = blocks_of(usable.saturating_sub(fixed_bytes));
        let per_sequence = u64::from(max_seq_len).div_ceil(block_size);
        let min_kv_bytes = need.kv_bytes_per_block.saturating_mul(per_sequence);
        let wish_kv_bytes = min_kv_bytes.saturating_mul(self.limits.max_batch_size.into());
        let wanted = ModelNeed { fixed_bytes, min_kv_bytes, wish_kv_bytes };
        let sizes = MemorySizes { pool_bytes: self.pool_bytes, kv_bytes: None };
        let default = plan(&[wanted], sizes, self.free_bytes, 1);
        Fit {
            device: self.id.clone(),
            card: self.card.clone(),
            free_bytes: self.free_bytes,
            refused: None,
            held_in_16_bits: Vec::new(),
            weight_bytes: need.weight_bytes,
            workspace_bytes: need.workspace_bytes,
            fits: usable >= fixed_bytes,
            short_bytes: fixed_bytes.saturating_sub(usable),
            kv_tokens: blocks * block_size,
            sequences: blocks / per_sequence,
            kv_tokens_by_default: default.kv_bytes.iter().map(|kv| blocks_of(*kv)).sum::<u64>()
                * block_size,
        }
    }
}

/// Keys and values of one token in the checkpoint's element type, by the engine's reckoning.
///
/// # Errors
/// For a decoder that the engine does not run.
pub(super) fn kv_bytes_per_token(spec: &DecoderSpec, max_seq_len: u32) -> Result<u64, DeviceError> {
    let limits = default_limits(Backend::Cpu);
    let need = engine_need(spec, &limits, max_seq_len)?;
    Ok(need.kv_bytes_per_block / u64::from(limits.block_size))
}

/// Of a node with nothing configured.
fn default_limits(backend: Backend) -> StepLimits {
    let batcher = crate::batcher::Config::default();
    let (max_batch_size, max_step_tokens) = batcher.largest_step(backend == Backend::Cuda);
    StepLimits {
        block_size: batcher.block_size,
        max_batch_size,
        max_step_tokens,
        num_threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        backend,
        kv_dtype: KvDtype::Auto,
    }
}
