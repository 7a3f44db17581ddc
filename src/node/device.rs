//! The actors of one device: reply, batcher, executor, started in that order and rebuilt together.

use std::sync::Arc;

use actix::{Addr, Arbiter, ArbiterHandle, Recipient};
use tokio::sync::oneshot;

use crate::batcher::{self, Attach, Batcher, Depart, DeviceFailed, SweepLanes};
use crate::bridge::DeviceError;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::executor::{self, Maker};
use crate::health::Vitals;
use crate::ids::DeviceId;
use crate::lifeline::Lifelines;
use crate::models::DeviceHandle;
use crate::progress::{FreeBlocks, Progress};
use crate::reply::{Deliver, Reply};
use crate::scheduler::{DeviceUp, Scheduler};
use crate::telemetry::Metrics;

use super::Stopping;

/// What stays the same over the rebuilds of a device.
pub(super) struct DeviceParts {
    pub id: DeviceId,
    pub maker: Maker,
    pub progress: DeviceProgress,
}

impl DeviceParts {
    /// Of one build of its actors: when one of them ends, the device is built again.
    fn lifelines(&self, links: &DeviceLinks, generation: u64) -> Lifelines {
        let (device, failed) = (self.id.clone(), links.failed.clone());
        links.lines.part(move |name| {
            #[expect(clippy::disallowed_methods, reason = "said once, and cannot be said again")]
            failed.do_send(DeviceFailed {
                device: device.clone(),
                generation,
                reason: format!("the {name} has ended"),
                sticky: false,
            });
        })
    }
}

/// Cells that health watches, one of each per device and not per build.
pub(super) struct DeviceProgress {
    pub batcher: Progress,
    pub executor: Progress,
    pub reply: Progress,
    pub blocks: FreeBlocks,
}

impl DeviceProgress {
    pub fn watch(vitals: &Vitals, device: &DeviceId) -> Self {
        Self {
            batcher: vitals.watch_running("batcher"),
            executor: vitals.watch("executor"),
            reply: vitals.watch("reply"),
            blocks: vitals.watch_blocks(device),
        }
    }
}

/// To whom a device's actors talk.
#[derive(Clone)]
pub(super) struct DeviceLinks {
    pub config: Config,
    pub scheduler: Addr<Scheduler>,
    pub failed: Recipient<DeviceFailed>,
    pub metrics: Arc<Metrics>,
    /// The node's.
    pub lines: Lifelines,
}

/// One build of a device's actors.
pub(super) struct DeviceActors {
    pub generation: u64,
    batcher: Addr<Batcher>,
    reply: Addr<Reply>,
    executor: Option<executor::ExecutorHandle>,
    lines: Lifelines,
    // Dropped after `executor` has ended, so that no step is under way when the batcher goes.
    threads: Threads,
}

/// Arbiters by what runs on them; they end with their owner. Dropping blocks until their threads have, in the order of their start.
pub(super) struct Threads {
    arbiters: Vec<(&'static str, Arbiter)>,
    /// Of what runs on them: released before they end.
    lines: Lifelines,
}

impl Threads {
    /// None yet.
    pub fn new(lines: &Lifelines) -> Self {
        Self { arbiters: Vec::new(), lines: lines.clone() }
    }

    /// Starts one.
    pub fn start(&mut self, name: &'static str) -> ArbiterHandle {
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        self.arbiters.push((name, arbiter));
        handle
    }
}

impl Threads {
    /// Ends them, as dropping does, and says which one is waited for.
    pub fn end(mut self, stopping: &Stopping) {
        self.join(|name| stopping.waits_for(format!("the thread of {name}")));
    }

    fn join(&mut self, mut before: impl FnMut(&'static str)) {
        self.lines.release();
        for (name, arbiter) in self.arbiters.drain(..) {
            before(name);
            arbiter.stop();
            if arbiter.join().is_err() {
                tracing::error!(name, "a thread ended in a panic");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.join(|_| {});
    }
}

impl Drop for DeviceActors {
    fn drop(&mut self) {
        self.stop_executor();
    }
}

impl DeviceActors {
    fn stop_executor(&mut self) {
        self.lines.release();
        if let Some(executor) = self.executor.take() {
            executor.stop();
        }
    }

    /// Ends them, and says what is waited for. Blocks.
    pub fn end(mut self, device: &DeviceId, stopping: &Stopping) {
        stopping.waits_for(format!("the executor of {device}: a step or a load"));
        self.stop_executor();
        std::mem::replace(&mut self.threads, Threads::new(&self.lines)).end(stopping);
    }

    /// Ends them aside: joining threads blocks.
    pub async fn end_aside(self) {
        // There is nothing to do about one that panicked.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// Starts reply, batcher and executor, last stage first; waits until the device is made.
    ///
    /// # Errors
    /// Why the device could not be made.
    pub async fn start(
        parts: &DeviceParts,
        links: &DeviceLinks,
        generation: u64,
    ) -> Result<Self, DeviceError> {
        let lines = parts.lifelines(links, generation);
        let mut threads = Threads::new(&lines);
        let progress = &parts.progress;
        let alive = lines.hold("reply");
        let reply = Reply::start(&threads.start("reply"), progress.reply.clone(), alive);
        let scheduler = &links.scheduler;
        let batcher = Batcher::start_on(
            &threads.start("batcher"),
            batcher::BatcherStart {
                device: parts.id.clone(),
                generation,
                config: links.config.batcher.clone(),
                links: batcher::Links {
                    credit: scheduler.clone().recipient(),
                    returned: scheduler.clone().recipient(),
                    reply: reply.clone().recipient(),
                    node: links.failed.clone(),
                },
                metrics: links.metrics.clone(),
                progress: progress.batcher.clone(),
                blocks: progress.blocks.clone(),
                alive: lines.hold("batcher"),
            },
        );
        let mut executor = executor::start(executor::ExecutorStart {
            device: parts.id.clone(),
            maker: parts.maker.clone(),
            step_done: batcher.clone().recipient(),
            progress: progress.executor.clone(),
            metrics: links.metrics.device(parts.id.as_str()),
            alive: lines.hold("executor"),
        })
        .map_err(|error| DeviceError::other(format!("no thread for the executor: {error}")))?;
        let made = (&mut executor.ready).await;
        let attach = Attach { executor: executor.addr.clone().recipient() };
        let actors = Self { generation, batcher, reply, executor: Some(executor), lines, threads };
        let begun = match made {
            Ok(Ok(())) => {
                let attached = actors.batcher.send(attach).await;
                attached.map_err(|_| DeviceError::other("the batcher ended"))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DeviceError::other("the executor ended while it started")),
        };
        match begun {
            Ok(()) => Ok(actors),
            Err(error) => {
                actors.end_aside().await;
                Err(error)
            }
        }
    }

    /// What models needs of this build.
    pub fn handle(&self, id: &DeviceId) -> Option<DeviceHandle> {
        let executor = self.executor.as_ref()?;
        Some(DeviceHandle {
            id: id.clone(),
            generation: self.generation,
            load: executor.addr.clone().recipient(),
            unload: executor.addr.clone().recipient(),
            add: self.batcher.clone().recipient(),
            remove: self.batcher.clone().recipient(),
            memory: executor.memory.clone(),
        })
    }

    /// Gives everything back to the scheduler, which sends nothing more here, and waits until what was sampled has reached the
    /// clients: neither an assignment nor an end that is on its way is to be lost.
    pub async fn depart(&self) {
        let (done, departed) = oneshot::channel();
        let depart = Depart { reason: "the device's actors end", done };
        // A batcher that has ended gave everything back before.
        if self.batcher.send(depart).await.is_ok() {
            let _ = departed.await;
        }
        let last = Deliver { deliveries: Vec::new(), at: Timestamp::now() };
        // A reply actor that has ended has nothing left to send.
        let _ = self.reply.send(last).await;
    }

    /// Ends what was cancelled, even while the device does not answer.
    pub fn sweep(&self) {
        // A full mailbox is one that moves: the next step does the same.
        let _ = self.batcher.try_send(SweepLanes);
    }

    /// What the scheduler needs of this build.
    pub fn device_up(&self, id: &DeviceId) -> DeviceUp {
        DeviceUp {
            device: id.clone(),
            generation: self.generation,
            batcher: self.batcher.clone().recipient(),
        }
    }
}
