//! One bus at work: the connection with all that stands on it, from the first subscription to the last word.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, Event};
use tokio::sync::oneshot;

use super::actor::StartError;
use super::config::{Config, Mode};
use super::connect::{ManagedServer, NatsLink, Subscription, node_options, taken};
use super::discovery::{Discovery, DiscoveryStart};
use super::durable::{Durable, DurableStart};
use super::intake::{
    BusDoor, Intake, Service, answer_service, hold_subject, take_answers, watch_neighbours,
};
use super::publish::{Control, Outbox, ServedAlias, Writer, WriterStart};
use super::{BusDeps, QUEUE_GROUP};
use crate::ids::RequestId;
use crate::lifeline::Lifeline;

/// How long a stop waits for NATS to take what is left.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long the connection may take to close after that.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// How long a start waits for the first word of NATS: where it is, it comes within milliseconds.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// One bus at work.
pub(super) struct Session {
    client: Client,
    link: Arc<NatsLink>,
    door: Arc<BusDoor>,
    service: Arc<Service>,
    writer: Writer,
    durable: Durable,
    discovery: Discovery,
    /// Asks the task of each served model to leave its subject.
    served: HashMap<String, oneshot::Sender<oneshot::Sender<()>>>,
}

impl Session {
    pub async fn open(
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
        let (client, link) = connect(config, &urls, &deps, outbox).await?;
        let node_id = deps.vitals.node_id();
        let discovery = take_place(&client, &link, &deps, outbox, alive).await?;
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
            vitals: deps.vitals.clone(),
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
        let session = Self {
            client,
            link,
            door,
            service,
            writer,
            durable,
            discovery,
            served: HashMap::new(),
        };
        Ok((session, managed))
    }

    /// Its connection.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub async fn run(&mut self, alive: &Lifeline) {
        let mut deadline = None;
        loop {
            alive.look();
            for control in self.door.outbox.take_control() {
                match control {
                    Control::Serve(served, done) => self.serve(served, done, alive).await,
                    Control::Unserve(model, done) => self.leave(Some(&model), done),
                    Control::Drain(done) => {
                        self.discovery.leave();
                        self.leave(None, done);
                        self.durable.hand_back();
                    }
                    Control::Stop => {
                        self.served.clear();
                        self.discovery.leave();
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
                let is_done =
                    self.writer.is_done() && self.durable.is_idle() && self.discovery.is_gone();
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
    pub async fn close(self) {
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

    async fn serve(&mut self, served: ServedAlias, done: oneshot::Sender<()>, alive: &Lifeline) {
        let ServedAlias { model, digest } = served;
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
                self.durable.serve(&model, digest);
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

/// A connection, or what will be one, and how it stands.
async fn connect(
    config: &Config,
    urls: &[&str],
    deps: &BusDeps,
    outbox: &Arc<Outbox>,
) -> Result<(Client, Arc<NatsLink>), StartError> {
    let addresses: Vec<async_nats::ServerAddr> =
        urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let link = Arc::new(NatsLink::new(&urls.join(", "), deps.vitals.clone()));
    let woken = outbox.clone();
    let wake = move |event: &Event| match event {
        Event::Closed => woken.set_closed(),
        _ => woken.wake(),
    };
    let options = node_options(config, deps.vitals.node_id(), link.clone(), wake).await?;
    Ok((options.connect(addresses).await?, link))
}

/// Takes the node's place in discovery before anything of it is to be seen on the bus.
async fn take_place(
    client: &Client,
    link: &NatsLink,
    deps: &BusDeps,
    outbox: &Arc<Outbox>,
    alive: &Lifeline,
) -> Result<Discovery, StartError> {
    link.settled(SETTLE_LIMIT).await;
    let start = DiscoveryStart {
        client: client.clone(),
        vitals: deps.vitals.clone(),
        facts: deps.facts.clone(),
        replicas: deps.log.replicas,
        outbox: outbox.clone(),
    };
    Discovery::start(start, alive).await.map_err(|other| StartError::IdTaken {
        id: deps.vitals.node_id().to_owned(),
        place: other.place(),
    })
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StartError {
    StartError::Io(std::io::Error::other(error))
}
