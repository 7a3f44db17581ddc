//! The registrar: wakes when a registration is due, and sends it. What is due, and when, the policy says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, SpawnHandle, WrapFuture as _};
use bytes::Bytes;

use super::Config;
use super::capabilities::{Capabilities, NodeTraits};
use super::exchange::{ExchangeFault, look_up, register};
use super::host_port::HostPort;
use super::policy::{Enrolment, Outcome, RegistrationAttempt, Standing};
use super::port::{MetricsPort, PortFigures};
use super::vitals::ProcessorTime;
use super::wire::{Introduction, Judged, judge};
use crate::clock::Timestamp;
use crate::health::Vitals;
use crate::lifeline::Lifeline;
use crate::secret::Secret;
use crate::telemetry::{LoadBalancerMetrics, Metrics};

/// How often it is looked whether the node takes requests, while it takes none.
const LOOK: Duration = Duration::from_millis(100);

/// How often while it takes them; then what its capabilities are, and what the processors did, are looked at, too.
const REVIEW: Duration = Duration::from_secs(1);

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
    /// Capabilities of the configuration.
    words: Vec<String>,
    traits: NodeTraits,
    /// All capabilities, a second old at most.
    capabilities: Vec<String>,
    vitals: Arc<Vitals>,
    figures: Arc<PortFigures>,
    was_ready: bool,
    reviewed_at: Option<Timestamp>,
    processors: Option<ProcessorTime>,
    /// The next look.
    timer: Option<SpawnHandle>,
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
            capabilities: Vec::new(),
            vitals,
            figures: port.figures(),
            was_ready: false,
            reviewed_at: None,
            processors: None,
            timer: None,
            alive,
        })
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        self.alive.look();
        let (is_ready, now) = (self.vitals.is_ready(), Timestamp::now());
        let is_news = is_ready && !self.was_ready;
        self.was_ready = is_ready;
        if is_news {
            self.load_balancers.iter_mut().for_each(|one| one.enrolment.hurry());
        }
        if is_news || self.reviewed_at.is_none_or(|at| now.since(at) >= REVIEW) {
            self.reviewed_at = Some(now);
            self.review();
        }
        // Who takes no requests asks for none; those who ask at the metrics port are told.
        if is_ready {
            self.register_where_due(ctx, now);
        }
        self.look_again(ctx, now);
    }

    /// When the next registration is due, and not too late for other news.
    fn look_again(&mut self, ctx: &mut Context<Self>, now: Timestamp) {
        let waits = self.load_balancers.iter().filter_map(|one| one.enrolment.wait(now));
        let pause = if self.was_ready { waits.min().unwrap_or(REVIEW).min(REVIEW) } else { LOOK };
        if let Some(timer) = self.timer.replace(ctx.run_later(pause, Self::look)) {
            ctx.cancel_future(timer);
        }
    }

    fn review(&mut self) {
        let capabilities = Capabilities::of(self.traits, &self.vitals.models());
        self.capabilities = capabilities.words(&self.words);
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let now = ProcessorTime::parse(&stat);
        let before = std::mem::replace(&mut self.processors, now);
        if let (Some(now), Some(before)) = (now, before) {
            self.figures.set_busy(now.busy_since(before));
        }
    }

    fn register_where_due(&mut self, ctx: &mut Context<Self>, now: Timestamp) {
        for index in 0..self.load_balancers.len() {
            let one = &mut self.load_balancers[index];
            let Some(attempt) = one.enrolment.begin(&self.capabilities, now) else { continue };
            let telling = Telling {
                to: one.at.clone(),
                own: self.own.address.clone(),
                id: self.own.id.clone(),
                metrics_port: self.own.metrics_port,
                secret: self.own.secret.clone(),
                capabilities: self.capabilities.clone(),
            };
            let told = telling.tell(attempt).into_actor(self);
            ctx.spawn(told.map(move |told, registrar, ctx| {
                registrar.settle(index, told);
                registrar.look_again(ctx, Timestamp::now());
            }));
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
}

impl Actor for Registrar {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look(ctx);
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
