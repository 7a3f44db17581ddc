//! Writes what waits in the outbox while NATS is connected, and notices when it is another connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::client::traits::Publisher;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Subject};
use bytes::{Bytes, BytesMut};

use super::cancels::Cancels;
use super::confirm::Unconfirmed;
use super::door::Door;
use super::encode::{Encoding, encode_event, error_headers};
use super::merge::split;
use super::outbox::{Work, empty};
use super::stream::SubjectStream;
use crate::clock::Timestamp;
use crate::progress::Progress;
use crate::request::Event;

/// Most messages that NATS has not confirmed; beyond it events wait and are joined. 8,192 of 200 bytes are 1.6 MB, and more than
/// what 100,000 messages/s put into a round trip of 50 ms.
const MAX_UNCONFIRMED: usize = 8_192;

/// A connection that confirms nothing for so long is given up: NATS answers in milliseconds, or it is cut off.
const STALL: Duration = Duration::from_secs(10);

/// How often a lost connection is looked at, beside the event that says that it is back.
const LOOK: Duration = Duration::from_secs(1);

/// What error headers and the content type take of `max_payload`, at most, in bytes.
const HEADER_ROOM: usize = 400;

/// Events are encoded one behind the other into pieces of this many bytes: one allocation for some hundred of them.
const BUFFER: usize = 1 << 16;

/// See the module.
pub(super) struct Writer {
    client: Client,
    door: Arc<Door>,
    progress: Progress,
    /// Probes and markers are answered under it.
    inbox: String,
    health_subject: Subject,
    hold: Duration,
    cancels: Cancels,
    window: Unconfirmed<OutboundMessage>,
    /// Lost with a connection, perhaps: to be sent again when the hold is over.
    again: Vec<OutboundMessage>,
    /// Streams from before the connection, until the hold is over.
    held: VecDeque<Arc<SubjectStream>>,
    hold_until: Option<Instant>,
    /// Connections so far.
    connection: u64,
    /// The connection was given up and is not yet another one.
    given_up: bool,
    msgpack: Option<HeaderMap>,
    buffer: BytesMut,
}

/// What a writer is made with.
pub(super) struct WriterStart {
    /// The connection.
    pub client: Client,
    /// Outbox, subjects and streams.
    pub door: Arc<Door>,
    /// Stamped with every message.
    pub progress: Progress,
    /// Subject under which probes and markers are answered.
    pub inbox: String,
    /// How long streams from before a reconnect are held back.
    pub hold: Duration,
}

impl Writer {
    /// A writer that has written nothing.
    pub fn new(start: WriterStart) -> Self {
        let health_subject = start.door.subjects.health(&start.door.node_id).into();
        Self {
            client: start.client,
            door: start.door,
            progress: start.progress,
            inbox: start.inbox,
            health_subject,
            hold: start.hold,
            cancels: Cancels::default(),
            window: Unconfirmed::default(),
            again: Vec::new(),
            held: VecDeque::new(),
            hold_until: None,
            connection: 0,
            given_up: false,
            msgpack: Encoding::Msgpack.headers(),
            buffer: BytesMut::new(),
        }
    }

    /// Writes what waits, if there is a connection.
    pub async fn cycle(&mut self) {
        let now = Instant::now();
        self.notice_connection(now);
        if self.window.confirm(self.door.outbox.confirmed(), now) {
            self.door.outbox.set_round_trip_us(self.window.round_trip().as_micros() as u64);
        }
        if !self.is_connected() {
            self.door.metrics.bus_connected.set(0.0);
            self.progress.set_pending(0, Timestamp::now());
            return;
        }
        self.give_up_if_stalled(now).await;
        let room = self.window.len() < MAX_UNCONFIRMED;
        let work = self.door.outbox.take(room);
        self.write(work, now).await;
        if let Some(marker) = self.window.marker(Instant::now()) {
            let body = Bytes::from(marker.to_string());
            self.publish(OutboundMessage {
                subject: format!("{}.m", self.inbox).into(),
                reply: None,
                payload: body,
                headers: None,
            })
            .await;
        }
    }

    /// Waits until there is something to do: at most until `until`.
    pub async fn wait(&self, until: Option<Instant>) {
        let look_at = Some(Instant::now() + LOOK);
        let next = match (self.is_connected(), self.window.is_empty()) {
            (false, _) => [until, look_at, None],
            (true, true) => [until, self.hold_until, None],
            (true, false) => [until, self.hold_until, self.window.marker_at().or(look_at)],
        };
        let changed = self.door.outbox.changed();
        match next.into_iter().flatten().min() {
            // The outcome does not matter: a change or the time, the cycle looks at everything.
            Some(at) => drop(tokio::time::timeout_at(at.into(), changed).await),
            None => changed.await,
        }
    }

    /// Whether nothing waits and NATS has confirmed everything.
    pub fn is_done(&self) -> bool {
        self.door.outbox.is_empty()
            && self.held.is_empty()
            && self.again.is_empty()
            && self.window.is_empty()
    }

    /// No more holding back: the node stops.
    pub fn end_hold(&mut self) {
        self.hold_until = None;
    }

    fn is_connected(&self) -> bool {
        self.connection > 0 && self.client.connection_state() == State::Connected
    }

    fn notice_connection(&mut self, now: Instant) {
        let connections = self.client.statistics().connects.load(Ordering::Acquire);
        if connections == self.connection {
            return;
        }
        if self.connection > 0 {
            self.door.metrics.bus_reconnects.increment(connections - self.connection);
            self.hold_until = Some(now + self.hold);
            let lost = self.window.reconnected();
            tracing::info!(
                again = lost.len(),
                hold_ms = self.hold.as_millis() as u64,
                "NATS is back; streams from before are held back"
            );
            self.again.extend(lost);
        }
        self.connection = connections;
        self.given_up = false;
        self.door.metrics.bus_connected.set(1.0);
    }

    async fn give_up_if_stalled(&mut self, now: Instant) {
        if self.given_up || self.window.waiting_for(now) < STALL {
            return;
        }
        tracing::warn!(seconds = STALL.as_secs(), "NATS confirms nothing; connecting anew");
        self.given_up = true;
        if let Err(error) = self.client.force_reconnect().await {
            tracing::error!(%error, "cannot ask for another connection");
        }
    }

    async fn write(&mut self, work: Work, now: Instant) {
        // Before the acceptances among the messages: who reads one can cancel.
        for id in work.opens {
            self.cancels.open(&self.client, &self.door, id).await;
        }
        for message in work.messages {
            self.publish_kept(message).await;
        }
        self.door.metrics.bus_refusals_dropped.increment(work.refusals_dropped);
        self.door.metrics.bus_messages_lost.increment(work.lost);
        let holding = self.hold_until.is_some_and(|until| now < until);
        if !holding {
            self.hold_until = None;
            for message in std::mem::take(&mut self.again) {
                self.publish_kept(message).await;
            }
            for stream in std::mem::take(&mut self.held) {
                self.write_stream(&stream, now).await;
            }
        }
        self.progress.set_pending(work.ready.len() as u64, Timestamp::now());
        for stream in work.ready {
            if holding && stream.connection < self.connection {
                self.held.push_back(stream);
            } else {
                self.write_stream(&stream, now).await;
            }
        }
        self.progress.stamp(Timestamp::now());
        self.progress.set_pending(0, Timestamp::now());
        for id in work.closes {
            self.cancels.close(&id);
        }
        if !holding {
            // Otherwise it may be a subscriber that is not back yet; the next probe asks again.
            for stream in work.absent.into_iter().filter_map(|number| self.door.stream(number)) {
                stream.nobody_listens();
            }
        }
        if let Some(body) = work.health {
            let subject = self.health_subject.clone();
            let message = OutboundMessage { subject, reply: None, payload: body, headers: None };
            self.publish(message).await;
        }
    }

    async fn write_stream(&mut self, stream: &SubjectStream, now: Instant) {
        let (events, mut probe) = stream.take(now);
        if self.buffer.capacity() < BUFFER / 16 {
            self.buffer.reserve(BUFFER);
        }
        for event in events {
            let last = event.is_last();
            for part in self.parts(stream.encoding, event) {
                let headers = match (&part.error, stream.encoding) {
                    (Some(error), encoding) => Some(error_headers(encoding, error)),
                    (None, Encoding::Msgpack) => self.msgpack.clone(),
                    (None, Encoding::Json) => None,
                };
                encode_event(stream.encoding, &part, &mut self.buffer);
                let reply = std::mem::take(&mut probe)
                    .then(|| format!("{}.{}", self.inbox, stream.number).into());
                let message = OutboundMessage {
                    subject: stream.subject.clone(),
                    reply,
                    payload: self.buffer.split().freeze(),
                    headers,
                };
                self.publish_kept(message).await;
            }
            if last && stream.ends_empty {
                self.publish_kept(empty(stream.subject.clone())).await;
            }
        }
    }

    /// The event in parts that NATS takes; nearly always one.
    fn parts(&mut self, encoding: Encoding, event: Event) -> Vec<Event> {
        let limit = self.client.max_payload().saturating_sub(HEADER_ROOM);
        let plain = event.logprobs.is_none() && event.prompt_logprobs.is_none();
        // At most 11 bytes for an id, 6 for an escaped byte of text, and room for all the rest.
        if plain && 2_048 + 11 * event.token_ids.len() + 6 * event.text.len() <= limit {
            return vec![event];
        }
        let mut buffer = BytesMut::new();
        split(event, &mut |part| {
            buffer.clear();
            encode_event(encoding, part, &mut buffer);
            buffer.len() <= limit
        })
    }

    /// Publishes a message and keeps it until NATS has confirmed it.
    async fn publish_kept(&mut self, message: OutboundMessage) {
        self.window.push(message.clone());
        self.publish(message).await;
    }

    async fn publish(&self, message: OutboundMessage) {
        let subject = message.subject.clone();
        if let Err(error) = self.client.publish_message(message).await {
            tracing::error!(%subject, %error, "a message could not be published");
        }
    }
}
