//! What lies between the stages that send a request's events and the connection that takes them.
//!
//! One [`AnswerBuffer`] per HTTP request, in it the choices of every prompt. Text that nobody has taken yet is merged, so it never
//! holds more than the completion itself (which `max_tokens` bounds), however slow the reader is. [`Reader`] is the connection's end:
//! dropping it is leaving, and cancels what still runs. [`BufferEntry`] is the stages' end: dropping it unfinished is a failure.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::choices::{Choices, End, Taken, failure_of};
use crate::error::Error;
use crate::request::{Event, Handle, Sink, SinkClosed};

/// See the module.
struct AnswerBuffer {
    state: Mutex<BufferState>,
    /// How long text may lie before its reader counts as gone; none: for as long as it takes.
    slow_after: Option<Duration>,
}

struct BufferState {
    choices: Choices,
    waker: Option<Waker>,
}

/// Makes the two ends of an outbox for so many prompts, each with so many choices.
pub fn outbox(
    (prompts, choices): (usize, usize),
    slow_after: Option<Duration>,
) -> (Reader, Vec<BufferEntry>) {
    let state = BufferState { choices: Choices::new(prompts * choices), waker: None };
    let outbox = Arc::new(AnswerBuffer { state: Mutex::new(state), slow_after });
    let entry = |prompt| BufferEntry {
        outbox: Arc::clone(&outbox),
        choices: prompt * choices..(prompt + 1) * choices,
    };
    let entries = (0..prompts).map(entry).collect();
    (Reader(outbox), entries)
}

impl AnswerBuffer {
    fn lock(&self) -> MutexGuard<'_, BufferState> {
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

impl BufferState {
    fn wait(&mut self, cx: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
    }
}

/// The connection's end.
pub struct Reader(Arc<AnswerBuffer>);

impl Reader {
    /// Choices of all prompts.
    pub fn num_choices(&self) -> usize {
        self.0.lock().choices.count()
    }

    /// Ready when every choice is accepted or one has ended, and something lies there to begin with.
    pub fn poll_begin(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.choices.can_begin() {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// Whether a choice was refused because another request of its id runs; nothing of it has been taken yet.
    pub fn has_conflict(&self) -> bool {
        self.0.lock().choices.has_conflict()
    }

    /// The next text or end; after the end of every choice, pending for ever. What comes next is written to `spare`, a text that has
    /// been read.
    pub fn poll_take(&self, cx: &Context<'_>, spare: &mut String) -> Poll<Taken> {
        let mut state = self.0.lock();
        match state.choices.take(spare) {
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

/// The stages' end of one prompt.
pub struct BufferEntry {
    outbox: Arc<AnswerBuffer>,
    choices: Range<usize>,
}

impl BufferEntry {
    /// Changes each choice of the prompt and wakes the reader if one says so.
    fn change_all(&self, change: impl Fn(&mut Choices, usize) -> bool) {
        self.outbox.change(|choices| {
            let indices = self.choices.clone();
            ((), indices.fold(false, |wake, index| change(choices, index) | wake))
        });
    }

    /// The whole prompt fails: each choice that has not ended does.
    fn fail(&self, error: &Error) {
        self.change_all(|choices, index| choices.end(index, End::Failed(error.clone())));
    }
}

impl Sink for BufferEntry {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.change_all(|choices, index| choices.accept(index, handle));
    }

    fn refused(&mut self, error: &Error) {
        self.fail(error);
    }

    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        let index = self.choices.start + event.index as usize;
        debug_assert!(index < self.choices.end, "a choice more than the request wants");
        let slow_after = self.outbox.slow_after;
        let failure = failure_of(event).filter(|_| event.is_last());
        let taken = self.outbox.change(|choices| match choices.event(index, event, slow_after) {
            Ok(wake) => (Ok(()), wake),
            Err(closed) => (Err(closed), true),
        });
        if let Some(error) = failure {
            // It may stand at a choice that has ended before.
            self.fail(&error);
        }
        taken
    }

    fn is_closed(&self) -> bool {
        self.outbox.lock().choices.is_closed()
    }
}

impl Drop for BufferEntry {
    fn drop(&mut self) {
        // After the ends of all choices this changes nothing.
        self.fail(&Error::internal("the node lost the request"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::ids::{RequestId, SequenceId};
    use crate::request::FinishReason;
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
        Event { text: text.to_owned(), ..Event::new(RequestId::generate()) }
    }

    fn last(reason: FinishReason) -> Event {
        Event { finish_reason: Some(reason), ..text("") }
    }

    fn handle() -> Arc<Handle> {
        Handle::new(RequestId::generate(), SequenceId(1))
    }

    fn take(reader: &Reader) -> Option<Taken> {
        match reader.poll_take(&Context::from_waker(Waker::noop()), &mut String::new()) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_lies_is_merged_and_wakes_once() {
        let (reader, mut entries) = outbox((1, 1), None);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        assert!(reader.poll_begin(&cx).is_pending() && reader.poll_begin(&cx).is_pending());
        entries[0].accepted(&handle());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "there is nothing to read yet");
        for piece in ["", "a", "b", "c"] {
            assert_eq!(entries[0].event(text(piece)), Ok(()));
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(reader.poll_begin(&cx).is_ready());
        assert_eq!(entries[0].event(last(FinishReason::Stop)), Ok(()));
        let taken = take(&reader).expect("text lies there");
        assert_eq!(taken.text, "abc");
        assert!(matches!(taken.end, Some(End::Finished(f)) if f.reason == FinishReason::Stop));
        assert_eq!(take(&reader), None);
    }

    #[test]
    fn a_reader_that_leaves_cancels_what_runs() {
        let (reader, mut entries) = outbox((2, 1), None);
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
            let (reader, mut entries) = outbox((1, 1), None);
            entries[0].accepted(&handle());
            assert_eq!(entries[0].event(event), Ok(()));
            match take(&reader).and_then(|taken| taken.end) {
                Some(End::Failed(error)) => error.kind,
                other => panic!("no failure: {other:?}"),
            }
        };
        assert_eq!(kind_of(last(FinishReason::Cancelled)), Kind::Cancelled);
        assert_eq!(kind_of(last(FinishReason::Failed)), Kind::Internal);
        let error = Some(Box::new(Error::new(Kind::Unavailable, "no device")));
        assert_eq!(kind_of(Event { error, ..last(FinishReason::Failed) }), Kind::Unavailable);
    }

    #[test]
    fn a_request_that_fails_ends_every_choice_of_its_prompt() {
        let (reader, mut entries) = outbox((1, 2), None);
        entries[0].accepted(&handle());
        assert_eq!(entries[0].event(last(FinishReason::Stop)), Ok(()));
        let error = Some(Box::new(Error::new(Kind::Expired, "kept no longer")));
        let usage = Some(crate::request::Usage::default());
        assert_eq!(entries[0].event(Event { error, usage, ..last(FinishReason::Failed) }), Ok(()));
        let ends: Vec<_> = std::iter::from_fn(|| take(&reader)).map(|taken| taken.end).collect();
        assert!(matches!(&ends[0], Some(End::Finished(_))), "{ends:?}");
        assert!(matches!(&ends[1], Some(End::Failed(e)) if e.kind == Kind::Expired), "{ends:?}");
    }

    #[test]
    fn a_dropped_entry_is_a_failure_unless_it_has_ended() {
        let (reader, entries) = outbox((1, 1), None);
        drop(entries);
        let end = take(&reader).and_then(|taken| taken.end);
        assert!(matches!(end, Some(End::Failed(e)) if e.kind == Kind::Internal));

        let (reader, mut entries) = outbox((1, 1), None);
        entries[0].refused(&Error::new(Kind::QueueFull, "full"));
        drop(entries);
        let end = take(&reader).and_then(|taken| taken.end);
        assert!(matches!(end, Some(End::Failed(e)) if e.kind == Kind::QueueFull));
    }

    #[test]
    fn a_prompt_fails_with_all_its_choices_and_ends_them_one_by_one() {
        let (reader, mut entries) = outbox((2, 2), None);
        entries.iter_mut().for_each(|entry| entry.accepted(&handle()));
        let at = |index, event| Event { index, ..event };
        assert_eq!(entries[1].event(at(1, text("b"))), Ok(()));
        assert_eq!(entries[0].event(at(1, last(FinishReason::Stop))), Ok(()));
        let error = Some(Box::new(Error::new(Kind::Unavailable, "no device")));
        let failed = Event { error, ..last(FinishReason::Failed) };
        assert_eq!(entries[1].event(failed), Ok(()));
        drop(entries);
        let ends: Vec<_> = std::iter::from_fn(|| take(&reader))
            .map(|taken| (taken.index, taken.text, matches!(taken.end, Some(End::Finished(_)))))
            .collect();
        let at = |index, text: &str, finished| (index, text.to_owned(), finished);
        assert_eq!(ends, [at(0, "", false), at(1, "", true), at(2, "", false), at(3, "b", false)]);
    }

    #[test]
    fn one_refusal_decides_for_all() {
        let cx = Context::from_waker(Waker::noop());
        let (reader, mut entries) = outbox((3, 1), None);
        entries[0].accepted(&handle());
        assert_eq!(entries[0].event(text("x")), Ok(()));
        assert!(reader.poll_begin(&cx).is_pending());
        entries[1].refused(&Error::new(Kind::QueueFull, "full"));
        assert!(reader.poll_begin(&cx).is_ready());
    }

    #[test]
    fn an_answer_begins_when_the_last_prompt_is_accepted_and_choices_take_turns() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let (reader, mut entries) = outbox((2, 1), None);
        entries[0].accepted(&handle());
        assert_eq!(entries[0].event(text("x")), Ok(()));
        assert!(reader.poll_begin(&Context::from_waker(&waker)).is_pending());
        entries[1].accepted(&handle());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(reader.poll_begin(&Context::from_waker(&waker)).is_ready());
        assert_eq!(entries[1].event(text("x")), Ok(()));
        assert_eq!(take(&reader).map(|taken| taken.index), Some(0));
        assert_eq!(entries[0].event(text("y")), Ok(()));
        assert_eq!(take(&reader).map(|taken| taken.index), Some(1));
        assert_eq!(take(&reader).map(|taken| taken.index), Some(0));
    }
}
