//! The registrar: looks ten times a second whether a registration is due, and sends it. What is due the policy says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{Actor, ActorFutureExt as _, AsyncContext, Context, WrapFuture as _};
use bytes::Bytes;

use super::capabilities::{Capabilities, NodeTraits};
use super::exchange::{ExchangeFault, look_up, register};
use super::host_port::HostPort;
use super::policy::{Enrolment, Outcome, RegistrationAttempt, Standing};
use super::port::{MetricsPort, PortFigures};
use super::vitals::ProcessorTime;
use super::wire::{Introduction, Judged, judge};
use super::Config;
use crate::clock::Timestamp;
use crate::health::Vitals;
use crate::lifeline::Lifeline;
use crate::secret::Secret;
use crate::telemetry::{LoadBalancerMetrics, Metrics};

/// How often it is looked whether something is due: half of the shortest pause, and a few microseconds of work.
const TICK: Duration = Duration::from_millis(100);

/// Processor time is a share of so many ticks.
const TICKS_PER_READING: u32 = 10;

/// What a registrar is made with.
pub struct RegistrarStart {
    /// Its section.
    pub config: Config,
    /// Where the HTTP door listens.
    pub http: SocketAddr,
    /// What stays the same of the node's capabilities.
    pub traits: NodeTraits,
    /// Whether the node takes requests, and for which models.
    pub vitals: Arc<Vitals>,
    /// For its counters.
    pub metrics: Arc<Metrics>,
    /// The lifeline that it holds.
    pub alive: Lifeline,
}

/// See the module. Accepts nothing, so its mailbox keeps the default capacity.
pub struct Registrar {
    own: Own,
    load_balancers: Vec<LoadBalancer>,
    words: Vec<String>,
    traits: NodeTraits,
    vitals: Arc<Vitals>,
    figures: Arc<PortFigures>,
    was_ready: bool,
    ticks: u32,
    processors: Option<ProcessorTime>,
    alive: Lifeline,
}

/// What every load balancer is told.
struct Own {
    id: String,
    address: HostPort,
    metrics_port: u16,
    secret: Option<Secret>,
}

struct LoadBalancer {
    at: HostPort,
    enrolment: Enrolment,
    metrics: LoadBalancerMetrics,
}

impl Registrar {
    /// Registers with the load balancers of the configuration, for as long as it lives.
    ///
    /// # Errors
    /// The fault of `registrar.address`.
    pub fn new(start: RegistrarStart, port: &MetricsPort) -> Result<Self, String> {
        let RegistrarStart { config, http, traits, vitals, metrics, alive } = start;
        let own = Own {
            id: config.id(vitals.node_id()),
            address: config.advertised(http)?,
            metrics_port: port.number(),
            secret: config.secret.clone(),
        };
        let load_balancer = |at: HostPort| LoadBalancer {
            enrolment: Enrolment::new(config.interval()),
            metrics: metrics.load_balancer(&at.to_string()),
            at,
        };
        Ok(Self {
            own,
            load_balancers: config.places().into_iter().map(load_balancer).collect(),
            words: config.capabilities.clone(),
            traits,
            vitals,
            figures: port.figures(),
            was_ready: false,
            ticks: 0,
            processors: None,
            alive,
        })
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.alive.look();
        if self.ticks.is_multiple_of(TICKS_PER_READING) {
            self.read_processors();
        }
        self.ticks = self.ticks.wrapping_add(1);
        let is_ready = self.vitals.is_ready();
        if is_ready && !self.was_ready {
            self.load_balancers.iter_mut().for_each(|one| one.enrolment.hurry());
        }
        self.was_ready = is_ready;
        // Who takes no requests asks for none; those who ask at the metrics port are told.
        if is_ready {
            self.register_where_due(ctx);
        }
    }

    fn register_where_due(&mut self, ctx: &mut Context<Self>) {
        let models = self.vitals.models();
        let capabilities = Capabilities::of(self.traits, &models).words(&self.words);
        let now = Timestamp::now();
        for index in 0..self.load_balancers.len() {
            let one = &mut self.load_balancers[index];
            let Some(attempt) = one.enrolment.begin(&capabilities, now) else { continue };
            let telling = Telling {
                to: one.at.clone(),
                own: self.own.address.clone(),
                id: self.own.id.clone(),
                metrics_port: self.own.metrics_port,
                secret: self.own.secret.clone(),
                capabilities: capabilities.clone(),
            };
            let told = telling.tell(attempt).into_actor(self);
            ctx.spawn(told.map(move |told, registrar, _| registrar.settle(index, told)));
        }
    }

    fn settle(&mut self, index: usize, told: Result<(u16, Bytes), ExchangeFault>) {
        let bare = |outcome, reason| Judged { outcome, peers: None, reason };
        let Judged { outcome, peers, reason } = match told {
            Ok((status, body)) => judge(status, &body),
            Err(ExchangeFault::Absent(reason)) => bare(Outcome::Absent, reason),
            Err(ExchangeFault::Broken(reason)) => bare(Outcome::Failed, reason),
        };
        if let Some(peers) = peers {
            self.figures.set_peers(index, peers);
        }
        let LoadBalancer { at, enrolment, metrics } = &mut self.load_balancers[index];
        let standing = enrolment.settle(outcome, Timestamp::now(), rand::random());
        metrics.registered.set(f64::from(u8::from(enrolment.stands())));
        let (load_balancer, id) = (at.to_string(), &self.own.id);
        match standing {
            Standing::Unchanged => {}
            Standing::Gained => tracing::info!(load_balancer, id, "registered"),
            Standing::Regained => tracing::info!(load_balancer, id, "had forgotten this node"),
            Standing::Wanting => tracing::warn!(load_balancer, id, reason, "not registered"),
        }
        match outcome {
            Outcome::Registered if standing != Standing::Unchanged => {
                metrics.registrations.increment(1);
            }
            _ if !outcome.stands() => metrics.failures.increment(1),
            _ => {}
        }
    }

    fn read_processors(&mut self) {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let now = ProcessorTime::parse(&stat);
        let before = std::mem::replace(&mut self.processors, now);
        if let (Some(now), Some(before)) = (now, before) {
            self.figures.set_busy(now.busy_since(before));
        }
    }
}

impl Actor for Registrar {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tick(ctx);
        ctx.run_interval(TICK, Self::tick);
    }
}

/// One registration, on its way.
struct Telling {
    to: HostPort,
    own: HostPort,
    id: String,
    metrics_port: u16,
    secret: Option<Secret>,
    capabilities: Vec<String>,
}

impl Telling {
    async fn tell(self, attempt: RegistrationAttempt) -> Result<(u16, Bytes), ExchangeFault> {
        let (address, to) = (look_up(&self.own).await?, look_up(&self.to).await?);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let introduction = Introduction {
            id: &self.id,
            address,
            metrics_port: self.metrics_port,
            capabilities: &self.capabilities,
            unix_seconds: since.as_secs(),
        };
        register(to, &self.to, self.secret.as_ref(), introduction.body(attempt)).await
    }
}
