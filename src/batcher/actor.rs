//! The batcher's shell: messages in, [`Batching`] asked, messages out.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use actix::{Actor, Addr, ArbiterHandle, AsyncContext, Context, Handler, Recipient};
use tokio::sync::oneshot;

use super::outbox::{Gone, Outbox};
use super::policy::{Batching, LaneSpec, MAX_STEPS_IN_FLIGHT, Refused};
use super::running::{Departure, Output};
use super::settle::MAX_FAILED_STEPS;
use super::step_gap::StepGap;
use super::{AddModel, Assign, Attach, Config, Credit, DeviceFailed, RemoveModel, Returned};
use crate::bridge::DeviceErrorCode;
use crate::bridge::ffi::StepOutput;
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::executor::{RunStep, StepDone, StepFailure};
use crate::ids::{DeviceId, ModelId};
use crate::progress::Progress;
use crate::reply::{Deliver, SharedStream};
use crate::sequence::Sequence;
use crate::telemetry::{DeviceMetrics, Metrics};

/// Control messages that may wait beside the work: one load or unload for each of a few models, attach, retire.
const CONTROL_MESSAGES: usize = 8;

/// How long after a refusal a message is sent again: a step of the smallest model takes about as long.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(1);

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

/// What a batcher is made with.
pub struct Start {
    /// Which device.
    pub device: DeviceId,
    /// Which build of its actors.
    pub generation: u64,
    /// Settings.
    pub config: Config,
    /// Neighbours.
    pub links: Links,
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// Pending: sequences here. Stamped with every step done.
    pub progress: Progress,
}

/// The actor.
pub struct Batcher {
    device: DeviceId,
    generation: u64,
    config: Config,
    links: Links,
    executor: Option<Recipient<RunStep>>,
    policy: Batching<SharedStream>,
    output: Output<SharedStream>,
    /// The last answer that was taken in, for its memory.
    spare_output: Option<Box<StepOutput>>,
    outbox: Outbox,
    /// The newest credit of each model, sent or in the outbox.
    credits: Vec<Credit>,
    removals: Vec<(ModelId, oneshot::Sender<()>)>,
    /// Everything was given back; what still comes is given back too.
    failed: bool,
    retry_planned: bool,
    /// As the gauge of running sequences has it.
    counted: u32,
    gap: StepGap,
    metrics: Arc<Metrics>,
    device_metrics: DeviceMetrics,
    progress: Progress,
}

impl Batcher {
    /// Starts the actor on an arbiter of its own. It forms no step before it gets [`Attach`].
    pub fn start_on(arbiter: &ArbiterHandle, start: Start) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| Self::new(start))
    }

    fn new(start: Start) -> Self {
        let device_metrics = start.metrics.device(start.device.as_str());
        Self {
            device: start.device,
            generation: start.generation,
            config: start.config,
            links: start.links,
            executor: None,
            policy: Batching::new(),
            output: Output::default(),
            spare_output: None,
            outbox: Outbox::default(),
            credits: Vec::new(),
            removals: Vec::new(),
            failed: false,
            retry_planned: false,
            counted: 0,
            gap: StepGap::default(),
            metrics: start.metrics,
            device_metrics,
            progress: start.progress,
        }
    }

    /// As many assignments as there are seats (the scheduler sends no more than it has credit for), the answers of the steps in
    /// flight, and control. More would hide that this actor is slow; less would refuse what was promised.
    fn mailbox_capacity(&self) -> usize {
        self.policy.num_seats() + MAX_STEPS_IN_FLIGHT + CONTROL_MESSAGES
    }

    /// After every event: sends what waits, forms steps, tells what changed.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Timestamp::now();
        self.flush(now);
        while !self.failed && self.executor.is_some() && self.outbox.may_form_step() {
            let planned = self.policy.next_step(&mut self.output);
            self.announce(now);
            let Some(planned) = planned else { break };
            self.outbox.step(RunStep {
                step: planned.step,
                model: planned.model,
                bindings: planned.bindings,
                batch: planned.batch,
                output: self.spare_output.take().unwrap_or_default(),
            });
            self.flush(now);
        }
        self.renew_credits();
        self.flush(now);
        self.finish_removals();
        self.count(now);
        if !self.outbox.is_empty() && !self.retry_planned {
            self.retry_planned = true;
            ctx.run_later(RETRY_AFTER, |this, ctx| {
                this.retry_planned = false;
                this.pump(ctx);
            });
        }
    }

    fn flush(&mut self, now: Timestamp) {
        if let Err(Gone(who)) = self.outbox.flush(&self.links, self.executor.as_ref()) {
            self.fail(&format!("the {who} actor has ended"), false, None, now);
        }
    }

    /// Tells streams and reply what the policy has put out.
    fn announce(&mut self, at: Timestamp) {
        for started in self.output.started.drain(..) {
            self.metrics.prefix_query_tokens.increment(u64::from(started.prompt_tokens));
            self.metrics.prefix_hit_tokens.increment(u64::from(started.cached_tokens));
            lock(&started.stream).scheduled(&self.device, started.cached_tokens, at);
        }
        self.metrics.preemptions.increment(u64::from(std::mem::take(&mut self.output.preemptions)));
        if self.output.produced.is_empty() {
            return;
        }
        let room = Vec::with_capacity(self.output.produced.len()); // the next step brings about as many
        let deliveries = std::mem::replace(&mut self.output.produced, room);
        self.outbox.deliver(Deliver { deliveries, at });
    }

    fn renew_credits(&mut self) {
        for credit in self.policy.credits(&self.device, self.generation) {
            match self.credits.iter_mut().find(|sent| sent.model == credit.model) {
                Some(sent) if *sent == credit => continue,
                Some(sent) => sent.clone_from(&credit),
                None => self.credits.push(credit.clone()),
            }
            self.outbox.credit(credit);
        }
    }

    /// Answers for the models whose last sequence has left, once the scheduler knows that no credit is left.
    fn finish_removals(&mut self) {
        for (model, done) in std::mem::take(&mut self.removals) {
            if self.outbox.holds_credit_of(model) || !self.policy.remove_model(model) {
                self.removals.push((model, done));
                continue;
            }
            self.credits.retain(|credit| credit.model != model);
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }

    fn count(&mut self, now: Timestamp) {
        let load = self.policy.load();
        let here = load.running + load.waiting;
        self.progress.set_pending(u64::from(here), now);
        self.device_metrics.kv_blocks_used.set(f64::from(load.used_blocks));
        self.device_metrics.kv_blocks_total.set(f64::from(load.total_blocks));
        self.metrics.requests_running.increment(f64::from(here) - f64::from(self.counted));
        self.counted = here;
    }

    /// Gives everything back, once: after a failed step the device's memory is not trusted any more.
    fn fail(&mut self, reason: &str, sticky: bool, step: Option<u64>, now: Timestamp) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.outbox.forget_step();
        for mut credit in self.credits.drain(..) {
            credit.open = false;
            self.outbox.credit(credit);
        }
        let gone = self.policy.depart(step);
        let sequences: Vec<_> =
            gone.into_iter().filter_map(|gone| part_with(gone, reason, now)).collect();
        tracing::debug!(device = %self.device, reason, returned = sequences.len(), "the batcher ends");
        if !sequences.is_empty() {
            self.outbox.returned(Returned { device: self.device.clone(), sequences });
        }
        self.outbox.failed(DeviceFailed {
            device: self.device.clone(),
            generation: self.generation,
            reason: reason.to_owned(),
            sticky,
        });
    }
}

/// Ends what can be ended here and prepares the rest for another start; `None` if nothing is to be started again.
fn part_with(
    departure: Departure<SharedStream>,
    reason: &str,
    now: Timestamp,
) -> Option<(Sequence, SharedStream)> {
    let Departure { mut sequence, stream, restarted } = departure;
    {
        let mut stream = lock(&stream);
        if sequence.handle.wants_no_more() {
            if sequence.handle.is_cancelled() {
                stream.cancel(now);
            }
            return None;
        }
        if sequence.failed_steps >= MAX_FAILED_STEPS {
            stream.fail(Error::internal(format!("its step failed twice: {reason}")), now);
            return None;
        }
        if restarted {
            // What the stream has taken is the truth; the tokens of deliveries under way are sampled again.
            let taken = stream.restart(sequence.attempt) as usize;
            sequence.token_ids.truncate(sequence.num_prompt_tokens as usize + taken);
            // They come with the first token.
            sequence.prompt_scored &= taken > 0;
        }
    }
    Some((sequence, stream))
}

fn lock(stream: &SharedStream) -> std::sync::MutexGuard<'_, crate::reply::Stream> {
    // A stream that panicked keeps its counts; its end is still to be told.
    stream.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.executor = Some(message.executor);
        self.pump(ctx);
    }
}

impl Handler<AddModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: AddModel, ctx: &mut Self::Context) {
        if self.failed {
            return;
        }
        let AddModel { model, budget, loaded, window, end_token_ids } = message;
        self.policy.add_model(LaneSpec {
            model,
            num_blocks: loaded.num_blocks,
            block_size: budget.block_size,
            max_batch_size: budget.max_batch_size,
            max_step_tokens: budget.max_step_tokens,
            max_seq_len: budget.max_seq_len,
            window,
            end_token_ids,
            enable_prefix_cache: self.config.enable_prefix_cache,
            reserve_tokens: self.config.reserve_tokens,
        });
        ctx.set_mailbox_capacity(self.mailbox_capacity());
        self.pump(ctx);
    }
}

impl Handler<RemoveModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: RemoveModel, ctx: &mut Self::Context) {
        self.policy.close_model(message.model);
        self.renew_credits();
        self.removals.push((message.model, message.done));
        self.pump(ctx);
    }
}

impl Handler<Assign> for Batcher {
    type Result = ();

    fn handle(&mut self, message: Assign, ctx: &mut Self::Context) {
        match self.policy.assign(message.sequence, message.stream) {
            Ok(()) => {}
            Err(Refused::UnknownModel(sequence, stream)) => {
                let sequences = vec![(sequence, stream)];
                self.outbox.returned(Returned { device: self.device.clone(), sequences });
            }
            Err(Refused::TooLong { stream, needed, total, .. }) => {
                let text = format!("needs {needed} KV blocks, {} has {total}", self.device);
                lock(&stream).fail(Error::new(Kind::ContextLength, text), Timestamp::now());
            }
        }
        self.pump(ctx);
    }
}

impl Handler<StepDone> for Batcher {
    type Result = ();

    fn handle(&mut self, done: StepDone, ctx: &mut Self::Context) {
        if self.failed {
            return;
        }
        self.progress.stamp(done.ended);
        match done.result {
            Ok(output) => {
                let rows = output.token_ids.len() as u32;
                let out = &mut self.output;
                match self.policy.settle(done.step, &output, done.batch, out) {
                    Ok(computed) => {
                        let took = done.ended.since(done.started);
                        self.device_metrics.step_time.record(took.as_secs_f64());
                        self.device_metrics.step_tokens.increment(u64::from(computed));
                        let times = (done.started, done.ended);
                        let runs_on = self.policy.load().running > 0;
                        if let Some(gap) = self.gap.before(&output, times, runs_on) {
                            self.device_metrics.step_gap.record(gap.as_secs_f64());
                        }
                        let seats = self.policy.num_seats() as u32;
                        self.metrics.recent_batches.record(rows, seats, done.ended);
                        self.announce(done.ended);
                    }
                    Err(defect) => {
                        self.fail(&defect.to_string(), false, Some(done.step), done.ended)
                    }
                }
                self.spare_output = Some(output);
            }
            Err(failure) => {
                let sticky = matches!(&failure, StepFailure::Device(error)
                    if error.code == DeviceErrorCode::Sticky);
                // A step that was not run has harmed nobody and was harmed by nobody in it.
                let step = (failure != StepFailure::Skipped).then_some(done.step);
                self.fail(&failure.to_string(), sticky, step, done.ended);
            }
        }
        self.pump(ctx);
    }
}

impl Drop for Batcher {
    /// Also runs after a panic in a handler. Nothing in here may panic.
    fn drop(&mut self) {
        let now = Timestamp::now();
        self.fail("the batcher has ended", false, None, now);
        let outbox = &mut self.outbox;
        let _ = outbox.flush(&self.links, None);
        if !outbox.is_empty() {
            std::mem::take(outbox).leave(&self.links);
        }
        self.metrics.requests_running.decrement(f64::from(self.counted));
        self.progress.set_pending(0, now);
    }
}
