//! A request that a node has taken up: from the claim to the job's end, one record under way at a time.
//!
//! Everything that happens comes in as a call, and what is to be done goes out as [`LogCommand`]s; what a caller does with them is its
//! matter, so that a simulator can lose, delay and repeat each of them.
//!
//! ```text
//! Claiming ──stored──▶ Running ──last event stored──▶ Ack
//!     │                   ├──hand back stored──────▶ GiveBack
//!     └──another record───┴──another claim─────────▶ Stop: the node acks nothing
//! ```

use super::history::History;
use super::positions::Positions;
use super::record::{Claim, Record, fits};
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::request::{Event, EventQueue, FinishReason, SoFar, Usage, split};

/// What the server says of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAnswer {
    /// It is stored, there.
    Stored(u64),
    /// It does not follow the last one: another record does, or this one is stored and the word of it was lost.
    Stale,
    /// The store has no room.
    Full,
    /// Nothing, for a while.
    Silent,
}

/// What is to be done for a request.
#[derive(Debug, Clone, PartialEq)]
pub enum LogCommand {
    /// Store this record, if `after` is the place of the last one (0: there is none).
    Store {
        /// The fence.
        after: u64,
        /// The record.
        record: Box<Record>,
    },
    /// Read the last record, and say it to [`Holding::read`].
    ReadLast,
    /// Generate from here.
    Start(SoFar),
    /// Compute no further step of it until told; or go on.
    Hold(bool),
    /// Nothing more of the generation is wanted.
    Stop,
    /// The job is done: take it out of the queue.
    Ack,
    /// The job is for another node, now.
    GiveBack,
    /// The request is none of the node's any more. Always the last.
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldingPhase {
    Claiming,
    Running,
    /// Nothing more comes of the generation; what waits is stored, then this is done.
    Leaving(Leave),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Its last event waits or is under way.
    Ended,
    /// In good health, and the log says so.
    HandBack,
    /// The attempt has failed.
    GiveUp,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Holding {
    id: RequestId,
    phase: HoldingPhase,
    /// The claim's number: that of every record.
    attempt: u32,
    /// The place of the last record that is known to be stored.
    last: u64,
    under_way: Option<Record>,
    /// The last record is being read: what is under way may be stored or not.
    reads: bool,
    /// The store had no room for what is under way.
    is_full: bool,
    is_held: bool,
    waiting: EventQueue,
    /// How far each choice has come, stored or not.
    positions: Positions,
    /// Until it is started.
    so_far: Option<SoFar>,
    leaves_early: bool,
    /// Of a request that has moved: whether its tokens are those that it would have had anyway.
    exact: Option<bool>,
    /// A token of this attempt is stored.
    is_fruitful: bool,
    max_record_bytes: usize,
}

impl Holding {
    /// Claims a request whose log says this.
    pub fn claim(
        id: RequestId,
        claim: Claim,
        history: &History,
        max_record_bytes: usize,
    ) -> (Self, Vec<LogCommand>) {
        let attempt = history.attempt() + 1;
        let positions = history.positions();
        let event = Event { attempt, seq: positions.of(0), ..Event::new(id.clone()) };
        let crosses = history.crosses(&claim.exactness);
        let record = Record { claim: Some(Box::new(claim)), ..Record::of(event) };
        let holding = Self {
            id,
            phase: HoldingPhase::Claiming,
            attempt,
            last: history.last(),
            under_way: Some(record),
            reads: false,
            is_full: false,
            is_held: false,
            waiting: EventQueue::default(),
            positions,
            so_far: Some(history.so_far(attempt)),
            leaves_early: false,
            exact: (attempt > 1).then_some(!crosses),
            is_fruitful: false,
            max_record_bytes,
        };
        let commands = holding.store().into_iter().collect();
        (holding, commands)
    }

    /// The claim's number.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether it is the node's no more.
    pub fn is_over(&self) -> bool {
        self.phase == HoldingPhase::Over
    }

    /// Whether a token of this attempt is stored.
    pub fn is_fruitful(&self) -> bool {
        self.is_fruitful
    }

    /// The server has answered what is under way.
    pub fn answered(&mut self, answer: StoreAnswer) -> Vec<LogCommand> {
        if self.reads || self.under_way.is_none() {
            return Vec::new(); // an answer that was given up
        }
        match answer {
            StoreAnswer::Stored(sequence) => self.stored(sequence),
            StoreAnswer::Stale => {
                self.reads = true;
                vec![LogCommand::ReadLast]
            }
            StoreAnswer::Silent => {
                self.reads = true;
                self.hold().into_iter().chain([LogCommand::ReadLast]).collect()
            }
            StoreAnswer::Full => {
                self.is_full = true;
                self.hold().into_iter().collect()
            }
        }
    }

    /// What was asked with [`LogCommand::ReadLast`] is this, with its place; none: the log is empty.
    pub fn read(&mut self, last: Option<(u64, Record)>) -> Vec<LogCommand> {
        if !std::mem::take(&mut self.reads) {
            return Vec::new();
        }
        let Some(under_way) = &self.under_way else { return Vec::new() };
        match last {
            None if self.last == 0 => self.store().into_iter().collect(),
            None => self.log_is_lost(),
            Some((sequence, _)) if sequence == self.last => self.store().into_iter().collect(),
            Some((sequence, record)) if is_same(&record, under_way) => self.stored(sequence),
            Some(_) => self.fenced(),
        }
    }

    /// Time has passed: asks again what was not answered, stores again what had no room.
    pub fn tick(&mut self) -> Vec<LogCommand> {
        if self.reads {
            return vec![LogCommand::ReadLast];
        }
        match std::mem::take(&mut self.is_full) {
            true => self.store().into_iter().collect(),
            false => Vec::new(),
        }
    }

    /// The generation says this.
    pub fn generated(&mut self, mut event: Event) -> Vec<LogCommand> {
        if self.phase != HoldingPhase::Running {
            return Vec::new();
        }
        event.attempt = self.attempt;
        if let Some(receipt) = &mut event.receipt {
            (receipt.attempt, receipt.exact) = (self.attempt, self.exact);
        }
        if event.is_last() {
            self.phase = HoldingPhase::Leaving(leave_at(&event));
            if self.phase != HoldingPhase::Leaving(Leave::Ended) {
                // Its tokens are as good as any.
                (event.finish_reason, event.usage) = (None, None);
                (event.receipt, event.error) = (None, None);
            }
        }
        self.positions.pass(&event);
        if !event.is_empty() {
            self.waiting.push(&mut event);
        }
        self.go_on()
    }

    /// The node does not take it, though it has claimed it.
    pub fn refused(&mut self, error: &Error) -> Vec<LogCommand> {
        match error.kind {
            Kind::QueueFull
            | Kind::Draining
            | Kind::Unavailable
            | Kind::NotFound
            | Kind::Conflict => self.hand_back(),
            _ => self.generated(self.failed(error.clone())),
        }
    }

    /// Another node is to go on: the request is given back when what it has said is stored.
    pub fn hand_back(&mut self) -> Vec<LogCommand> {
        match self.phase {
            HoldingPhase::Claiming => {
                self.leaves_early = true;
                Vec::new()
            }
            HoldingPhase::Running => {
                self.phase = HoldingPhase::Leaving(Leave::HandBack);
                let mut commands = vec![LogCommand::Stop];
                commands.extend(self.go_on());
                commands
            }
            HoldingPhase::Leaving(_) | HoldingPhase::Over => Vec::new(),
        }
    }

    fn stored(&mut self, sequence: u64) -> Vec<LogCommand> {
        let Some(record) = self.under_way.take() else { return Vec::new() };
        self.last = sequence;
        self.is_fruitful |= !record.event.token_ids.is_empty();
        let mut commands: Vec<LogCommand> = self.release().into_iter().collect();
        if record.is_last() {
            commands.extend(self.over(LogCommand::Ack));
        } else if record.handed_back {
            commands.extend(self.over(LogCommand::GiveBack));
        } else if self.phase == HoldingPhase::Claiming {
            commands.extend(self.claimed());
        } else {
            commands.extend(self.go_on());
        }
        commands
    }

    fn claimed(&mut self) -> Vec<LogCommand> {
        if self.leaves_early {
            self.phase = HoldingPhase::Leaving(Leave::HandBack);
            return self.go_on();
        }
        self.phase = HoldingPhase::Running;
        self.so_far.take().map(LogCommand::Start).into_iter().collect()
    }

    /// The next record, if there is one to store; else the job's end, if there is nothing left.
    fn go_on(&mut self) -> Vec<LogCommand> {
        if self.under_way.is_some() {
            return Vec::new();
        }
        let next = self.waiting.pop().map(|event| self.cut(*event));
        let is_last = self.waiting.is_empty();
        self.under_way = match (next, self.phase) {
            (Some(event), phase) => {
                let handed_back = is_last && phase == HoldingPhase::Leaving(Leave::HandBack);
                Some(Record { handed_back, ..Record::of(event) })
            }
            (None, HoldingPhase::Leaving(Leave::HandBack)) => {
                Some(Record { handed_back: true, ..Record::of(self.nothing()) })
            }
            (None, HoldingPhase::Leaving(Leave::GiveUp)) => return self.over(LogCommand::GiveBack),
            (None, _) => None,
        };
        self.store().into_iter().collect()
    }

    /// As much of an event as one record holds; the rest waits.
    fn cut(&mut self, event: Event) -> Event {
        let most = self.max_record_bytes;
        let mut parts = split(event, &mut |event| fits(event, most)).into_iter();
        let first = parts.next();
        for part in parts.rev() {
            self.waiting.push_front(part);
        }
        first.unwrap_or_else(|| self.nothing())
    }

    fn store(&self) -> Option<LogCommand> {
        let record = Box::new(self.under_way.clone()?);
        Some(LogCommand::Store { after: self.last, record })
    }

    /// Another has claimed it, or ended it: what it says from here on is what counts.
    fn fenced(&mut self) -> Vec<LogCommand> {
        self.phase = HoldingPhase::Over;
        self.under_way = None;
        self.waiting.clear();
        vec![LogCommand::Stop, LogCommand::Forget]
    }

    /// What was stored is there no more, so nobody can go on with it: one clear end for those who listen.
    fn log_is_lost(&mut self) -> Vec<LogCommand> {
        let text = "the stored tokens of this request were lost with the log";
        let error = Error::new(Kind::LogUnavailable, text);
        self.phase = HoldingPhase::Leaving(Leave::Ended);
        // What was not stored is lost, too: nobody has seen it.
        let unseen = self.under_way.iter().map(|record| &record.event).chain(self.waiting.iter());
        for event in unseen {
            self.positions.fall_back(event.index, event.seq);
        }
        self.waiting.clear();
        self.last = 0;
        self.under_way = Some(Record::of(self.failed(error)));
        std::iter::once(LogCommand::Stop).chain(self.store()).collect()
    }

    /// An event without tokens, where the first choice stands.
    fn nothing(&self) -> Event {
        Event { attempt: self.attempt, seq: self.positions.of(0), ..Event::new(self.id.clone()) }
    }

    fn failed(&self, error: Error) -> Event {
        let cancelled = error.kind == Kind::Cancelled;
        let reason = if cancelled { FinishReason::Cancelled } else { FinishReason::Failed };
        Event {
            finish_reason: Some(reason),
            usage: Some(Usage { completion_tokens: self.positions.total(), ..Usage::default() }),
            error: (!cancelled).then(|| Box::new(error)),
            ..self.nothing()
        }
    }

    fn hold(&mut self) -> Option<LogCommand> {
        let is_new = !std::mem::replace(&mut self.is_held, true);
        (is_new && self.phase == HoldingPhase::Running).then_some(LogCommand::Hold(true))
    }

    fn release(&mut self) -> Option<LogCommand> {
        let was_held = std::mem::take(&mut self.is_held);
        (was_held && self.phase == HoldingPhase::Running).then_some(LogCommand::Hold(false))
    }

    fn over(&mut self, end: LogCommand) -> Vec<LogCommand> {
        self.phase = HoldingPhase::Over;
        vec![end, LogCommand::Forget]
    }
}

/// What becomes of a request whose generation ends so: one that fails for the node's sake is for another node.
fn leave_at(last: &Event) -> Leave {
    match last.error.as_ref().map(|error| error.kind) {
        Some(Kind::Draining | Kind::Unavailable) => Leave::HandBack,
        Some(Kind::Internal) => Leave::GiveUp,
        _ => Leave::Ended,
    }
}

/// Whether they are one record: there is one with this attempt at this token, and of claims one with this node's life.
fn is_same(stored: &Record, under_way: &Record) -> bool {
    let place = |record: &Record| {
        let event = &record.event;
        (event.attempt, event.index, event.seq, event.token_ids.len(), event.text.len())
    };
    place(stored) == place(under_way)
        && stored.claim == under_way.claim
        && stored.handed_back == under_way.handed_back
        && stored.is_last() == under_way.is_last()
}
