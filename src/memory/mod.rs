//! How much memory models need, by the engine's own reckoning, and the rule by which the pool is sized and shared.
//!
//! The rule, for a CPU whose pool size is not configured (a GPU's is what its card can give, `gpu.rs`): the sum over the
//! configured models of weights, workspace and KV cache. The KV cache of a model is what `max_batch_size` sequences of `max_seq_len`
//! take, at least one sequence's; all KV caches together take at most half of the memory that is available when the node starts, and at
//! most 4 GiB, the small wishes served first. A device whose pool size is configured shares what weights and workspaces leave in the
//! same way. With no model configured the pool is half of the available memory (the CPU backend takes pages only when they are used).

use crate::bridge::DeviceError;
use crate::bridge::ffi::{Backend, DeviceOptions, Isa, MemoryNeed, ModelLimits, required_bytes};
use crate::bridge::spec::DecoderSpec;

mod byte_size;
mod held;
mod kv_dtype;
mod pool_size;

pub use byte_size::{ByteSize, rounded};
pub use held::{WidenedCodes, spec_on, widened};
pub use kv_dtype::KvDtype;
pub use pool_size::PoolSize;

/// The pool takes whole units of this.
const ALIGNMENT: u64 = 256;
/// What the alignment of a model's ranges may cost, generously.
pub(crate) const ALIGNMENT_SLACK: u64 = 64 << 10;
/// Share of the available memory that all KV caches may take together: one part in this many.
const KV_SHARE: u64 = 2;
/// The most that they take unless told so: models are made for contexts that a laptop's users do not fill.
const MAX_KV_BYTES: u64 = 4 << 30;

/// What memory depends on beside the model: limits of a step, and how KV is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Positions of one KV block.
    pub block_size: u32,
    /// Most sequences in one step.
    pub max_batch_size: u32,
    /// Most tokens in one step.
    pub max_step_tokens: u32,
    /// Threads of a CPU device: each has its own scratch for sampling.
    pub num_threads: u32,
    /// What kind of device computes.
    pub backend: Backend,
    /// How checkpoints are opened: the reckoning itself takes the decoder's own type.
    pub kv_dtype: KvDtype,
}

/// What a model may take on a device (see `ModelLimits` at the border).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelBudget {
    /// Positions of one KV block.
    pub block_size: u32,
    /// Bytes for KV blocks.
    pub kv_bytes: u64,
    /// Most sequences in one step.
    pub max_batch_size: u32,
    /// Most tokens in one step.
    pub max_step_tokens: u32,
    /// Most positions of one sequence.
    pub max_seq_len: u32,
}

/// Of a device that is not made: what its kind takes.
fn engine_options(backend: Backend, num_threads: u32) -> DeviceOptions {
    DeviceOptions { backend, ..DeviceOptions::cpu(num_threads, Isa::Auto, 0) }
}

/// What the engine takes for a model.
///
/// # Errors
/// `other`, naming the field, for a decoder that the engine does not run.
pub fn engine_need(
    spec: &DecoderSpec,
    limits: &StepLimits,
    max_seq_len: u32,
) -> Result<MemoryNeed, DeviceError> {
    let limits_of_model = ModelLimits {
        block_size: limits.block_size,
        kv_bytes: 0,
        max_batch_size: limits.max_batch_size,
        max_step_tokens: limits.max_step_tokens,
        max_seq_len,
        end_token_ids: Vec::new(),
    };
    let options = engine_options(limits.backend, limits.num_threads);
    Ok(required_bytes(&options, &spec_on(limits.backend, spec.clone())?, &limits_of_model)?)
}

/// What one model asks of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelNeed {
    /// Weights and workspace.
    pub fixed_bytes: u64,
    /// KV cache of one sequence of full length.
    pub min_kv_bytes: u64,
    /// KV cache of a full batch of sequences of full length.
    pub wish_kv_bytes: u64,
}

impl ModelNeed {
    /// Of a model.
    ///
    /// # Errors
    /// As [`engine_need`].
    pub fn of(
        spec: &DecoderSpec,
        limits: &StepLimits,
        max_seq_len: u32,
    ) -> Result<Self, DeviceError> {
        let need = engine_need(spec, limits, max_seq_len)?;
        let blocks = u64::from(max_seq_len.div_ceil(limits.block_size.max(1)));
        let min_kv_bytes = need.kv_bytes_per_block.saturating_mul(blocks);
        Ok(Self {
            fixed_bytes: need
                .weight_bytes
                .saturating_add(need.workspace_bytes)
                .saturating_add(ALIGNMENT_SLACK),
            min_kv_bytes,
            wish_kv_bytes: min_kv_bytes.saturating_mul(u64::from(limits.max_batch_size.max(1))),
        })
    }

    /// The same with a KV cache of exactly so much.
    #[must_use]
    pub fn with_kv_bytes(self, kv_bytes: u64) -> Self {
        Self { min_kv_bytes: kv_bytes, wish_kv_bytes: kv_bytes, ..self }
    }

    /// The same with a smaller wish, not below what it needs.
    #[must_use]
    pub fn with_wish(self, kv_bytes: u64) -> Self {
        let wish_kv_bytes = kv_bytes.max(self.min_kv_bytes);
        Self { wish_kv_bytes, ..self }
    }

    /// What a model with such a KV cache gives back when it goes.
    pub fn taken_bytes(&self, kv_bytes: u64) -> u64 {
        self.fixed_bytes.saturating_sub(ALIGNMENT_SLACK).saturating_add(kv_bytes)
    }

    /// Less than this, and it does not run.
    pub fn least_bytes(&self) -> u64 {
        self.fixed_bytes.saturating_add(self.min_kv_bytes)
    }
}

/// What the configuration says about memory; `None` is the rule above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySizes {
    /// The pool of each device.
    pub pool_bytes: Option<u64>,
    /// The KV cache of each model on each device.
    pub kv_bytes: Option<u64>,
}

/// The pool of each device and who gets what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The one reservation of each device.
    pub pool_bytes: u64,
    /// KV cache of each model, in the order of the needs.
    pub kv_bytes: Vec<u64>,
}

/// Sizes the pool of each of `num_devices` devices, which share `available_bytes` of the machine.
pub fn plan(
    needs: &[ModelNeed],
    sizes: MemorySizes,
    available_bytes: u64,
    num_devices: u64,
) -> MemoryPlan {
    let available = available_bytes / num_devices.max(1);
    let fixed = needs.iter().fold(0_u64, |sum, need| sum.saturating_add(need.fixed_bytes));
    let for_kv = match sizes.pool_bytes {
        Some(pool) => pool.saturating_sub(fixed),
        None => (available / KV_SHARE).min(MAX_KV_BYTES),
    };
    let kv_bytes = match sizes.kv_bytes {
        Some(configured) => vec![configured; needs.len()],
        None => share(needs, for_kv),
    };
    let kv_sum = kv_bytes.iter().fold(0_u64, |sum, kv| sum.saturating_add(*kv));
    let pool_bytes = sizes.pool_bytes.unwrap_or_else(|| {
        if needs.is_empty() { available / 2 } else { fixed.saturating_add(kv_sum) }
    });
    MemoryPlan { pool_bytes: pool_bytes.next_multiple_of(ALIGNMENT), kv_bytes }
}

/// Shares `bytes` so that small wishes are served whole and the others get equal parts of the rest. No model gets less than
/// one sequence needs: if that does not fit, loading says so.
fn share(needs: &[ModelNeed], bytes: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|&index| needs[index].wish_kv_bytes);
    let mut left = bytes;
    let mut shares = vec![0; needs.len()];
    for (done, &index) in order.iter().enumerate() {
        let equal = left / (needs.len() - done) as u64;
        let need = &needs[index];
        shares[index] = need.wish_kv_bytes.min(equal).max(need.min_kv_bytes);
        left = left.saturating_sub(shares[index]);
    }
    shares
}

/// What a model gets of a pool with `free_bytes`: its wish, as far as they reach. `None` if not even the least fits.
pub fn kv_that_fits(need: &ModelNeed, free_bytes: u64) -> Option<u64> {
    let left = free_bytes.checked_sub(need.fixed_bytes)?;
    (left >= need.min_kv_bytes).then(|| need.wish_kv_bytes.min(left))
}

/// The budget of a model on a device.
pub fn budget(limits: &StepLimits, kv_bytes: u64, max_seq_len: u32) -> ModelBudget {
    ModelBudget {
        block_size: limits.block_size,
        kv_bytes,
        max_batch_size: limits.max_batch_size,
        max_step_tokens: limits.max_step_tokens,
        max_seq_len,
    }
}

/// Memory that this machine (or its container) can still give, in bytes: the smaller of `MemAvailable` and what the memory
/// control group leaves. `None` where neither can be read.
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    });
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|limit| limit.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    match (machine, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(fixed: u64, min: u64, wish: u64) -> ModelNeed {
        ModelNeed { fixed_bytes: fixed, min_kv_bytes: min, wish_kv_bytes: wish }
    }

    #[test]
    fn the_pool_is_what_the_models_need_while_memory_lasts() {
        let needs = [need(1000, 10, 100), need(2000, 20, 200)];
        let plan = plan(&needs, MemorySizes::default(), 1 << 30, 1);
        assert_eq!(plan.kv_bytes, [100, 200]);
        assert_eq!(plan.pool_bytes, 3300_u64.next_multiple_of(256));
    }

    #[test]
    fn all_kv_together_takes_half_of_what_is_available_and_small_wishes_come_first() {
        let needs = [need(0, 10, 1000), need(0, 10, 50), need(0, 10, 1000)];
        let plan = plan(&needs, MemorySizes::default(), 1000, 1);
        assert_eq!(plan.kv_bytes, [225, 50, 225]);
        assert_eq!(plan.pool_bytes, 500_u64.next_multiple_of(256));
    }

    #[test]
    fn a_huge_context_takes_four_gibibytes_or_one_sequence() {
        let kv = |min: u64, wish: u64| {
            plan(&[need(0, min, wish)], MemorySizes::default(), 1 << 40, 1).kv_bytes[0]
        };
        assert_eq!(kv(1 << 30, 32 << 30), 4 << 30);
        assert_eq!(kv(1 << 30, 2 << 30), 2 << 30);
        assert_eq!(kv(17 << 30, 544 << 30), 17 << 30);
    }

    #[test]
    fn devices_share_the_machine() {
        let needs = [need(0, 10, 1000)];
        assert_eq!(plan(&needs, MemorySizes::default(), 1000, 2).kv_bytes, [250]);
    }

    #[test]
    fn no_model_gets_less_than_one_sequence() {
        let needs = [need(0, 400, 1000), need(0, 10, 1000)];
        assert_eq!(plan(&needs, MemorySizes::default(), 200, 1).kv_bytes[0], 400);
    }

    #[test]
    fn configured_sizes_are_kept() {
        let needs = [need(512, 8, 4096), need(256, 8, 4096)];
        let sizes = MemorySizes { pool_bytes: Some(1024), kv_bytes: None };
        let shared = plan(&needs, sizes, 1 << 40, 1);
        assert_eq!((shared.pool_bytes, shared.kv_bytes), (1024, vec![128, 128]));
        let sizes = MemorySizes { pool_bytes: None, kv_bytes: Some(640) };
        let fixed = plan(&needs, sizes, 0, 1);
        assert_eq!((fixed.pool_bytes, fixed.kv_bytes), (2048, vec![640, 640]));
    }

    #[test]
    fn without_models_the_pool_is_half_of_the_machine() {
        assert_eq!(plan(&[], MemorySizes::default(), 4096, 1).pool_bytes, 2048);
    }

    #[test]
    fn a_model_takes_what_is_free_or_nothing() {
        let need = need(100, 10, 50);
        assert_eq!(kv_that_fits(&need, 1000), Some(50));
        assert_eq!(kv_that_fits(&need, 120), Some(20));
        assert_eq!(kv_that_fits(&need, 109), None);
        assert_eq!(kv_that_fits(&need, 9), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().is_none_or(|bytes| bytes > 0));
    }
}
