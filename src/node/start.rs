//! Starts a node: every actor in one place, last stage first, then the doors.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use actix::{Actor, Addr, Arbiter, System};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{oneshot, watch};

use super::device::{DeviceActors, DeviceLinks, DeviceParts, DeviceProgress, Threads};
use super::supervisor::{Keep, Supervisor};
use super::{Handles, Phase};
use crate::admission::{self, Admission, Ledger};
use crate::bridge::ffi::Backend;
use crate::bus::{self, Bus};
use crate::checkpoint::HubCache;
use crate::config::Config;
use crate::door::RunningObserver;
use crate::executor::Maker;
use crate::gpu;
use crate::health::{Health, HealthMessage, Vitals};
use crate::http;
use crate::ids::RequestId;
use crate::memory;
use crate::memory::{MemorySizes, StepLimits};
use crate::models::{self, Models};
use crate::scheduler::{self, Scheduler};
use crate::telemetry::{self, Metrics};

/// Runs the node's actix system on this thread until the supervisor ends it.
pub(super) fn run_system(config: Config, started: oneshot::Sender<Result<Handles, String>>) {
    let system = System::new();
    let outcome = system.block_on(build(config));
    let is_up = outcome.is_ok();
    // A caller that left has dropped the node, which ends the supervisor too.
    let delivered = started.send(outcome).is_ok();
    if is_up
        && delivered
        && let Err(error) = system.run()
    {
        tracing::error!(%error, "the node's system ended badly");
    }
}

async fn build(config: Config) -> Result<Handles, String> {
    // Before the first handle is made, or it counts into nothing.
    let prometheus = telemetry::recorder()?;
    let node_id = config.node_id();
    let metrics = Arc::new(Metrics::new(&node_id));
    let vitals = Arc::new(Vitals::new(&node_id, config.health.limits(), metrics.clone()));
    vitals.set_models_wanted(config.models.len() as u32);
    let observer = Arc::new(LateObserver::default());
    let ledger = Ledger::new(vec![observer.clone()]);
    let memory = Memory::plan(&config)?;
    let (phase_sender, phase) = watch::channel(Phase::Loading);

    let Stages { threads, scheduler, admission } =
        Stages::start(&config, &node_id, &metrics, &vitals, ledger.clone())?;
    let supervisor =
        Supervisor::new(admission.clone(), ledger, vitals.clone(), phase_sender).start();
    let links = DeviceLinks {
        config: config.clone(),
        scheduler,
        failed: supervisor.clone().recipient(),
        metrics: metrics.clone(),
    };
    let devices = start_devices(&config, memory.pool_bytes, &vitals, &links).await?;
    let models = models::start(
        &threads.0[2].handle(),
        models::Start {
            hub: memory.hub,
            limits: memory.limits,
            kv_bytes: config.executor.kv_cache_size.map(|size| size.0),
            planned_kv_bytes: memory.kv_bytes,
            devices: devices
                .iter()
                .filter_map(|(parts, actors)| actors.handle(&parts.id))
                .collect(),
            model_up: supervisor.clone().recipient(),
            model_down: supervisor.clone().recipient(),
            failed: supervisor.clone().recipient(),
            vitals: vitals.clone(),
            progress: vitals.watch("models"),
        },
    );
    let doors = Doors::open(&config, &node_id, &metrics, &vitals, (&admission, &models)).await?;
    observer.set(doors.bus.observer());
    start_health(&threads.0[3], &vitals, &metrics, &doors.bus, prometheus);
    let http = doors.http.as_ref().map(http::Running::address);
    let nats = doors.bus.url().map(str::to_owned);
    let keep = Keep {
        links,
        devices,
        doors,
        models: models.clone(),
        specs: config.models.clone(),
        threads,
    };
    supervisor.send(keep).await.map_err(|error| error.to_string())?;
    Ok(Handles {
        drain_timeout: config.drain_timeout(),
        admission: admission.recipient(),
        node_id,
        models,
        supervisor,
        vitals,
        phase,
        http,
        nats,
    })
}

/// The stages that there is one of, started last first.
struct Stages {
    /// Of scheduler, admission, models, health.
    threads: Threads,
    scheduler: Addr<Scheduler>,
    admission: Addr<Admission>,
}

impl Stages {
    fn start(
        config: &Config,
        node_id: &str,
        metrics: &Arc<Metrics>,
        vitals: &Vitals,
        ledger: Arc<Ledger>,
    ) -> Result<Self, String> {
        let threads = Threads((0..4).map(|_| Arbiter::new()).collect());
        let scheduler = Scheduler::start_on(
            &threads.0[0].handle(),
            scheduler::Start {
                config: config.scheduler.clone(),
                metrics: metrics.clone(),
                progress: vitals.watch_waiting(),
            },
        );
        let admission = Admission::start(
            &threads.0[1].handle(),
            admission::Start {
                config: config.admission.clone(),
                node_id: node_id.to_owned(),
                expected_models: config.models.iter().map(|model| model.name.clone()).collect(),
                ledger,
                enqueue: scheduler.clone().recipient(),
                sweep: scheduler.clone().recipient(),
                metrics: metrics.clone(),
                progress: vitals.watch("admission"),
            },
        )
        .map_err(|error| format!("admission's threads: {error}"))?;
        Ok(Self { threads, scheduler, admission })
    }
}

/// Where requests come in.
pub(super) struct Doors {
    pub bus: Bus,
    pub http: Option<http::Running>,
}

impl Doors {
    async fn open(
        config: &Config,
        node_id: &str,
        metrics: &Arc<Metrics>,
        vitals: &Arc<Vitals>,
        inner: (&Addr<Admission>, &Addr<Models>),
    ) -> Result<Self, String> {
        let (admission, models) = inner;
        let prometheus = telemetry::recorder()?;
        let http = config.http.enabled.then(|| {
            http::start(
                &config.http,
                http::Deps {
                    admit: admission.clone().recipient(),
                    admit_all: admission.clone().recipient(),
                    cancel: admission.clone().recipient(),
                    models: models.clone().recipient(),
                    health: vitals.clone(),
                    prometheus,
                    metrics: metrics.clone(),
                },
            )
        });
        let http =
            http.transpose().map_err(|error| format!("http.bind {}: {error}", config.http.bind))?;
        let deps = bus::Deps {
            node_id: node_id.to_owned(),
            admit: admission.clone().recipient(),
            cancel: admission.clone().recipient(),
            metrics: metrics.clone(),
            progress: vitals.watch("bus"),
        };
        let bus = bus::start(&config.bus, deps).await.map_err(|error| error.to_string())?;
        Ok(Self { bus, http })
    }
}

/// What the devices reserve, from the configuration and the checkpoints' `config.json`.
struct Memory {
    hub: HubCache,
    limits: StepLimits,
    pool_bytes: u64,
    kv_bytes: BTreeMap<String, u64>,
}

impl Memory {
    fn plan(config: &Config) -> Result<Self, String> {
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

async fn start_devices(
    config: &Config,
    pool_bytes: u64,
    vitals: &Vitals,
    links: &DeviceLinks,
) -> Result<Vec<(DeviceParts, DeviceActors)>, String> {
    let mut devices = Vec::new();
    for id in config.executor.device_ids() {
        vitals.add_device(&id);
        let maker = Maker::new(&config.executor, &id, pool_bytes)?;
        let parts = DeviceParts { id, maker, progress: DeviceProgress::watch(vitals) };
        let started = DeviceActors::start(&parts, links, 1).await;
        let actors = started.map_err(|error| format!("device {}: {error}", parts.id))?;
        devices.push((parts, actors));
    }
    Ok(devices)
}

fn start_health(
    thread: &Arbiter,
    vitals: &Arc<Vitals>,
    metrics: &Arc<Metrics>,
    bus: &Bus,
    prometheus: PrometheusHandle,
) {
    let publisher = bus.health_publisher();
    let (vitals, metrics) = (vitals.clone(), metrics.clone());
    Health::start_in_arbiter(&thread.handle(), move |_| {
        let publish = Box::new(move |message: &HealthMessage| {
            publisher(message.to_json().into());
            // Or samples pile up where nobody reads /metrics.
            prometheus.run_upkeep();
        });
        Health::new(vitals, metrics, publish)
    });
}

/// Stands in for the bus's observer until the bus, which needs admission, is there.
#[derive(Default)]
struct LateObserver(OnceLock<Arc<dyn RunningObserver>>);

impl LateObserver {
    fn set(&self, observer: Arc<dyn RunningObserver>) {
        // Set once, by `build`.
        let _ = self.0.set(observer);
    }
}

impl RunningObserver for LateObserver {
    fn started(&self, id: &RequestId) {
        if let Some(observer) = self.0.get() {
            observer.started(id);
        }
    }

    fn ended(&self, id: &RequestId) {
        if let Some(observer) = self.0.get() {
            observer.ended(id);
        }
    }
}
