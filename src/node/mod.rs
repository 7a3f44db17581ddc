//! The node: starts every actor (last stage first), rebuilds a device that failed, and drains at the end.
//!
//! `start.rs` is the only file that starts actors, `device.rs` the actors of one device; [`Supervisor`] keeps them. A node has a thread
//! of its own with an actix system; the actors have arbiters of theirs, so several nodes can live in one process.

mod device;
mod memory_layout;
mod start;
mod supervisor;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::{Addr, Recipient};
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::door::Admit;
use crate::error::{Error, Kind, Result};
use crate::health::Vitals;
use crate::models::Models;

use supervisor::Shutdown;
pub use supervisor::Supervisor;
pub use supervisor::way_back::{NotBuilt, RebuildAction, WayBack};

/// How far the node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// The configured models are being loaded; the doors are open and say `unavailable`.
    Loading,
    /// Every configured model takes requests.
    Ready,
    /// It cannot go on: a configured model cannot be loaded, or a device needs a new process.
    Failed(Error),
}

/// What the node's thread gives back once the doors are open.
pub(crate) struct Handles {
    admission: Recipient<Admit>,
    models: Addr<Models>,
    supervisor: Addr<Supervisor>,
    stopping: Stopping,
    #[cfg(any(test, debug_assertions))]
    lines: crate::lifeline::Lifelines,
    vitals: Arc<Vitals>,
    phase: watch::Receiver<Phase>,
    http: Option<SocketAddr>,
    nats: Option<String>,
    drain_timeout: Duration,
}

/// A running node. Dropping it ends it at once; [`Node::shutdown`] drains first.
pub struct Node {
    handles: Handles,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Opens the doors and begins to load; returns when the doors are open. Blocks for as long as that takes.
    ///
    /// # Errors
    /// `invalid` for a configuration at fault (every key named), `internal` if a device, socket or thread cannot be had.
    pub fn start(config: Config) -> Result<Self> {
        config.check().map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("node".to_owned())
            .spawn(move || start::run_system(config, sender))
            .map_err(|error| Error::internal(format!("the node's thread: {error}")))?;
        let started = receiver.blocking_recv();
        let handles = match started {
            Ok(Ok(handles)) => handles,
            Ok(Err(text)) => return Err(Error::internal(text)),
            Err(_) => return Err(Error::internal("the node's thread ended while it started")),
        };
        Ok(Self { handles, thread: Some(thread) })
    }

    /// This node's id.
    pub fn id(&self) -> &str {
        self.handles.vitals.node_id()
    }

    /// Where HTTP listens, if it does.
    pub fn http(&self) -> Option<SocketAddr> {
        self.handles.http
    }

    /// Where NATS is, if there is a bus.
    pub fn nats(&self) -> Option<&str> {
        self.handles.nats.as_deref()
    }

    /// The door for requests of this process.
    pub fn admission(&self) -> &Recipient<Admit> {
        &self.handles.admission
    }

    /// Load, unload, list.
    pub fn models(&self) -> &Addr<Models> {
        &self.handles.models
    }

    /// What the node knows of itself.
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.handles.vitals
    }

    /// How far the node is, as it changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.handles.phase.clone()
    }

    /// What of that name does something next panics.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn arm(&self, name: &str) {
        self.handles.lines.arm(name);
    }

    /// Waits until every configured model takes requests.
    ///
    /// # Errors
    /// Why that will not come.
    pub async fn wait_ready(&self) -> Result<()> {
        let mut phase = self.phase();
        let settled = phase.wait_for(|phase| *phase != Phase::Loading).await;
        match settled.as_deref() {
            Ok(Phase::Failed(error)) => Err(error.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::internal("the node ended while it loaded")),
        }
    }

    /// Takes no more requests, lets those in finish within `node.drain_timeout_s`, and ends the node. Returns how many were cut.
    ///
    /// # Errors
    /// `internal` if the node has not ended ten seconds after the drain's time: what it still waits for. Its threads are left behind then;
    /// only the process's end is theirs.
    pub async fn shutdown(mut self) -> Result<usize> {
        let limit = self.handles.drain_timeout + STOP_LIMIT;
        let (done, drained) = oneshot::channel();
        let shutdown = Shutdown { timeout: self.handles.drain_timeout, done };
        let supervisor = self.handles.supervisor.clone();
        let ask = async move {
            // A supervisor that has panicked ends the node by itself.
            let _ = supervisor.send(shutdown).await;
            std::future::pending::<()>().await
        };
        let Some(thread) = self.thread.take() else { return Ok(0) };
        // Threads of their own: joining must not hold up the caller's runtime, which may have no timer.
        let (sender, joined) = oneshot::channel();
        std::thread::spawn(move || sender.send(join_within(thread, limit)));
        let has_stopped = tokio::select! {
            joined = joined => joined.unwrap_or(false),
            () = ask => false,
        };
        if !has_stopped {
            let (seconds, what) = (limit.as_secs_f64(), self.handles.stopping.what());
            let text = format!("the node has not stopped within {seconds} s; it waits for {what}");
            return Err(Error::internal(text));
        }
        Ok(drained.await.unwrap_or(0))
    }
}

/// What a stop may take beside the drain: doors that close, a load or a rebuild under way, threads that end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What a stop waits for at the moment.
#[derive(Clone)]
pub(crate) struct Stopping(Arc<Mutex<Cow<'static, str>>>);

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Cow::Borrowed("the supervisor"))))
    }
}

impl Stopping {
    fn waits_for(&self, what: impl Into<Cow<'static, str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.into();
    }

    fn what(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().into_owned()
    }
}

/// Whether a thread has ended in time.
fn join_within(thread: JoinHandle<()>, limit: Duration) -> bool {
    let (sender, joined) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if thread.join().is_err() {
            tracing::error!("the node's thread ended in a panic");
        }
        // Nobody waits any more where the limit is over.
        let _ = sender.send(());
    });
    joined.recv_timeout(limit).is_ok()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let (done, _) = oneshot::channel();
            // A refusal means a supervisor that is ending already.
            let _ = self.handles.supervisor.try_send(Shutdown { timeout: Duration::ZERO, done });
            if !join_within(thread, STOP_LIMIT) {
                tracing::error!(
                    waits_for = self.handles.stopping.what(),
                    "the node has not stopped"
                );
            }
        }
    }
}
