//! What a NATS server with JetStream does for durable streams, as it was found to behave.

use std::collections::{BTreeMap, BTreeSet};

use inferno_node::log::{QueuedJob, Record, StoredRecord};

use crate::chance::Chance;

/// The stream of logs, one subject for each request, with its fence.
#[derive(Default)]
pub struct LogStream {
    last: u64,
    logs: BTreeMap<usize, Vec<StoredRecord>>,
    /// A planted fault: nobody is fenced out.
    has_no_fence: bool,
}

impl LogStream {
    pub fn new(has_no_fence: bool) -> Self {
        Self { has_no_fence, ..Self::default() }
    }

    /// Stores a record if it follows the last one; gives its place and that of the one before it.
    pub fn store(&mut self, request: usize, after: u64, record: Record) -> Option<(u64, u64)> {
        let log = self.logs.entry(request).or_default();
        let previous = log.last().map_or(0, |last| last.sequence);
        if previous != after && !self.has_no_fence {
            return None;
        }
        self.last += 1;
        log.push(StoredRecord { sequence: self.last, record });
        Some((self.last, previous))
    }

    pub fn records(&self, request: usize) -> &[StoredRecord] {
        self.logs.get(&request).map_or(&[], Vec::as_slice)
    }

    pub fn after(&self, request: usize, after: u64) -> Vec<StoredRecord> {
        self.records(request).iter().filter(|stored| stored.sequence > after).cloned().collect()
    }
}

/// Where a job is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody was given it yet.
    Waits,
    /// With a node, until then.
    Out(u64),
    GivenBack,
    /// It stands there, and is given to nobody.
    Lost,
    Gone,
}

/// A message of the queue: its number there, and the request that it is about.
#[derive(Clone)]
pub struct Delivery {
    pub number: usize,
    pub request: usize,
    pub job: QueuedJob,
}

/// The queue: a job that nobody acknowledges in time is given out again; an acknowledgement takes it out, whoever sends it and
/// however late.
#[derive(Default)]
pub struct Queue {
    jobs: Vec<(Delivery, Place)>,
    /// Those that were published again: the server takes each once.
    again: BTreeSet<usize>,
}

impl Queue {
    pub fn publish(&mut self, request: usize, body: &str) {
        let number = self.jobs.len();
        let job = QueuedJob { sequence: number as u64 + 1, body: body.to_owned() };
        self.jobs.push((Delivery { number, request, job }, Place::Waits));
    }

    pub fn pull(&mut self, now: u64, ack_wait: u64) -> Option<Delivery> {
        let is_due = |place: &Place| match place {
            Place::Waits | Place::GivenBack => true,
            Place::Out(until) => *until <= now,
            Place::Lost | Place::Gone => false,
        };
        let (delivery, place) = self.jobs.iter_mut().find(|(_, place)| is_due(place))?;
        *place = Place::Out(now + ack_wait);
        Some(delivery.clone())
    }

    /// Takes a job out: it was acknowledged, or removed.
    pub fn remove(&mut self, number: usize) {
        self.jobs[number].1 = Place::Gone;
    }

    pub fn give_back(&mut self, number: usize) {
        let place = &mut self.jobs[number].1;
        if !matches!(place, Place::Gone | Place::Lost) {
            *place = Place::GivenBack;
        }
    }

    pub fn in_progress(&mut self, number: usize, until: u64) {
        let place = &mut self.jobs[number].1;
        if matches!(place, Place::Out(_)) {
            *place = Place::Out(until);
        }
    }

    /// The server is killed, and comes back with what it knows of jobs at odds with what it has of them.
    pub fn dies(&mut self, chance: &mut Chance) {
        for (_, place) in &mut self.jobs {
            let percent = match place {
                Place::Out(_) => 50,
                Place::Waits | Place::GivenBack | Place::Gone => 20,
                Place::Lost => 0,
            };
            if chance.percent(percent) {
                *place = Place::Lost;
            }
        }
    }

    /// Jobs that were given out, as far as anybody can see.
    pub fn given_out(&self) -> Vec<Delivery> {
        let is_there = |place| !matches!(place, Place::Waits | Place::Gone);
        let there = self.jobs.iter().filter(|(_, place)| is_there(*place));
        there.map(|(delivery, _)| delivery.clone()).collect()
    }

    pub fn publish_again(&mut self, before: &Delivery) {
        if self.again.insert(before.number) {
            let number = self.jobs.len();
            self.jobs.push((Delivery { number, ..before.clone() }, Place::Waits));
        }
    }

    pub fn num_left(&self) -> usize {
        self.jobs.iter().filter(|(_, place)| *place != Place::Gone).count()
    }
}
