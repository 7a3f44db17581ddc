//! Starts a node: every actor in one place, last stage first, then the doors.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use actix::{Actor, Addr, System};
use tokio::sync::{oneshot, watch};

use super::device::{DeviceActors, DeviceLinks, DeviceParts, DeviceProgress, Threads};
use super::memory_layout::MemoryLayout;
use super::supervisor::{self, Keep, Supervisor};
use super::{Handles, Phase, Stopping};
use crate::admission::{self, Admission, Ledger};
use crate::bridge::ffi::Backend;
use crate::bus::{self, Bus, NodeFacts};
use crate::config::Config;
use crate::door::RunningObserver;
use crate::error::Error;
use crate::executor::Maker;
use crate::health::{Health, HealthMessage, Vitals};
use crate::http;
use crate::ids::RequestId;
use crate::lifeline::Lifelines;
use crate::models::{self, Models};
use crate::registrar::{MetricsPort, NodeTraits, PortDeps, Registrar, RegistrarStart};
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
    telemetry::recorder()?;
    let (phase_sender, phase) = watch::channel(Phase::Loading);
    let common = Common::new(config, phase_sender.clone());
    let observer = Arc::new(BusObserverSlot::default());
    let ledger = Ledger::new(vec![observer.clone()]);
    let memory = MemoryLayout::plan(&common.config)?;

    let mut threads = Threads::new(&common.lines);
    let scheduler = common.start_scheduler(&mut threads);
    let admission = common.start_admission(&mut threads, &scheduler, ledger.clone())?;
    let stopping = Stopping::default();
    let supervisor = Supervisor::new(supervisor::SupervisorStart {
        admission: admission.clone(),
        ledger: ledger.clone(),
        vitals: common.vitals.clone(),
        phase: phase_sender,
        stopping: stopping.clone(),
        alive: common.lines.hold("supervisor"),
        lines: common.lines.clone(),
    })
    .start();
    let links = DeviceLinks {
        config: common.config.clone(),
        scheduler,
        failed: supervisor.clone().recipient(),
        metrics: common.metrics.clone(),
        lines: common.lines.clone(),
    };
    let devices = common.start_devices(memory.pool_bytes, &links).await?;
    let models = common.start_models(&mut threads, memory, &devices, &supervisor);
    let doors = common.open_doors(&admission, &models, common.room(&ledger)).await?;
    observer.set(doors.bus.observer());
    common.start_health(&mut threads, &doors.bus)?;
    common.start_registrar(&mut threads, &doors)?;
    let http = doors.http.as_ref().map(http::Server::address);
    let nats = doors.bus.url().map(str::to_owned);
    let Common { config, vitals, .. } = common;
    let drain_timeout = config.drain_timeout();
    let keep =
        Keep { links, devices, doors, models: models.clone(), specs: config.models, threads };
    supervisor.send(keep).await.map_err(|error| error.to_string())?;
    Ok(Handles {
        drain_timeout,
        admission: admission.recipient(),
        models,
        supervisor,
        stopping,
        #[cfg(any(test, debug_assertions))]
        lines: common.lines,
        vitals,
        phase,
        http,
        nats,
    })
}

/// Where requests come in.
pub(super) struct Doors {
    pub bus: Bus,
    pub http: Option<http::Server>,
    /// No requests, but questions of load balancers how the node is.
    pub metrics_port: Option<MetricsPort>,
}

/// What every stage is started with.
struct Common {
    config: Config,
    metrics: Arc<Metrics>,
    vitals: Arc<Vitals>,
    lines: Lifelines,
}

impl Common {
    fn new(config: Config, phase: watch::Sender<Phase>) -> Self {
        let node_id = config.node_id();
        let metrics = Arc::new(Metrics::new(&node_id));
        let vitals = Arc::new(Vitals::new(&node_id, config.health.limits(), metrics.clone()));
        vitals.set_models_wanted(config.models.len() as u32);
        let lines = lifelines(&vitals, phase);
        Self { config, metrics, vitals, lines }
    }

    fn start_scheduler(&self, threads: &mut Threads) -> Addr<Scheduler> {
        Scheduler::start_on(
            &threads.start("scheduler"),
            scheduler::SchedulerStart {
                config: self.config.scheduler.clone(),
                metrics: self.metrics.clone(),
                progress: self.vitals.watch_waiting(),
                alive: self.lines.hold("scheduler actor"),
            },
        )
    }

    fn start_admission(
        &self,
        threads: &mut Threads,
        scheduler: &Addr<Scheduler>,
        ledger: Arc<Ledger>,
    ) -> Result<Addr<Admission>, String> {
        let models = self.config.models.iter();
        let started = Admission::start(
            &threads.start("admission"),
            admission::AdmissionStart {
                config: self.config.admission.clone(),
                node_id: self.vitals.node_id().to_owned(),
                expected_models: models.map(|model| model.name.clone()).collect(),
                ledger,
                enqueue: scheduler.clone().recipient(),
                sweep: scheduler.clone().recipient(),
                metrics: self.metrics.clone(),
                progress: self.vitals.watch("admission"),
                alive: self.lines.hold("admission actor"),
            },
        );
        started.map_err(|error| format!("admission's threads: {error}"))
    }

    async fn start_devices(
        &self,
        pool_bytes: u64,
        links: &DeviceLinks,
    ) -> Result<Vec<(DeviceParts, DeviceActors)>, String> {
        let mut devices = Vec::new();
        for id in self.config.executor.device_ids() {
            self.vitals.add_device(&id);
            let maker = Maker::new(&self.config.executor, &id, pool_bytes)?;
            let progress = DeviceProgress::watch(&self.vitals, &id);
            let parts = DeviceParts { id, maker, progress };
            let started = DeviceActors::start(&parts, links, 1).await;
            let actors = started.map_err(|error| format!("device {}: {error}", parts.id))?;
            devices.push((parts, actors));
        }
        Ok(devices)
    }

    fn start_models(
        &self,
        threads: &mut Threads,
        memory: MemoryLayout,
        devices: &[(DeviceParts, DeviceActors)],
        supervisor: &Addr<Supervisor>,
    ) -> Addr<Models> {
        let handles = devices.iter().filter_map(|(parts, actors)| actors.handle(&parts.id));
        models::start(
            &threads.start("models"),
            models::ModelsStart {
                hub: memory.hub,
                limits: memory.limits,
                kv_bytes: self.config.executor.kv_cache_size.map(|size| size.0),
                planned_kv_bytes: memory.kv_bytes,
                devices: handles.collect(),
                model_up: supervisor.clone().recipient(),
                model_down: supervisor.clone().recipient(),
                failed: supervisor.clone().recipient(),
                exactness: self.config.exactness(),
                vitals: self.vitals.clone(),
                progress: self.vitals.watch("models"),
            },
            self.lines.hold("models actor"),
        )
    }

    /// How many further requests the devices and the look-ahead have places for.
    fn room(&self, ledger: &Arc<Ledger>) -> Arc<dyn Fn() -> usize + Send + Sync> {
        let executor = &self.config.executor;
        let is_gpu = executor.backend() == Backend::Cuda;
        let (seats, _) = self.config.batcher.largest_step(is_gpu);
        let places = seats as usize * executor.device_ids().len();
        let most = places.min(self.config.admission.max_requests);
        let (ledger, look_ahead) = (ledger.clone(), self.config.log.look_ahead as usize);
        Arc::new(move || (most + look_ahead).saturating_sub(ledger.num_requests()))
    }

    async fn open_doors(
        &self,
        admission: &Addr<Admission>,
        models: &Addr<Models>,
        room: Arc<dyn Fn() -> usize + Send + Sync>,
    ) -> Result<Doors, String> {
        let config = &self.config;
        let prometheus = telemetry::recorder()?;
        let client = Arc::new(OnceLock::new());
        let http = config.http.enabled.then(|| {
            http::start(
                &config.http,
                http::HttpDeps {
                    admit: admission.clone().recipient(),
                    admit_all: admission.clone().recipient(),
                    cancel: admission.clone().recipient(),
                    models: models.clone().recipient(),
                    bus: client.clone(),
                    health: self.vitals.clone(),
                    prometheus,
                    metrics: self.metrics.clone(),
                },
                self.lines.hold("HTTP server"),
            )
        });
        let http =
            http.transpose().map_err(|error| format!("http.bind {}: {error}", config.http.bind))?;
        let metrics_port = config.registrar.is_on().then(|| self.open_metrics_port()).transpose();
        let metrics_port = metrics_port.inspect_err(|_| self.lines.release())?;
        let deps = bus::BusDeps {
            vitals: self.vitals.clone(),
            admit: admission.clone().recipient(),
            cancel: admission.clone().recipient(),
            log: config.log.clone(),
            facts: facts(config, http.as_ref().map(http::Server::address)),
            room,
            metrics: self.metrics.clone(),
        };
        let bus = bus::start(&config.bus, deps, self.lines.hold("bus")).await;
        // Or HTTP, which ends with a start that fails, would say so before the cause is said.
        let bus = bus.inspect_err(|_| self.lines.release()).map_err(|error| error.to_string())?;
        if let Some(own) = bus.client() {
            // Set once, here.
            let _ = client.set(own);
        }
        Ok(Doors { bus, http, metrics_port })
    }

    fn open_metrics_port(&self) -> Result<MetricsPort, String> {
        let deps = PortDeps {
            vitals: self.vitals.clone(),
            metrics: self.metrics.clone(),
            prometheus: telemetry::recorder()?,
        };
        let (config, alive) = (&self.config.registrar, self.lines.hold("metrics port"));
        let opened = MetricsPort::open(config, deps, alive);
        opened.map_err(|error| format!("registrar.metrics_bind {}: {error}", config.metrics_bind))
    }

    fn start_registrar(&self, threads: &mut Threads, doors: &Doors) -> Result<(), String> {
        let Doors { http: Some(http), metrics_port: Some(port), .. } = doors else { return Ok(()) };
        let start = RegistrarStart {
            config: self.config.registrar.clone(),
            http: http.address(),
            traits: traits(&self.config),
            vitals: self.vitals.clone(),
            metrics: self.metrics.clone(),
            alive: self.lines.hold("registrar actor"),
        };
        let registrar = Registrar::new(start, port)?;
        Registrar::start_in_arbiter(&threads.start("registrar"), move |_| registrar);
        Ok(())
    }

    fn start_health(&self, threads: &mut Threads, bus: &Bus) -> Result<(), String> {
        let (publisher, prometheus) = (bus.health_publisher(), telemetry::recorder()?);
        let publish = Box::new(move |message: &HealthMessage| {
            publisher(message.to_json().into());
            // Or samples pile up where nobody reads /metrics.
            prometheus.run_upkeep();
        });
        let (vitals, metrics) = (self.vitals.clone(), self.metrics.clone());
        let alive = self.lines.hold("health actor");
        Health::start_in_arbiter(&threads.start("health"), move |_| {
            Health::new(vitals, metrics, publish, alive)
        });
        Ok(())
    }
}

/// What the node says of itself to other nodes.
fn facts(config: &Config, http: Option<SocketAddr>) -> NodeFacts {
    NodeFacts {
        http,
        traits: traits(config),
        capabilities: config.registrar.capabilities.clone(),
        models: config.models.iter().map(|model| model.name.clone()).collect(),
    }
}

/// What routers are told of the node beside its models.
fn traits(config: &Config) -> NodeTraits {
    let on_gpu = config.executor.backend() == Backend::Cuda;
    NodeTraits {
        max_batch_size: config.batcher.largest_step(on_gpu).0,
        gpu_count: config.executor.gpu_ordinals().len() as u32,
        attention_backend: config.executor.attention_backend.as_str(),
    }
}

/// Of everything that cannot be built again in this process: its end makes the node critical, and ends it.
fn lifelines(vitals: &Arc<Vitals>, phase: watch::Sender<Phase>) -> Lifelines {
    let vitals = vitals.clone();
    Lifelines::new(move |name| {
        tracing::error!(name, "has ended, and the node with it");
        vitals.set_ended(name);
        let error = Error::internal(format!("the {name} has ended"));
        // The first is the cause; others follow from it.
        phase.send_if_modified(|phase| {
            let lives = !matches!(phase, Phase::Failed(_));
            if lives {
                *phase = Phase::Failed(error);
            }
            lives
        });
    })
}

/// Stands in for the bus's observer until the bus, which needs admission, is there.
#[derive(Default)]
struct BusObserverSlot(OnceLock<Arc<dyn RunningObserver>>);

impl BusObserverSlot {
    fn set(&self, observer: Arc<dyn RunningObserver>) {
        // Set once, by `build`.
        let _ = self.0.set(observer);
    }
}

impl RunningObserver for BusObserverSlot {
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
