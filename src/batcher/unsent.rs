//! What a batcher has to send: a full mailbox delays a message and loses none.

use std::collections::VecDeque;

use super::policy::PlannedStep;
use super::step_loop::Neighbours;
use super::{Credit, DeviceFailed};
use crate::clock::Timestamp;
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
