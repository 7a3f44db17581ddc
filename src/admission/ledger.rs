//! Who is in the node: ids, permits and counts. Shared with the health actor and the node, which look, and with the
//! permits, which give back from whatever thread they are dropped on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::turnover::{NodeLoad, Turnover};
use crate::clock::Timestamp;
use crate::door::RunningObserver;
use crate::ids::RequestId;
use crate::models::ServedModel;
use crate::reply::Permit;
use crate::request::Handle;

/// Requests in the node, from the moment their id is taken to the moment after their last event.
pub struct Ledger {
    running: Mutex<Admitted>,
    /// Prompt and `max_tokens` of requests that wait for a device.
    waiting_tokens: AtomicU64,
    /// The same of all that are in and have been tokenized, and their places.
    promised_tokens: AtomicU64,
    promised_places: AtomicU64,
    /// Tokens done since the node began; only grows.
    computed_tokens: AtomicU64,
    observers: Vec<Arc<dyn RunningObserver>>,
}

#[derive(Default)]
struct Admitted {
    handles: HashMap<RequestId, Arc<Handle>>,
    /// Places taken: one for each sample of each of them.
    turnover: Turnover,
    /// Requests with several prompts: the handles of those that were let in.
    groups: HashMap<RequestId, Vec<Arc<Handle>>>,
}

impl Admitted {
    fn has(&self, id: &RequestId) -> bool {
        self.handles.contains_key(id) || self.groups.contains_key(id)
    }
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
            running: Mutex::default(),
            waiting_tokens: AtomicU64::new(0),
            promised_tokens: AtomicU64::new(0),
            promised_places: AtomicU64::new(0),
            computed_tokens: AtomicU64::new(0),
            observers,
        })
    }

    /// Requests in the node: being tokenized, waiting and running; each prompt is one, and each sample.
    pub fn num_requests(&self) -> usize {
        self.lock().turnover.places()
    }

    /// Tokens (prompt and `max_tokens`) of the requests that wait for a device.
    pub fn waiting_tokens(&self) -> u64 {
        self.waiting_tokens.load(Ordering::Relaxed)
    }

    /// Prompt and completion tokens done since the node began.
    pub fn computed_tokens(&self) -> u64 {
        self.computed_tokens.load(Ordering::Relaxed)
    }

    /// How much the node has to do, and how fast it does it.
    pub(super) fn load(&self, now: Timestamp) -> NodeLoad {
        let load = self.lock().turnover.load(now, self.computed_tokens());
        let promised_tokens = self.promised_tokens.load(Ordering::Relaxed);
        let promised_places = self.promised_places.load(Ordering::Relaxed);
        NodeLoad { mean_tokens: promised_tokens / promised_places.max(1), ..load }
    }

    /// A running request's handle, or one for each of its prompts; none if no request of that id runs.
    pub fn get(&self, id: &RequestId) -> Vec<Arc<Handle>> {
        let running = self.lock();
        match running.handles.get(id) {
            Some(handle) => vec![Arc::clone(handle)],
            None => running.groups.get(id).cloned().unwrap_or_default(),
        }
    }

    /// Cuts every request that is in, and gives their ids: the end of a drain that took too long.
    pub fn cut_all(&self) -> Vec<RequestId> {
        let running = self.lock();
        running.handles.values().for_each(|handle| handle.cut());
        running.handles.keys().cloned().collect()
    }

    /// Takes a request's id, if it is free, and so many of the `max_requests` places.
    pub(super) fn reserve(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        model: &Arc<ServedModel>,
        (places, max_requests): (usize, usize),
        now: Timestamp,
    ) -> Result<RequestPermit, Denied> {
        let id = handle.request_id();
        let mut running = self.lock();
        if running.has(id) {
            return Err(Denied::Conflict);
        }
        let taken = running.turnover.places();
        if taken + places > max_requests {
            return Err(Denied::Full(taken));
        }
        running.turnover.enter(now, places, self.computed_tokens());
        running.handles.insert(id.clone(), Arc::clone(handle));
        drop(running);
        model.in_use.fetch_add(1, Ordering::Relaxed);
        model.last_used.store(now.as_micros(), Ordering::Relaxed);
        Ok(RequestPermit {
            ledger: Arc::clone(self),
            handle: Arc::clone(handle),
            model: Arc::clone(model),
            places,
            tokens: 0,
            waits: false,
            announced: false,
            group: None,
        })
    }

    /// Takes the id of a request with several prompts, if it is free. Their permits [`join`](RequestPermit::join).
    pub(super) fn reserve_group(self: &Arc<Self>, id: &RequestId) -> Result<Arc<Group>, Denied> {
        let mut running = self.lock();
        if running.has(id) {
            return Err(Denied::Conflict);
        }
        running.groups.insert(id.clone(), Vec::new());
        let announced = AtomicBool::new(false);
        Ok(Arc::new(Group { ledger: Arc::clone(self), id: id.clone(), announced }))
    }

    fn tell(&self, what: impl Fn(&dyn RunningObserver)) {
        self.observers.iter().for_each(|observer| what(&**observer));
    }

    fn lock(&self) -> MutexGuard<'_, Admitted> {
        // Nothing panics while it is held, so a poisoned lock still holds whole maps.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of a request with several prompts. Each prompt's permit holds it; when the last of them has gone, the id is free.
pub(super) struct Group {
    ledger: Arc<Ledger>,
    id: RequestId,
    announced: AtomicBool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if *self.announced.get_mut() {
            self.ledger.tell(|observer| observer.ended(&self.id));
        }
        self.ledger.lock().groups.remove(&self.id);
    }
}

/// One request's right to be in the node. Dropping it frees the id, the counts and the model.
pub struct RequestPermit {
    ledger: Arc<Ledger>,
    handle: Arc<Handle>,
    model: Arc<ServedModel>,
    places: usize,
    tokens: u64,
    waits: bool,
    announced: bool,
    group: Option<Arc<Group>>,
}

impl RequestPermit {
    /// The request is one prompt of a larger one.
    pub(super) fn join(&mut self, group: &Arc<Group>) {
        if let Some(handles) = self.ledger.lock().groups.get_mut(&group.id) {
            handles.push(Arc::clone(&self.handle));
        }
        self.group = Some(Arc::clone(group));
    }

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
        self.ledger.promised_places.fetch_add(self.places as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the observers that the request starts; they are told of its end when the permit is dropped.
    pub(super) fn announce(&mut self) {
        if let Some(group) = &self.group
            && !group.announced.swap(true, Ordering::Relaxed)
        {
            self.ledger.tell(|observer| observer.started(&group.id));
        }
        self.announced = true;
        self.ledger.tell(|observer| observer.started(self.handle.request_id()));
    }
}

impl Permit for RequestPermit {
    fn scheduled(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.ledger.waiting_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        }
    }

    fn returned(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            self.ledger.waiting_tokens.fetch_add(self.tokens, Ordering::Relaxed);
        }
    }

    fn computed(&mut self, tokens: u32) {
        self.ledger.computed_tokens.fetch_add(u64::from(tokens), Ordering::Relaxed);
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.scheduled();
        if self.tokens > 0 {
            self.ledger.promised_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
            self.ledger.promised_places.fetch_sub(self.places as u64, Ordering::Relaxed);
        }
        self.model.in_use.fetch_sub(1, Ordering::Relaxed);
        let id = self.handle.request_id();
        if self.announced {
            self.ledger.tell(|observer| observer.ended(id));
        }
        // Last: who takes the id again is announced after this end.
        let mut running = self.ledger.lock();
        running.handles.remove(id);
        let tokens_done = self.ledger.computed_tokens();
        running.turnover.leave(Timestamp::now(), self.places, self.announced, tokens_done);
    }
}

#[cfg(test)]
mod tests {
    use super::super::actor::testing::{Observed, model};
    use super::*;
    use crate::ids::SequenceId;

    fn handle(id: &str) -> Arc<Handle> {
        Handle::new(RequestId::parse(id).expect("an id"), SequenceId(1))
    }

    #[test]
    fn ids_are_taken_once_and_places_are_counted() {
        let ledger = Ledger::new(Vec::new());
        let model = model("m");
        let now = Timestamp::from_micros(9);
        let reserve = |id: &str| ledger.reserve(&handle(id), &model, (1, 2), now);
        let a = reserve("a").map_err(|_| ()).expect("free");
        assert_eq!(reserve("a").err(), Some(Denied::Conflict));
        let b = reserve("b").map_err(|_| ()).expect("free");
        assert_eq!(reserve("c").err(), Some(Denied::Full(2)));
        assert_eq!(model.in_use.load(Ordering::Relaxed), 2);
        assert_eq!(model.last_used.load(Ordering::Relaxed), 9);
        assert_eq!(ledger.get(a.handle.request_id()).len(), 1);
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
            let permit = ledger.reserve(&handle(id), &model, (1, 9), Timestamp::default());
            permit.map_err(|_| ()).expect("free")
        };
        let mean_tokens = || ledger.load(Timestamp::now()).mean_tokens;
        let (mut a, mut b, mut c) = (reserve("a"), reserve("b"), reserve("c"));
        // Alone, even one that is larger than the limit gets in.
        assert_eq!(a.wait_with(150, 100), Ok(()));
        assert_eq!(b.wait_with(30, 100), Err(80));
        a.scheduled();
        a.scheduled();
        assert_eq!(ledger.waiting_tokens(), 0);
        assert_eq!(b.wait_with(30, 100), Ok(()));
        assert_eq!(c.wait_with(70, 100), Ok(()));
        assert_eq!((ledger.waiting_tokens(), mean_tokens()), (100, 83));
        a.computed(40);
        drop(a);
        drop(b);
        assert_eq!((ledger.waiting_tokens(), mean_tokens()), (70, 70));
        drop(c);
        assert_eq!((ledger.waiting_tokens(), mean_tokens()), (0, 0));
        assert_eq!(ledger.computed_tokens(), 40);
    }

    #[test]
    fn tokens_of_a_request_whose_device_failed_wait_again_until_it_is_on_another_or_ends() {
        let ledger = Ledger::new(Vec::new());
        let model = model("m");
        let reserve = |id: &str| {
            let permit = ledger.reserve(&handle(id), &model, (1, 9), Timestamp::default());
            permit.map_err(|_| ()).expect("free")
        };
        let (mut a, mut b, mut c) = (reserve("a"), reserve("b"), reserve("c"));
        for permit in [&mut a, &mut b] {
            assert_eq!(permit.wait_with(60, 100), Ok(()));
            permit.scheduled();
        }
        assert_eq!(ledger.waiting_tokens(), 0);
        for permit in [&mut a, &mut b] {
            permit.returned();
            permit.returned();
        }
        // Accepted is accepted: together they may be more than a newcomer would find room beside.
        assert_eq!(ledger.waiting_tokens(), 120);
        assert_eq!(c.wait_with(10, 100), Err(30));
        a.scheduled();
        assert_eq!(ledger.waiting_tokens(), 60);
        drop(b);
        assert_eq!(ledger.waiting_tokens(), 0);
        a.returned();
        drop(a);
        assert_eq!(ledger.waiting_tokens(), 0);
    }

    #[test]
    fn observers_hear_of_the_end_only_if_they_heard_of_the_start() {
        let observed = Arc::new(Observed::default());
        let ledger = Ledger::new(vec![Arc::clone(&observed) as Arc<dyn RunningObserver>]);
        let model = model("m");
        let reserve = |id: &str| {
            let permit = ledger.reserve(&handle(id), &model, (1, 9), Timestamp::default());
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
    #[test]
    fn an_id_of_several_prompts_is_taken_until_the_last_has_gone() {
        let observed = Arc::new(Observed::default());
        let ledger = Ledger::new(vec![Arc::clone(&observed) as Arc<dyn RunningObserver>]);
        let model = model("m");
        let id = |id: &str| RequestId::parse(id).expect("an id");
        let reserve = |id: &str| ledger.reserve(&handle(id), &model, (1, 9), Timestamp::default());
        let taken = |id: &str| reserve(id).err() == Some(Denied::Conflict);
        let group = ledger.reserve_group(&id("p")).map_err(|_| ()).expect("free");
        let mut permits = ["p-0", "p-1"].map(|id| reserve(id).map_err(|_| ()).expect("free"));
        for permit in &mut permits {
            permit.join(&group);
            permit.announce();
        }
        drop(group);
        assert!(taken("p") && taken("p-0"));
        assert_eq!(ledger.reserve_group(&id("p")).err(), Some(Denied::Conflict));
        assert_eq!(ledger.reserve_group(&id("p-1")).err(), Some(Denied::Conflict));
        assert_eq!((ledger.get(&id("p")).len(), ledger.num_requests()), (2, 2));
        let [first, second] = permits;
        drop(first);
        assert!(taken("p") && !taken("p-0"));
        drop(second);
        assert!(!taken("p") && ledger.get(&id("p")).is_empty());
        let words =
            ["started p", "started p-0", "started p-1", "ended p-0", "ended p-1", "ended p"];
        assert_eq!(observed.words(), words);
    }
}
