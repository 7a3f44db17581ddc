//! A durable request's sink: what stages call, from any thread and without blocking.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use super::hub::Word;
use crate::error::Error;
use crate::request::{Event, EventQueue, Handle, Sink, SinkClosed};

/// What a request has said and the hub has not taken.
#[derive(Default)]
pub(super) struct Sayings(Mutex<SayingsState>);

#[derive(Default)]
struct SayingsState {
    queue: EventQueue,
    /// The hub knows that there are some.
    is_told: bool,
    is_closed: bool,
}

impl Sayings {
    /// Takes the oldest; the hub is told of the next once this gives none.
    pub fn take(&self) -> Option<Box<Event>> {
        let mut state = self.lock();
        let event = state.queue.pop();
        state.is_told = event.is_some();
        event
    }

    /// Nothing more is wanted.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.queue.clear();
    }

    fn lock(&self) -> MutexGuard<'_, SayingsState> {
        // Only whole values are written under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct LogSink {
    /// The number of the holding.
    pub number: u64,
    pub sayings: Arc<Sayings>,
    /// Bounded by what the node holds: a request has one word of each kind in it at most.
    pub words: UnboundedSender<Word>,
}

impl LogSink {
    fn say(&self, word: Word) {
        // A hub that has gone stores nothing any more, and acknowledges nothing: another node goes on.
        let _ = self.words.send(word);
    }
}

impl Sink for LogSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        handle.keep_end();
        self.say(Word::Accepted(self.number, Arc::clone(handle)));
    }

    fn refused(&mut self, error: &Error) {
        self.say(Word::Refused(self.number, Box::new(error.clone())));
    }

    fn lend(&mut self, event: &mut Event) -> Result<(), SinkClosed> {
        let is_told = {
            let mut state = self.sayings.lock();
            if state.is_closed {
                return Err(SinkClosed);
            }
            state.queue.push(event);
            std::mem::replace(&mut state.is_told, true)
        };
        if !is_told {
            self.say(Word::Said(self.number));
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.sayings.lock().is_closed
    }
}
