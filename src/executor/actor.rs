//! The executor actor: a thin shell around a [`Device`], on a thread of its own.

mod steps;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use actix::dev::SendError;
use actix::fut::{ActorFutureExt, wrap_future};
use actix::{Actor, Addr, AsyncContext, Context, Handler, Recipient};
use actix_rt::Arbiter;
use tokio::sync::oneshot;

use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::clock::Timestamp;
use crate::lifeline::Lifeline;
use crate::progress::Progress;
use crate::telemetry::DeviceMetrics;

use self::steps::{StepClock, SubmittedStep};
use super::maker::{Maker, MemoryReading};
use super::{Device, DeviceLoad, LoadModel, LoadState, LoadedModel, StepDone, UnloadModel};
use crate::ids::DeviceId;

/// Two steps, because a batcher has two in flight at most; one load and one unload, because the models actor does one thing at a
/// time. More in here would only be late.
const MAILBOX_CAPACITY: usize = 4;

/// When the batcher's mailbox is full: it works through hundreds of messages in this time.
const RESEND_AFTER: Duration = Duration::from_millis(1);

/// What an executor is started with.
pub struct ExecutorStart {
    /// Which device, for logs and the thread's name.
    pub device: DeviceId,
    /// Makes the device on the executor's thread.
    pub maker: Maker,
    /// Where steps are answered.
    pub step_done: Recipient<StepDone>,
    /// Busy while a step or a load runs.
    pub progress: Progress,
    /// The memory gauges are set here; the batcher counts steps.
    pub metrics: DeviceMetrics,
    /// Held for as long as it lives.
    pub alive: Lifeline,
}

/// A started executor.
pub struct ExecutorHandle {
    /// Accepts [`RunStep`](super::RunStep), [`LoadModel`], [`UnloadModel`].
    pub addr: Addr<Executor>,
    /// The pool as last seen.
    pub memory: MemoryReading,
    /// Resolves when the device is made, or says why it could not be.
    pub ready: oneshot::Receiver<Result<(), DeviceError>>,
    arbiter: Arbiter,
}

impl ExecutorHandle {
    /// Ends the thread after the step that runs, and waits for it: the device is dropped and its memory given back then. Blocks.
    pub fn stop(self) {
        self.arbiter.stop();
        if self.arbiter.join().is_err() {
            tracing::error!("an executor's thread ended in a panic");
        }
    }
}

/// Starts an executor on a thread of its own. The device is made there; see [`ExecutorHandle::ready`].
///
/// # Errors
/// If the thread cannot be started.
pub fn start(start: ExecutorStart) -> io::Result<ExecutorHandle> {
    let arbiter = Arbiter::try_new()?;
    let memory = MemoryReading::new();
    let (ready_sender, ready) = oneshot::channel();
    let reading = memory.clone();
    let addr = Executor::start_in_arbiter(&arbiter.handle(), move |ctx| {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        name_thread(&format!("executor-{}", start.device));
        let (device, result) = match guarded(|| start.maker.make()) {
            Ok(Ok(device)) => (Some(device), Ok(())),
            Ok(Err(error)) => (None, Err(error)),
            Err(panic) => (None, Err(DeviceError::other(format!("panic: {panic}")))),
        };
        let executor = Executor {
            id: start.device,
            device,
            step_done: start.step_done,
            progress: start.progress,
            metrics: start.metrics,
            alive: start.alive,
            memory: reading,
            loading: None,
            clock: StepClock::default(),
            in_flight: VecDeque::new(),
            unsent: VecDeque::new(),
        };
        executor.read_memory();
        // A node that does not wait for it sees the skipped steps.
        let _ = ready_sender.send(result);
        executor
    });
    Ok(ExecutorHandle { addr, memory, ready, arbiter })
}

/// Names this thread for `top -H` and debuggers; the kernel keeps 15 characters. Best effort: only Linux has the file.
fn name_thread(name: &str) {
    let _ = std::fs::write("/proc/thread-self/comm", &name.as_bytes()[..name.len().min(15)]);
}

/// Runs device code; a panic becomes its text.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // Unwind safety: after a panic the executor drops the device and uses nothing that the call had in its hands.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no text".to_owned())
    })
}

/// The actor; see the module.
pub struct Executor {
    id: DeviceId,
    /// `None` after a failure: every step is skipped until the node has rebuilt the device.
    device: Option<Box<dyn Device>>,
    step_done: Recipient<StepDone>,
    progress: Progress,
    metrics: DeviceMetrics,
    alive: Lifeline,
    memory: MemoryReading,
    loading: Option<LoadModel>,
    /// Of a device without a pipeline.
    clock: StepClock,
    /// Steps that a device with a pipeline has not answered, oldest first.
    in_flight: VecDeque<SubmittedStep>,
    /// Answers that the batcher's mailbox refused, oldest first.
    unsent: VecDeque<StepDone>,
}

impl Actor for Executor {
    type Context = Context<Self>;
}

impl Executor {
    /// Calls the device for a load or unload; `None` if there is no device. A panic is an error too, and after it the device is
    /// gone.
    fn with_device<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError>,
    ) -> Option<Result<T, DeviceError>> {
        let device = self.device.as_deref_mut()?;
        Some(guarded(|| call(device)).unwrap_or_else(|panic| {
            let error = DeviceError::other(format!("panic: {panic}"));
            if let Some(load) = self.loading.take() {
                let _ = load.done.send(Err(error.clone()));
            }
            self.fail(&error.message);
            Err(error)
        }))
    }

    /// From here on the device's memory is not trusted. It is dropped at once, so that the next build finds the memory free.
    fn fail(&mut self, reason: &str) {
        tracing::error!(device = %self.id, reason, "the device failed");
        if let Some(device) = self.device.take() {
            // A destructor that panics too must not take the answer of this step with it.
            if let Err(panic) = guarded(move || drop(device)) {
                tracing::error!(device = %self.id, panic, "dropping the failed device panicked");
            }
        }
        // Its sender dropped unanswered says: not the load's fault, try the next build.
        self.loading = None;
        self.progress.set_pending(0, Timestamp::now());
    }

    /// Sends in order; what the mailbox refuses is kept and sent again shortly.
    fn answer(&mut self, done: StepDone, ctx: &mut Context<Self>) {
        self.unsent.push_back(done);
        // With older ones waiting, their timer is running.
        if self.unsent.len() == 1 {
            self.send_unsent(ctx);
        }
    }

    fn send_unsent(&mut self, ctx: &mut Context<Self>) {
        while let Some(done) = self.unsent.pop_front() {
            match self.step_done.try_send(done) {
                Ok(()) => {}
                Err(SendError::Full(done)) => {
                    self.unsent.push_front(done);
                    ctx.run_later(RESEND_AFTER, |executor, ctx| executor.send_unsent(ctx));
                    return;
                }
                Err(SendError::Closed(done)) => {
                    // The batcher is gone, so this device's actors are being built again; its sequences were taken care of there.
                    tracing::warn!(device = %self.id, step = done.step, "no batcher takes the step");
                    self.unsent.clear();
                }
            }
        }
    }

    fn read_memory(&self) {
        if let Some(Ok(stats)) = self.device.as_ref().map(|device| device.memory()) {
            self.memory.set(&stats);
            self.metrics.memory_used.set(stats.used_bytes as f64);
            self.metrics.memory_reserved.set(stats.reserved_bytes as f64);
            self.metrics.memory_peak.set(stats.peak_bytes as f64);
        }
    }

    /// Begins a load. Whatever was half taken is given back on an error.
    fn begin_load(&mut self, load: LoadModel, ctx: &mut Context<Self>) {
        if self.loading.is_some() {
            let _ = load.done.send(Err(DeviceError::other("another model is being loaded")));
            return;
        }
        let model = load.model;
        let device_load =
            DeviceLoad { model, checkpoint: load.checkpoint.clone(), budget: load.limits.clone() };
        self.loading = Some(load);
        match self.with_device(|device| device.begin_load(device_load)) {
            Some(Ok(())) => Self::keep_loading(ctx),
            Some(Err(error)) => self.end_load(Err(error)),
            None => self.loading = None,
        }
    }

    /// One part of the load in every round of this thread, so that steps and a stop come between.
    fn keep_loading(ctx: &mut Context<Self>) {
        let next_round = wrap_future::<_, Self>(tokio::task::yield_now());
        ctx.spawn(next_round.map(|(), executor, ctx| {
            if executor.continue_load() {
                Self::keep_loading(ctx);
            }
        }));
    }

    /// The next part; true if there is more to do.
    fn continue_load(&mut self) -> bool {
        let Some(model) = self.loading.as_ref().map(|load| load.model) else { return false };
        let state = self.with_device(|device| device.load_next(model));
        self.progress.stamp(Timestamp::now());
        match state {
            Some(Ok(LoadState::More(stage))) => {
                if let Some(progress) =
                    self.loading.as_ref().and_then(|load| load.progress.as_ref())
                {
                    progress(stage);
                }
                return true;
            }
            Some(Ok(LoadState::Done(loaded))) => self.end_load(Ok(loaded)),
            Some(Err(error)) => self.end_load(Err(error)),
            None => self.loading = None,
        }
        false
    }

    fn end_load(&mut self, result: Result<LoadedModel, DeviceError>) {
        let Some(load) = self.loading.take() else { return };
        match &result {
            Err(error) if error.code == DeviceErrorCode::Sticky => self.fail(&error.to_string()),
            Err(_) if self.device.is_some() => {
                // It may not have got as far as taking anything: then there is nothing to give back, and that is fine.
                let _ = self.with_device(|device| device.unload(load.model));
            }
            _ => {}
        }
        self.read_memory();
        self.progress.set_pending(0, Timestamp::now());
        // Who asked may be gone; the models actor then unloads or the node is ending.
        let _ = load.done.send(result);
    }
}

impl Handler<LoadModel> for Executor {
    type Result = ();

    fn handle(&mut self, message: LoadModel, ctx: &mut Self::Context) {
        self.progress.set_pending(1, Timestamp::now());
        self.begin_load(message, ctx);
    }
}

impl Handler<UnloadModel> for Executor {
    type Result = ();

    fn handle(&mut self, message: UnloadModel, _: &mut Self::Context) {
        let UnloadModel { model, done } = message;
        let result = self.with_device(|device| {
            device.unload(model)?;
            device.memory()
        });
        self.read_memory();
        // With no device the sender is dropped: its memory went with it.
        if let Some(result) = result {
            let _ = done.send(result);
        }
    }
}
