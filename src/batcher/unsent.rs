//! Whom a batcher talks to, and what it has to send: a full mailbox delays a message and loses none.

use std::collections::VecDeque;

use super::policy::PlannedStep;
use super::seated::Started;
use super::{Credit, DeviceFailed};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::ModelId;
use crate::reply::Delivery;
use crate::sequence::Sequence;

/// What became of a message.
#[derive(Debug)]
pub enum Sent<M> {
    /// It is on its way.
    Taken,
    /// There is no room for it at this moment.
    Full(M),
    /// Whom it was for has ended.
    Gone,
}

/// Whom the batcher talks to. `S` is a sequence's stream, or what a simulator has in its place. What is sent may be refused for want
/// of room, and is then sent again; what is told is not.
pub trait Neighbours<S> {
    /// A step, to the executor.
    fn step(&mut self, step: PlannedStep) -> Sent<PlannedStep>;
    /// What a step gave, to the reply actor: with the time at which the step ended.
    fn deliver(
        &mut self,
        step: (Vec<Delivery<S>>, Timestamp),
    ) -> Sent<(Vec<Delivery<S>>, Timestamp)>;
    /// What may be sent here, to the scheduler.
    fn credit(&mut self, credit: Credit) -> Sent<Credit>;
    /// What did not end here, to the scheduler.
    fn returned(&mut self, sequences: Vec<(Sequence, S)>) -> Sent<Vec<(Sequence, S)>>;
    /// That the device is to be built again, to the node.
    fn failed(&mut self, failed: DeviceFailed) -> Sent<DeviceFailed>;

    /// A sequence got a seat for the first time in its attempt.
    fn started(&mut self, started: Started<S>, at: Timestamp);
    /// So many sequences gave their blocks back.
    fn preempted(&mut self, count: u32);
    /// A sequence that was cancelled ends.
    fn cancel(&mut self, stream: &S, at: Timestamp);
    /// A sequence fails.
    fn fail(&mut self, stream: &S, error: Error, at: Timestamp);
    /// A sequence is to start again; answers how many tokens its stream has taken, nothing if that has ended meanwhile. Deliveries of
    /// older attempts are ignored from here on.
    fn restart(&mut self, stream: &S, attempt: u32) -> Option<u32>;
}

/// A neighbour without which the device cannot work is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone(pub &'static str);

/// Messages that were refused, in the order in which they must arrive.
#[derive(Debug)]
pub struct Unsent<S> {
    pub(super) deliver: VecDeque<(Vec<Delivery<S>>, Timestamp)>,
    step: Option<PlannedStep>,
    /// The newest of each model; an older one says nothing any more.
    credits: Vec<Credit>,
    pub(super) returned: VecDeque<Vec<(Sequence, S)>>,
    pub(super) failed: Option<DeviceFailed>,
}

impl<S> Default for Unsent<S> {
    fn default() -> Self {
        Self {
            deliver: VecDeque::new(),
            step: None,
            credits: Vec::new(),
            returned: VecDeque::new(),
            failed: None,
        }
    }
}

impl<S> Unsent<S> {
    /// Whether everything for executor and reply has left: only then is a further step formed, so what waits here is bounded.
    pub(super) fn may_form_step(&self) -> bool {
        self.deliver.is_empty() && self.step.is_none()
    }

    /// Whether a step has not left yet.
    pub(super) fn holds_step(&self) -> bool {
        self.step.is_some()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.may_form_step()
            && self.credits.is_empty()
            && self.returned.is_empty()
            && self.failed.is_none()
    }

    pub(super) fn deliver(&mut self, deliveries: Vec<Delivery<S>>, at: Timestamp) {
        self.deliver.push_back((deliveries, at));
    }

    pub(super) fn step(&mut self, step: PlannedStep) {
        debug_assert!(self.step.is_none());
        self.step = Some(step);
    }

    pub(super) fn credit(&mut self, credit: Credit) {
        self.credits.retain(|other| other.model != credit.model);
        self.credits.push(credit);
    }

    pub(super) fn returned(&mut self, sequences: Vec<(Sequence, S)>) {
        self.returned.push_back(sequences);
    }

    pub(super) fn failed(&mut self, failed: DeviceFailed) {
        self.failed = Some(failed);
    }

    /// Whether a model's credit has not left yet.
    pub(super) fn holds_credit_of(&self, model: ModelId) -> bool {
        self.credits.iter().any(|credit| credit.model == model)
    }

    /// Sends what there is room for. Credit goes before what is returned, or that would come back at once; the node is told of a
    /// failure last. Without a scheduler the node is going down: its queue failed what it held.
    ///
    /// # Errors
    /// [`Gone`] if executor or reply has ended.
    pub(super) fn flush(&mut self, to: &mut impl Neighbours<S>) -> Result<(), Gone> {
        let reply = send_all(&mut self.deliver, |step| to.deliver(step));
        while let Some(credit) = self.credits.pop() {
            if let Sent::Full(credit) = to.credit(credit) {
                self.credits.push(credit);
                break;
            }
        }
        if self.credits.is_empty() {
            // As above.
            let _ = send_all(&mut self.returned, |sequences| to.returned(sequences));
        }
        if self.returned.is_empty()
            && let Some(failed) = self.failed.take()
            && let Sent::Full(failed) = to.failed(failed)
        {
            self.failed = Some(failed);
        }
        reply.map_err(|()| Gone("reply"))?;
        match self.step.take().map(|step| to.step(step)) {
            Some(Sent::Full(step)) => self.step = Some(step),
            Some(Sent::Gone) => return Err(Gone("executor")),
            Some(Sent::Taken) | None => {}
        }
        Ok(())
    }

    /// Lets go of a step that will not be run any more.
    pub(super) fn forget_step(&mut self) {
        self.step = None;
    }
}

/// Sends in order until one finds no room; an error if the receiver is gone (then the rest is dropped).
fn send_all<M>(queue: &mut VecDeque<M>, mut send: impl FnMut(M) -> Sent<M>) -> Result<(), ()> {
    while let Some(message) = queue.pop_front() {
        match send(message) {
            Sent::Taken => {}
            Sent::Full(message) => {
                queue.push_front(message);
                return Ok(());
            }
            Sent::Gone => {
                queue.clear();
                return Err(());
            }
        }
    }
    Ok(())
}
