//! What a batcher has to send: a full mailbox delays a message and loses none.

use std::collections::VecDeque;

use actix::Recipient;
use actix::prelude::SendError;

use super::actor::Links;
use super::{Credit, DeviceFailed, Returned};
use crate::executor::RunStep;
use crate::ids::ModelId;
use crate::reply::Deliver;

/// Messages that were refused, in the order in which they must arrive.
#[derive(Default)]
pub(super) struct Outbox {
    deliver: VecDeque<Deliver>,
    step: Option<RunStep>,
    /// The newest of each model; an older one says nothing any more.
    credits: Vec<Credit>,
    returned: VecDeque<Returned>,
    failed: Option<DeviceFailed>,
}

/// A neighbour without which the device cannot work is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone(pub &'static str);

impl Outbox {
    /// Whether everything for executor and reply has left: only then is a further step formed, so what waits here is bounded.
    pub fn may_form_step(&self) -> bool {
        self.deliver.is_empty() && self.step.is_none()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.may_form_step()
            && self.credits.is_empty()
            && self.returned.is_empty()
            && self.failed.is_none()
    }

    pub fn deliver(&mut self, deliver: Deliver) {
        self.deliver.push_back(deliver);
    }

    pub fn step(&mut self, step: RunStep) {
        debug_assert!(self.step.is_none());
        self.step = Some(step);
    }

    pub fn credit(&mut self, credit: Credit) {
        self.credits.retain(|other| other.model != credit.model);
        self.credits.push(credit);
    }

    pub fn returned(&mut self, returned: Returned) {
        self.returned.push_back(returned);
    }

    pub fn failed(&mut self, failed: DeviceFailed) {
        self.failed = Some(failed);
    }

    /// Whether a model's credit has not left yet.
    pub fn holds_credit_of(&self, model: ModelId) -> bool {
        self.credits.iter().any(|credit| credit.model == model)
    }

    /// Sends what the mailboxes take. Credit goes before what is returned, or that would come back at once; the node is told
    /// of a failure last.
    ///
    /// # Errors
    /// [`Gone`] if executor or reply has ended.
    pub fn flush(
        &mut self,
        links: &Links,
        executor: Option<&Recipient<RunStep>>,
    ) -> Result<(), Gone> {
        let reply = send_all(&mut self.deliver, &links.reply);
        while let Some(credit) = self.credits.pop() {
            match links.credit.try_send(credit) {
                Err(SendError::Full(credit)) => {
                    self.credits.push(credit);
                    break;
                }
                // Without a scheduler the node is going down: its queue failed what it held.
                Ok(()) | Err(SendError::Closed(_)) => {}
            }
        }
        if self.credits.is_empty() {
            let _ = send_all(&mut self.returned, &links.returned);
        }
        if self.returned.is_empty()
            && let Some(failed) = self.failed.take()
            && let Err(SendError::Full(failed)) = links.node.try_send(failed)
        {
            self.failed = Some(failed);
        }
        if !reply {
            return Err(Gone("reply"));
        }
        if let (Some(executor), Some(step)) = (executor, self.step.take()) {
            match executor.try_send(step) {
                Ok(()) => {}
                Err(SendError::Full(step)) => self.step = Some(step),
                Err(SendError::Closed(_)) => return Err(Gone("executor")),
            }
        }
        Ok(())
    }

    /// Lets go of a step that will not be run any more.
    pub fn forget_step(&mut self) {
        self.step = None;
    }

    /// The owner ends: what could not be sent is handed to its thread, which waits for room. Streams of what even that does not
    /// take end as failed, by being dropped.
    pub fn leave(mut self, links: &Links) {
        let Some(arbiter) = actix::Arbiter::try_current() else { return };
        let links = links.clone();
        arbiter.spawn(async move {
            for deliver in self.deliver.drain(..) {
                let _ = links.reply.send(deliver).await;
            }
            for returned in self.returned.drain(..) {
                let _ = links.returned.send(returned).await;
            }
            if let Some(failed) = self.failed.take() {
                let _ = links.node.send(failed).await;
            }
        });
    }
}

/// Sends in order until one is refused; false if the receiver is gone (then the rest is dropped).
fn send_all<M>(queue: &mut VecDeque<M>, to: &Recipient<M>) -> bool
where
    M: actix::Message<Result = ()> + Send + 'static,
{
    while let Some(message) = queue.pop_front() {
        match to.try_send(message) {
            Ok(()) => {}
            Err(SendError::Full(message)) => {
                queue.push_front(message);
                return true;
            }
            Err(SendError::Closed(_)) => {
                queue.clear();
                return false;
            }
        }
    }
    true
}
