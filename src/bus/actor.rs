//! The bus's thread: a runtime for the connection and its tasks, and the handle through which the node reaches it.
//!
//! A thread of its own, not the shared runtime: the connection and the writer then never run at the same time, so everything that
//! a step gave is written at once, and leaving a subject can wait until nothing more is on its way (see `Intake`).

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, Event};
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::config::{Config, Mode, is_token};
use super::connect::{ManagedError, ManagedServer, NatsLink, Subscription, node_options, taken};
use super::durable::{Durable, DurableStart};
use super::intake::{
    BusDoor, Intake, Service, answer_service, hold_subject, take_answers, watch_neighbours,
};
use super::publish::{Control, Outbox, Writer, WriterStart};
use super::{BusDeps, QUEUE_GROUP};
use crate::door::RunningObserver;
use crate::ids::RequestId;
use crate::lifeline::Lifeline;

/// How long a stop waits for NATS to take what is left.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long the connection may take to close after that.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

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
    let url = ready.await.map_err(|_| StartError::Ended)??;
    Ok(Bus { outbox, running: Some(BusThread { url, ended, thread }) })
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

    /// Takes requests for a model from here on. Resolves when NATS brings them; after a second at most, because a node whose NATS is
    /// away is ready for HTTP.
    pub async fn serve_model(&self, model: &str) {
        self.ask(|done| Control::Serve(model.to_owned(), done)).await;
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

type StartedSender = oneshot::Sender<Result<String, StartError>>;

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
        if started.send(Ok(url)).is_ok() {
            session.run(&alive).await;
        }
        session.close().await;
        if let Some(managed) = managed {
            managed.stop().await;
        }
    });
}

/// One bus at work.
struct Session {
    client: Client,
    link: Arc<NatsLink>,
    door: Arc<BusDoor>,
    service: Arc<Service>,
    writer: Writer,
    durable: Durable,
    /// Asks the task of each served model to leave its subject.
    served: HashMap<String, oneshot::Sender<oneshot::Sender<()>>>,
}

impl Session {
    async fn open(
        config: &Config,
        deps: BusDeps,
        outbox: &Arc<Outbox>,
        alive: &Lifeline,
    ) -> Result<(Self, Option<ManagedServer>), StartError> {
        let managed = match config.mode {
            Mode::Managed => Some(ManagedServer::start(config, alive).await?),
            Mode::External | Mode::Auto | Mode::Off => None,
        };
        let urls = match &managed {
            Some(server) => vec![server.url()],
            None => config.servers().collect(),
        };
        let addresses: Vec<async_nats::ServerAddr> =
            urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
        let link = Arc::new(NatsLink::new(&urls.join(", "), deps.vitals.clone()));
        let node_id = deps.vitals.node_id();
        let woken = outbox.clone();
        let wake = move |event: &Event| match event {
            Event::Closed => woken.set_closed(),
            _ => woken.wake(),
        };
        let options = node_options(config, node_id, link.clone(), wake).await?;
        let client = options.connect(addresses).await?;
        let inbox = client.new_inbox();
        let door = Arc::new(BusDoor::new(config, &deps, outbox.clone(), &inbox));
        let service = Arc::new(Service::new(node_id, door.subjects.clone()));
        let open = |subject| Subscription::open(&client, &link, subject, None);
        let answers = open(format!("{inbox}.*")).await.map_err(other)?;
        // Requests have such subjects for a moment each; this one lasts, and so shows whether NATS grants them.
        let cancels = open(door.subjects.cancel(&RequestId::generate())).await.map_err(other)?;
        let mut asked = Vec::new();
        for (verb, subject) in service.subjects() {
            asked.push((verb, open(subject).await.map_err(other)?));
        }
        let line = alive.beside("bus's subject of cancels");
        tokio::spawn(hold_subject(cancels, line));
        let line = alive.beside("bus's reader of answers");
        tokio::spawn(take_answers(answers, door.clone(), line));
        let line = alive.beside("bus's look for neighbours");
        tokio::spawn(watch_neighbours(client.clone(), link.clone(), door.clone(), line));
        let line = alive.beside("bus's service");
        tokio::spawn(answer_service(asked, service.clone(), outbox.clone(), line));
        let durable = Durable::start(DurableStart {
            client: client.clone(),
            inbox: inbox.clone(),
            subjects: door.subjects.clone(),
            config: deps.log.clone(),
            node_id: node_id.to_owned(),
            max_request_bytes: config.max_request_bytes,
            admit: deps.admit.clone(),
            room: deps.room.clone(),
            metrics: deps.metrics.clone(),
            alive: alive.beside("bus's hub of durable requests"),
        });
        let durable = durable.await.map_err(other)?;
        let writer = Writer::new(WriterStart {
            client: client.clone(),
            door: door.clone(),
            progress: deps.vitals.watch("bus"),
            inbox,
            hold: Duration::from_millis(config.reconnect_hold_ms),
            alive: alive.beside("bus's writer"),
        });
        let served = HashMap::new();
        Ok((Self { client, link, door, service, writer, durable, served }, managed))
    }

    async fn run(&mut self, alive: &Lifeline) {
        let mut deadline = None;
        loop {
            alive.look();
            for control in self.door.outbox.take_control() {
                match control {
                    Control::Serve(model, done) => self.serve(model, done, alive).await,
                    Control::Unserve(model, done) => self.leave(Some(&model), done),
                    Control::Drain(done) => {
                        self.leave(None, done);
                        self.durable.hand_back();
                    }
                    Control::Stop => {
                        self.served.clear();
                        self.writer.end_hold();
                        deadline = Some(Instant::now() + STOP_DEADLINE);
                    }
                }
            }
            self.writer.cycle().await;
            if self.writer.is_closed() {
                return tracing::error!("the connection to NATS has ended for good");
            }
            if let Some(deadline) = deadline {
                let late = Instant::now() >= deadline;
                let is_done = self.writer.is_done() && self.durable.is_idle();
                if late && !is_done {
                    tracing::warn!("stopped before NATS had taken everything");
                }
                if late || is_done {
                    return;
                }
            }
            self.writer.wait(deadline).await;
        }
    }

    /// Leaves NATS, so that an own server does not end under a connection that would miss it.
    async fn close(self) {
        if self.client.connection_state() != State::Connected || self.client.drain().await.is_err()
        {
            return;
        }
        let closed = async {
            while !self.door.outbox.is_closed() {
                self.door.outbox.changed().await;
            }
        };
        // The end of the thread closes it in any case.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closed).await;
    }

    async fn serve(&mut self, model: String, done: oneshot::Sender<()>, alive: &Lifeline) {
        if self.served.contains_key(&model) {
            return;
        }
        let subject = self.door.subjects.generate(&model);
        match Subscription::open(&self.client, &self.link, subject, Some(QUEUE_GROUP)).await {
            Ok(subscription) => {
                let (leave, leaving) = oneshot::channel();
                let intake = Intake {
                    subscription,
                    client: self.client.clone(),
                    door: self.door.clone(),
                    endpoint: self.service.serve(&model),
                };
                let client = self.client.clone();
                tokio::spawn(async move {
                    taken(&client).await;
                    // Nobody may be waiting any more.
                    let _ = done.send(());
                });
                let alive = alive.beside("bus's intake");
                tokio::spawn(intake.take_requests(leaving, alive));
                self.durable.serve(&model);
                self.served.insert(model, leave);
            }
            Err(error) => tracing::error!(model, %error, "cannot take requests"),
        }
    }

    /// Leaves one model's subject, or all.
    fn leave(&mut self, model: Option<&str>, done: oneshot::Sender<()>) {
        self.durable.leave(model);
        let models: Vec<String> = match model {
            Some(model) => vec![model.to_owned()],
            None => self.served.keys().cloned().collect(),
        };
        let mut left = Vec::new();
        for model in models {
            self.service.unserve(&model);
            if let Some(leave) = self.served.remove(&model) {
                let (done, gone) = oneshot::channel();
                // A task that is gone has left.
                let _ = leave.send(done);
                left.push(gone);
            }
        }
        tokio::spawn(async move {
            for gone in left {
                // Answered or dropped: either way it has left.
                let _ = gone.await;
            }
            let _ = done.send(());
        });
    }
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StartError {
    StartError::Io(std::io::Error::other(error))
}
