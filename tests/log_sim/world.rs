//! Nodes, a server, readers, and what lies between them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use inferno_node::error::{Error, Kind};
use inferno_node::ids::RequestId;
use inferno_node::log::{
    Answer, Claim, Command, Decision, History, Holding, Job, Join, Record, Stored, decide,
};
use inferno_node::request::{Event, FinishReason, SoFar, Usage};

use crate::chance::{Chance, mix};
use crate::server::{LogStream, Queue};

/// Milliseconds: how long a node may be silent before its job is another's, and how often it says that it is not.
const ACK_WAIT: u64 = 6_000;
const PROGRESS: u64 = 2_000;
/// How long a node waits for an answer.
const PATIENCE: u64 = 500;
/// From here on nothing is lost any more; all is to be well some time later.
const CALM: u64 = 20_000;
const END: u64 = 120_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    NoClaim,
    NoFence,
    EarlyAck,
    NoDedupe,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: usize,
    pub requests: usize,
    pub readers: usize,
    pub crashes: u64,
    pub cuts: u64,
    pub drains: u64,
    pub cancels: u64,
    pub loss_percent: u64,
    pub slow_percent: u64,
    /// Whoever starts it dies of it.
    pub poison: Option<usize>,
    pub bug: Option<Bug>,
}

/// A node's life, which what was meant for an earlier one does not reach.
type Life = (usize, u64);

enum Happening {
    Pull(usize),
    Delivered(Life, usize, Job),
    HistoryRead(Life, usize, Job, Vec<Stored>),
    StoreArrives(Life, usize, u64, u64, Box<Record>),
    Answered(Life, usize, u64, Answer),
    ReadArrives(Life, usize),
    LastRead(Life, usize, Option<Stored>),
    Generates(Life, usize, u64),
    Progress(Life, usize),
    Tick(Life),
    Acknowledged(u64),
    GivenBack(u64),
    InProgress(u64),
    Crash(usize),
    Restart(usize),
    Cut(usize),
    Drain(usize),
    Cancel(usize),
    Live(usize, Stored, u64),
    ReaderAsks(usize),
    ReaderReads(usize, Vec<Stored>),
}

struct Held {
    holding: Holding,
    job: u64,
    /// Publishes so far; an answer to another than the last is dropped.
    number: u64,
    is_open: bool,
    /// The next token, while it generates, and the number of the run.
    next: Option<usize>,
    run: u64,
    is_paused: bool,
}

#[derive(Default)]
struct Node {
    life: u64,
    is_up: bool,
    cut_until: u64,
    held: BTreeMap<usize, Held>,
}

struct Reader {
    request: usize,
    join: Join,
    tokens: Vec<u32>,
    text: String,
    is_over: bool,
}

pub struct World {
    plan: Plan,
    chance: Chance,
    now: u64,
    order: u64,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    log: LogStream,
    queue: Queue,
    nodes: Vec<Node>,
    readers: Vec<Reader>,
    lengths: Vec<usize>,
    poisoned: u32,
    cancelled: Vec<bool>,
    dead: Vec<usize>,
    checked: Vec<(usize, History)>,
}

/// Each request's completion is known before.
fn token(request: usize, index: usize) -> u32 {
    (mix((request * 1_000 + index) as u64) % 50_000) as u32
}

fn letter(request: usize, index: usize) -> char {
    char::from(b'a' + (token(request, index) % 26) as u8)
}

fn id(request: usize) -> RequestId {
    RequestId::parse(&format!("r{request}")).expect("an id")
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut chance = Chance::new(mix(seed ^ 0x10f));
        let lengths = (0..plan.requests).map(|_| chance.between(1, 12) as usize).collect();
        let mut world = Self {
            chance,
            now: 0,
            order: 0,
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
            self.nodes.push(Node { is_up: true, ..Node::default() });
            self.after(0, Happening::Pull(node));
            self.after(PATIENCE, Happening::Tick((node, 0)));
        }
        for reader in 0..self.plan.readers {
            let request = self.chance.between(0, self.plan.requests as u64 - 1) as usize;
            let join = Join::from(0);
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
        for _ in 0..self.plan.cancels {
            let request = self.chance.between(0, self.plan.requests as u64 - 1) as usize;
            let at = self.chance.between(1, CALM);
            self.after(at, Happening::Cancel(request));
        }
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.due.push(Reverse((self.now + delay, self.order)));
        self.happenings.insert(self.order, happening);
    }

    /// A message on its way; lost where its node is cut off, and sometimes elsewhere.
    fn send(&mut self, node: Option<usize>, happening: Happening) {
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
            Happening::Delivered(life, request, job) => self.delivered(life, request, job),
            Happening::HistoryRead(life, request, job, records) => {
                return self.history_read(life, (request, job), records);
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
            Happening::Acknowledged(job) => self.queue.acknowledge(job),
            Happening::GivenBack(job) => self.queue.give_back(job),
            Happening::InProgress(job) => self.queue.in_progress(job, self.now + ACK_WAIT),
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
            Happening::ReaderReads(reader, records) => {
                let joined = self.readers[reader].join.stored(records);
                return self.take_in(reader, joined.fresh);
            }
        }
        Ok(())
    }

    fn lives(&self, (node, life): Life) -> bool {
        self.nodes[node].is_up && self.nodes[node].life == life
    }

    fn pull(&mut self, node: usize) {
        let again = self.chance.between(20, 300);
        self.after(again, Happening::Pull(node));
        let is_here = self.nodes[node].is_up && self.nodes[node].cut_until <= self.now;
        if !is_here || self.nodes[node].held.len() >= 3 {
            return;
        }
        if let Some((request, job)) = self.queue.pull(self.now, ACK_WAIT) {
            let life = (node, self.nodes[node].life);
            self.send(Some(node), Happening::Delivered(life, request, job));
        }
    }

    fn delivered(&mut self, life: Life, request: usize, job: Job) {
        if !self.lives(life) || self.nodes[life.0].held.contains_key(&request) {
            return;
        }
        let records = self.log.records(request).to_vec();
        self.send(Some(life.0), Happening::HistoryRead(life, request, job, records));
    }

    fn history_read(
        &mut self,
        life: Life,
        (request, job): (usize, Job),
        records: Vec<Stored>,
    ) -> Result<(), String> {
        if !self.lives(life) || self.nodes[life.0].held.contains_key(&request) {
            return Ok(());
        }
        let history = read(records)?;
        match decide(&job, &history) {
            Decision::Ended | Decision::Repeated => {
                self.send(Some(life.0), Happening::Acknowledged(job.sequence));
            }
            Decision::Other => return Err("the same body is told to be another".to_owned()),
            Decision::Poison => {
                let error = Error::internal("tried too often");
                let record = history.closing(&id(request), Some(error));
                if self.store(request, history.last(), record).is_some() {
                    self.dead.push(request);
                }
            }
            Decision::Claim => return self.claim(life, (request, job), &history),
        }
        Ok(())
    }

    fn claim(
        &mut self,
        life: Life,
        (request, job): (usize, Job),
        history: &History,
    ) -> Result<(), String> {
        let claim = Claim {
            node_id: format!("n{}", life.0),
            life: life.1.to_string(),
            job: job.sequence,
            body: job.body,
            exactness: "same".to_owned(),
        };
        let (holding, commands) = Holding::claim(id(request), claim, history, 1 << 20);
        let held = Held {
            holding,
            job: job.sequence,
            number: 0,
            is_open: false,
            next: None,
            run: 0,
            is_paused: false,
        };
        self.nodes[life.0].held.insert(request, held);
        self.after(PROGRESS, Happening::Progress(life, request));
        if self.plan.bug == Some(Bug::NoClaim) {
            let last = history.last();
            return self.tell(life, request, |holding| holding.answered(Answer::Stored(last)));
        }
        self.carry_out(life, request, commands)
    }

    /// Says something to a holding, if it is still there, and does what it wants.
    fn tell(
        &mut self,
        life: Life,
        request: usize,
        word: impl FnOnce(&mut Holding) -> Vec<Command>,
    ) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        let commands = word(&mut held.holding);
        self.carry_out(life, request, commands)
    }

    fn carry_out(
        &mut self,
        life: Life,
        request: usize,
        commands: Vec<Command>,
    ) -> Result<(), String> {
        for command in commands {
            let Some(held) = self.nodes[life.0].held.get_mut(&request) else {
                return Err("something is to be done after the end".to_owned());
            };
            let job = held.job;
            match command {
                Command::Store { after, record } => {
                    (held.number, held.is_open) = (held.number + 1, true);
                    let number = held.number;
                    self.after(
                        PATIENCE,
                        Happening::Answered(life, request, number, Answer::Silent),
                    );
                    let stored = Happening::StoreArrives(life, request, number, after, record);
                    self.send(Some(life.0), stored);
                }
                Command::ReadLast => {
                    self.send(Some(life.0), Happening::ReadArrives(life, request));
                }
                Command::Start(so_far) => self.start(life, request, &so_far)?,
                Command::Hold(pause) => held.is_paused = pause,
                Command::Stop => held.next = None,
                Command::Ack => self.send(Some(life.0), Happening::Acknowledged(job)),
                Command::GiveBack => self.send(Some(life.0), Happening::GivenBack(job)),
                Command::Forget => drop(self.nodes[life.0].held.remove(&request)),
            }
        }
        Ok(())
    }

    fn start(&mut self, life: Life, request: usize, so_far: &SoFar) -> Result<(), String> {
        let begun = so_far.sample(0);
        let ids: Vec<u32> = begun.tokens.iter().map(|token| token.id).collect();
        let known: Vec<u32> = (0..ids.len()).map(|index| token(request, index)).collect();
        if ids != known || begun.text_len.unwrap_or(0) != ids.len() {
            return Err(format!("request {request} goes on from {ids:?}, not {known:?}"));
        }
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        (held.next, held.run) = (Some(ids.len()), held.run + 1);
        let (run, job) = (held.run, held.job);
        if self.plan.bug == Some(Bug::EarlyAck) {
            self.send(Some(life.0), Happening::Acknowledged(job));
        }
        let wait = self.chance.between(1, 50);
        self.after(wait, Happening::Generates(life, request, run));
        Ok(())
    }

    fn generates(&mut self, life: Life, request: usize, run: u64) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        let wait = self.chance.between(1, 400);
        let length = self.lengths[request];
        let Some(held) = self.nodes[life.0].held.get_mut(&request) else { return Ok(()) };
        let Some(index) = held.next.filter(|_| held.run == run) else { return Ok(()) };
        if self.plan.poison == Some(request) {
            self.poisoned += 1;
            self.crash(life.0);
            return Ok(());
        }
        if !held.is_paused {
            held.next = (index + 1 < length).then_some(index + 1);
            let is_last = held.next.is_none();
            let event = said(request, index, is_last.then_some(FinishReason::Length));
            self.tell(life, request, |holding| holding.generated(event))?;
        }
        self.after(wait, Happening::Generates(life, request, run));
        Ok(())
    }

    fn store_arrives(&mut self, asked: (Life, usize, u64), after: u64, record: Record) {
        let (life, request, number) = asked;
        let answer = match self.store(request, after, record) {
            Some(sequence) => Answer::Stored(sequence),
            None => Answer::Stale,
        };
        self.send(Some(life.0), Happening::Answered(life, request, number, answer));
    }

    fn store(&mut self, request: usize, after: u64, record: Record) -> Option<u64> {
        let (sequence, previous) = self.log.store(request, after, record.clone())?;
        for reader in 0..self.readers.len() {
            if self.readers[reader].request == request {
                let stored = Stored { sequence, record: record.clone() };
                self.send(None, Happening::Live(reader, stored, previous));
            }
        }
        Some(sequence)
    }

    fn answered(
        &mut self,
        life: Life,
        request: usize,
        number: u64,
        answer: Answer,
    ) -> Result<(), String> {
        let is_there = self.lives(life);
        let held = self.nodes[life.0].held.get_mut(&request).filter(|_| is_there);
        let Some(held) = held.filter(|held| held.number == number && held.is_open) else {
            return Ok(());
        };
        held.is_open = false;
        self.tell(life, request, |holding| holding.answered(answer))
    }

    fn progress(&mut self, life: Life, request: usize) {
        let held = self.nodes[life.0].held.get(&request);
        let Some(job) = held.map(|held| held.job).filter(|_| self.lives(life)) else { return };
        self.send(Some(life.0), Happening::InProgress(job));
        // Clocks differ.
        let skewed = PROGRESS / 2 + PROGRESS * life.0 as u64 / 2;
        self.after(skewed, Happening::Progress(life, request));
    }

    fn tick(&mut self, life: Life) -> Result<(), String> {
        if !self.lives(life) {
            return Ok(());
        }
        self.after(PATIENCE, Happening::Tick(life));
        let held: Vec<usize> = self.nodes[life.0].held.keys().copied().collect();
        held.into_iter().try_for_each(|request| self.tell(life, request, Holding::tick))
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].is_up = false;
        self.nodes[node].held.clear();
        let back = self.chance.between(10, 8_000);
        self.after(back, Happening::Restart(node));
    }

    fn restart(&mut self, node: usize) {
        if !self.nodes[node].is_up {
            self.nodes[node].is_up = true;
            self.nodes[node].life += 1;
            let life = (node, self.nodes[node].life);
            self.after(PATIENCE, Happening::Tick(life));
        }
    }

    fn drain(&mut self, node: usize) -> Result<(), String> {
        let life = (node, self.nodes[node].life);
        let held: Vec<usize> = self.nodes[node].held.keys().copied().collect();
        held.into_iter().try_for_each(|request| self.tell(life, request, Holding::hand_back))
    }

    /// By who runs it, or where nobody says that he does, by an end in the log.
    fn cancel(&mut self, request: usize) -> Result<(), String> {
        let runs = |node: &Node| {
            let held = node.held.get(&request);
            node.is_up && held.is_some_and(|held| held.next.is_some())
        };
        let owner = self.nodes.iter().position(runs).filter(|_| self.chance.percent(80));
        if let Some(node) = owner {
            let life = (node, self.nodes[node].life);
            let Some(held) = self.nodes[node].held.get_mut(&request) else { return Ok(()) };
            let Some(index) = held.next.take() else { return Ok(()) };
            self.cancelled[request] = true;
            let mut event = said(request, index, Some(FinishReason::Cancelled));
            (event.token_ids, event.text) = (Vec::new(), String::new());
            return self.tell(life, request, |holding| holding.generated(event));
        }
        let history = read(self.log.records(request).to_vec())?;
        if history.end().is_none() {
            let record = history.closing(&id(request), None);
            self.cancelled[request] |= self.store(request, history.last(), record).is_some();
        }
        Ok(())
    }

    fn live(&mut self, reader: usize, stored: Stored, previous: u64) -> Result<(), String> {
        if self.plan.bug == Some(Bug::NoDedupe) {
            return self.take_in(reader, vec![stored]);
        }
        let joined = self.readers[reader].join.live(stored, previous);
        if let Some(after) = joined.read_after {
            self.reads_log(reader, after);
        }
        self.take_in(reader, joined.fresh)
    }

    /// A reader who hears nothing looks into the log.
    fn reader_asks(&mut self, reader: usize) {
        let after = self.readers[reader].join.last();
        self.reads_log(reader, after);
        self.after(2_000, Happening::ReaderAsks(reader));
    }

    fn reads_log(&mut self, reader: usize, after: u64) {
        let records = self.log.after(self.readers[reader].request, after);
        self.send(None, Happening::ReaderReads(reader, records));
    }

    fn take_in(&mut self, reader: usize, fresh: Vec<Stored>) -> Result<(), String> {
        let reader = &mut self.readers[reader];
        for Stored { record, .. } in fresh {
            reader.is_over |= record.is_last();
            reader.tokens.extend(record.event.token_ids);
            reader.text.push_str(&record.event.text);
        }
        check_known(reader.request, 0, &reader.tokens, &reader.text)
    }

    /// After each step: every log is one that nodes may write, with the beginning of what is known before.
    fn check(&mut self) -> Result<(), String> {
        for request in 0..self.plan.requests {
            let (count, history) = &mut self.checked[request];
            for Stored { sequence, record } in &self.log.records(request)[*count..] {
                let from = history.num_tokens();
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
            let is_whole = history.num_tokens() == self.lengths[request];
            let is_poison = self.plan.poison == Some(request);
            let is_tried_out = self.dead.contains(&request);
            if !is_whole && !self.cancelled[request] && !is_poison && !is_tried_out {
                return Err(format!("request {request} ended too early: {end:?}"));
            }
        }
        if self.poisoned > inferno_node::log::MAX_FRUITLESS {
            return Err(format!("{} nodes died of one request", self.poisoned));
        }
        let late = self.readers.iter().position(|reader| !reader.is_over);
        late.map_or(Ok(()), |reader| Err(format!("reader {reader} waits for ever")))
    }
}

fn read(records: Vec<Stored>) -> Result<History, String> {
    let mut history = History::default();
    for Stored { sequence, record } in records {
        history.take(sequence, record).map_err(|broken| broken.to_string())?;
    }
    Ok(history)
}

fn said(request: usize, index: usize, finish_reason: Option<FinishReason>) -> Event {
    Event {
        seq: index as u32,
        token_ids: vec![token(request, index)],
        text: letter(request, index).to_string(),
        finish_reason,
        usage: finish_reason.is_some().then(Usage::default),
        error: (finish_reason == Some(FinishReason::Failed))
            .then(|| Box::new(Error::new(Kind::Internal, "failed"))),
        ..Event::new(id(request))
    }
}

fn check_known(request: usize, from: usize, tokens: &[u32], text: &str) -> Result<(), String> {
    let known = from..from + tokens.len();
    let same = tokens.iter().zip(known.clone()).all(|(got, index)| *got == token(request, index));
    let letters: String = known.map(|index| letter(request, index)).collect();
    if same && letters == text {
        return Ok(());
    }
    Err(format!("request {request} from {from}: {tokens:?} {text:?}, not {letters:?}"))
}
