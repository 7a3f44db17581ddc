//! A request's way back: what waits to be published for it, and the sink that stages call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::message::OutboundMessage;

use super::door::Door;
use super::encode::{Encoding, accepted};
use super::merge::merge;
use super::outbox::OutgoingRefusal;
use super::service::Endpoint;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::request::{Event, FinishReason, Handle, Sink, SinkClosed, Usage};

/// How often an event asks NATS whether anybody listens.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Where one request's events go, and those that wait.
pub(super) struct SubjectStream {
    /// Names it in the subject of its probes.
    pub number: u64,
    /// Where the events go.
    pub subject: Subject,
    /// How they are written.
    pub encoding: Encoding,
    /// An empty message follows the last event (request-many).
    pub ends_empty: bool,
    /// Goes on when nobody listens.
    pub detached: bool,
    /// On which connection the request came, counted from 1.
    pub connection: u64,
    gone: AtomicBool,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Joined where possible: one event for each choice, and one more for every new attempt.
    pending: VecDeque<Event>,
    /// The outbox or the writer has this stream.
    queued: bool,
    probed_at: Option<Instant>,
    handle: Option<Arc<Handle>>,
}

/// What a stream is made with.
pub(super) struct StreamTarget {
    /// Where the events go.
    pub subject: Subject,
    /// How they are written.
    pub encoding: Encoding,
    /// An empty message follows the last event.
    pub ends_empty: bool,
    /// Goes on when nobody listens.
    pub detached: bool,
    /// On which connection the request came.
    pub connection: u64,
}

impl SubjectStream {
    /// A stream with nothing in it.
    pub fn new(number: u64, target: StreamTarget) -> Self {
        Self {
            number,
            subject: target.subject,
            encoding: target.encoding,
            ends_empty: target.ends_empty,
            detached: target.detached,
            connection: target.connection,
            gone: AtomicBool::new(false),
            slot: Mutex::default(),
        }
    }

    /// Adds an event; true if the stream has to be queued for the writer.
    fn push(&self, event: Event) -> bool {
        let mut slot = self.lock();
        let same = |other: &Event| other.index == event.index;
        let last = slot.pending.len().checked_sub(1);
        // The request's last event stays behind those of the other choices.
        let of_choice =
            slot.pending.iter().rposition(same).filter(|at| !event.is_last() || Some(*at) == last);
        let left = match of_choice.and_then(|at| slot.pending.get_mut(at)) {
            Some(last) => merge(last, event).err().map(|event| *event),
            None => Some(event),
        };
        slot.pending.extend(left);
        !std::mem::replace(&mut slot.queued, true)
    }

    /// Takes what waits, and whether the first of it is to be a probe. From here on the stream can be queued again.
    pub fn take(&self, now: Instant) -> (VecDeque<Event>, bool) {
        let mut slot = self.lock();
        slot.queued = false;
        let due = slot.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY);
        if due {
            slot.probed_at = Some(now);
        }
        (std::mem::take(&mut slot.pending), due)
    }

    /// Nobody listens: cancels the request, unless it is detached.
    pub fn nobody_listens(&self) {
        if !self.detached {
            self.cancel("nobody listens");
        }
    }

    /// An event was lost, so nobody can make use of what follows: cancels the request.
    pub fn cannot_be_published(&self) {
        self.cancel("its events cannot be published");
    }

    fn cancel(&self, reason: &str) {
        if self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(handle) = &self.lock().handle {
            tracing::info!(request_id = %handle.request_id(), reason, "cancelled");
            handle.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // Only whole values are written under the lock.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the request has been told so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Accepted,
    Ended,
}

/// The bus's side of a request. Dropped before the end, it tells the client so.
pub(super) struct BusSink {
    door: Arc<Door>,
    stream: Arc<SubjectStream>,
    endpoint: Arc<Endpoint>,
    id: RequestId,
    /// Where acceptance or refusal goes; `None`: nowhere.
    reply: Option<Subject>,
    /// The id is the client's.
    own_id: bool,
    told: Told,
    /// Where the first choice stands, for an end of our own.
    attempt: u32,
    next_seq: u32,
    received: Instant,
}

/// What a sink is made with.
pub(super) struct SinkStart {
    /// Where it queues.
    pub door: Arc<Door>,
    /// Its events.
    pub stream: Arc<SubjectStream>,
    /// Whose counters it moves.
    pub endpoint: Arc<Endpoint>,
    /// The request.
    pub id: RequestId,
    /// Where acceptance or refusal goes.
    pub reply: Option<Subject>,
    /// The id is the client's.
    pub own_id: bool,
}

impl BusSink {
    /// The sink of a request that was just received.
    pub fn new(start: SinkStart) -> Self {
        Self {
            door: start.door,
            stream: start.stream,
            endpoint: start.endpoint,
            id: start.id,
            reply: start.reply,
            own_id: start.own_id,
            told: Told::Nothing,
            attempt: 1,
            next_seq: 0,
            received: Instant::now(),
        }
    }
}

impl Sink for BusSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.told = Told::Accepted;
        self.stream.lock().handle = Some(handle.clone());
        // The reply subject of a request-many gets nothing but events.
        if let (true, Some(reply)) = (self.own_id, &self.reply) {
            let encoding = self.stream.encoding;
            self.door.outbox.send(OutboundMessage {
                subject: reply.clone(),
                reply: None,
                payload: accepted(encoding, &self.id, &self.door.node_id),
                headers: encoding.headers(),
            });
        }
    }

    fn refused(&mut self, error: &Error) {
        self.told = Told::Ended;
        self.endpoint.failed(error);
        let id = self.own_id.then_some(&self.id);
        let encoding = self.stream.encoding;
        match &self.reply {
            Some(reply) => {
                let refused = OutgoingRefusal { encoding, id, error, ends: !self.own_id };
                self.door.outbox.send_refusal(reply.clone(), refused);
            }
            None => tracing::info!(request_id = %self.id, %error, "refused, with no reply subject"),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), SinkClosed> {
        let gone = self.stream.gone.load(Ordering::Acquire);
        if event.index == 0 {
            self.attempt = event.attempt;
            self.next_seq = event.seq + event.token_ids.len() as u32;
        }
        if event.is_last() {
            self.told = Told::Ended;
            match &event.error {
                Some(error) => self.endpoint.failed(error),
                None => self.endpoint.finished(self.received.elapsed()),
            }
        }
        // The last event is published even so: somebody may have come in the meantime.
        if gone && self.told != Told::Ended {
            return Err(SinkClosed);
        }
        if self.stream.push(event) {
            self.door.outbox.ready(self.stream.clone());
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.stream.gone.load(Ordering::Acquire)
    }
}

impl Drop for BusSink {
    fn drop(&mut self) {
        self.door.forget(self.stream.number);
        match self.told {
            Told::Ended => {}
            Told::Nothing => {
                let error = Error::new(Kind::Unavailable, "the node dropped the request")
                    .with_retry_after_ms(1_000);
                self.refused(&error);
            }
            Told::Accepted => {
                let event = Event {
                    attempt: self.attempt,
                    seq: self.next_seq,
                    finish_reason: Some(FinishReason::Failed),
                    usage: Some(Usage::default()),
                    error: Some(Box::new(Error::internal("the node dropped the request"))),
                    ..Event::new(self.id.clone())
                };
                // The stream is no one else's any more, so nobody needs to hear that it is closed.
                let _ = self.event(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(index: u32, seq: u32, is_last: bool) -> Event {
        Event {
            index,
            seq,
            token_ids: vec![seq],
            finish_reason: is_last.then_some(FinishReason::Stop),
            usage: is_last.then(Usage::default),
            ..Event::new(RequestId::parse("r").expect("an id"))
        }
    }

    #[test]
    fn events_of_several_choices_are_joined_each_with_its_own_and_the_last_stays_last() {
        let stream = SubjectStream::new(
            1,
            StreamTarget {
                subject: "s".into(),
                encoding: Encoding::Json,
                ends_empty: false,
                detached: false,
                connection: 1,
            },
        );
        for seq in 0..3 {
            for index in 0..2 {
                stream.push(event(index, seq, false));
            }
        }
        stream.push(event(0, 3, true));
        let (pending, _) = stream.take(Instant::now());
        let seen: Vec<_> = pending.iter().map(|one| (one.index, one.token_ids.len())).collect();
        assert_eq!(seen, [(0, 3), (1, 3), (0, 1)]);
        assert!(pending.back().is_some_and(Event::is_last));
    }
}
