//! From a device's name to the device: what is decided before its thread starts, and what is made on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bridge::DeviceError;
use crate::bridge::ffi::{DeviceOptions, MemoryStats};
use crate::gpu;

use super::Device;
use super::config::Config;
use super::cost_model::CostModel;
use super::engine_device::EngineDevice;
use super::faults::{FaultPlan, FaultyDevice};
use super::sim_device::SimDevice;
use crate::ids::DeviceId;
use crate::ids::DeviceKind;

/// Threads that copy a checkpoint into the memory from which a GPU fetches it; a few keep up with its bus.
const GPU_COPY_THREADS: u32 = 8;

/// Makes one device, again after every failure. Cheap to clone; the clones share the fault plan.
#[derive(Clone)]
pub struct Maker(Arc<dyn Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync>);

impl Maker {
    /// For a device of the configuration. Reads the cost model of a `sim` device now, so that a bad file stops the start.
    ///
    /// # Errors
    /// One line that names the key.
    pub fn new(config: &Config, device: &DeviceId, pool_bytes: u64) -> Result<Self, String> {
        let plan = FaultPlan::of(device, &config.faults);
        let (kind, number) = DeviceKind::parse(device.as_str())?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let bare: Arc<dyn Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync> = match kind {
            DeviceKind::Cpu => {
                let threads = config.threads_per_device(cores);
                let mut options = DeviceOptions::cpu(threads, config.isa.into(), pool_bytes);
                options.attention = config.attention_backend.into();
                Arc::new(move || Ok(Box::new(EngineDevice::on_cpu(&options)?)))
            }
            DeviceKind::Sim => {
                let costs = match &config.sim_cost_model {
                    Some(path) => CostModel::read(path)
                        .map_err(|error| format!("executor.sim_cost_model: {error}"))?,
                    None => CostModel::default(),
                };
                Arc::new(move || Ok(Box::new(SimDevice::new(costs.clone(), pool_bytes))))
            }
            DeviceKind::Cuda if !gpu::BUILT_IN => {
                return Err(format!("{device}: this build has no CUDA; use cpu:0"));
            }
            DeviceKind::Cuda => {
                let threads = cores.min(GPU_COPY_THREADS);
                let mut options = DeviceOptions::cuda(threads, pool_bytes);
                options.attention = config.attention_backend.into();
                options.deterministic = config.deterministic;
                Arc::new(move || Ok(Box::new(EngineDevice::on_gpu(number, &options)?)))
            }
        };
        if plan.is_empty() {
            return Ok(Self(bare));
        }
        tracing::warn!(device = %device, "faults will be injected on this device");
        Ok(Self(Arc::new(move || {
            Ok(Box::new(FaultyDevice { device: bare()?, plan: Arc::clone(&plan) }))
        })))
    }

    /// Of a device that the caller brings (tests).
    pub fn from_fn(
        make: impl Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(make))
    }

    /// Makes it, on the thread that will use and drop it.
    pub(super) fn make(&self) -> Result<Box<dyn Device>, DeviceError> {
        (self.0)()
    }
}

/// A device's memory pool as last seen, for whoever asks from another thread.
#[derive(Debug, Clone, Default)]
pub struct MemoryReading(Arc<[AtomicU64; 2]>);

impl MemoryReading {
    /// Nothing reserved yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes the pool's state.
    pub fn set(&self, stats: &MemoryStats) {
        self.0[0].store(stats.reserved_bytes, Ordering::Relaxed);
        self.0[1].store(stats.used_bytes, Ordering::Relaxed);
    }

    /// The pool.
    pub fn reserved_bytes(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// What is taken of it.
    pub fn used_bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// Bytes that are reserved and not used.
    pub fn free_bytes(&self) -> u64 {
        self.reserved_bytes().saturating_sub(self.used_bytes())
    }
}
