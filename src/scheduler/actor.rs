//! The scheduler's shell: messages in, [`Scheduling`] asked, assignments out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::SendError;
use actix::{Actor, Addr, ArbiterHandle, AsyncContext, Context, Handler, Recipient};

use super::policy::{Assignment, Leaving, Refusal, Scheduling};
use super::{Config, Credit, DeviceDown, DeviceUp, Enqueue, Returned, SweepQueue};
use crate::batcher::Assign;
use crate::clock::Timestamp;
use crate::ids::DeviceId;
use crate::lifeline::Lifeline;
use crate::progress::Progress;
use crate::reply::{SharedStream, lock};
use crate::telemetry::Metrics;

/// A burst of accepted requests, and a word from each device. Handling one takes microseconds, so a thousand are some
/// milliseconds of work; admission refuses what is beyond that with `queue_full`, and batchers send again.
const MAILBOX_CAPACITY: usize = 1024;

/// How often the whole queue is looked at: a cancel that no hint came for, or a model without a device, is noticed this late.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// How long a hint waits for others: a client that goes away often takes many requests with it, and one look serves all.
const SWEEP_AFTER_HINT: Duration = Duration::from_millis(2);

/// What the scheduler is made with.
pub struct SchedulerStart {
    /// Settings.
    pub config: Config,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// Pending: sequences that wait. Stamped whenever all that could leave has left: waiting for credit is no stall, but room that
    /// is not used is one, as is an actor that does not look.
    pub progress: Progress,
    /// Held for as long as it lives.
    pub alive: Lifeline,
}

/// The actor.
pub struct Scheduler {
    policy: Scheduling<SharedStream>,
    batchers: HashMap<DeviceId, (u64, Recipient<Assign>)>,
    sweep_planned: bool,
    metrics: Arc<Metrics>,
    progress: Progress,
    alive: Lifeline,
}

impl Scheduler {
    /// Starts the actor on an arbiter of its own.
    pub fn start_on(arbiter: &ArbiterHandle, start: SchedulerStart) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| Self {
            policy: Scheduling::new(start.config),
            batchers: HashMap::new(),
            sweep_planned: false,
            metrics: start.metrics,
            progress: start.progress,
            alive: start.alive,
        })
    }

    /// After every event: sends what devices have credit for, and tells those that leave.
    fn dispatch(&mut self) {
        let now = Timestamp::now();
        while let Some(assignment) = self.policy.next(now) {
            self.send(assignment);
        }
        for leaving in self.policy.take_leaving() {
            match leaving {
                Leaving::Cancelled(stream) => lock(&stream).cancel(now),
                Leaving::Failed(stream, error) => lock(&stream).fail(error, now),
            }
        }
        let waiting = self.policy.len();
        self.metrics.requests_waiting.set(waiting as f64);
        self.progress.set_pending(waiting as u64, now);
        if !self.policy.withholds(now) {
            self.progress.stamp(now);
        }
    }

    fn send(&mut self, assignment: Assignment<SharedStream>) {
        let Assignment { device, generation, sequence, stream } = assignment;
        let assign = Assign { sequence, stream };
        let refused = match self.batchers.get(&device) {
            Some((of, batcher)) if *of == generation => match batcher.try_send(assign) {
                Ok(()) => return,
                Err(SendError::Full(assign)) => (assign, Refusal::Full),
                Err(SendError::Closed(assign)) => (assign, Refusal::Gone),
            },
            _ => (assign, Refusal::Gone),
        };
        let (Assign { sequence, stream }, refusal) = refused;
        self.policy.put_back(Assignment { device, generation, sequence, stream }, refusal);
    }

    fn sweep(&mut self) {
        if !self.policy.is_empty() {
            self.policy.sweep(Timestamp::now());
            self.dispatch();
        }
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        ctx.run_interval(SWEEP_EVERY, |this, _| this.sweep());
    }
}

impl Handler<Enqueue> for Scheduler {
    type Result = ();

    fn handle(&mut self, message: Enqueue, _: &mut Self::Context) {
        self.alive.look();
        self.policy.enqueue(message.sequence, message.stream);
        self.dispatch();
    }
}

impl Handler<Credit> for Scheduler {
    type Result = ();

    fn handle(&mut self, credit: Credit, _: &mut Self::Context) {
        self.policy.credit(credit);
        self.dispatch();
    }
}

impl Handler<Returned> for Scheduler {
    type Result = ();

    fn handle(&mut self, returned: Returned, _: &mut Self::Context) {
        tracing::info!(device = %returned.device, sequences = returned.sequences.len(), "returned");
        for (sequence, stream) in returned.sequences {
            self.policy.enqueue(sequence, stream);
        }
        self.dispatch();
    }
}

impl Handler<DeviceUp> for Scheduler {
    type Result = ();

    fn handle(&mut self, up: DeviceUp, _: &mut Self::Context) {
        self.policy.device_up(&up.device, up.generation);
        self.batchers.insert(up.device, (up.generation, up.batcher));
        self.dispatch();
    }
}

impl Handler<DeviceDown> for Scheduler {
    type Result = ();

    fn handle(&mut self, down: DeviceDown, _: &mut Self::Context) {
        self.policy.device_down(&down.device, down.generation);
        if self.batchers.get(&down.device).is_some_and(|(of, _)| *of <= down.generation) {
            self.batchers.remove(&down.device);
        }
        if down.lost {
            self.policy.device_lost(&down.device);
            self.sweep();
        }
    }
}

impl Handler<SweepQueue> for Scheduler {
    type Result = ();

    fn handle(&mut self, _: SweepQueue, ctx: &mut Self::Context) {
        if !self.sweep_planned {
            self.sweep_planned = true;
            ctx.run_later(SWEEP_AFTER_HINT, |this, _| {
                this.sweep_planned = false;
                this.sweep();
            });
        }
    }
}
