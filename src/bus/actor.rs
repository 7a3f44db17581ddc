//! The bus's thread: a runtime for the connection and its tasks, and the handle through which the node reaches it.
//!
//! A thread of its own, not the shared runtime: the connection and the writer then never run at the same time, so everything that
//! a step gave is written at once, and leaving a subject can wait until nothing more is on its way (see `Intake`).

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::config::{Config, Mode, is_token};
use super::connect::ManagedError;
use super::publish::{Control, Outbox, ServedAlias};
use super::session::Session;
use super::{BusDeps, client};
use crate::door::RunningObserver;
use crate::lifeline::Lifeline;

/// Why the bus could not start. A NATS server that is not there is none of these: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name that cannot be a word of a subject.
    #[error("node id: expected A-Z a-z 0-9 _ -, got {0:?}")]
    NodeId(String),
    /// A file of the configuration, or the thread.
    #[error("bus: {0}")]
    Io(#[from] std::io::Error),
    /// The options of the connection.
    #[error("bus: {0}")]
    Connect(#[from] async_nats::ConnectError),
    /// Our own nats-server.
    #[error(transparent)]
    Managed(#[from] ManagedError),
    /// Another node that lives has this node's id.
    #[error("node.id: another node with the id {id:?} runs {place}")]
    IdTaken {
        /// Of both.
        id: String,
        /// Where the other one is.
        place: String,
    },
    /// The thread ended before it could say why.
    #[error("bus: the thread ended")]
    Ended,
}

/// The handle of a started bus; of mode `off`, one that does nothing. Calls that are not `async` return at once.
pub struct Bus {
    outbox: Arc<Outbox>,
    running: Option<BusThread>,
}

struct BusThread {
    url: String,
    client: client::Client,
    /// Its sender is the thread's, and goes with it.
    ended: watch::Receiver<()>,
    thread: JoinHandle<()>,
}

/// Starts the bus. Resolves when it works, which for `external` is at once (the server is waited for in the background) and for
/// `managed` when the child answers. Its thread holds `alive`, and each of its tasks another beside it.
///
/// # Errors
/// A configuration that cannot work: a missing file, a wrong node id, a nats-server that does not start.
pub async fn start(config: &Config, deps: BusDeps, alive: Lifeline) -> Result<Bus, StartError> {
    let outbox = Arc::new(Outbox::default());
    let mode = config.decided(|| config.managed.is_installed());
    if mode == Mode::Off {
        if config.mode == Mode::Auto {
            tracing::info!(
                "no bus: no bus.url is named and no nats-server is installed; HTTP alone"
            );
        }
        alive.dismiss();
        return Ok(Bus { outbox, running: None });
    }
    if !is_token(deps.vitals.node_id()) {
        alive.dismiss();
        return Err(StartError::NodeId(deps.vitals.node_id().to_owned()));
    }
    let (started, ready) = oneshot::channel();
    let (end, ended) = watch::channel(());
    let thread = {
        let (config, outbox) = (Config { mode, ..config.clone() }, outbox.clone());
        std::thread::Builder::new().name("bus".to_owned()).spawn(move || {
            let _end = end;
            run_thread(&config, deps, &outbox, started, alive);
        })?
    };
    let (url, nats) = ready.await.map_err(|_| StartError::Ended)??;
    let client = client::Client::over(nats, &config.prefix);
    Ok(Bus { outbox, running: Some(BusThread { url, client, ended, thread }) })
}

impl Bus {
    /// Told of running requests, it opens and closes their cancel subjects.
    pub fn observer(&self) -> Arc<dyn RunningObserver> {
        match self.running {
            Some(_) => self.outbox.clone(),
            None => Arc::new(Nobody),
        }
    }

    /// Where NATS is: what a client is to be given.
    pub fn url(&self) -> Option<&str> {
        self.running.as_ref().map(|running| running.url.as_str())
    }

    /// A client on the node's own connection.
    pub fn client(&self) -> Option<client::Client> {
        self.running.as_ref().map(|running| running.client.clone())
    }

    /// Takes requests for a model from here on. Resolves when NATS brings them; after a second at most, because a node whose NATS is
    /// away is ready for HTTP.
    pub async fn serve_model(&self, model: &str, digest: &str) {
        let served = ServedAlias { model: model.to_owned(), digest: digest.to_owned() };
        self.ask(|done| Control::Serve(served, done)).await;
    }

    /// Takes no more requests for a model. Resolves when none can come any more.
    pub async fn unserve_model(&self, model: &str) {
        self.ask(|done| Control::Unserve(model.to_owned(), done)).await;
    }

    /// Publishes a health message (JSON), or replaces the one that waits.
    pub fn publish_health(&self, body: impl Into<Bytes>) {
        if self.running.is_some() {
            self.outbox.health(body.into());
        }
    }

    /// A publisher of health messages that can be given away.
    pub fn health_publisher(&self) -> impl Fn(Bytes) + Send + Sync + 'static {
        let outbox = self.running.is_some().then(|| self.outbox.clone());
        move |body| {
            if let Some(outbox) = &outbox {
                outbox.health(body);
            }
        }
    }

    /// Takes no more requests at all; those that run go on. Resolves when none can come any more.
    pub async fn drain(&self) {
        self.ask(Control::Drain).await;
    }

    /// Writes what waits (for two seconds at most) and ends the bus, its tasks and its own nats-server.
    pub async fn stop(mut self) {
        let Some(mut running) = self.running.take() else { return };
        self.outbox.control(Control::Stop);
        // Nothing is sent: the sender's end is the word.
        let _ = running.ended.changed().await;
        if running.thread.join().is_err() {
            tracing::error!("the bus's thread panicked");
        }
    }

    async fn ask(&self, control: impl FnOnce(oneshot::Sender<()>) -> Control) {
        let Some(running) = &self.running else { return };
        let mut ended = running.ended.clone();
        let (done, answer) = oneshot::channel();
        self.outbox.control(control(done));
        // With the thread every subscription is gone; what it was asked stays in the outbox, unanswered.
        tokio::select! {
            _ = answer => {}
            _ = ended.changed() => {}
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.outbox.control(Control::Stop);
        }
    }
}

/// The observer of a node without a bus.
struct Nobody;

impl RunningObserver for Nobody {
    fn started(&self, _: &crate::ids::RequestId) {}
    fn ended(&self, _: &crate::ids::RequestId) {}
}

type StartedSender = oneshot::Sender<Result<(String, async_nats::Client), StartError>>;

fn run_thread(
    config: &Config,
    deps: BusDeps,
    outbox: &Arc<Outbox>,
    started: StartedSender,
    alive: Lifeline,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            alive.dismiss();
            return drop(started.send(Err(error.into())));
        }
    };
    runtime.block_on(async move {
        let (mut session, managed) = match Session::open(config, deps, outbox, &alive).await {
            Ok(opened) => opened,
            Err(error) => {
                alive.dismiss();
                return drop(started.send(Err(error)));
            }
        };
        // Declared behind the session, so dropped before it: what a panic ends is the bus, not the first of its parts.
        let alive = alive;
        let url = managed.as_ref().map(|server| server.url().to_owned());
        let url = url.unwrap_or_else(|| config.servers().collect::<Vec<_>>().join(","));
        if started.send(Ok((url, session.client()))).is_ok() {
            session.run(&alive).await;
        }
        session.close().await;
        if let Some(managed) = managed {
            managed.stop().await;
        }
    });
}
