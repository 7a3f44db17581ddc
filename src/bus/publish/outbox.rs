//! What waits to be written: filled by sinks, tasks and the node from any thread without blocking, emptied by the writer.
//!
//! Bounded: a stream is in it at most once, with its events joined, and what is accepted is answered once; refusals, of which any
//! number may be asked for while the link takes nothing, wait up to [`MAX_ANSWERS`].

use std::collections::HashSet;
use std::mem::take;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Subject;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::probe::ListenerProbe;
use super::stream::SubjectStream;
use crate::bus::wire::{Encoding, error_headers, refusal};
use crate::door::RunningObserver;
use crate::error::Error;
use crate::ids::RequestId;

/// Answers that may wait when another comes that nothing has paid for: a refusal, or what anybody may ask. Beyond that it is dropped
/// and counted, and its client's own time limit ends the wait. 8,192 of 300 bytes are 2.5 MB, and seconds of work for a link that is
/// worth having.
const MAX_ANSWERS: usize = 8_192;

/// A model as the bus serves it.
pub(in crate::bus) struct ServedAlias {
    /// Its alias.
    pub model: String,
    /// Of all that its tokens depend on.
    pub digest: String,
}

/// What the node asks of the writer.
pub(in crate::bus) enum Control {
    /// Take requests for a model; answered when NATS brings them.
    Serve(ServedAlias, oneshot::Sender<()>),
    /// Take none any more; answered when none can come any more.
    Unserve(String, oneshot::Sender<()>),
    /// The same for all models.
    Drain(oneshot::Sender<()>),
    /// Write what waits, then end.
    Stop,
}

/// Everything that the writer takes in one go, in the order in which it handles it.
#[derive(Default)]
pub(in crate::bus) struct Work {
    /// Running requests whose cancel subject is to be opened.
    pub opens: HashSet<RequestId>,
    /// Answers.
    pub messages: Vec<OutboundMessage>,
    /// Streams with new events.
    pub ready: Vec<Arc<SubjectStream>>,
    /// Ended requests whose cancel subject is to be closed.
    pub closes: HashSet<RequestId>,
    /// Probes that nobody heard, with the numbers of their streams.
    pub unheard: Vec<(u64, ListenerProbe)>,
    /// The newest health message.
    pub health: Option<Bytes>,
    /// Refusals and answers to questions that found no place.
    pub answers_dropped: u64,
}

#[derive(Default)]
struct OutboxQueue {
    work: Work,
    control: Vec<Control>,
}

impl OutboxQueue {
    fn has_too_many(&self) -> bool {
        self.work.messages.len() >= MAX_ANSWERS
    }
}

/// See the module.
#[derive(Default)]
pub(in crate::bus) struct Outbox {
    queue: Mutex<OutboxQueue>,
    wake: Notify,
    /// The last marker that came back.
    confirmed: AtomicU64,
    /// The last marker's round trip, in microseconds.
    round_trip_us: AtomicU64,
    /// The connection was closed, by us.
    closed: AtomicBool,
}

impl Outbox {
    /// Queues a message of a request that was accepted, or of the node's own.
    pub fn send(&self, message: OutboundMessage) {
        self.change(|queue| queue.work.messages.push(message));
    }

    /// Queues the answer to a question, which anybody may ask as often as they like.
    pub fn answer(&self, message: OutboundMessage) {
        self.change(|queue| match queue.has_too_many() {
            true => queue.work.answers_dropped += 1,
            false => queue.work.messages.push(message),
        });
    }

    /// Queues a refusal; `ends` adds the empty message that ends a request-many.
    pub fn send_refusal(&self, to: Subject, answer: OutgoingRefusal<'_>) {
        let OutgoingRefusal { encoding, id, error, ends } = answer;
        // Before it is encoded: a flood is to cost little.
        if self.lock().has_too_many() {
            return self.change(|queue| queue.work.answers_dropped += 1);
        }
        let refused = OutboundMessage {
            subject: to.clone(),
            reply: None,
            payload: refusal(encoding, id, error),
            headers: Some(error_headers(encoding, error)),
        };
        self.change(|queue| {
            queue.work.messages.push(refused);
            if ends {
                queue.work.messages.push(empty(to));
            }
        });
    }

    /// Queues a stream that has something new and is not queued.
    pub fn ready(&self, stream: Arc<SubjectStream>) {
        self.change(|queue| queue.work.ready.push(stream));
    }

    /// Replaces the health message that waits.
    pub fn health(&self, body: Bytes) {
        self.change(|queue| queue.work.health = Some(body));
    }

    /// Nobody heard a probe of a stream.
    pub fn unheard(&self, stream: u64, probe: ListenerProbe) {
        self.change(|queue| queue.work.unheard.push((stream, probe)));
    }

    /// A marker came back.
    pub fn confirm(&self, marker: u64) {
        self.confirmed.store(marker, Ordering::Release);
        self.wake.notify_one();
    }

    /// The last marker that came back.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Notes how long a marker was under way.
    pub fn set_round_trip_us(&self, micros: u64) {
        self.round_trip_us.store(micros, Ordering::Relaxed);
    }

    /// How long the last marker was under way, in microseconds; 0 before the first.
    pub fn round_trip_us(&self) -> u64 {
        self.round_trip_us.load(Ordering::Relaxed)
    }

    /// Whether the end of a request is still to be handled by the writer.
    pub fn has_ended(&self, id: &RequestId) -> bool {
        self.lock().work.closes.contains(id)
    }

    /// Asks something of the writer.
    pub fn control(&self, control: Control) {
        self.change(|queue| queue.control.push(control));
    }

    /// Takes what the node asked.
    pub fn take_control(&self) -> Vec<Control> {
        take(&mut self.lock().control)
    }

    /// Takes what waits; answers, and streams for their events, only if there is `room`.
    pub fn take(&self, room: bool) -> Work {
        let mut queue = self.lock();
        let mut work = take(&mut queue.work);
        if !room {
            queue.work.messages = take(&mut work.messages);
            queue.work.ready = take(&mut work.ready);
        }
        work
    }

    /// Whether nothing waits but health.
    pub fn is_empty(&self) -> bool {
        let queue = self.lock();
        let work = &queue.work;
        work.messages.is_empty() && work.ready.is_empty() && queue.control.is_empty()
    }

    /// Resolves when something was added since the last call.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Wakes the writer: the connection changed.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// The connection is closed for good.
    pub fn set_closed(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether the connection is closed for good.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut OutboxQueue)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, OutboxQueue> {
        // Only whole values are written under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunningObserver for Outbox {
    fn started(&self, id: &RequestId) {
        self.change(|queue| {
            // An id used again at once keeps the subscription it has.
            if !queue.work.closes.remove(id) {
                queue.work.opens.insert(id.clone());
            }
        });
    }

    fn ended(&self, id: &RequestId) {
        self.change(|queue| {
            // While NATS is away requests come and go over HTTP; what was never opened need not be closed.
            if !queue.work.opens.remove(id) {
                queue.work.closes.insert(id.clone());
            }
        });
    }
}

/// A refusal that is to be sent.
pub(in crate::bus) struct OutgoingRefusal<'a> {
    /// As it was asked.
    pub encoding: Encoding,
    /// The client's id, if it gave one.
    pub id: Option<&'a RequestId>,
    /// Why.
    pub error: &'a Error,
    /// Whether an empty message follows.
    pub ends: bool,
}

/// The empty message that ends a request-many.
pub(super) fn empty(to: Subject) -> OutboundMessage {
    OutboundMessage { subject: to, reply: None, payload: Bytes::new(), headers: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RequestId {
        RequestId::parse(text).expect("an id")
    }

    #[test]
    fn requests_that_come_and_go_while_nats_is_away_leave_nothing() {
        let outbox = Outbox::default();
        for i in 0..100 {
            outbox.started(&id(&format!("r{i}")));
            outbox.ended(&id(&format!("r{i}")));
        }
        let work = outbox.take(true);
        assert!(work.opens.is_empty() && work.closes.is_empty());
    }

    #[test]
    fn an_id_used_again_at_once_keeps_its_subject() {
        let outbox = Outbox::default();
        outbox.started(&id("a"));
        assert_eq!(outbox.take(true).opens.len(), 1);
        outbox.ended(&id("a"));
        outbox.started(&id("a"));
        let work = outbox.take(true);
        assert!(work.opens.is_empty() && work.closes.is_empty());
        outbox.ended(&id("a"));
        assert_eq!(outbox.take(true).closes.len(), 1);
    }

    #[test]
    fn refusals_and_answers_beyond_their_bound_are_dropped_and_counted_and_acceptances_never() {
        let outbox = Outbox::default();
        let error = Error::invalid("x", "y");
        let refuse = || {
            let refused =
                OutgoingRefusal { encoding: Encoding::Json, id: None, error: &error, ends: false };
            outbox.send_refusal("to".into(), refused);
        };
        (0..MAX_ANSWERS + 5).for_each(|_| refuse());
        outbox.send(empty("accepted".into()));
        let work = outbox.take(false);
        assert_eq!((work.messages.len(), work.answers_dropped), (0, 5), "no room for answers");
        refuse();
        let work = outbox.take(true);
        assert_eq!((work.messages.len(), work.answers_dropped), (MAX_ANSWERS + 1, 1));
        (0..MAX_ANSWERS + 5).for_each(|_| outbox.answer(empty("asked".into())));
        let work = outbox.take(true);
        assert_eq!((work.messages.len(), work.answers_dropped), (MAX_ANSWERS, 5));
        refuse();
        assert_eq!(outbox.take(true).messages.len(), 1);
    }

    #[test]
    fn a_refusal_of_a_request_many_is_followed_by_the_end() {
        let outbox = Outbox::default();
        let error = Error::invalid("x", "y");
        let refused =
            OutgoingRefusal { encoding: Encoding::Json, id: None, error: &error, ends: true };
        outbox.send_refusal("to".into(), refused);
        let messages = outbox.take(true).messages;
        assert_eq!(messages.len(), 2);
        assert!(messages[0].headers.is_some() && messages[1].payload.is_empty());
        assert!(outbox.is_empty());
    }
}
