//! Who is in the node: ids, permits and counts. Shared with the health actor and the node, which look, and with the
//! permits, which give back from whatever thread they are dropped on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::RunningObserver;
use crate::clock::Timestamp;
use crate::models::ServedModel;
use crate::reply::Permit;
use crate::request::{Handle, RequestId};

/// Requests in the node, from the moment their id is taken to the moment after their last event.
pub struct Ledger {
    handles: Mutex<HashMap<RequestId, Arc<Handle>>>,
    /// Prompt and `max_tokens` of requests that wait for a device.
    waiting_tokens: AtomicU64,
    /// The same of all that are in.
    promised_tokens: AtomicU64,
    /// Tokens done since the node began; only grows.
    computed_tokens: AtomicU64,
    observers: Vec<Arc<dyn RunningObserver>>,
}

/// Why no permit is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// The id is taken.
    Conflict,
    /// So many requests are in.
    Full(usize),
}

impl Ledger {
    /// An empty one. The observers are told of every request.
    pub fn new(observers: Vec<Arc<dyn RunningObserver>>) -> Arc<Self> {
        Arc::new(Self {
            handles: Mutex::new(HashMap::new()),
            waiting_tokens: AtomicU64::new(0),
            promised_tokens: AtomicU64::new(0),
            computed_tokens: AtomicU64::new(0),
            observers,
        })
    }

    /// Requests in the node: being tokenized, waiting and running.
    pub fn num_requests(&self) -> usize {
        self.lock().len()
    }

    /// Tokens (prompt and `max_tokens`) of the requests that wait for a device.
    pub fn waiting_tokens(&self) -> u64 {
        self.waiting_tokens.load(Ordering::Relaxed)
    }

    /// Prompt and completion tokens done since the node began.
    pub fn computed_tokens(&self) -> u64 {
        self.computed_tokens.load(Ordering::Relaxed)
    }

    /// The mean of prompt and `max_tokens` over the requests that are in.
    pub(super) fn mean_tokens(&self) -> u64 {
        let count = self.num_requests() as u64;
        self.promised_tokens.load(Ordering::Relaxed) / count.max(1)
    }

    /// A running request's handle.
    pub fn get(&self, id: &RequestId) -> Option<Arc<Handle>> {
        self.lock().get(id).cloned()
    }

    /// Cuts every request that is in, and gives their ids: the end of a drain that took too long.
    pub fn cut_all(&self) -> Vec<RequestId> {
        let handles = self.lock();
        handles.values().for_each(|handle| handle.cut());
        handles.keys().cloned().collect()
    }

    /// Takes a request's id, if it is free and fewer than `max_requests` are in.
    pub(super) fn reserve(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        model: &Arc<ServedModel>,
        max_requests: usize,
        now: Timestamp,
    ) -> Result<RequestPermit, Denied> {
        let id = handle.request_id();
        let mut handles = self.lock();
        if handles.contains_key(id) {
            return Err(Denied::Conflict);
        }
        if handles.len() >= max_requests {
            return Err(Denied::Full(handles.len()));
        }
        handles.insert(id.clone(), Arc::clone(handle));
        drop(handles);
        model.in_use.fetch_add(1, Ordering::Relaxed);
        model.last_used.store(now.as_micros(), Ordering::Relaxed);
        Ok(RequestPermit {
            ledger: Arc::clone(self),
            handle: Arc::clone(handle),
            model: Arc::clone(model),
            tokens: 0,
            waits: false,
            announced: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Arc<Handle>>> {
        // Nothing panics while it is held, so a poisoned lock still holds a whole map.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's right to be in the node. Dropping it frees the id, the counts and the model.
pub struct RequestPermit {
    ledger: Arc<Ledger>,
    handle: Arc<Handle>,
    model: Arc<ServedModel>,
    tokens: u64,
    waits: bool,
    announced: bool,
}

impl RequestPermit {
    /// Joins those that wait for a device, unless they have so many tokens together that these do not fit; then gives how
    /// many are too many. Where nobody waits, any request fits, or a large one would never get in.
    pub(super) fn wait_with(&mut self, tokens: u64, max_waiting_tokens: u64) -> Result<(), u64> {
        let waiting = self.ledger.waiting_tokens();
        let excess = (waiting + tokens).saturating_sub(max_waiting_tokens);
        if waiting > 0 && excess > 0 {
            return Err(excess);
        }
        self.tokens = tokens;
        self.waits = true;
        self.ledger.waiting_tokens.fetch_add(tokens, Ordering::Relaxed);
        self.ledger.promised_tokens.fetch_add(tokens, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the observers that the request starts; they are told of its end when the permit is dropped.
    pub(super) fn announce(&mut self) {
        self.announced = true;
        for observer in &self.ledger.observers {
            observer.started(self.handle.request_id());
        }
    }
}

impl Permit for RequestPermit {
    fn scheduled(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.ledger.waiting_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        }
    }

    fn computed(&mut self, tokens: u32) {
        self.ledger.computed_tokens.fetch_add(u64::from(tokens), Ordering::Relaxed);
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.scheduled();
        self.ledger.promised_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        self.model.in_use.fetch_sub(1, Ordering::Relaxed);
        let id = self.handle.request_id();
        if self.announced {
            for observer in &self.ledger.observers {
                observer.ended(id);
            }
        }
        // Last: who takes the id again is announced after this end.
        self.ledger.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::actor::testing::{Observed, model};
    use super::*;
    use crate::request::SequenceId;

    fn handle(id: &str) -> Arc<Handle> {
        Handle::new(RequestId::parse(id).expect("an id"), SequenceId(1))
    }

    #[test]
    fn ids_are_taken_once_and_places_are_counted() {
        let ledger = Ledger::new(Vec::new());
        let model = model("m");
        let now = Timestamp::from_micros(9);
        let reserve = |id: &str| ledger.reserve(&handle(id), &model, 2, now);
        let a = reserve("a").map_err(|_| ()).expect("free");
        assert_eq!(reserve("a").err(), Some(Denied::Conflict));
        let b = reserve("b").map_err(|_| ()).expect("free");
        assert_eq!(reserve("c").err(), Some(Denied::Full(2)));
        assert_eq!(model.in_use.load(Ordering::Relaxed), 2);
        assert_eq!(model.last_used.load(Ordering::Relaxed), 9);
        assert!(ledger.get(&RequestId::parse("a").expect("an id")).is_some());
        drop(a);
        assert!(reserve("c").is_ok());
        drop(b);
        assert_eq!((ledger.num_requests(), model.in_use.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn waiting_tokens_are_given_back_once_however_it_ends() {
        let ledger = Ledger::new(Vec::new());
        let model = model("m");
        let reserve = |id: &str| {
            let permit = ledger.reserve(&handle(id), &model, 9, Timestamp::default());
            permit.map_err(|_| ()).expect("free")
        };
        let (mut a, mut b, mut c) = (reserve("a"), reserve("b"), reserve("c"));
        // Alone, even one that is larger than the limit gets in.
        assert_eq!(a.wait_with(150, 100), Ok(()));
        assert_eq!(b.wait_with(30, 100), Err(80));
        a.scheduled();
        a.scheduled();
        assert_eq!(ledger.waiting_tokens(), 0);
        assert_eq!(b.wait_with(30, 100), Ok(()));
        assert_eq!(c.wait_with(70, 100), Ok(()));
        assert_eq!((ledger.waiting_tokens(), ledger.mean_tokens()), (100, 83));
        a.computed(40);
        drop(a);
        drop(b);
        assert_eq!((ledger.waiting_tokens(), ledger.mean_tokens()), (70, 70));
        drop(c);
        assert_eq!((ledger.waiting_tokens(), ledger.mean_tokens()), (0, 0));
        assert_eq!(ledger.computed_tokens(), 40);
    }

    #[test]
    fn observers_hear_of_the_end_only_if_they_heard_of_the_start() {
        let observed = Arc::new(Observed::default());
        let ledger = Ledger::new(vec![Arc::clone(&observed) as Arc<dyn RunningObserver>]);
        let model = model("m");
        let reserve = |id: &str| {
            let permit = ledger.reserve(&handle(id), &model, 9, Timestamp::default());
            permit.map_err(|_| ()).expect("free")
        };
        let mut a = reserve("a");
        drop(reserve("b"));
        a.announce();
        assert_eq!(ledger.cut_all().len(), 1);
        assert!(a.handle.is_cancelled());
        drop(a);
        assert_eq!(observed.words(), ["started a", "ended a"]);
    }
}
