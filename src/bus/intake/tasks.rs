//! The tasks that take what NATS sends: requests, answers to the node's own messages, and questions of service tools. Each lasts as
//! long as the bus, or the model it is for: one that ends before, in whatever way, drops its lifeline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::select_all;
use tokio::sync::oneshot;

use super::door::BusDoor;
use super::owners::Owners;
use super::service::{Endpoint, Service, Verb};
use crate::bus::connect::{NatsLink, Subscription};
use crate::bus::publish::{ListenerProbe, Outbox};
use crate::lifeline::Lifeline;

/// How long a subject is left: at least this after the server was told.
const MIN_LEAVE: Duration = Duration::from_millis(20);
/// And at most this, however slow the connection is.
const MAX_LEAVE: Duration = Duration::from_millis(500);

/// Without a neighbour's health for so long a node is alone; it comes every second.
const SILENCE: Duration = Duration::from_secs(3);

/// How long one that was heard counts before it is listened to again.
const REST: Duration = Duration::from_secs(5);

/// The task that takes one model's requests.
pub(in crate::bus) struct Intake {
    /// Of the model's subject.
    pub subscription: Subscription,
    /// The connection.
    pub client: Client,
    /// The door that its messages are handed to.
    pub door: Arc<BusDoor>,
    /// The model and its counters.
    pub endpoint: Arc<Endpoint>,
}

impl Intake {
    /// Takes requests until `leaving` is sent; answers that when no request can come any more.
    pub async fn take_requests(
        mut self,
        mut leaving: oneshot::Receiver<oneshot::Sender<()>>,
        alive: Lifeline,
    ) {
        let statistics = self.client.statistics();
        let done = loop {
            tokio::select! {
                message = self.subscription.next() => match message {
                    Some(message) => {
                        alive.look();
                        let connection = statistics.connects.load(Ordering::Relaxed);
                        self.door.request(message, (&self.endpoint, connection), &alive);
                    }
                    None => return,
                },
                done = &mut leaving => break done,
            }
        };
        self.leave().await;
        let rest = async {
            while let Some(message) = self.subscription.next().await {
                let connection = statistics.connects.load(Ordering::Relaxed);
                self.door.request(message, (&self.endpoint, connection), &alive);
            }
        };
        // Without NATS the library leaves only when it is back, but nothing comes until then either.
        if tokio::time::timeout(MAX_LEAVE, rest).await.is_err() {
            tracing::warn!(model = &*self.endpoint.model, "NATS did not confirm that it was left");
        }
        // What came is in before it is said that nothing comes any more.
        self.door.owners.settled().await;
        if let Ok(done) = done {
            // Nobody may be waiting any more.
            let _ = done.send(());
        }
        alive.dismiss();
    }

    /// Tells the server, then stands still until what it had sent before has arrived. The library drops a drained subscription
    /// at the next thing it reads, so requests still under way would be lost without an answer; standing still (the connection
    /// lives on this thread) lets all of them arrive first.
    async fn leave(&mut self) {
        let told = async {
            self.subscription.drain().await?;
            // Resolves when the UNSUB is on the wire.
            Ok::<_, async_nats::Error>(self.client.flush().await?)
        };
        if let Ok(Ok(())) = tokio::time::timeout(MAX_LEAVE, told).await {
            let trip = Duration::from_micros(self.door.outbox.round_trip_us());
            std::thread::sleep((trip * 4).clamp(MIN_LEAVE, MAX_LEAVE));
        }
    }
}

/// What comes back to the node's inbox: markers, who runs an id, and 503 for probes that nobody heard.
pub(in crate::bus) async fn take_answers(
    mut answers: Subscription,
    door: Arc<BusDoor>,
    alive: Lifeline,
) {
    let outbox = &door.outbox;
    while let Some(message) = answers.next().await {
        alive.look();
        let word = message.subject.rsplit('.').next().unwrap_or_default();
        if word == "m" {
            let marker = std::str::from_utf8(&message.payload).ok();
            let marker = marker.and_then(|text| text.parse().ok());
            marker.into_iter().for_each(|marker| outbox.confirm(marker));
        } else if let Some(number) = Owners::parse(word) {
            door.owner_answered(number, &message);
        } else if message.status == Some(StatusCode::NO_RESPONDERS) {
            let unheard = ListenerProbe::parse(word);
            unheard.into_iter().for_each(|(stream, probe)| outbox.unheard(stream, probe));
        }
    }
}

/// A subject that is held for what NATS says of it: nothing that comes is for this node.
pub(in crate::bus) async fn hold_subject(mut subject: Subscription, alive: Lifeline) {
    while subject.next().await.is_some() {
        alive.look();
    }
}

/// Answers `$SRV`.
pub(in crate::bus) async fn answer_service(
    asked: Vec<(Verb, Subscription)>,
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    alive: Lifeline,
) {
    let streams = asked.into_iter().map(|(verb, subscription)| {
        subscription.into_stream().map(move |message| (verb, message)).boxed()
    });
    let mut questions = select_all(streams);
    while let Some((verb, question)) = questions.next().await {
        alive.look();
        let Some(reply) = question.reply else { continue };
        outbox.answer(OutboundMessage {
            subject: reply,
            reply: None,
            payload: Bytes::from(service.answer(verb).to_string()),
            headers: None,
        });
    }
}

/// Finds out whether there are other nodes, by their health: only until one is heard, and again a while later, so that it costs the
/// same in a large cluster.
pub(in crate::bus) async fn watch_neighbours(
    client: Client,
    link: Arc<NatsLink>,
    door: Arc<BusDoor>,
    alive: Lifeline,
) {
    let (all, own) = (door.subjects.health("*"), door.subjects.health(&door.node_id));
    loop {
        let health = Subscription::open(&client, &link, all.clone(), None).await;
        let Ok(mut health) = health else { return };
        loop {
            alive.look();
            match tokio::time::timeout(SILENCE, another(&mut health, &own)).await {
                Ok(true) => break,
                Ok(false) => return,
                // What nobody hears says nothing.
                Err(_) => {
                    let is_deaf =
                        client.connection_state() != State::Connected || link.denies(&all);
                    door.owners.set_neighbours(is_deaf);
                }
            }
        }
        door.owners.set_neighbours(true);
        drop(health);
        tokio::time::sleep(REST).await;
    }
}

/// Resolves when another node's health comes; false if the connection ends.
async fn another(health: &mut Subscription, own: &str) -> bool {
    while let Some(message) = health.next().await {
        if message.subject.as_str() != own {
            return true;
        }
    }
    false
}
