//! The batcher's neighbours as it meets them: mailboxes of actors, and streams under their locks.

use std::sync::Arc;

use actix::Recipient;
use actix::prelude::SendError;

use super::policy::PlannedStep;
use super::seated::Started;
use super::unsent::{Neighbours, Sent, Unsent};
use super::{Credit, DeviceFailed, Returned};
use crate::bridge::ffi::StepOutput;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::executor::RunStep;
use crate::ids::DeviceId;
use crate::reply::{Deliver, Delivery, SharedStream, lock};
use crate::sequence::Sequence;
use crate::telemetry::Metrics;

/// To whom a batcher talks beside its executor.
#[derive(Clone)]
pub struct Links {
    /// The scheduler: what may be sent here.
    pub credit: Recipient<Credit>,
    /// The scheduler: what did not end here.
    pub returned: Recipient<Returned>,
    /// The device's reply actor.
    pub reply: Recipient<Deliver>,
    /// The node, for a device that must be rebuilt.
    pub node: Recipient<DeviceFailed>,
}

/// See the module.
pub(super) struct Mailboxes {
    device: DeviceId,
    links: Links,
    /// None before it is attached, and after the batcher's end.
    pub executor: Option<Recipient<RunStep>>,
    /// The last answer that was taken in, for its memory.
    pub spare_output: Option<Box<StepOutput>>,
    metrics: Arc<Metrics>,
}

impl Mailboxes {
    pub fn new(device: DeviceId, links: Links, metrics: Arc<Metrics>) -> Self {
        Self { device, links, executor: None, spare_output: None, metrics }
    }

    /// The batcher ends: what it could not send is handed to its thread, which waits for room. Streams of what even that does not
    /// take end as failed, by being dropped.
    pub fn leave(&self, unsent: Unsent<SharedStream>) {
        let Some(arbiter) = actix::Arbiter::try_current().filter(|_| !unsent.is_empty()) else {
            return;
        };
        let (links, device) = (self.links.clone(), self.device.clone());
        arbiter.spawn(async move {
            for (deliveries, at) in unsent.deliver {
                let _ = links.reply.send(Deliver { deliveries, at }).await;
            }
            for sequences in unsent.returned {
                let _ = links.returned.send(Returned { device: device.clone(), sequences }).await;
            }
            if let Some(failed) = unsent.failed {
                let _ = links.node.send(failed).await;
            }
        });
    }
}

/// `back` makes what was to be sent of the message again.
fn send<M, T>(to: &Recipient<M>, message: M, back: impl FnOnce(M) -> T) -> Sent<T>
where
    M: actix::Message<Result = ()> + Send + 'static,
{
    match to.try_send(message) {
        Ok(()) => Sent::Taken,
        Err(SendError::Full(message)) => Sent::Full(back(message)),
        Err(SendError::Closed(_)) => Sent::Gone,
    }
}

impl Neighbours<SharedStream> for Mailboxes {
    fn step(&mut self, planned: PlannedStep) -> Sent<PlannedStep> {
        let Some(executor) = &self.executor else { return Sent::Full(planned) };
        let PlannedStep { step, model, bindings, batch } = planned;
        let output = self.spare_output.take().unwrap_or_default();
        send(executor, RunStep { step, model, bindings, batch, output }, |run| {
            self.spare_output = Some(run.output);
            PlannedStep { step, model, bindings: run.bindings, batch: run.batch }
        })
    }

    fn deliver(
        &mut self,
        (deliveries, at): (Vec<Delivery>, Timestamp),
    ) -> Sent<(Vec<Delivery>, Timestamp)> {
        send(&self.links.reply, Deliver { deliveries, at }, |deliver| (deliver.deliveries, at))
    }

    fn credit(&mut self, credit: Credit) -> Sent<Credit> {
        send(&self.links.credit, credit, |credit| credit)
    }

    fn returned(
        &mut self,
        sequences: Vec<(Sequence, SharedStream)>,
    ) -> Sent<Vec<(Sequence, SharedStream)>> {
        let returned = Returned { device: self.device.clone(), sequences };
        send(&self.links.returned, returned, |returned| returned.sequences)
    }

    fn failed(&mut self, failed: DeviceFailed) -> Sent<DeviceFailed> {
        send(&self.links.node, failed, |failed| failed)
    }

    fn started(&mut self, started: Started<SharedStream>, at: Timestamp) {
        self.metrics.prefix_query_tokens.increment(u64::from(started.prompt_tokens));
        self.metrics.prefix_hit_tokens.increment(u64::from(started.cached_tokens));
        lock(&started.stream).scheduled(&self.device, started.cached_tokens, at);
    }

    fn preempted(&mut self, count: u32) {
        self.metrics.preemptions.increment(u64::from(count));
    }

    fn cancel(&mut self, stream: &SharedStream, at: Timestamp) {
        lock(stream).cancel(at);
    }

    fn fail(&mut self, stream: &SharedStream, error: Error, at: Timestamp) {
        lock(stream).fail(error, at);
    }

    fn restart(&mut self, stream: &SharedStream, attempt: u32) -> Option<u32> {
        lock(stream).restart(attempt)
    }
}
