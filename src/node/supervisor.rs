//! The supervisor: keeps what was started, rebuilds a device that failed, tells the doors which models are up, and drains.

mod rebuild;
pub mod way_back;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture, System, WrapFuture,
};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::device::{DeviceActors, DeviceLinks, DeviceParts, Threads};
use super::start::Doors;
use super::{Phase, Stopping};
use crate::admission::{Admission, Drain, Ledger};
use crate::batcher::DeviceFailed;
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::health::Vitals;
use crate::http;
use crate::ids::DeviceId;
use crate::lifeline::{Lifeline, Lifelines};
use crate::models::{Load, ModelDown, ModelSpec, ModelUp, Models, Spread};
use crate::registrar::MetricsPort;

/// Failures of devices, changes of models, one shutdown: all rare.
const MAILBOX_CAPACITY: usize = 64;

/// How often a drain looks whether the last request has ended.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// What cut requests get to send their last event, and the doors to write it.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// Everything that was started, for the supervisor to keep. Sent once, before any work can come.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Keep {
    pub links: DeviceLinks,
    pub devices: Vec<(DeviceParts, DeviceActors)>,
    pub doors: Doors,
    pub models: Addr<Models>,
    /// To be loaded now.
    pub specs: Vec<ModelSpec>,
    pub threads: Threads,
}

/// Drains for at most `timeout`, then ends the node; answers with how many requests were cut.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Shutdown {
    pub timeout: Duration,
    pub done: oneshot::Sender<usize>,
}

/// What the supervisor is made with.
pub(super) struct SupervisorStart {
    pub admission: Addr<Admission>,
    pub ledger: Arc<Ledger>,
    pub vitals: Arc<Vitals>,
    pub phase: watch::Sender<Phase>,
    pub stopping: Stopping,
    /// The supervisor's own.
    pub alive: Lifeline,
    /// Of everything that ends with the node.
    pub lines: Lifelines,
}

/// The actor; see the module.
pub struct Supervisor {
    inner: Rc<Inner>,
    alive: Lifeline,
}

/// Shared with the flows on the supervisor's own thread; no borrow is held over an await.
struct Inner {
    admission: Addr<Admission>,
    ledger: Arc<Ledger>,
    vitals: Arc<Vitals>,
    phase: watch::Sender<Phase>,
    stopping: Stopping,
    lines: Lifelines,
    kept: OnceCell<Kept>,
    /// What fails from here on is not rebuilt.
    ending: watch::Sender<bool>,
}

struct Kept {
    links: DeviceLinks,
    parts: HashMap<DeviceId, DeviceParts>,
    actors: RefCell<HashMap<DeviceId, DeviceActors>>,
    models: Addr<Models>,
    bus: RefCell<Option<Rc<Bus>>>,
    http: RefCell<Option<http::Server>>,
    metrics_port: RefCell<Option<MetricsPort>>,
    threads: RefCell<Option<Threads>>,
    /// Held while a device is rebuilt: one at a time, and none while the node ends.
    turn: Mutex<()>,
}

impl Supervisor {
    pub(super) fn new(start: SupervisorStart) -> Self {
        let SupervisorStart { admission, ledger, vitals, phase, stopping, alive, lines } = start;
        let (kept, ending) = (OnceCell::new(), watch::Sender::new(false));
        let inner = Inner { admission, ledger, vitals, phase, stopping, lines, kept, ending };
        Self { inner: Rc::new(inner), alive }
    }
}

impl Drop for Supervisor {
    /// After a panic: its requests are to have their one end, and the node's threads theirs.
    fn drop(&mut self) {
        if self.inner.is_ending() || self.inner.kept.get().is_none() {
            return;
        }
        let inner = Rc::clone(&self.inner);
        actix::spawn(async move {
            inner.stop(Duration::ZERO).await;
            System::current().stop();
        });
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<Keep> for Supervisor {
    type Result = ();

    fn handle(&mut self, keep: Keep, ctx: &mut Self::Context) {
        let Keep { links, devices, doors, models, specs, threads } = keep;
        let mut parts = HashMap::new();
        let mut actors = HashMap::new();
        let mut ups = Vec::new();
        for (part, actor) in devices {
            ups.push(actor.device_up(&part.id));
            self.inner.vitals.device_up(&part.id);
            actors.insert(part.id.clone(), actor);
            parts.insert(part.id.clone(), part);
        }
        let scheduler = links.scheduler.clone();
        let kept = Kept {
            links,
            parts,
            actors: RefCell::new(actors),
            models,
            bus: RefCell::new(Some(Rc::new(doors.bus))),
            http: RefCell::new(doors.http),
            metrics_port: RefCell::new(doors.metrics_port),
            threads: RefCell::new(Some(threads)),
            turn: Mutex::new(()),
        };
        // Sent once, by `start.rs`.
        let _ = self.inner.kept.set(kept);
        let inner = Rc::clone(&self.inner);
        let flow = async move {
            for up in ups {
                // It ends only with the node.
                let _ = scheduler.send(up).await;
            }
            inner.load(specs).await;
        };
        ctx.spawn(flow.into_actor(self));
    }
}

impl Handler<DeviceFailed> for Supervisor {
    type Result = ();

    fn handle(&mut self, failed: DeviceFailed, ctx: &mut Self::Context) {
        self.alive.look();
        if self.inner.is_ending() {
            return;
        }
        tracing::error!(device = %failed.device, reason = failed.reason, "device failed");
        self.inner.vitals.device_down(&failed.device, &failed.reason);
        let inner = Rc::clone(&self.inner);
        if failed.sticky {
            ctx.spawn(async move { inner.lose(failed).await }.into_actor(self));
            return;
        }
        ctx.spawn(async move { inner.rebuild(failed).await }.into_actor(self));
    }
}

impl Handler<ModelUp> for Supervisor {
    type Result = ResponseFuture<()>;

    /// Admission first: what the bus then takes is not refused.
    fn handle(&mut self, up: ModelUp, _: &mut Self::Context) -> Self::Result {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            let (name, digest) = (up.0.name.clone(), up.0.digest.clone());
            // They end only with the node.
            let _ = inner.admission.send(up).await;
            if let Some(bus) = inner.bus() {
                bus.serve_model(&name, &digest).await;
            }
        })
    }
}

impl Handler<ModelDown> for Supervisor {
    type Result = ResponseFuture<()>;

    /// The bus first: what admission would refuse goes to another node.
    fn handle(&mut self, down: ModelDown, _: &mut Self::Context) -> Self::Result {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            if let Some(bus) = inner.bus() {
                bus.unserve_model(&down.name).await;
            }
            // It ends only with the node.
            let _ = inner.admission.send(down).await;
        })
    }
}

impl Handler<Shutdown> for Supervisor {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, ctx: &mut Self::Context) {
        let inner = Rc::clone(&self.inner);
        let flow = async move {
            let cut = inner.stop(shutdown.timeout).await;
            // A node that was dropped waits for nothing.
            let _ = shutdown.done.send(cut);
            System::current().stop();
        };
        ctx.spawn(flow.into_actor(self));
    }
}

impl Inner {
    fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    fn bus(&self) -> Option<Rc<Bus>> {
        self.kept.get()?.bus.borrow().clone()
    }

    async fn load(&self, specs: Vec<ModelSpec>) {
        let Some(kept) = self.kept.get() else { return };
        for spec in specs {
            let loaded = kept.models.send(Load { spec, spread: Spread::EveryDevice }).await;
            let loaded: Result<_> =
                loaded.unwrap_or_else(|error| Err(Error::internal(error.to_string())));
            if let Err(error) = loaded {
                self.phase.send_replace(Phase::Failed(error));
                return;
            }
        }
        // What has ended meanwhile is not made good.
        self.phase.send_if_modified(|phase| {
            let loading = *phase == Phase::Loading;
            if loading {
                *phase = Phase::Ready;
            }
            loading
        });
    }

    /// Drains, then ends everything but the system itself; says how many requests were cut.
    async fn stop(&self, timeout: Duration) -> usize {
        let cut = self.drain(timeout).await;
        self.end().await;
        cut
    }

    /// No more requests; waits for those that run, and cuts the rest.
    async fn drain(&self, timeout: Duration) -> usize {
        self.vitals.set_draining();
        self.stopping.waits_for("requests that run");
        // Admission ends only with the node.
        let _ = self.admission.send(Drain).await;
        if let Some(bus) = self.bus() {
            bus.drain().await;
        }
        self.wait_until_idle(timeout).await;
        let cut = self.ledger.cut_all();
        if !cut.is_empty() {
            let ids = cut.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(" ");
            tracing::warn!(
                count = cut.len(),
                ids,
                "cut: not finished when the drain's time was over"
            );
            if let Some(kept) = self.kept.get() {
                kept.actors.borrow().values().for_each(DeviceActors::sweep);
            }
            self.wait_until_idle(CUT_GRACE).await;
        }
        cut.len()
    }

    async fn wait_until_idle(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.ledger.num_requests() > 0 && Instant::now() < deadline {
            sleep(DRAIN_POLL).await;
        }
    }

    /// Closes the doors, then ends the threads, first stage first, and the metrics port at last.
    async fn end(&self) {
        let Some(kept) = self.kept.get() else { return };
        self.ending.send_replace(true);
        self.lines.release();
        self.stopping.waits_for("HTTP connections");
        let http = kept.http.borrow_mut().take();
        if let Some(http) = http
            && !http.stop(CUT_GRACE).await
        {
            tracing::warn!("connections were cut");
        }
        self.stopping.waits_for("the bus");
        let bus = kept.bus.borrow_mut().take();
        match bus.map(Rc::try_unwrap) {
            Some(Ok(bus)) => bus.stop().await,
            Some(Err(_)) => tracing::warn!("the bus is still in use and was not closed in order"),
            None => {}
        }
        self.stopping.waits_for("a device that is being built again");
        let _turn = kept.turn.lock().await;
        let actors: Vec<_> = kept.actors.borrow_mut().drain().collect();
        let threads = kept.threads.borrow_mut().take();
        let stopping = self.stopping.clone();
        // Joining threads blocks; there is nothing to do about one that panicked.
        let _ = tokio::task::spawn_blocking(move || {
            for (device, actors) in actors {
                actors.end(&device, &stopping);
            }
            if let Some(threads) = threads {
                threads.end(&stopping);
            }
        })
        .await;
        self.stopping.waits_for("the metrics port");
        let port = kept.metrics_port.borrow_mut().take();
        // Last: as long as there is anything of the node, load balancers are told that it is not ready.
        if let Some(port) = port {
            port.close().await;
        }
    }
}
