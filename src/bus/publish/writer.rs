//! Writes what waits in the outbox while NATS is connected, and notices when it is another connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::client::traits::Publisher;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Subject};
use bytes::{Bytes, BytesMut};

use super::outbox::{Work, empty};
use super::probe::ListenerProbe;
use super::stream::SubjectStream;
use super::window::Window;
use crate::bus::intake::{BusDoor, Cancels};
use crate::bus::wire::{Encoding, encode_event, error_headers, probe_headers};
use crate::clock::Timestamp;
use crate::lifeline::Lifeline;
use crate::progress::Progress;
use crate::request::{Event, EventQueue, split};

/// How often a lost connection is looked at, beside the event that says that it is back.
const LOOK: Duration = Duration::from_secs(1);

/// How often requests that say nothing are looked at.
const LOOK_AT_QUIET: Duration = Duration::from_secs(1);

/// What error headers and the content type take of `max_payload`, at most, in bytes.
const HEADER_ROOM: usize = 400;

/// Events are encoded one behind the other into pieces of this many bytes: one allocation for some hundred of them.
const BUFFER: usize = 1 << 16;

/// What is kept until NATS has confirmed it. An event is kept as it was said, not as it was sent: a server that takes less in one
/// message gets it in more of them.
enum Unconfirmed {
    Message(OutboundMessage),
    Event(Arc<SubjectStream>, Box<Event>),
}

/// See the module.
pub(in crate::bus) struct Writer {
    client: Client,
    door: Arc<BusDoor>,
    progress: Progress,
    /// Probes and markers are answered under it.
    inbox: String,
    health_subject: Subject,
    cancels: Cancels,
    window: Window<Unconfirmed>,
    /// Streams from before the connection, until the hold is over.
    held: Vec<Arc<SubjectStream>>,
    /// When requests that say nothing are looked at next.
    look_at_quiet: Instant,
    /// The library has ended the connection for good.
    is_closed: bool,
    msgpack: Option<HeaderMap>,
    buffer: BytesMut,
    /// Empty; kept for its room.
    events: EventQueue,
    alive: Lifeline,
}

/// What a writer is made with.
pub(in crate::bus) struct WriterStart {
    /// The connection.
    pub client: Client,
    /// Outbox, subjects and streams.
    pub door: Arc<BusDoor>,
    /// Stamped with every message.
    pub progress: Progress,
    /// Subject under which probes and markers are answered.
    pub inbox: String,
    /// How long streams from before a reconnect are held back.
    pub hold: Duration,
    /// Held for as long as it lives.
    pub alive: Lifeline,
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
            cancels: Cancels::default(),
            window: Window::new(start.hold),
            held: Vec::new(),
            look_at_quiet: Instant::now(),
            is_closed: false,
            msgpack: Encoding::Msgpack.headers(),
            buffer: BytesMut::new(),
            events: EventQueue::default(),
            alive: start.alive,
        }
    }

    /// Writes what waits, if there is a connection.
    pub async fn cycle(&mut self) {
        let now = Instant::now();
        self.notice_connection(now);
        let lost = self.client.statistics().lost_messages.load(Ordering::Relaxed);
        self.door.metrics.bus_messages_lost.absolute(lost);
        if let Some(round_trip) = self.window.confirm(self.door.outbox.confirmed(), now) {
            self.door.outbox.set_round_trip_us(round_trip.as_micros() as u64);
        }
        if !self.is_connected() {
            self.door.metrics.bus_connected.set(0.0);
            self.progress.set_pending(0, Timestamp::now());
            return;
        }
        if self.window.gives_up(now) {
            self.connect_anew().await;
        }
        if now >= self.look_at_quiet {
            self.look_at_quiet = now + LOOK_AT_QUIET;
            self.break_silence(now).await;
        }
        let work = self.door.outbox.take(self.window.has_room());
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
        let next = match self.is_connected() {
            false => Some(Instant::now() + LOOK),
            true => {
                let look_at_quiet = (!self.door.is_idle()).then_some(self.look_at_quiet);
                [self.window.next_at(), look_at_quiet].into_iter().flatten().min()
            }
        };
        let changed = self.door.outbox.changed();
        match [until, next].into_iter().flatten().min() {
            // The outcome does not matter: a change or the time, the cycle looks at everything.
            Some(at) => drop(tokio::time::timeout_at(at.into(), changed).await),
            None => changed.await,
        }
    }

    /// Whether nothing waits and NATS has confirmed everything.
    pub fn is_done(&self) -> bool {
        self.door.outbox.is_empty() && self.held.is_empty() && self.window.is_empty()
    }

    /// Whether the library has ended the connection: nothing can be written any more.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// No more holding back: the node stops.
    pub fn end_hold(&mut self) {
        self.window.end_hold();
    }

    fn is_connected(&self) -> bool {
        self.window.connection() > 0 && self.client.connection_state() == State::Connected
    }

    fn notice_connection(&mut self, now: Instant) {
        let connections = self.client.statistics().connects.load(Ordering::Acquire);
        if connections == self.window.connection() {
            return;
        }
        let reconnects = self.window.connected(connections, now);
        self.door.metrics.bus_reconnects.increment(reconnects);
        self.door.metrics.bus_connected.set(1.0);
    }

    async fn connect_anew(&mut self) {
        tracing::warn!("NATS confirms nothing; connecting anew");
        if let Err(error) = self.client.force_reconnect().await {
            tracing::error!(%error, "cannot ask for another connection");
        }
    }

    /// Has requests that say nothing find out whether anybody listens to them. Not while NATS takes nothing, nor while clients may not
    /// be back: what it says of those is not counted.
    async fn break_silence(&mut self, now: Instant) {
        if !self.window.has_room() || self.window.hold_until().is_some() {
            return;
        }
        for stream in self.door.running() {
            for (subject, probe) in stream.ask_for_caller(now) {
                let reply = Some(probe.reply(&self.inbox, stream.number));
                let headers = Some(probe_headers());
                let message = OutboundMessage { subject, reply, payload: Bytes::new(), headers };
                // What the connection does not take here it will not take as the answer, which says so.
                self.publish_kept(message).await;
            }
            if stream.break_silence(now) {
                self.door.outbox.ready(stream);
            }
        }
    }

    async fn write(&mut self, work: Work, now: Instant) {
        work.closes.iter().for_each(|id| self.cancels.ended(id));
        // Before the acceptances among the messages: who reads one can cancel.
        for id in work.opens {
            self.cancels.open(&self.client, &self.door, id, &self.alive).await;
        }
        for message in work.messages {
            self.publish_kept(message).await;
        }
        self.door.metrics.bus_refusals_dropped.increment(work.answers_dropped);
        for unconfirmed in self.window.after_hold(now) {
            match unconfirmed {
                Unconfirmed::Message(message) => self.publish_kept(message).await,
                Unconfirmed::Event(stream, event) => self.write_event(&stream, event, false).await,
            }
        }
        self.progress.set_pending(work.ready.len() as u64, Timestamp::now());
        let mut ready = std::mem::take(&mut self.held);
        ready.extend(work.ready);
        if self.window.hold_until().is_some() {
            (self.held, ready) =
                ready.into_iter().partition(|stream| self.window.holds(stream.target.connection));
        }
        for stream in ready {
            self.write_stream(&stream, now).await;
        }
        self.progress.stamp(Timestamp::now());
        self.progress.set_pending(0, Timestamp::now());
        for id in work.closes {
            self.cancels.close(&id);
        }
        if self.window.hold_until().is_none() {
            // Otherwise it may be a subscriber that is not back yet; the next probe asks again.
            for (number, probe) in work.unheard {
                self.door.stream(number).iter().for_each(|stream| stream.unheard(probe));
            }
        }
        if let Some(body) = work.health {
            let subject = self.health_subject.clone();
            let message = OutboundMessage { subject, reply: None, payload: body, headers: None };
            self.publish(message).await;
        }
    }

    async fn write_stream(&mut self, stream: &Arc<SubjectStream>, now: Instant) {
        self.alive.look();
        let mut events = std::mem::take(&mut self.events);
        let mut asks = stream.take(now, &mut events);
        while let Some(event) = events.pop() {
            let last = event.is_last();
            self.write_event(stream, event, std::mem::take(&mut asks)).await;
            if last && stream.target.ends_empty {
                self.publish_kept(empty(stream.target.subject.clone())).await;
            }
        }
        self.events = events;
    }

    /// Publishes an event, in parts if NATS does not take it whole; where it `asks`, NATS says whether anybody listens.
    async fn write_event(
        &mut self,
        stream: &Arc<SubjectStream>,
        event: Box<Event>,
        mut asks: bool,
    ) {
        let limit = self.client.max_payload().saturating_sub(HEADER_ROOM);
        let plain = event.logprobs.is_none() && event.prompt_logprobs.is_none();
        // At most 11 bytes for an id, 6 for an escaped byte of text, and room for all the rest.
        if plain && 2_048 + 11 * event.token_ids.len() + 6 * event.text.len() <= limit {
            return self.write_part(stream, event, asks).await;
        }
        let mut buffer = BytesMut::new();
        let parts = split(*event, &mut |part| {
            buffer.clear();
            encode_event(stream.target.encoding, part, &mut buffer);
            buffer.len() <= limit
        });
        for part in parts {
            self.write_part(stream, Box::new(part), std::mem::take(&mut asks)).await;
        }
    }

    async fn write_part(&mut self, stream: &Arc<SubjectStream>, part: Box<Event>, asks: bool) {
        if self.buffer.capacity() < BUFFER / 16 {
            self.buffer.reserve(BUFFER);
        }
        let encoding = stream.target.encoding;
        let headers = match (&part.error, encoding) {
            (Some(error), encoding) => Some(error_headers(encoding, error)),
            (None, Encoding::Msgpack) => self.msgpack.clone(),
            (None, Encoding::Json) => None,
        };
        encode_event(encoding, &part, &mut self.buffer);
        let message = OutboundMessage {
            subject: stream.target.subject.clone(),
            reply: asks.then(|| ListenerProbe::Events.reply(&self.inbox, stream.number)),
            payload: self.buffer.split().freeze(),
            headers,
        };
        match self.publish(message).await {
            true => self.window.sent(Unconfirmed::Event(stream.clone(), part)),
            false => stream.cannot_be_published(),
        }
    }

    /// Publishes a message and keeps it until NATS has confirmed it.
    async fn publish_kept(&mut self, message: OutboundMessage) {
        if self.publish(message.clone()).await {
            self.window.sent(Unconfirmed::Message(message));
        }
    }

    /// What the connection does not take can never be sent: the subject that a client named is none, or this server does not take the
    /// least that can be said in one message. Counted; a line for each would be a client's to write.
    async fn publish(&mut self, message: OutboundMessage) -> bool {
        let subject = message.subject.clone();
        let Err(error) = self.client.publish_message(message).await else { return true };
        tracing::debug!(%subject, %error, "a message could not be published");
        self.door.metrics.bus_publishes_failed.increment(1);
        self.is_closed |= error.kind() == PublishErrorKind::Send;
        false
    }
}
