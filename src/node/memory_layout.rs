//! How much memory the devices reserve.

use std::collections::BTreeMap;

use crate::bridge::ffi::Backend;
use crate::checkpoint::HubCache;
use crate::config::Config;
use crate::memory::{self, MemorySizes, StepLimits};
use crate::{gpu, models};

/// What the devices reserve, from the configuration and the checkpoints' `config.json`.
pub(super) struct MemoryLayout {
    pub hub: HubCache,
    pub limits: StepLimits,
    pub pool_bytes: u64,
    pub kv_bytes: BTreeMap<String, u64>,
}

impl MemoryLayout {
    pub fn plan(config: &Config) -> Result<Self, String> {
        let hub = HubCache::from_env();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let backend = config.executor.backend();
        let (max_batch_size, max_step_tokens) =
            config.batcher.largest_step(backend == Backend::Cuda);
        let limits = StepLimits {
            block_size: config.batcher.block_size,
            max_batch_size,
            max_step_tokens,
            num_threads: config.executor.threads_per_device(cores),
            backend,
            kv_dtype: config.executor.kv_dtype,
        };
        if config.executor.takes_any_gpu() {
            for gpu in gpu::left_out() {
                tracing::warn!(gpu, "executor.gpu_devices = \"auto\" leaves a GPU out");
            }
            if let Some(reason) = gpu::why_none() {
                tracing::warn!(reason, "no GPU, so the devices are cpu:0");
            }
        }
        let devices = config.executor.device_ids().len();
        let configured = config.executor.memory_pool_size;
        let sizes = MemorySizes {
            pool_bytes: match config.executor.gpu_ordinals() {
                gpus if gpus.is_empty() => configured.map(|size| {
                    size.of(memory::available_bytes().unwrap_or(u64::MAX) / devices as u64)
                }),
                gpus => Some(gpu::pool_bytes(&gpus, configured)?),
            },
            kv_bytes: config.executor.kv_cache_size.map(|size| size.0),
        };
        let plan = models::plan_memory(&config.models, &hub, &limits, sizes, devices)?;
        let names = config.models.iter().map(|model| model.name.clone());
        let kv_bytes = names.zip(plan.kv_bytes).collect();
        Ok(Self { hub, limits, pool_bytes: plan.pool_bytes, kv_bytes })
    }
}
