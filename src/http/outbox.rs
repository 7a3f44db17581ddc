//! What lies between the stages that send a request's events and the connection that takes them.
//!
//! One [`Outbox`] per HTTP request, one choice in it per prompt. Text that nobody has taken yet is merged, so an outbox never holds
//! more than the completion itself (which `max_tokens` bounds), however slow the reader is. [`Reader`] is the connection's end:
//! dropping it is leaving, and cancels what still runs. [`Entry`] is the stages' end: dropping it unfinished is a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::choices::{Choices, End, Taken};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::request::{Event, Handle, Sink, SinkClosed};

/// See the module.
struct Outbox {
    state: Mutex<State>,
    /// How long text may lie before its reader counts as gone; none: for as long as it takes.
    slow_after: Option<Duration>,
}

struct State {
    choices: Choices,
    waker: Option<Waker>,
}

/// Makes the two ends of an outbox with `choices` choices.
pub(super) fn outbox(choices: usize, slow_after: Option<Duration>) -> (Reader, Vec<Entry>) {
    let state = State { choices: Choices::new(choices), waker: None };
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
    fn change<T>(&self, change: impl FnOnce(&mut Choices) -> (T, bool)) -> T {
        let mut state = self.lock();
        let (result, wake) = change(&mut state.choices);
        let waker = if wake { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

impl State {
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
        if state.choices.decided() {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// The next text or end; after the end of every choice, pending for ever.
    pub(super) fn poll_take(&self, cx: &Context<'_>) -> Poll<Taken> {
        let mut state = self.0.lock();
        match state.choices.take() {
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
        self.0.lock().choices.close();
    }
}

/// The stages' end of one choice.
pub(super) struct Entry {
    outbox: Arc<Outbox>,
    index: usize,
}

impl Sink for Entry {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.outbox.change(|choices| ((), choices.accept(self.index, handle)));
    }

    fn refused(&mut self, error: &Error) {
        self.outbox.change(|choices| ((), choices.end(self.index, End::Failed(error.clone()))));
    }

    fn event(&mut self, event: Event) -> Result<(), SinkClosed> {
        let slow = self.outbox.slow_after.map(|limit| (limit, Timestamp::now()));
        self.outbox.change(|choices| match choices.event(self.index, event, slow) {
            Ok(wake) => (Ok(()), wake),
            Err(closed) => (Err(closed), true),
        })
    }

    fn is_closed(&self) -> bool {
        self.outbox.lock().choices.is_closed()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // After an end this changes nothing.
        let lost = || End::Failed(Error::internal("the node lost the request"));
        self.outbox.change(|choices| ((), choices.end(self.index, lost())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::request::FinishReason;
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
            logprobs: None,
            prompt_logprobs: None,
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
