//! The batcher's shell: messages in, [`StepLoop`] asked, messages out.

use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, Addr, ArbiterHandle, AsyncContext, Context, Handler, WrapFuture,
};
use tokio::sync::oneshot;

use super::lane::LaneSpec;
use super::mailboxes::{Links, Mailboxes};
use super::policy::MAX_STEPS_IN_FLIGHT;
use super::step_gap::{StepGap, device_time};
use super::step_loop::{Failure, StepLoop, Turn};
use super::{AddModel, Assign, Attach, Config, Depart, RemoveModel, SweepLanes};
use crate::bridge::DeviceErrorCode;
use crate::bridge::ffi::StepOutput;
use crate::clock::Timestamp;
use crate::executor::{StepDone, StepFailure};
use crate::ids::{DeviceId, ModelId};
use crate::lifeline::Lifeline;
use crate::progress::{FreeBlocks, Progress};
use crate::reply::SharedStream;
use crate::telemetry::{DeviceMetrics, Metrics, ModelMetrics};

/// Control messages that may wait beside the work: one load or unload for each of a few models, attach, retire.
const CONTROL_MESSAGES: usize = 8;

/// How long after a refusal a message is sent again: a step of the smallest model takes about as long.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(1);

/// How often sequences that are held are looked at.
const LOOK_AT_HELD: Duration = Duration::from_millis(10);

/// What a batcher is made with.
pub struct BatcherStart {
    /// The device's name, as in the configuration.
    pub device: DeviceId,
    /// Counts the builds of the device's actors.
    pub generation: u64,
    /// Settings.
    pub config: Config,
    /// Neighbours.
    pub links: Links,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// Pending: sequences here. Stamped with every step done.
    pub progress: Progress,
    /// What of its KV cache is free.
    pub blocks: FreeBlocks,
    /// Where a test makes it panic; its end tells the node itself.
    pub alive: Lifeline,
}

/// The actor.
pub struct Batcher {
    device: DeviceId,
    config: Config,
    steps: StepLoop<SharedStream>,
    neighbours: Mailboxes,
    removals: Vec<(ModelId, oneshot::Sender<()>)>,
    departures: Vec<oneshot::Sender<()>>,
    retry_planned: bool,
    turn_planned: bool,
    /// As the gauge of running sequences has it.
    counted: u32,
    gap: StepGap,
    models: Vec<BatchedModel>,
    metrics: Arc<Metrics>,
    device_metrics: DeviceMetrics,
    progress: Progress,
    blocks: FreeBlocks,
    alive: Lifeline,
}

impl Batcher {
    /// Starts the actor on an arbiter of its own. It forms no step before it gets [`Attach`].
    pub fn start_on(arbiter: &ArbiterHandle, start: BatcherStart) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| Self::new(start))
    }

    fn new(start: BatcherStart) -> Self {
        let device_metrics = start.metrics.device(start.device.as_str());
        Self {
            config: start.config,
            steps: StepLoop::new(start.device.clone(), start.generation),
            neighbours: Mailboxes::new(start.device.clone(), start.links, start.metrics.clone()),
            device: start.device,
            removals: Vec::new(),
            departures: Vec::new(),
            retry_planned: false,
            turn_planned: false,
            counted: 0,
            gap: StepGap::default(),
            models: Vec::new(),
            metrics: start.metrics,
            device_metrics,
            progress: start.progress,
            blocks: start.blocks,
            alive: start.alive,
        }
    }

    /// As many assignments as there are seats (the scheduler sends no more than it has credit for), the answers of the steps in
    /// flight, and control. More would hide that this actor is slow; less would refuse what was promised.
    fn mailbox_capacity(&self) -> usize {
        self.steps.num_seats() + MAX_STEPS_IN_FLIGHT + CONTROL_MESSAGES
    }

    /// After every event.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let now = Timestamp::now();
        let Turn { removed, waits, gathers_until } = self.steps.turn(&mut self.neighbours, now);
        for (_, done) in self.removals.extract_if(.., |(model, _)| removed.contains(model)) {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
        if !waits {
            for done in self.departures.drain(..) {
                // As above.
                let _ = done.send(());
            }
        }
        if let Some(until) = gathers_until {
            self.turn_at(until, ctx);
        }
        let held = self.count(now);
        if (waits || held > 0) && !self.retry_planned {
            self.retry_planned = true;
            // Nobody says when what is held may go on.
            let after = if waits { RETRY_AFTER } else { LOOK_AT_HELD };
            ctx.run_later(after, |this, ctx| {
                this.retry_planned = false;
                this.turn(ctx);
            });
        }
    }

    /// Takes a turn at a time that is nearer than timers can tell: the thread has nothing else to do, and looks again and again.
    fn turn_at(&mut self, when: Timestamp, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.turn_planned, true) {
            return;
        }
        let wait = async move {
            while Timestamp::now() < when {
                tokio::task::yield_now().await;
            }
        };
        ctx.spawn(wait.into_actor(self).map(|(), this, ctx| {
            this.turn_planned = false;
            this.turn(ctx);
        }));
    }

    /// Gives how many are held.
    fn count(&mut self, now: Timestamp) -> u32 {
        let load = self.steps.load();
        let here = load.running + load.waiting;
        let held = self.steps.num_held();
        // A device that waits for the log is not stuck.
        self.progress.set_pending(u64::from(here.saturating_sub(held)), now);
        self.device_metrics.kv_blocks_used.set(f64::from(load.used_blocks));
        self.device_metrics.kv_blocks_total.set(f64::from(load.total_blocks));
        self.blocks.set(load.total_blocks.saturating_sub(load.used_blocks), load.total_blocks);
        self.metrics.requests_running.increment(f64::from(here) - f64::from(self.counted));
        self.counted = here;
        held
    }

    /// Says in the log what the steps of a model cost, or of all: the file that `executor.sim_cost_model` names.
    fn tell_costs(&self, of: Option<ModelId>) {
        for BatchedModel { id, name, .. } in &self.models {
            let costs = self.steps.costs(*id).filter(|_| of.is_none_or(|model| model == *id));
            if let Some(Ok(costs)) = costs.map(|costs| serde_json::to_string(&costs)) {
                tracing::info!(device = %self.device, model = %name, costs, "what its steps cost");
            }
        }
    }

    fn measure(&mut self, computed: u32, output: &StepOutput, ended: Timestamp) {
        self.device_metrics.step_time.record(device_time(output.device_us).as_secs_f64());
        self.device_metrics.step_tokens.increment(u64::from(computed));
        let runs_on = self.steps.load().running > 0;
        if let Some(gap) = self.gap.before(output, runs_on) {
            self.device_metrics.step_gap.record(gap.as_secs_f64());
        }
        for model in &mut self.models {
            let costs = self.steps.costs(model.id).map(|costs| costs.of_step());
            for (key, micros) in costs.into_iter().flatten() {
                model.metrics.step_cost.set(key, micros);
            }
        }
        let (rows, seats) = (output.token_ids.len() as u32, self.steps.num_seats() as u32);
        self.metrics.recent_batches.record(rows, seats, ended);
    }
}

/// A model that is here, as metrics and the log have it.
struct BatchedModel {
    id: ModelId,
    name: Arc<str>,
    metrics: ModelMetrics,
}

impl Actor for Batcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.mailbox_capacity());
    }
}

impl Handler<Attach> for Batcher {
    type Result = ();

    fn handle(&mut self, message: Attach, ctx: &mut Self::Context) {
        self.neighbours.executor = Some(message.executor);
        self.steps.attach();
        self.turn(ctx);
    }
}

impl Handler<AddModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: AddModel, ctx: &mut Self::Context) {
        let AddModel { model, name, budget, loaded, window, end_token_ids } = message;
        let metrics = self.metrics.model(self.device.as_str(), &name);
        self.models.push(BatchedModel { id: model, name, metrics });
        self.steps.add_model(LaneSpec {
            model,
            num_blocks: loaded.num_blocks,
            block_size: budget.block_size,
            max_batch_size: budget.max_batch_size,
            max_step_tokens: budget.max_step_tokens,
            step_time_target: self.config.step_time_target(),
            max_seq_len: budget.max_seq_len,
            window,
            end_token_ids,
            enable_prefix_cache: self.config.enable_prefix_cache,
            reserve_tokens: self.config.reserve_tokens,
        });
        ctx.set_mailbox_capacity(self.mailbox_capacity());
        self.turn(ctx);
    }
}

impl Handler<RemoveModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: RemoveModel, ctx: &mut Self::Context) {
        self.tell_costs(Some(message.model));
        self.models.retain(|model| model.id != message.model);
        self.steps.close_model(message.model);
        self.removals.push((message.model, message.done));
        self.turn(ctx);
    }
}

impl Handler<SweepLanes> for Batcher {
    type Result = ();

    fn handle(&mut self, _: SweepLanes, ctx: &mut Self::Context) {
        self.steps.sweep(&mut self.neighbours, Timestamp::now());
        self.turn(ctx);
    }
}

impl Handler<Depart> for Batcher {
    type Result = ();

    fn handle(&mut self, message: Depart, ctx: &mut Self::Context) {
        self.tell_costs(None);
        let failure = Failure::of(message.reason);
        self.steps.fail(failure, &mut self.neighbours, Timestamp::now());
        self.departures.push(message.done);
        self.turn(ctx);
    }
}

impl Handler<Assign> for Batcher {
    type Result = ();

    fn handle(&mut self, message: Assign, ctx: &mut Self::Context) {
        let Assign { sequence, stream } = message;
        self.steps.assign(sequence, stream, &mut self.neighbours, Timestamp::now());
        self.turn(ctx);
    }
}

impl Handler<StepDone> for Batcher {
    type Result = ();

    fn handle(&mut self, done: StepDone, ctx: &mut Self::Context) {
        self.alive.look();
        if self.steps.has_failed() {
            return;
        }
        self.progress.stamp(done.ended);
        let to = &mut self.neighbours;
        match done.result {
            Ok(output) => {
                let answer = (&*output, done.batch);
                // A defect has failed the device by now.
                if let Ok(computed) = self.steps.settle(done.step, answer, to, done.ended) {
                    self.measure(computed, &output, done.ended);
                }
                self.neighbours.spare_output = Some(output);
            }
            Err(failure) => {
                let sticky = matches!(&failure, StepFailure::Device(error)
                    if error.code == DeviceErrorCode::Sticky);
                // A step that was not run has harmed nobody and was harmed by nobody in it.
                let step = (failure != StepFailure::Skipped).then_some(done.step);
                let reason = failure.to_string();
                self.steps.fail(Failure { reason: &reason, step, sticky }, to, done.ended);
            }
        }
        self.turn(ctx);
    }
}

impl Drop for Batcher {
    /// Also runs after a panic in a handler. Nothing in here may panic.
    fn drop(&mut self) {
        let now = Timestamp::now();
        self.tell_costs(None);
        let to = &mut self.neighbours;
        to.executor = None;
        self.steps.fail(Failure::of("the batcher has ended"), to, now);
        self.steps.turn(to, now);
        to.leave(self.steps.take_unsent());
        self.metrics.requests_running.decrement(f64::from(self.counted));
        self.progress.set_pending(0, now);
    }
}
