//! What a NATS server with JetStream does for durable streams, as it was found to behave.

use std::collections::BTreeMap;

use inferno_node::log::{QueuedJob, Record, StoredRecord};

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
    Waits,
    /// With a node, until then.
    Out(u64),
    Gone,
}

/// The queue: a job that nobody acknowledges in time is given out again; an acknowledgement takes it out, whoever sends it and
/// however late.
#[derive(Default)]
pub struct Queue {
    jobs: Vec<(usize, QueuedJob, Place)>,
}

impl Queue {
    pub fn publish(&mut self, request: usize, body: &str) {
        let job = QueuedJob { sequence: self.jobs.len() as u64 + 1, body: body.to_owned() };
        self.jobs.push((request, job, Place::Waits));
    }

    pub fn pull(&mut self, now: u64, ack_wait: u64) -> Option<(usize, QueuedJob)> {
        let is_due = |place: &Place| match place {
            Place::Waits => true,
            Place::Out(until) => *until <= now,
            Place::Gone => false,
        };
        let (request, job, place) = self.jobs.iter_mut().find(|(_, _, place)| is_due(place))?;
        *place = Place::Out(now + ack_wait);
        Some((*request, job.clone()))
    }

    pub fn acknowledge(&mut self, job: u64) {
        *self.place(job) = Place::Gone;
    }

    pub fn give_back(&mut self, job: u64) {
        let place = self.place(job);
        if *place != Place::Gone {
            *place = Place::Waits;
        }
    }

    pub fn in_progress(&mut self, job: u64, until: u64) {
        let place = self.place(job);
        if matches!(place, Place::Out(_)) {
            *place = Place::Out(until);
        }
    }

    pub fn num_left(&self) -> usize {
        self.jobs.iter().filter(|(_, _, place)| *place != Place::Gone).count()
    }

    fn place(&mut self, job: u64) -> &mut Place {
        &mut self.jobs[job as usize - 1].2
    }
}
