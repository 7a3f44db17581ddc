//! The executor over devices of every kind: order, failures, loads between steps.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::bridge::ffi::SamplingRow;
use crate::health::Progress;
use crate::models::{LoadFormat, testing};
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
    running: Running,
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
        let running = start(Start {
            maker,
            step_done: batcher.recipient(),
            progress: Progress::new(),
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
        answer.await.expect("it answers")
    }

    async fn unload(&self) -> Result<MemoryStats, DeviceError> {
        let (done, answer) = oneshot::channel();
        let message = UnloadModel { model: MODEL, done };
        self.running.addr.send(message).await.expect("it lives");
        answer.await.expect("it answers")
    }

    async fn step(&mut self, step: u64, batch: StepBatch) -> StepDone {
        self.running.addr.send(RunStep { step, model: MODEL, batch }).await.expect("it lives");
        self.done.recv().await.expect("it answers")
    }

    fn stop(self) {
        self.running.stop();
        self.collector.stop();
        self.collector.join().expect("no panic");
    }
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
    let row = SamplingRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 11,
        position: len,
        suppress_end: false,
    };
    StepBatch {
        token_ids: token_ids.to_vec(),
        positions: (0..len).collect(),
        slot_mapping: (0..len).collect(),
        cu_query_lens: vec![0, len],
        context_lens: vec![len],
        block_tables: (0..len.div_ceil(16)).collect(),
        block_table_stride: len.div_ceil(16),
        seats: vec![0],
        feed_sampled: vec![false],
        sample: vec![true],
        sampling: vec![row],
        ..StepBatch::default()
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
        let message = RunStep { step, model: MODEL, batch: batch(&[1, 2, 3]) };
        bench.running.addr.send(message).await.expect("it lives");
    }
    for step in 0..100 {
        let done = bench.done.recv().await.expect("none is lost");
        assert_eq!(done.step, step);
        assert!(done.result.is_ok() && done.ended >= done.started);
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
    assert_eq!(memory.used_bytes(), loaded.weight_bytes + loaded.kv_bytes);
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
    assert!(bench.load(&checkpoint).await.is_err(), "nothing works until it is rebuilt");
    assert!(bench.unload().await.is_err());
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

/// A device whose load has many parts; what it does is told to the test.
struct Slow {
    parts: u32,
    done: u32,
    fails_at: Option<(u32, FaultKind)>,
    unloads: Arc<AtomicU32>,
    log: Arc<Mutex<Vec<&'static str>>>,
    hold: Arc<AtomicBool>,
}

impl Device for Slow {
    fn begin_load(&mut self, _: DeviceLoad) -> Result<(), DeviceError> {
        self.done = 0;
        Ok(())
    }

    fn load_next(&mut self, _: ModelId) -> Result<LoadState, DeviceError> {
        // The test lets the load go on when it has sent its steps.
        while self.hold.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.done += 1;
        self.log.lock().expect("no panic").push("load");
        match self.fails_at {
            Some((at, FaultKind::Exception)) if at == self.done => {
                return Err(DeviceError::other("tensor x: bad"));
            }
            Some((at, FaultKind::Panic)) if at == self.done => panic!("bad tensor"),
            _ => {}
        }
        if self.done < self.parts {
            let (done_bytes, total_bytes) = (self.done.into(), self.parts.into());
            return Ok(LoadState::More { done_bytes, total_bytes });
        }
        Ok(LoadState::Done(LoadedModel {
            num_blocks: 1,
            weight_bytes: 1,
            kv_bytes: 1,
            memory: MemoryStats::default(),
        }))
    }

    fn unload(&mut self, _: ModelId) -> Result<(), DeviceError> {
        self.unloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn run(
        &mut self,
        _: ModelId,
        _: &mut StepBatch,
        _: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        self.log.lock().expect("no panic").push("step");
        Ok(())
    }

    fn memory(&self) -> Result<MemoryStats, DeviceError> {
        Ok(MemoryStats::default())
    }
}

struct SlowBench {
    bench: Bench,
    unloads: Arc<AtomicU32>,
    log: Arc<Mutex<Vec<&'static str>>>,
    hold: Arc<AtomicBool>,
}

fn slow(fails_at: Option<(u32, FaultKind)>) -> SlowBench {
    let (unloads, log, hold) = <(Arc<AtomicU32>, Arc<Mutex<Vec<_>>>, Arc<AtomicBool>)>::default();
    let (u, l, h) = (Arc::clone(&unloads), Arc::clone(&log), Arc::clone(&hold));
    let maker = Maker::from_fn(move || {
        let (unloads, log, hold) = (Arc::clone(&u), Arc::clone(&l), Arc::clone(&h));
        Ok(Box::new(Slow { parts: 20, done: 0, fails_at, unloads, log, hold }))
    });
    SlowBench { bench: Bench::of(maker, false), unloads, log, hold }
}

#[actix::test]
async fn steps_go_on_while_a_model_loads() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, log, hold, .. } = slow(None);
    bench.ready().await.expect("a device");
    hold.store(true, Ordering::Release);
    let (done, answer) = oneshot::channel();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let message = LoadModel {
        model: MODEL,
        checkpoint,
        limits: budget(),
        progress: Some(Arc::new(move |done, total| {
            tell.lock().expect("no panic").push((done, total));
        })),
        done,
    };
    bench.running.addr.send(message).await.expect("it lives");
    for step in 0..3 {
        let message = RunStep { step, model: ModelId(1), batch: StepBatch::default() };
        bench.running.addr.try_send(message).expect("there is room");
    }
    hold.store(false, Ordering::Release);
    answer.await.expect("it answers").expect("loads");
    for step in 0..3 {
        assert_eq!(bench.done.recv().await.expect("answered").step, step);
    }
    let log = log.lock().expect("no panic").clone();
    let last_step = log.iter().rposition(|what| *what == "step").expect("steps ran");
    assert!(last_step < log.len() - 10, "steps waited for the load: {log:?}");
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told, (1..20).map(|done| (done, 20)).collect::<Vec<_>>());
    bench.stop();
}

#[actix::test]
async fn a_load_that_fails_gives_its_memory_back_and_steps_go_on() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, unloads, .. } = slow(Some((3, FaultKind::Exception)));
    let error = bench.load(&checkpoint).await.expect_err("a bad tensor");
    assert_eq!(error, DeviceError::other("tensor x: bad"));
    assert_eq!(unloads.load(Ordering::Relaxed), 1);
    assert!(bench.step(1, StepBatch::default()).await.result.is_ok());
    bench.stop();
}

#[actix::test]
async fn a_panic_in_a_load_is_an_error_and_ends_the_device() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, .. } = slow(Some((3, FaultKind::Panic)));
    let error = bench.load(&checkpoint).await.expect_err("a panic");
    assert!(error.message.contains("bad tensor"), "{error}");
    let done = bench.step(1, StepBatch::default()).await;
    assert_eq!(done.result.map(|_| ()), Err(StepFailure::Skipped));
    bench.stop();
}

#[actix::test]
async fn one_load_at_a_time() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { bench, hold, .. } = slow(None);
    hold.store(true, Ordering::Release);
    let load = |done| LoadModel {
        model: MODEL,
        checkpoint: Arc::clone(&checkpoint),
        limits: budget(),
        progress: None,
        done,
    };
    let (first, first_answer) = oneshot::channel();
    let (second, second_answer) = oneshot::channel();
    bench.running.addr.try_send(load(first)).expect("there is room");
    bench.running.addr.try_send(load(second)).expect("there is room");
    hold.store(false, Ordering::Release);
    assert!(second_answer.await.expect("it answers").is_err());
    assert!(first_answer.await.expect("it answers").is_ok());
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
async fn the_engine_gives_the_reference_tokens_of_a_checkpoint() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama32-tiny-f32");
    let golden = std::fs::read(path.join("golden.json")).expect("the fixture");
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        serde_json::from_value(value.clone()).expect("token ids")
    };
    let checkpoint = Checkpoint::open(&path, LoadFormat::Safetensors).expect("a good checkpoint");
    let config = Config { threads: 2, ..Config::default() };
    let maker = Maker::new(&config, &DeviceId::new("cpu:0"), 64 << 20).expect("a CPU device");
    let mut bench = Bench::of(maker, false);
    bench.ready().await.expect("a device");
    let loaded = bench.load(&Arc::new(checkpoint)).await.expect("loads");
    assert!(loaded.num_blocks >= 4 && loaded.memory.used_bytes > loaded.weight_bytes);
    for case in golden["prompts"].as_array().expect("prompts") {
        let prompt = ids(&case["prompt_token_ids"]);
        if prompt.len() > 40 {
            continue;
        }
        let expected = ids(&case["greedy_token_ids"]);
        let mut tokens = prompt.clone();
        for step in 0..8 {
            let done = bench.step(step, batch(&tokens)).await;
            tokens.extend(done.result.expect("a step").token_ids);
        }
        assert_eq!(tokens[prompt.len()..], expected[..8], "{}", case["name"]);
    }
    bench.unload().await.expect("unloads");
    assert_eq!(bench.running.memory.used_bytes(), 0);
    bench.stop();
}

#[actix::test]
async fn the_engine_makes_random_weights_for_a_dummy() {
    let (_dir, checkpoint) = testing::dummy();
    let maker = Maker::new(&Config::default(), &DeviceId::new("cpu:0"), 16 << 20);
    let mut bench = Bench::of(maker.expect("a CPU device"), false);
    let loaded = bench.load(&checkpoint).await.expect("loads");
    assert!(loaded.weight_bytes > 0 && loaded.num_blocks > 0);
    let output = bench.step(1, batch(&[3, 4, 5])).await.result.expect("a step");
    assert!(output.token_ids[0] < 16);
    let mut bad = batch(&[3, 4, 5]);
    bad.token_ids[1] = 99;
    let failure = bench.step(2, bad).await.result.expect_err("no such token");
    assert!(matches!(failure, StepFailure::Device(e) if e.code == DeviceErrorCode::InvalidBatch));
    bench.stop();
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
