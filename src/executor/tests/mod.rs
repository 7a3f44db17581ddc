//! The executor over devices of every kind: order, failures, loads between steps.

mod engine;
mod loads;

use crate::ids::DeviceId;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::bridge::{NO_MASK, NO_TOKEN};
use crate::checkpoint::{LoadFormat, testing};
use crate::progress::Progress;
use crate::telemetry::Metrics;

const MODEL: ModelId = ModelId(7);

/// Stands for the batcher: hands on what it is told. With `slow`, it sleeps a little over each message.
struct Collector {
    done: mpsc::UnboundedSender<StepDone>,
    slow: bool,
}

impl Actor for Collector {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1);
    }
}

impl Handler<StepDone> for Collector {
    type Result = ();

    fn handle(&mut self, message: StepDone, _: &mut Self::Context) {
        if self.slow {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = self.done.send(message);
    }
}

struct Bench {
    running: ExecutorHandle,
    done: mpsc::UnboundedReceiver<StepDone>,
    collector: actix_rt::Arbiter,
}

impl Bench {
    fn of(maker: Maker, slow: bool) -> Self {
        let (sender, done) = mpsc::unbounded_channel();
        let collector = actix_rt::Arbiter::new();
        let batcher = Collector::start_in_arbiter(&collector.handle(), move |_| Collector {
            done: sender,
            slow,
        });
        let device = DeviceId::new("sim:0");
        let running = start(ExecutorStart {
            maker,
            step_done: batcher.recipient(),
            progress: Progress::new(),
            alive: crate::lifeline::Lifeline::unwatched(),
            metrics: Metrics::new("node-a").device(device.as_str()),
            device,
        })
        .expect("a thread");
        Self { running, done, collector }
    }

    fn sim(config: &Config) -> Self {
        let maker = Maker::new(config, &DeviceId::new("sim:0"), 1 << 30).expect("a sim device");
        Self::of(maker, false)
    }

    async fn ready(&mut self) -> Result<(), DeviceError> {
        (&mut self.running.ready).await.expect("it says so")
    }

    async fn load(&self, checkpoint: &Arc<Checkpoint>) -> Result<LoadedModel, DeviceError> {
        let (done, answer) = oneshot::channel();
        let message = LoadModel {
            model: MODEL,
            checkpoint: Arc::clone(checkpoint),
            limits: budget(),
            progress: None,
            done,
        };
        self.running.addr.send(message).await.expect("it lives");
        answer.await.unwrap_or_else(|_| Err(unanswered()))
    }

    async fn unload(&self) -> Result<MemoryStats, DeviceError> {
        let (done, answer) = oneshot::channel();
        let message = UnloadModel { model: MODEL, done };
        self.running.addr.send(message).await.expect("it lives");
        answer.await.unwrap_or_else(|_| Err(unanswered()))
    }

    async fn step(&mut self, step: u64, batch: StepBatch) -> StepDone {
        self.running.addr.send(run_step(step, batch)).await.expect("it lives");
        self.done.recv().await.expect("it answers")
    }

    fn stop(self) {
        self.running.stop();
        self.collector.stop();
        self.collector.join().expect("no panic");
    }
}

/// What a dropped sender is here.
fn unanswered() -> DeviceError {
    DeviceError::other("unanswered")
}

fn budget() -> ModelBudget {
    ModelBudget {
        block_size: 16,
        kv_bytes: 1 << 20,
        max_batch_size: 4,
        max_step_tokens: 256,
        max_seq_len: 64,
    }
}

/// One sequence's tokens, of which the last is sampled after.
fn batch(token_ids: &[u32]) -> StepBatch {
    let len = token_ids.len() as u32;
    StepBatch {
        token_ids: token_ids.to_vec(),
        query_lens: vec![len],
        context_lens: vec![len],
        block_tables: (0..len.div_ceil(16)).collect(),
        block_table_stride: len.div_ceil(16),
        seats: vec![0],
        feed_sampled: vec![false],
        sample: vec![true],
        score: vec![false],
        next_token_ids: vec![NO_TOKEN],
        mask_rows: vec![NO_MASK],
        ..StepBatch::default()
    }
}

/// A step of one greedy sequence, with its seat.
fn run_step(step: u64, batch: StepBatch) -> RunStep {
    let binding = SeatBinding {
        seat: 0,
        sampler: SamplerSpec::greedy().into(),
        num_prompt_tokens: batch.token_ids.len() as u32,
        token_ids: batch.token_ids.clone(),
    };
    RunStep {
        step,
        model: MODEL,
        bindings: vec![binding],
        batch: Box::new(batch),
        output: Box::default(),
    }
}

#[actix::test]
async fn steps_are_answered_in_order_though_the_batchers_mailbox_is_full() {
    let (_dir, checkpoint) = testing::dummy();
    let maker = Maker::new(&Config::default(), &DeviceId::new("sim:0"), 1 << 30);
    let mut bench = Bench::of(maker.expect("a sim device"), true);
    assert_eq!(bench.ready().await, Ok(()));
    bench.load(&checkpoint).await.expect("loads");
    for step in 0..100 {
        let message = run_step(step, batch(&[1, 2, 3]));
        bench.running.addr.send(message).await.expect("it lives");
    }
    for step in 0..100 {
        let done = bench.done.recv().await.expect("none is lost");
        assert_eq!(done.step, step);
        assert!(done.result.is_ok_and(|output| output.device_us >= 0.0 && output.idle_us >= 0.0));
        assert_eq!(done.batch.token_ids, [1, 2, 3], "the arrays come back");
    }
    bench.stop();
}

#[actix::test]
async fn memory_is_read_after_load_and_unload() {
    let (_dir, checkpoint) = testing::dummy();
    let mut bench = Bench::sim(&Config::default());
    bench.ready().await.expect("a device");
    let memory = bench.running.memory.clone();
    assert_eq!((memory.reserved_bytes(), memory.used_bytes()), (1 << 30, 0));
    let loaded = bench.load(&checkpoint).await.expect("loads");
    assert!(memory.used_bytes() > loaded.weight_bytes + loaded.kv_bytes, "and the workspace");
    assert_eq!(loaded.memory.used_bytes, memory.used_bytes());
    assert_eq!(memory.free_bytes(), (1 << 30) - memory.used_bytes());
    assert_eq!(bench.unload().await.expect("unloads").used_bytes, 0);
    assert_eq!(memory.used_bytes(), 0);
    assert!(bench.unload().await.is_err(), "it is not there any more");
    bench.stop();
}

async fn fails_then_skips(kind: FaultKind) -> StepFailure {
    let (_dir, checkpoint) = testing::dummy();
    let fault = Fault { device: None, step: Some(2), token_id: None, kind };
    let mut bench = Bench::sim(&Config { faults: vec![fault], ..Config::default() });
    bench.load(&checkpoint).await.expect("loads");
    assert!(bench.step(1, batch(&[2])).await.result.is_ok());
    let failure = bench.step(2, batch(&[2])).await.result.expect_err("the fault");
    for step in 3..5 {
        let done = bench.step(step, batch(&[2])).await;
        assert_eq!(done.result.map(|_| ()), Err(StepFailure::Skipped));
    }
    // Until it is rebuilt.
    assert_eq!(bench.load(&checkpoint).await, Err(unanswered()));
    assert_eq!(bench.unload().await, Err(unanswered()));
    bench.stop();
    failure
}

#[actix::test]
async fn after_an_exception_every_step_is_skipped() {
    let failure = fails_then_skips(FaultKind::Exception).await;
    assert_eq!(failure, StepFailure::Device(DeviceError::other("injected fault")));
}

#[actix::test]
async fn after_a_panic_every_step_is_skipped() {
    let failure = fails_then_skips(FaultKind::Panic).await;
    assert_eq!(failure, StepFailure::Panic("injected fault".to_owned()));
}

#[actix::test]
async fn a_rebuilt_device_does_not_meet_the_same_fault_again() {
    let (_dir, checkpoint) = testing::dummy();
    let fault = Fault { device: None, step: Some(1), token_id: None, kind: FaultKind::Exception };
    let config = Config { faults: vec![fault], ..Config::default() };
    let maker = Maker::new(&config, &DeviceId::new("sim:0"), 1 << 30).expect("a sim device");
    for fails in [true, false, false] {
        let mut bench = Bench::of(maker.clone(), false);
        bench.load(&checkpoint).await.expect("loads");
        assert_eq!(bench.step(1, batch(&[2])).await.result.is_err(), fails);
        bench.stop();
    }
}

#[actix::test]
async fn a_device_that_cannot_be_made_says_so_and_skips() {
    let refused = DeviceError { code: DeviceErrorCode::OutOfMemory, message: "none".to_owned() };
    let error = refused.clone();
    let mut bench = Bench::of(Maker::from_fn(move || Err(error.clone())), false);
    assert_eq!(bench.ready().await, Err(refused));
    let done = bench.step(1, batch(&[2])).await;
    assert_eq!(done.result.map(|_| ()), Err(StepFailure::Skipped));
    bench.stop();
    let mut bench = Bench::of(Maker::from_fn(|| panic!("no such {}", "device")), false);
    let error = bench.ready().await.expect_err("a panic is an error");
    assert!(error.message.contains("no such device"), "{error}");
    bench.stop();
}

#[test]
fn devices_of_other_kinds_are_refused_by_name() {
    let refused = |name: &str| Maker::new(&Config::default(), &DeviceId::new(name), 1).err();
    assert!(refused("cuda:0").is_some_and(|error| error.contains("no CUDA")));
    assert!(refused("tpu:0").is_some_and(|error| error.contains("tpu:0")));
    let config = Config { sim_cost_model: Some("/nonexistent.toml".into()), ..Config::default() };
    let error = Maker::new(&config, &DeviceId::new("sim:0"), 1).err();
    assert!(error.is_some_and(|error| error.contains("executor.sim_cost_model")));
}

#[actix::test]
async fn a_pool_that_is_too_small_is_out_of_memory() {
    let (_dir, checkpoint) = testing::dummy();
    for name in ["cpu:0", "sim:0"] {
        let maker = Maker::new(&Config::default(), &DeviceId::new(name), 4096).expect("a device");
        let bench = Bench::of(maker, false);
        let error = bench.load(&checkpoint).await.expect_err("4 KiB hold nothing");
        assert_eq!(error.code, DeviceErrorCode::OutOfMemory, "{name}: {error}");
        assert_eq!(bench.running.memory.used_bytes(), 0, "{name}");
        bench.stop();
    }
}
