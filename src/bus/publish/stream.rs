//! A request's way back: what waits to be published for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;

use super::caller_inbox::CallerInbox;
use super::probe::ListenerProbe;
use crate::bus::wire::Encoding;
use crate::ids::RequestId;
use crate::request::{Event, EventQueue, Handle};

/// How often an event asks NATS whether anybody listens.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long a request says nothing before an event without tokens asks in its place. More than [`PROBE_EVERY`], so that a request
/// with tokens never has one; and few requests wait longer for their first.
const QUIET: Duration = Duration::from_secs(2);

/// Where one request's events go, and those that wait.
pub(in crate::bus) struct SubjectStream {
    /// Names it in the subject of its probes.
    pub number: u64,
    /// Who is to have them, and how.
    pub target: StreamTarget,
    gone: AtomicBool,
    /// Another node runs the id: nothing of this one is published any more.
    withdrawn: AtomicBool,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    pending: EventQueue,
    /// The outbox or the writer has this stream.
    queued: bool,
    probed_at: Option<Instant>,
    /// Since when there was nothing to say: the acceptance, or the last events.
    quiet_since: Option<Instant>,
    handle: Option<Arc<Handle>>,
    /// Where the first choice stands.
    position: Position,
    /// Who waits for the one answer.
    caller: CallerInbox,
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
    /// Whether the request runs and has had nothing to say for a while.
    fn is_quiet(&self, now: Instant) -> bool {
        let is_long = self.quiet_since.is_some_and(|since| now.duration_since(since) >= QUIET);
        is_long && !self.queued && !self.position.ended
    }

    /// Adds what an event says; true if the stream has to be queued for the writer.
    fn push(&mut self, event: &mut Event) -> bool {
        if event.index == 0 {
            self.position = Position::after(event);
        }
        self.pending.push(event);
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

/// Where a request's events go, and what its caller wants of them.
pub(in crate::bus) struct StreamTarget {
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
}

impl SubjectStream {
    /// A stream with nothing in it.
    pub fn new(number: u64, target: StreamTarget) -> Self {
        let (gone, withdrawn) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { number, target, gone, withdrawn, slot: Mutex::default() }
    }

    /// The request is in: `handle` cancels it.
    pub fn accepted(&self, handle: &Arc<Handle>, now: Instant) {
        let mut slot = self.lock();
        slot.handle = Some(handle.clone());
        slot.quiet_since = Some(now);
    }

    /// Adds what an event says; true if the stream has to be queued for the writer.
    pub fn push(&self, event: &mut Event) -> bool {
        self.lock().push(event)
    }

    /// Puts what waits into `events`, which is empty and whose room the stream gets; whether the first of it is to be a probe. From
    /// here on the stream can be queued again.
    pub fn take(&self, now: Instant, events: &mut EventQueue) -> bool {
        let mut slot = self.lock();
        slot.queued = false;
        let due = slot.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY);
        if due {
            slot.probed_at = Some(now);
        }
        slot.quiet_since = Some(now);
        std::mem::swap(&mut slot.pending, events);
        if self.withdrawn.load(Ordering::Acquire) {
            events.clear();
            return false;
        }
        due
    }

    /// Adds an event without tokens if the request has had nothing to say for a while and somebody ought to listen; true if the
    /// stream has to be queued for the writer.
    pub fn break_silence(&self, now: Instant) -> bool {
        let mut slot = self.lock();
        let is_due = !self.target.detached
            && !self.target.one_answer
            && !self.is_gone()
            && slot.is_quiet(now);
        let Some(handle) = slot.handle.as_ref().filter(|_| is_due) else { return false };
        let mut event = slot.position.event(handle.request_id().clone());
        slot.push(&mut event)
    }

    /// What to ask of NATS about the caller who waits for one answer, if there was none for a while and somebody ought to wait.
    pub fn ask_for_caller(&self, now: Instant) -> Vec<(Subject, ListenerProbe)> {
        let mut slot = self.lock();
        if self.target.detached || !self.target.one_answer || self.is_gone() || !slot.is_quiet(now)
        {
            return Vec::new();
        }
        slot.quiet_since = Some(now);
        slot.caller.ask(&self.target.subject, &uuid::Uuid::now_v7().simple().to_string())
    }

    /// Nobody heard a probe: cancels the request, unless it is detached, if that means that nobody listens.
    pub fn unheard(&self, probe: ListenerProbe) {
        let nobody_listens = probe == ListenerProbe::Events || self.lock().caller.unheard(probe);
        if nobody_listens && !self.target.detached {
            self.cancel("nobody listens");
        }
    }

    /// An event without tokens, where the first choice stands.
    pub fn next_event(&self, id: RequestId) -> Event {
        self.lock().position.event(id)
    }

    /// Whether nothing but the request's end is of use any more.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// An event was lost, so nobody can make use of what follows: cancels the request.
    pub fn cannot_be_published(&self) {
        self.cancel("its events cannot be published");
    }

    /// Another node runs the id: cancels the request, and says nothing of it on the subject that is the other's.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Release);
        self.cancel("its id runs on another node");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SequenceId;
    use crate::request::{FinishReason, Usage};

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

    /// What waits, and whether it asks.
    fn taken(stream: &SubjectStream, now: Instant) -> (Vec<Event>, bool) {
        let mut events = EventQueue::default();
        let asks = stream.take(now, &mut events);
        (std::iter::from_fn(|| events.pop().map(|event| *event)).collect(), asks)
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
        let (events, asks) = taken(&stream, t0 + QUIET);
        assert!(asks && events[0] == Event::new(RequestId::parse("r").expect("an id")));
        assert!(!stream.break_silence(t0 + QUIET + QUIET / 2), "not at once again");
        stream.push(&mut event(0, 0, false));
        taken(&stream, t0 + QUIET * 2);
        assert!(stream.break_silence(t0 + QUIET * 3));
        let (events, _) = taken(&stream, t0 + QUIET * 3);
        assert_eq!((events[0].seq, events[0].token_ids.len()), (1, 0), "where it stands");
        stream.push(&mut event(0, 1, true));
        taken(&stream, t0 + QUIET * 3);
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
    fn a_stream_that_is_withdrawn_is_cancelled_and_publishes_nothing_not_even_its_end() {
        let (stream, t0) = accepted(target());
        stream.push(&mut event(0, 0, false));
        stream.withdraw();
        assert!(stream.is_gone());
        assert!(taken(&stream, t0).0.is_empty());
        stream.push(&mut event(0, 1, true));
        assert!(taken(&stream, t0 + QUIET).0.is_empty());
    }

    #[test]
    fn who_waits_for_one_answer_is_asked_for_beside_it_and_its_request_ends_when_it_has_gone() {
        let target = StreamTarget { subject: "_INBOX.a.1".into(), one_answer: true, ..target() };
        let (stream, t0) = accepted(target);
        assert!(stream.ask_for_caller(t0 + QUIET / 2).is_empty());
        assert_eq!(stream.ask_for_caller(t0 + QUIET).len(), 2);
        assert!(stream.ask_for_caller(t0 + QUIET).is_empty(), "not at once again");
        stream.unheard(ListenerProbe::Stranger);
        let asked = stream.ask_for_caller(t0 + QUIET * 2);
        assert_eq!(
            asked.iter().map(|(_, probe)| *probe).collect::<Vec<_>>(),
            [ListenerProbe::Sibling]
        );
        assert!(!stream.is_gone());
        stream.unheard(ListenerProbe::Sibling);
        assert!(stream.is_gone() && stream.ask_for_caller(t0 + QUIET * 3).is_empty());
    }

    #[test]
    fn who_reads_events_is_detached_or_has_its_answer_on_the_way_is_not_asked_for_beside_it() {
        let one_answer =
            || StreamTarget { subject: "_INBOX.a.1".into(), one_answer: true, ..target() };
        for target in [
            StreamTarget { one_answer: false, ..one_answer() },
            StreamTarget { detached: true, ..one_answer() },
        ] {
            let (stream, t0) = accepted(target);
            assert!(stream.ask_for_caller(t0 + QUIET).is_empty());
        }
        let (stream, t0) = accepted(one_answer());
        stream.push(&mut event(0, 0, true));
        assert!(stream.ask_for_caller(t0 + QUIET).is_empty());
    }

    #[test]
    fn events_of_several_choices_are_joined_each_with_its_own_and_the_last_stays_last() {
        let stream = stream(target());
        for seq in 0..3 {
            for index in 0..2 {
                stream.push(&mut event(index, seq, false));
            }
        }
        stream.push(&mut event(0, 3, true));
        let (pending, _) = taken(&stream, Instant::now());
        let seen: Vec<_> = pending.iter().map(|one| (one.index, one.token_ids.len())).collect();
        assert_eq!(seen, [(0, 3), (1, 3), (0, 1)]);
        assert!(pending.last().is_some_and(|event| event.is_last()));
    }
}
