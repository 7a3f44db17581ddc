//! Nodes, a server, readers, and what lies between them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use inferno_node::log::{
    History, Holding, Join, MAX_FRUITLESS, Positions, Record, StoreAnswer, StoredRecord, Strays,
    Suspects,
};

use crate::chance::{Chance, mix};
use crate::known::check_known;
use crate::server::{Delivery, LogStream, Queue};

/// Milliseconds: how long a node may be silent before its job is another's, and how often it says that it is not.
pub(crate) const ACK_WAIT: u64 = 6_000;
pub(crate) const PROGRESS: u64 = 2_000;
/// How long a node waits for an answer.
pub(crate) const PATIENCE: u64 = 500;
/// Requests that a node takes at once.
pub(crate) const SEATS: usize = 6;
/// From here on nothing is lost any more; all is to be well some time later.
pub(crate) const CALM: u64 = 20_000;
const END: u64 = 120_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    NoClaim,
    NoFence,
    EarlyAck,
    NoDedupe,
    SuspectsTogether,
    NoSweep,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: usize,
    pub requests: usize,
    pub readers: usize,
    pub crashes: u64,
    pub cuts: u64,
    pub drains: u64,
    pub server_deaths: u64,
    pub cancels: u64,
    pub loss_percent: u64,
    pub slow_percent: u64,
    /// Whoever starts it dies of it.
    pub poison: Option<usize>,
    pub bug: Option<Bug>,
}

/// A node's life, which what was meant for an earlier one does not reach.
pub(crate) type Life = (usize, u64);

pub(crate) enum Happening {
    Pull(usize),
    Delivered(Life, Delivery),
    HistoryRead(Life, Delivery, Vec<StoredRecord>),
    StoreArrives(Life, usize, u64, u64, Box<Record>),
    Answered(Life, usize, u64, StoreAnswer),
    ReadArrives(Life, usize),
    LastRead(Life, usize, Option<StoredRecord>),
    Generates(Life, usize, u64),
    Progress(Life, usize),
    Tick(Life),
    Acknowledged(usize),
    GivenBack(usize),
    InProgress(usize),
    Sweep(usize),
    ServerDies,
    Crash(usize),
    Restart(usize),
    Cut(usize),
    Drain(usize),
    Cancel(usize),
    Live(usize, StoredRecord, u64),
    ReaderAsks(usize),
    ReaderReads(usize, u64, Vec<StoredRecord>),
}

pub(crate) struct Held {
    pub(crate) holding: Holding,
    /// By which it is acknowledged.
    pub(crate) message: usize,
    /// Of the last publish; an answer to another is dropped.
    pub(crate) number: u64,
    pub(crate) is_open: bool,
    /// The next token, while it generates, and the number of the run.
    pub(crate) next: Option<usize>,
    pub(crate) run: u64,
    pub(crate) is_paused: bool,
}

pub(crate) struct Node {
    pub(crate) life: u64,
    pub(crate) is_up: bool,
    pub(crate) cut_until: u64,
    pub(crate) held: BTreeMap<usize, Held>,
    pub(crate) suspects: Suspects<(Delivery, History)>,
    pub(crate) strays: Strays,
}

impl Node {
    fn new() -> Self {
        Self {
            life: 0,
            is_up: true,
            cut_until: 0,
            held: BTreeMap::new(),
            suspects: Suspects::default(),
            strays: new_strays(),
        }
    }
}

pub(crate) fn new_strays() -> Strays {
    Strays::new(Duration::from_millis(ACK_WAIT))
}

pub(crate) struct Reader {
    pub(crate) request: usize,
    pub(crate) join: Join,
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) is_over: bool,
}

pub struct World {
    pub(crate) plan: Plan,
    pub(crate) chance: Chance,
    pub(crate) now: u64,
    pub(crate) order: u64,
    /// Records that were sent to be stored; an answer names its own.
    pub(crate) published: u64,
    pub(crate) due: BinaryHeap<Reverse<(u64, u64)>>,
    pub(crate) happenings: BTreeMap<u64, Happening>,
    pub(crate) log: LogStream,
    pub(crate) queue: Queue,
    pub(crate) nodes: Vec<Node>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) lengths: Vec<usize>,
    pub(crate) poisoned: u32,
    pub(crate) cancelled: Vec<bool>,
    pub(crate) dead: Vec<usize>,
    pub(crate) checked: Vec<(usize, History)>,
}
impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut chance = Chance::new(mix(seed ^ 0x10f));
        let lengths = (0..plan.requests).map(|_| chance.between(1, 12) as usize).collect();
        let mut world = Self {
            chance,
            now: 0,
            order: 0,
            published: 0,
            due: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            log: LogStream::new(plan.bug == Some(Bug::NoFence)),
            queue: Queue::default(),
            nodes: Vec::new(),
            readers: Vec::new(),
            lengths,
            poisoned: 0,
            cancelled: vec![false; plan.requests],
            dead: Vec::new(),
            checked: vec![(0, History::default()); plan.requests],
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for request in 0..self.plan.requests {
            self.queue.publish(request, "body");
            // A client that is not sure publishes again.
            if self.chance.percent(20) {
                self.queue.publish(request, "body");
            }
        }
        for node in 0..self.plan.nodes {
            self.nodes.push(Node::new());
            self.after(0, Happening::Pull(node));
            self.after(ACK_WAIT, Happening::Sweep(node));
            self.after(PATIENCE, Happening::Tick((node, 0)));
        }
        for reader in 0..self.plan.readers {
            let request = self.chance.between(0, self.plan.requests as u64 - 1) as usize;
            let join = Join::from(Positions::default());
            let (tokens, text) = (Vec::new(), String::new());
            self.readers.push(Reader { request, join, tokens, text, is_over: false });
            let at = self.chance.between(0, CALM);
            self.after(at, Happening::ReaderAsks(reader));
        }
        for (count, make) in [
            (self.plan.crashes, Happening::Crash as fn(usize) -> Happening),
            (self.plan.cuts, Happening::Cut),
            (self.plan.drains, Happening::Drain),
        ] {
            for _ in 0..count {
                let node = self.chance.between(0, self.plan.nodes as u64 - 1) as usize;
                let at = self.chance.between(1, CALM);
                self.after(at, make(node));
            }
        }
        for _ in 0..self.plan.server_deaths {
            let at = self.chance.between(1, CALM);
            self.after(at, Happening::ServerDies);
        }
        for _ in 0..self.plan.cancels {
            let request = self.chance.between(0, self.plan.requests as u64 - 1) as usize;
            let at = self.chance.between(1, CALM);
            self.after(at, Happening::Cancel(request));
        }
    }

    pub(super) fn after(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.due.push(Reverse((self.now + delay, self.order)));
        self.happenings.insert(self.order, happening);
    }

    /// A message on its way; lost where its node is cut off, and sometimes elsewhere.
    pub(super) fn send(&mut self, node: Option<usize>, happening: Happening) {
        let calm = self.now >= CALM;
        if node.is_some_and(|node| self.nodes[node].cut_until > self.now) {
            return;
        }
        if !calm && self.chance.percent(self.plan.loss_percent) {
            return;
        }
        let slow = !calm && self.chance.percent(self.plan.slow_percent);
        let delay = if slow { self.chance.between(1, 9_000) } else { self.chance.between(1, 5) };
        self.after(delay, happening);
    }

    pub fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, order))) = self.due.pop() {
            if at > END || at > CALM && self.is_done() {
                break;
            }
            self.now = at;
            let Some(happening) = self.happenings.remove(&order) else { continue };
            self.happens(happening)?;
            self.check()?;
        }
        self.check_end()
    }

    fn is_done(&self) -> bool {
        self.queue.num_left() == 0 && self.readers.iter().all(|reader| reader.is_over)
    }

    fn happens(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Pull(node) => self.pull(node),
            Happening::Delivered(life, delivery) => self.delivered(life, delivery),
            Happening::HistoryRead(life, delivery, records) => {
                return self.history_read(life, delivery, records);
            }
            Happening::StoreArrives(life, request, number, after, record) => {
                self.store_arrives((life, request, number), after, *record);
            }
            Happening::Answered(life, request, number, answer) => {
                return self.answered(life, request, number, answer);
            }
            Happening::ReadArrives(life, request) => {
                let last = self.log.records(request).last().cloned();
                self.send(Some(life.0), Happening::LastRead(life, request, last));
            }
            Happening::LastRead(life, request, last) => {
                let last = last.map(|stored| (stored.sequence, stored.record));
                return self.tell(life, request, |holding| holding.read(last));
            }
            Happening::Generates(life, request, run) => return self.generates(life, request, run),
            Happening::Progress(life, request) => self.progress(life, request),
            Happening::Tick(life) => return self.tick(life),
            Happening::Acknowledged(message) => self.queue.remove(message),
            Happening::GivenBack(message) => self.queue.give_back(message),
            Happening::InProgress(message) => {
                self.queue.in_progress(message, self.now + ACK_WAIT);
            }
            Happening::Sweep(node) => self.sweep(node),
            Happening::ServerDies => self.queue.dies(&mut self.chance),
            Happening::Crash(node) => self.crash(node),
            Happening::Restart(node) => self.restart(node),
            Happening::Cut(node) => {
                let until = self.now + self.chance.between(100, 15_000);
                self.nodes[node].cut_until = until;
            }
            Happening::Drain(node) => return self.drain(node),
            Happening::Cancel(request) => return self.cancel(request),
            Happening::Live(reader, stored, previous) => {
                return self.live(reader, stored, previous);
            }
            Happening::ReaderAsks(reader) => self.reader_asks(reader),
            Happening::ReaderReads(reader, after, records) => {
                let joined = self.readers[reader].join.stored(after, records);
                return self.take_in(reader, joined.fresh);
            }
        }
        Ok(())
    }

    /// After each step: every log is one that nodes may write, with the beginning of what is known before.
    fn check(&mut self) -> Result<(), String> {
        for request in 0..self.plan.requests {
            let (count, history) = &mut self.checked[request];
            for StoredRecord { sequence, record } in &self.log.records(request)[*count..] {
                let from = history.positions().total() as usize;
                check_known(request, from, &record.event.token_ids, &record.event.text)?;
                history.take(*sequence, record.clone()).map_err(|broken| broken.to_string())?;
                *count += 1;
            }
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), String> {
        if self.queue.num_left() > 0 {
            return Err(format!("{} jobs are left in the queue", self.queue.num_left()));
        }
        for (request, (_, history)) in self.checked.iter().enumerate() {
            let Some(end) = history.end() else {
                return Err(format!("request {request} has no end"));
            };
            let is_whole = history.positions().total() as usize == self.lengths[request];
            let is_poison = self.plan.poison == Some(request);
            // Where nodes die of something else, too, one may have been there each time.
            let is_tried_out = self.dead.contains(&request) && self.plan.poison.is_none();
            if !is_whole && !self.cancelled[request] && !is_poison && !is_tried_out {
                return Err(format!("request {request} ended too early: {end:?}"));
            }
        }
        if self.poisoned > MAX_FRUITLESS {
            return Err(format!("{} nodes died of one request", self.poisoned));
        }
        let late = self.readers.iter().position(|reader| !reader.is_over);
        late.map_or(Ok(()), |reader| Err(format!("reader {reader} waits for ever")))
    }
}
