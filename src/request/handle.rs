//! How others reach a running request: to cancel it, or to wait for its end.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::FinishReason;
use crate::ids::{RequestId, SequenceId};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// The last event's `completion_tokens`.
    pub completion_tokens: u32,
}

impl Ended {
    /// How a request with several prompts ended: cancelled if any of them was, and the tokens of all.
    pub fn together(ends: Vec<Ended>) -> Ended {
        let cancelled = ends.iter().any(|end| end.reason == FinishReason::Cancelled);
        let first = ends.first().map_or(FinishReason::Failed, |end| end.reason);
        Ended {
            reason: if cancelled { FinishReason::Cancelled } else { first },
            completion_tokens: ends.iter().map(|end| end.completion_tokens).sum(),
        }
    }
}

const CANCEL: u8 = 1;
const STOPPED: u8 = 2;
const CUT: u8 = 4;
const HELD: u8 = 8;

type Waiters = Vec<oneshot::Sender<Ended>>;

#[derive(Debug)]
enum Completion {
    Running {
        waiters: Waiters,
        /// Its end is told when it is stored.
        keeps_end: bool,
    },
    /// It has ended, and the end is not stored yet.
    Kept(Waiters, Ended),
    Ended(Ended),
    /// Another node goes on with it, or has ended it.
    Moved,
}

/// How others reach a running request. Stages look at its flags before they spend work on it.
#[derive(Debug)]
pub struct Handle {
    request_id: RequestId,
    sequence_id: SequenceId,
    /// Of the request, where this is one of its samples.
    request: Option<Arc<Handle>>,
    flags: AtomicU8,
    /// Known when it is accepted.
    num_prompt_tokens: AtomicU32,
    progress: Mutex<Completion>,
}

impl Handle {
    /// A handle of a request that runs.
    pub fn new(request_id: RequestId, sequence_id: SequenceId) -> Arc<Self> {
        Self::with(request_id, sequence_id, None)
    }

    /// A handle of one of the request's samples: who cancels the request cancels it.
    pub fn sample(self: &Arc<Self>, sequence_id: SequenceId) -> Arc<Self> {
        Self::with(self.request_id.clone(), sequence_id, Some(Arc::clone(self)))
    }

    fn with(
        request_id: RequestId,
        sequence_id: SequenceId,
        request: Option<Arc<Handle>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            request_id,
            sequence_id,
            request,
            flags: AtomicU8::new(0),
            num_prompt_tokens: AtomicU32::new(0),
            progress: Mutex::new(Completion::Running { waiters: Vec::new(), keeps_end: false }),
        })
    }

    /// The client's or the node's id.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Our own id.
    pub fn sequence_id(&self) -> SequenceId {
        self.sequence_id
    }

    /// Tokens of the prompt; 0 until the request is accepted.
    pub fn num_prompt_tokens(&self) -> u32 {
        let of = self.request.as_deref().unwrap_or(self);
        of.num_prompt_tokens.load(Ordering::Relaxed)
    }

    /// Says how many tokens the prompt has, before the request is accepted.
    pub fn set_num_prompt_tokens(&self, count: u32) {
        self.num_prompt_tokens.store(count, Ordering::Relaxed);
    }

    /// Asks for the end; the stages see it before the next step.
    pub fn cancel(&self) {
        self.flags.fetch_or(CANCEL, Ordering::Release);
    }

    /// Whether somebody asked for the end.
    pub fn is_cancelled(&self) -> bool {
        self.flags() & CANCEL != 0
    }

    /// Ends it from inside the node, at the end of a drain: as a cancel, but the client is told `draining`.
    pub fn cut(&self) {
        self.flags.fetch_or(CANCEL | CUT, Ordering::Release);
    }

    /// Whether the node cut it.
    pub fn is_cut(&self) -> bool {
        self.flags() & CUT != 0
    }

    /// No further step is to be computed of it for now, or it goes on; it keeps its place and its blocks.
    pub fn set_held(&self, held: bool) {
        if held {
            self.flags.fetch_or(HELD, Ordering::Release);
        } else {
            self.flags.fetch_and(!HELD, Ordering::Release);
        }
    }

    /// Whether no step is to be computed of it for now.
    pub fn is_held(&self) -> bool {
        self.flags() & HELD != 0
    }

    /// The reply stage has sent the last event (a stop string, say): nothing more is to be computed.
    pub fn set_stopped(&self) {
        self.flags.fetch_or(STOPPED, Ordering::Release);
    }

    /// Whether the sequence needs no further step, for either reason.
    pub fn wants_no_more(&self) -> bool {
        self.flags() & !HELD != 0
    }

    /// Its own, and what was asked of its request.
    fn flags(&self) -> u8 {
        let own = self.flags.load(Ordering::Acquire);
        let asked =
            |request: &Arc<Handle>| request.flags.load(Ordering::Acquire) & (CANCEL | CUT | HELD);
        own | self.request.as_ref().map_or(0, asked)
    }

    /// Says how it ended; the first call counts. Wakes everyone who waits.
    pub fn end(&self, ended: Ended) {
        self.set_stopped();
        let mut progress = self.lock();
        if let Completion::Running { waiters, keeps_end } = &mut *progress {
            let waiters = std::mem::take(waiters);
            *progress = match keeps_end {
                true => Completion::Kept(waiters, ended),
                false => told(waiters, ended),
            };
        }
    }

    /// How it ends is not to be told before [`settle`](Self::settle): until it is stored, another node may end it otherwise.
    pub fn keep_end(&self) {
        if let Completion::Running { keeps_end, .. } = &mut *self.lock() {
            *keeps_end = true;
        }
    }

    /// The end that was kept is stored, and counts; or another node has the request, and who waits here waits in vain.
    pub fn settle(&self, is_stored: bool) {
        let mut progress = self.lock();
        *progress = match std::mem::replace(&mut *progress, Completion::Moved) {
            Completion::Ended(ended) => Completion::Ended(ended),
            Completion::Kept(waiters, ended) if is_stored => told(waiters, ended),
            Completion::Running { waiters, .. } if is_stored => {
                Completion::Running { waiters, keeps_end: false }
            }
            Completion::Kept(..) | Completion::Running { .. } | Completion::Moved => {
                Completion::Moved
            }
        };
    }

    /// Resolves when the request has ended (at once if it has); an error if that is not this node's to say any more.
    pub fn wait(&self) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        match &mut *self.lock() {
            Completion::Running { waiters, .. } | Completion::Kept(waiters, _) => {
                waiters.push(sender);
            }
            Completion::Ended(ended) => {
                let _ = sender.send(*ended);
            }
            Completion::Moved => {}
        }
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, Completion> {
        // Nothing panics while it is held, so a poisoned lock still holds a whole value.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(waiters: Waiters, ended: Ended) -> Completion {
    for waiter in waiters {
        // A waiter that left needs no answer.
        let _ = waiter.send(ended);
    }
    Completion::Ended(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_reaches_every_sample_and_an_end_only_its_own() {
        let request = Handle::new(RequestId::generate(), SequenceId(1));
        let samples = [2, 3].map(|id| request.sample(SequenceId(id)));
        request.set_num_prompt_tokens(7);
        assert!(samples.iter().all(|sample| sample.num_prompt_tokens() == 7));
        samples[0].set_stopped();
        assert!(samples[0].wants_no_more());
        assert!(!samples[1].wants_no_more() && !request.wants_no_more());
        request.cut();
        assert!(samples.iter().all(|sample| sample.is_cancelled() && sample.is_cut()));
    }

    #[test]
    fn an_end_that_is_kept_is_told_when_it_is_stored_or_not_at_all() {
        let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 3 };
        let [stored, moved, early] = [1, 2, 3].map(|id| {
            let handle = Handle::new(RequestId::generate(), SequenceId(id));
            handle.keep_end();
            handle
        });
        let mut waits = [&stored, &moved].map(|handle| {
            let wait = handle.wait();
            handle.end(ended);
            wait
        });
        assert!(stored.wants_no_more());
        assert!(waits.iter_mut().all(|wait| wait.try_recv().is_err()), "not yet");
        stored.settle(true);
        moved.settle(false);
        assert_eq!(waits[0].try_recv(), Ok(ended));
        assert!(waits[1].try_recv().is_err() && moved.wait().try_recv().is_err());
        early.settle(true);
        early.end(ended);
        assert_eq!(early.wait().try_recv(), Ok(ended));
    }

    #[test]
    fn the_first_end_counts_and_wakes_all_waiters() {
        let handle = Handle::new(RequestId::generate(), SequenceId(1));
        let mut early = handle.wait();
        assert!(!handle.wants_no_more());
        let first = Ended { reason: FinishReason::Stop, completion_tokens: 3 };
        handle.end(first);
        handle.end(Ended { reason: FinishReason::Failed, completion_tokens: 9 });
        assert_eq!(early.try_recv(), Ok(first));
        assert_eq!(handle.wait().try_recv(), Ok(first));
        assert!(handle.wants_no_more() && !handle.is_cancelled());
    }
}
