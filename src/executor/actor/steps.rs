//! The executor's steps: one after the other on a device that computes on this thread, two under way on one with a pipeline.

use std::time::Duration;

use actix::fut::{ActorFutureExt, wrap_future};
use actix::{AsyncContext, Context, Handler};

use crate::bridge::DeviceError;
use crate::bridge::ffi::{StepBatch, StepOutput};
use crate::clock::Timestamp;
use crate::executor::{Pipeline, RunStep, SeatBinding, StepDone, StepFailure};
use crate::ids::ModelId;

use super::{Executor, guarded};

/// The time of steps that run on this thread, told as a GPU tells its own.
#[derive(Default)]
pub(super) struct StepClock {
    last_ended: Option<Timestamp>,
}

impl StepClock {
    fn tell(&mut self, output: &mut StepOutput, (started, ended): (Timestamp, Timestamp)) {
        let micros = |time: Duration| time.as_secs_f32() * 1e6;
        output.device_us = micros(ended.since(started));
        output.idle_us =
            self.last_ended.map_or(0.0, |last_ended| micros(started.since(last_ended)));
        self.last_ended = Some(ended);
    }
}

/// A step under way.
pub(super) struct SubmittedStep {
    step: u64,
    batch: Box<StepBatch>,
    output: Box<StepOutput>,
}

/// What a guarded call of the device means for its step.
fn settle<T>(result: Result<Result<T, DeviceError>, String>) -> Result<T, StepFailure> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StepFailure::Device(error)),
        Err(panic) => Err(StepFailure::Panic(panic)),
    }
}

impl Executor {
    fn run_step(
        &mut self,
        model: ModelId,
        bindings: &[SeatBinding],
        batch: &mut StepBatch,
        mut output: Box<StepOutput>,
    ) -> Result<Box<StepOutput>, StepFailure> {
        let Some(device) = self.device.as_deref_mut() else { return Err(StepFailure::Skipped) };
        let result = settle(guarded(|| {
            bindings.iter().try_for_each(|binding| device.bind(model, binding))?;
            device.run(model, batch, &mut output)
        }));
        match result {
            Ok(()) => Ok(output),
            Err(failure) => {
                self.fail(&failure.to_string());
                Err(failure)
            }
        }
    }

    /// Whether the device takes a step while another runs.
    fn has_pipeline(&mut self) -> bool {
        self.device.as_deref_mut().is_some_and(|device| device.pipeline().is_some())
    }

    /// Calls the device's pipeline; without a device every call is skipped.
    fn with_pipeline<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Pipeline) -> Result<T, DeviceError>,
    ) -> Result<T, StepFailure> {
        let pipeline = self.device.as_deref_mut().and_then(|device| device.pipeline());
        let Some(pipeline) = pipeline else { return Err(StepFailure::Skipped) };
        settle(guarded(|| call(pipeline)))
    }

    fn bind(&mut self, model: ModelId, bindings: &[SeatBinding]) -> Result<(), StepFailure> {
        let Some(device) = self.device.as_deref_mut() else { return Err(StepFailure::Skipped) };
        settle(guarded(|| bindings.iter().try_for_each(|binding| device.bind(model, binding))))
    }

    /// Starts a step beside the one that runs. If it cannot start, that one's answer is waited for first: it is not at fault.
    fn submit(&mut self, message: RunStep, ctx: &mut Context<Self>) {
        let RunStep { step, model, bindings, mut batch, output } = message;
        let bound = self.bind(model, &bindings);
        let result =
            bound.and_then(|()| self.with_pipeline(|pipeline| pipeline.submit(model, &mut batch)));
        let Err(failure) = result else {
            self.in_flight.push_back(SubmittedStep { step, batch, output });
            self.progress.set_pending(1, Timestamp::now());
            if self.in_flight.len() == 1 {
                Self::keep_collecting(ctx);
            }
            return;
        };
        while !self.in_flight.is_empty() {
            self.take_oldest(ctx);
        }
        if failure != StepFailure::Skipped {
            self.fail(&failure.to_string());
        }
        let ended = Timestamp::now();
        self.answer(StepDone { step, result: Err(failure), batch, ended }, ctx);
    }

    /// Looks after the steps under way in every round of this thread, so that new ones, loads and a stop come between.
    fn keep_collecting(ctx: &mut Context<Self>) {
        let next_round = wrap_future::<_, Self>(tokio::task::yield_now());
        ctx.spawn(next_round.map(|(), executor, ctx| executor.collect(ctx)));
    }

    fn collect(&mut self, ctx: &mut Context<Self>) {
        while !self.in_flight.is_empty() {
            // An error is the step's own answer, as take_oldest will find.
            if matches!(self.with_pipeline(|pipeline| pipeline.has_ended()), Ok(false)) {
                Self::keep_collecting(ctx);
                return;
            }
            self.take_oldest(ctx);
        }
    }

    /// Waits for the oldest step under way and answers it.
    fn take_oldest(&mut self, ctx: &mut Context<Self>) {
        let Some(SubmittedStep { step, batch, mut output }) = self.in_flight.pop_front() else {
            return;
        };
        let taken = self.with_pipeline(|pipeline| pipeline.take(&mut output));
        if let Err(failure) = &taken
            && *failure != StepFailure::Skipped
        {
            self.fail(&failure.to_string());
        }
        let ended = Timestamp::now();
        self.progress.stamp(ended);
        let pending = self.in_flight.len() + usize::from(self.loading.is_some());
        self.progress.set_pending(pending as u64, ended);
        let result = taken.map(|()| output);
        self.answer(StepDone { step, result, batch, ended }, ctx);
    }
}

impl Handler<RunStep> for Executor {
    type Result = ();

    fn handle(&mut self, message: RunStep, ctx: &mut Self::Context) {
        self.alive.look();
        if self.has_pipeline() {
            return self.submit(message, ctx);
        }
        let RunStep { step, model, bindings, mut batch, output } = message;
        let started = Timestamp::now();
        self.progress.set_pending(1, started);
        let mut result = self.run_step(model, &bindings, &mut batch, output);
        let ended = Timestamp::now();
        self.progress.stamp(ended);
        if let Ok(output) = &mut result {
            self.clock.tell(output, (started, ended));
        }
        self.answer(StepDone { step, result, batch, ended }, ctx);
        // While steps keep the mailbox full, there is no next round: a load gets one part after each step.
        self.continue_load();
        self.progress.set_pending(u64::from(self.loading.is_some()), ended);
    }
}
