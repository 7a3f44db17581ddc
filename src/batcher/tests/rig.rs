//! A batcher with probes in the place of its neighbours.

use std::sync::Arc;
use std::time::Duration;

use actix::{Addr, Arbiter, Handler, Message};

use super::super::probe::Got;
use super::super::*;
use crate::bridge::ffi::{MemoryStats, StepOutput};
use crate::clock::Timestamp;
use crate::executor::{StepDone, StepFailure};
use crate::progress::Progress;
use crate::reply::Deliver;
use crate::reply::testing::{Collected, Counts, Fixture};
use crate::request::Handle;
use crate::telemetry::Metrics;

/// Of every step.
pub const STEP_TIME: Duration = Duration::from_millis(1);

/// A batcher among probes.
pub struct Rig {
    pub batcher: Addr<Batcher>,
    pub progress: Progress,
    pub credit: Got<Credit>,
    pub returned: Got<Returned>,
    pub reply: Got<Deliver>,
    pub node: Got<DeviceFailed>,
    pub steps: Got<RunStep>,
}

impl Rig {
    pub fn start() -> Self {
        Self::start_with(Got::start(), Got::start())
    }

    pub fn start_with(reply: Got<Deliver>, credit: Got<Credit>) -> Self {
        let (returned, node, steps) = (Got::start(), Got::start(), Got::start());
        let progress = Progress::new();
        let start = BatcherStart {
            device: DeviceId::new("sim:0"),
            generation: 5,
            config: Config { reserve_tokens: 0, ..Config::default() },
            links: Links {
                credit: credit.recipient(),
                returned: returned.recipient(),
                reply: reply.recipient(),
                node: node.recipient(),
            },
            metrics: Arc::new(Metrics::new("test")),
            progress: progress.clone(),
            blocks: Default::default(),
            alive: crate::lifeline::Lifeline::unwatched(),
        };
        let batcher = Batcher::start_on(&Arbiter::current(), start);
        let rig = Self { batcher, progress, credit, returned, reply, node, steps };
        rig.tell(Attach { executor: rig.steps.recipient() });
        let budget = ModelBudget {
            block_size: 4,
            kv_bytes: 0,
            max_batch_size: 4,
            max_step_tokens: 16,
            max_seq_len: 32,
        };
        let memory = MemoryStats::default();
        let loaded = LoadedModel { num_blocks: 8, weight_bytes: 0, kv_bytes: 0, memory };
        rig.tell(AddModel {
            model: ModelId(0),
            name: "demo".into(),
            budget,
            loaded,
            window: None,
            end_token_ids: vec![7],
        });
        rig
    }

    pub fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Batcher: Handler<M>,
        M::Result: Send,
    {
        assert!(self.batcher.try_send(message).is_ok(), "the mailbox has room");
    }

    /// Assigns a sequence; gives what its client sees.
    pub fn assign(&self, sequence: Sequence) -> Collected {
        self.assign_observed(sequence).0
    }

    /// As [`assign`](Self::assign), with the request's handle and what its permit is told.
    pub fn assign_observed(&self, mut sequence: Sequence) -> (Collected, Arc<Handle>, Arc<Counts>) {
        let client = Collected::default();
        let fixture = Fixture { prompt: sequence.token_ids.clone(), ..Fixture::default() };
        let started = fixture.start(&client);
        sequence.handle = Arc::clone(&started.handle);
        let counts = started.counts();
        self.tell(Assign { sequence, stream: started.stream });
        (client, started.handle, counts)
    }

    pub fn done(&self, step: RunStep, result: Result<u32, StepFailure>) {
        self.done_at(step, result, Timestamp::from_micros(2));
    }

    pub fn done_at(&self, step: RunStep, result: Result<u32, StepFailure>, ended: Timestamp) {
        let sample = &step.batch.sample;
        let result = result.map(|token| StepOutput::of_tokens(vec![token; sample.len()], sample));
        let result = result.map(|output| {
            Box::new(StepOutput { device_us: STEP_TIME.as_micros() as f32, ..output })
        });
        self.tell(StepDone { step: step.step, result, batch: step.batch, ended });
    }
}
