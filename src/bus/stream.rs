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

/// How long a request says nothing before an event without tokens asks in its place. More than [`PROBE_EVERY`], so that a request
/// with tokens never has one; and few requests wait longer for their first.
const QUIET: Duration = Duration::from_secs(2);

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
    /// Its first message is its answer: whoever takes it reads no further.
    pub one_answer: bool,
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
    /// Since when there was nothing to say: the acceptance, or the last events.
    quiet_since: Option<Instant>,
    handle: Option<Arc<Handle>>,
    /// Where the first choice stands.
    position: Position,
}

/// What the next event of a choice begins with.
#[derive(Debug, Clone, Copy)]
struct Position {
    attempt: u32,
    seq: u32,
    /// It has had its last event.
    ended: bool,
}

impl Default for Position {
    fn default() -> Self {
        Self { attempt: 1, seq: 0, ended: false }
    }
}

impl Slot {
    /// Adds an event; true if the stream has to be queued for the writer.
    fn push(&mut self, event: Event) -> bool {
        if event.index == 0 {
            self.position = Position::after(&event);
        }
        let same = |other: &Event| other.index == event.index;
        let last = self.pending.len().checked_sub(1);
        // The request's last event stays behind those of the other choices.
        let of_choice =
            self.pending.iter().rposition(same).filter(|at| !event.is_last() || Some(*at) == last);
        let left = match of_choice.and_then(|at| self.pending.get_mut(at)) {
            Some(last) => merge(last, event).err().map(|event| *event),
            None => Some(event),
        };
        self.pending.extend(left);
        !std::mem::replace(&mut self.queued, true)
    }
}

impl Position {
    fn after(event: &Event) -> Self {
        let seq = event.seq + event.token_ids.len() as u32;
        Self { attempt: event.attempt, seq, ended: event.finish_reason.is_some() }
    }

    /// An event without tokens, which leaves it where it is.
    fn event(self, id: RequestId) -> Event {
        Event { attempt: self.attempt, seq: self.seq, ..Event::new(id) }
    }
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
    /// Its first message is its answer.
    pub one_answer: bool,
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
            one_answer: target.one_answer,
            connection: target.connection,
            gone: AtomicBool::new(false),
            slot: Mutex::default(),
        }
    }

    /// The request is in: `handle` cancels it.
    fn accepted(&self, handle: &Arc<Handle>, now: Instant) {
        let mut slot = self.lock();
        slot.handle = Some(handle.clone());
        slot.quiet_since = Some(now);
    }

    /// Adds an event; true if the stream has to be queued for the writer.
    fn push(&self, event: Event) -> bool {
        self.lock().push(event)
    }

    /// Takes what waits, and whether the first of it is to be a probe. From here on the stream can be queued again.
    pub fn take(&self, now: Instant) -> (VecDeque<Event>, bool) {
        let mut slot = self.lock();
        slot.queued = false;
        let due = slot.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY);
        if due {
            slot.probed_at = Some(now);
        }
        slot.quiet_since = Some(now);
        (std::mem::take(&mut slot.pending), due)
    }

    /// Adds an event without tokens if the request has had nothing to say for a while and somebody ought to listen; true if the
    /// stream has to be queued for the writer.
    pub fn break_silence(&self, now: Instant) -> bool {
        if self.detached || self.one_answer || self.gone.load(Ordering::Acquire) {
            return false;
        }
        let mut slot = self.lock();
        let Some(handle) = &slot.handle else { return false };
        let quiet = slot.quiet_since.is_some_and(|since| now.duration_since(since) >= QUIET);
        if !quiet || slot.queued || slot.position.ended {
            return false;
        }
        let event = slot.position.event(handle.request_id().clone());
        slot.push(event)
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
            received: Instant::now(),
        }
    }
}

impl Sink for BusSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.told = Told::Accepted;
        self.stream.accepted(handle, Instant::now());
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
                let position = self.stream.lock().position;
                let event = Event {
                    finish_reason: Some(FinishReason::Failed),
                    usage: Some(Usage::default()),
                    error: Some(Box::new(Error::internal("the node dropped the request"))),
                    ..position.event(self.id.clone())
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
    use crate::ids::SequenceId;

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

    fn target() -> StreamTarget {
        StreamTarget {
            subject: "s".into(),
            encoding: Encoding::Json,
            ends_empty: false,
            detached: false,
            one_answer: false,
            connection: 1,
        }
    }

    fn stream(target: StreamTarget) -> SubjectStream {
        SubjectStream::new(1, target)
    }

    /// One that was accepted, and then.
    fn accepted(target: StreamTarget) -> (SubjectStream, Instant) {
        let (stream, now) = (stream(target), Instant::now());
        let id = RequestId::parse("r").expect("an id");
        stream.accepted(&Handle::new(id, SequenceId(1)), now);
        (stream, now)
    }

    #[test]
    fn a_request_that_says_nothing_asks_with_an_event_without_tokens() {
        let (stream, t0) = accepted(target());
        assert!(!stream.break_silence(t0 + QUIET / 2));
        assert!(stream.break_silence(t0 + QUIET));
        assert!(!stream.break_silence(t0 + QUIET), "it is on its way");
        let (events, asks) = stream.take(t0 + QUIET);
        assert!(asks && events == [Event::new(RequestId::parse("r").expect("an id"))]);
        assert!(!stream.break_silence(t0 + QUIET + QUIET / 2), "not at once again");
        stream.push(event(0, 0, false));
        stream.take(t0 + QUIET * 2);
        assert!(stream.break_silence(t0 + QUIET * 3));
        let (events, _) = stream.take(t0 + QUIET * 3);
        assert_eq!((events[0].seq, events[0].token_ids.len()), (1, 0), "where it stands");
        stream.push(event(0, 1, true));
        stream.take(t0 + QUIET * 3);
        assert!(!stream.break_silence(t0 + QUIET * 9), "it has ended");
    }

    #[test]
    fn who_is_not_accepted_is_detached_or_reads_one_message_is_told_nothing_without_tokens() {
        let (quiet, t0) = (stream(target()), Instant::now());
        assert!(!quiet.break_silence(t0 + QUIET * 2));
        for target in [
            StreamTarget { detached: true, ..target() },
            StreamTarget { one_answer: true, ..target() },
        ] {
            let (stream, t0) = accepted(target);
            assert!(!stream.break_silence(t0 + QUIET * 2));
        }
    }

    #[test]
    fn events_of_several_choices_are_joined_each_with_its_own_and_the_last_stays_last() {
        let stream = stream(target());
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
