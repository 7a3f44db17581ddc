//! What lies between the stages that send a request's events and the connection that takes them.
//!
//! One [`Outbox`] per HTTP request, one choice in it per prompt. Text that nobody has taken yet is merged, so an outbox never holds
//! more than the completion itself (which `max_tokens` bounds), however slow the reader is. [`Reader`] is the connection's end:
//! dropping it is leaving, and cancels what still runs. [`Entry`] is the stages' end: dropping it unfinished is a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::request::{Event, FinishReason, Handle, Receipt, Sink, SinkClosed, Usage};

/// What the reader takes at once: everything of one choice since it took the last time.
#[derive(Debug, PartialEq)]
pub(super) struct Taken {
    /// Which choice.
    pub(super) index: usize,
    /// May be empty with an end.
    pub(super) text: String,
    /// In the last one of the choice.
    pub(super) end: Option<End>,
}

/// How a choice ended.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// With `stop` or `length`.
    Finished(Finished),
    /// Refused, failed, or cancelled.
    Failed(Error),
}

/// What a finished choice comes with.
#[derive(Debug, PartialEq)]
pub(super) struct Finished {
    pub(super) reason: FinishReason,
    pub(super) usage: Usage,
    pub(super) receipt: Option<Receipt>,
}

/// See the module.
pub(super) struct Outbox {
    state: Mutex<State>,
    /// How long text may lie before its reader counts as gone; none: for as long as it takes.
    slow_after: Option<Duration>,
}

struct State {
    choices: Vec<Choice>,
    /// Choices neither accepted nor ended.
    undecided: usize,
    /// The choice that is looked at first, so that none is starved by another.
    next: usize,
    waker: Option<Waker>,
    /// The reader is gone.
    closed: bool,
}

#[derive(Default)]
struct Choice {
    handle: Option<Arc<Handle>>,
    text: String,
    /// When the oldest part of `text` came.
    since: Option<Timestamp>,
    end: Option<End>,
    ended: bool,
}

/// Makes the two ends of an outbox with `choices` choices.
pub(super) fn outbox(choices: usize, slow_after: Option<Duration>) -> (Reader, Vec<Entry>) {
    let state = State {
        choices: (0..choices).map(|_| Choice::default()).collect(),
        undecided: choices,
        next: 0,
        waker: None,
        closed: false,
    };
    let outbox = Arc::new(Outbox { state: Mutex::new(state), slow_after });
    let entries = (0..choices).map(|index| Entry { outbox: Arc::clone(&outbox), index }).collect();
    (Reader(outbox), entries)
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, so a poisoned lock still holds a whole value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the reader if `change` says so.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> (T, bool)) -> T {
        let mut state = self.lock();
        let (result, wake) = change(&mut state);
        let waker = if wake { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

impl State {
    fn accept(&mut self, index: usize, handle: &Arc<Handle>) -> bool {
        if self.closed {
            handle.cancel();
        }
        let choice = &mut self.choices[index];
        if choice.handle.is_none() && !choice.ended {
            self.undecided -= 1;
        }
        choice.handle = Some(Arc::clone(handle));
        self.undecided == 0
    }

    fn end(&mut self, index: usize, end: End) -> bool {
        let choice = &mut self.choices[index];
        if choice.ended {
            return false;
        }
        if choice.handle.is_none() {
            self.undecided -= 1;
        }
        choice.ended = true;
        choice.end = Some(end);
        true
    }

    fn event(
        &mut self,
        index: usize,
        event: Event,
        slow: Option<(Duration, Timestamp)>,
    ) -> Result<bool, SinkClosed> {
        if self.closed {
            return Err(SinkClosed);
        }
        let choice = &mut self.choices[index];
        if let (Some((limit, now)), Some(since)) = (slow, choice.since)
            && now.since(since) > limit
        {
            self.give_up(limit);
            return Err(SinkClosed);
        }
        let mut wake = !event.text.is_empty();
        if choice.text.is_empty() {
            choice.text = event.text;
            choice.since = slow.map(|(_, now)| now).filter(|_| wake);
        } else {
            choice.text.push_str(&event.text);
        }
        if let Some(reason) = event.finish_reason {
            let end = match reason {
                FinishReason::Stop | FinishReason::Length => End::Finished(Finished {
                    reason,
                    usage: event.usage.unwrap_or_default(),
                    receipt: event.receipt,
                }),
                FinishReason::Cancelled => {
                    End::Failed(Error::new(Kind::Cancelled, "the request was cancelled"))
                }
                FinishReason::Failed => End::Failed(
                    event.error.unwrap_or_else(|| Error::internal("the request failed")),
                ),
            };
            wake |= self.end(index, end);
        }
        Ok(wake)
    }

    /// The reader took nothing for too long: whatever is left of the request is cancelled, and what lies here is thrown away.
    fn give_up(&mut self, limit: Duration) {
        let message = format!("the reader took nothing for {} s", limit.as_secs());
        self.close();
        for index in 0..self.choices.len() {
            self.choices[index].text = String::new();
            self.end(index, End::Failed(Error::new(Kind::Cancelled, message.clone())));
        }
    }

    fn close(&mut self) {
        self.closed = true;
        let running = self.choices.iter().filter(|choice| !choice.ended);
        for handle in running.filter_map(|choice| choice.handle.as_ref()) {
            handle.cancel();
        }
    }

    fn take(&mut self) -> Option<Taken> {
        let count = self.choices.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            let choice = &mut self.choices[index];
            if choice.text.is_empty() && choice.end.is_none() {
                continue;
            }
            choice.since = None;
            let (text, end) = (std::mem::take(&mut choice.text), choice.end.take());
            self.next = (index + 1) % count;
            return Some(Taken { index, text, end });
        }
        None
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
    }
}

/// The connection's end.
pub(super) struct Reader(Arc<Outbox>);

impl Reader {
    /// Ready when every choice is accepted or one has ended.
    pub(super) fn poll_decided(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.undecided == 0 || state.choices.iter().any(|choice| choice.ended) {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// The next text or end; after the end of every choice, pending for ever.
    pub(super) fn poll_take(&self, cx: &Context<'_>) -> Poll<Taken> {
        let mut state = self.0.lock();
        match state.take() {
            Some(taken) => Poll::Ready(taken),
            None => {
                state.wait(cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

/// The stages' end of one choice.
pub(super) struct Entry {
    outbox: Arc<Outbox>,
    index: usize,
}

impl Sink for Entry {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.outbox.change(|state| ((), state.accept(self.index, handle)));
    }

    fn refused(&mut self, error: &Error) {
        self.outbox.change(|state| ((), state.end(self.index, End::Failed(error.clone()))));
    }

    fn event(&mut self, event: Event) -> Result<(), SinkClosed> {
        let slow = self.outbox.slow_after.map(|limit| (limit, Timestamp::now()));
        self.outbox.change(|state| match state.event(self.index, event, slow) {
            Ok(wake) => (Ok(()), wake),
            Err(closed) => (Err(closed), true),
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // After an end this changes nothing.
        let lost = || End::Failed(Error::internal("the node lost the request"));
        self.outbox.change(|state| ((), state.end(self.index, lost())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RequestId, SequenceId};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn text(text: &str) -> Event {
        Event {
            request_id: RequestId::generate(),
            attempt: 1,
            seq: 0,
            token_ids: Vec::new(),
            text: text.to_owned(),
            finish_reason: None,
            usage: None,
            receipt: None,
            error: None,
        }
    }

    fn last(reason: FinishReason) -> Event {
        Event { finish_reason: Some(reason), ..text("") }
    }

    fn handle() -> Arc<Handle> {
        Handle::new(RequestId::generate(), SequenceId(1))
    }

    fn take(reader: &Reader) -> Option<Taken> {
        match reader.poll_take(&Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_lies_is_merged_and_wakes_once() {
        let (reader, mut entries) = outbox(1, None);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        assert!(reader.poll_decided(&cx).is_pending());
        entries[0].accepted(&handle());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(reader.poll_decided(&cx).is_ready());
        assert!(reader.poll_take(&cx).is_pending() && reader.poll_take(&cx).is_pending());
        for piece in ["", "a", "b", "c"] {
            assert_eq!(entries[0].event(text(piece)), Ok(()));
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert_eq!(entries[0].event(last(FinishReason::Stop)), Ok(()));
        let taken = take(&reader).expect("text lies there");
        assert_eq!(taken.text, "abc");
        assert!(matches!(taken.end, Some(End::Finished(f)) if f.reason == FinishReason::Stop));
        assert_eq!(take(&reader), None);
    }

    #[test]
    fn a_reader_that_leaves_cancels_what_runs() {
        let (reader, mut entries) = outbox(2, None);
        let (early, late) = (handle(), handle());
        entries[0].accepted(&early);
        drop(reader);
        assert!(early.is_cancelled());
        entries[1].accepted(&late);
        assert!(late.is_cancelled());
        assert_eq!(entries[0].event(text("x")), Err(SinkClosed));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_given_up() {
        let (reader, mut entries) = outbox(2, Some(Duration::from_secs(60)));
        let handles = [handle(), handle()];
        entries[0].accepted(&handles[0]);
        entries[1].accepted(&handles[1]);
        let at = |seconds: u64| {
            Some((Duration::from_secs(60), Timestamp::from_micros(seconds * 1_000_000)))
        };
        let send = |index, seconds| reader.0.lock().event(index, text("x"), at(seconds));
        assert_eq!(send(0, 10), Ok(true));
        assert_eq!(send(0, 70), Ok(true));
        assert_eq!(take(&reader).map(|taken| taken.text), Some("xx".to_owned()));
        assert_eq!(send(0, 200), Ok(true), "what was taken does not count");
        assert_eq!(send(0, 261), Err(SinkClosed));
        assert!(handles.iter().all(|handle| handle.is_cancelled()));
        assert_eq!(send(1, 262), Err(SinkClosed));
        let taken = take(&reader).expect("an end");
        assert_eq!(taken.text, "");
        assert!(matches!(taken.end, Some(End::Failed(e)) if e.kind == Kind::Cancelled));
    }

    #[test]
    fn failures_and_cancels_are_ends_with_an_error() {
        let kind_of = |event: Event| {
            let (reader, mut entries) = outbox(1, None);
            entries[0].accepted(&handle());
            assert_eq!(entries[0].event(event), Ok(()));
            match take(&reader).and_then(|taken| taken.end) {
                Some(End::Failed(error)) => error.kind,
                other => panic!("no failure: {other:?}"),
            }
        };
        assert_eq!(kind_of(last(FinishReason::Cancelled)), Kind::Cancelled);
        assert_eq!(kind_of(last(FinishReason::Failed)), Kind::Internal);
        let error = Some(Error::new(Kind::Unavailable, "no device"));
        assert_eq!(kind_of(Event { error, ..last(FinishReason::Failed) }), Kind::Unavailable);
    }

    #[test]
    fn a_dropped_entry_is_a_failure_unless_it_has_ended() {
        let (reader, entries) = outbox(1, None);
        drop(entries);
        let end = take(&reader).and_then(|taken| taken.end);
        assert!(matches!(end, Some(End::Failed(e)) if e.kind == Kind::Internal));

        let (reader, mut entries) = outbox(1, None);
        entries[0].refused(&Error::new(Kind::QueueFull, "full"));
        drop(entries);
        let end = take(&reader).and_then(|taken| taken.end);
        assert!(matches!(end, Some(End::Failed(e)) if e.kind == Kind::QueueFull));
    }

    #[test]
    fn one_refusal_decides_for_all_and_choices_take_turns() {
        let cx = Context::from_waker(Waker::noop());
        let (reader, mut entries) = outbox(3, None);
        entries[0].accepted(&handle());
        assert!(reader.poll_decided(&cx).is_pending());
        entries[1].refused(&Error::new(Kind::QueueFull, "full"));
        assert!(reader.poll_decided(&cx).is_ready());

        let (reader, mut entries) = outbox(2, None);
        for entry in &mut entries {
            entry.accepted(&handle());
            assert_eq!(entry.event(text("x")), Ok(()));
        }
        assert_eq!(take(&reader).map(|taken| taken.index), Some(0));
        assert_eq!(entries[0].event(text("y")), Ok(()));
        assert_eq!(take(&reader).map(|taken| taken.index), Some(1));
        assert_eq!(take(&reader).map(|taken| taken.index), Some(0));
    }
}
