//! The models actor between real executors (of `sim` devices) and stand-ins for batchers and admission, which write down what
//! they are told.

mod choices;
mod memory_short;
mod rebuilds;

use crate::checkpoint::{HubCache, testing};
use crate::door::List;
use crate::ids::DeviceId;
use crate::memory::{self, KvDtype, MemorySizes, StepLimits};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use actix::{Actor, Addr, Context, Handler, Recipient};
use actix_rt::Arbiter;
use tokio::sync::oneshot;

use super::*;
use crate::batcher::{AddModel, DeviceFailed, RemoveModel};
use crate::bridge::DeviceError;
use crate::bridge::ffi::{Backend, MemoryStats, StepBatch, StepOutput};
use crate::error::Kind;
use crate::executor::{
    self, Config, Device, DeviceLoad, ExecutorHandle, LoadModel, LoadState, Maker, StepDone,
};
use crate::health::Vitals;
use crate::models::{ModelDown, ModelUp};
use crate::progress::Progress;
use crate::telemetry::Metrics;

type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, text: String) {
    log.lock().expect("no test panics in it").push(text);
}

/// Stands for a batcher.
struct Batcher {
    device: &'static str,
    log: Log,
}

impl Actor for Batcher {
    type Context = Context<Self>;
}

impl Handler<StepDone> for Batcher {
    type Result = ();

    fn handle(&mut self, _: StepDone, _: &mut Self::Context) {}
}

impl Handler<AddModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: AddModel, _: &mut Self::Context) {
        let AddModel { model, name: _, budget, loaded, window: _, end_token_ids } = message;
        assert_eq!(end_token_ids, [testing::END]);
        assert!(loaded.num_blocks * budget.block_size >= budget.max_seq_len);
        note(&self.log, format!("{} add {}", self.device, model.0));
    }
}

impl Handler<RemoveModel> for Batcher {
    type Result = ();

    fn handle(&mut self, message: RemoveModel, _: &mut Self::Context) {
        note(&self.log, format!("{} remove {}", self.device, message.model.0));
        message.done.send(()).expect("models waits");
    }
}

/// Stands for admission, and for the node where a device is lost.
#[derive(Default)]
struct Admission {
    log: Log,
    served: Arc<Mutex<BTreeMap<String, Arc<ServedModel>>>>,
    /// A request comes in just before the next `ModelDown`.
    late_request: Arc<AtomicBool>,
}

impl Actor for Admission {
    type Context = Context<Self>;
}

impl Handler<ModelUp> for Admission {
    type Result = ();

    fn handle(&mut self, ModelUp(model): ModelUp, _: &mut Self::Context) {
        note(&self.log, format!("up {}", model.name));
        self.served.lock().expect("no panic").insert(model.name.clone(), model);
    }
}

impl Handler<ModelDown> for Admission {
    type Result = ();

    fn handle(&mut self, message: ModelDown, _: &mut Self::Context) {
        note(&self.log, format!("down {}", message.name));
        let served = self.served.lock().expect("no panic");
        if self.late_request.swap(false, Ordering::Relaxed) {
            served[&message.name].in_use.fetch_add(1, Ordering::Release);
        }
    }
}

impl Handler<DeviceFailed> for Admission {
    type Result = ();

    /// Of the node's.
    fn handle(&mut self, failed: DeviceFailed, _: &mut Self::Context) {
        note(&self.log, format!("{} failed, sticky {}", failed.device, failed.sticky));
    }
}

/// A node's worth of models: devices, stand-ins and the actor.
struct Bench {
    models: Addr<Models>,
    executors: Vec<ExecutorHandle>,
    log: Log,
    served: Arc<Mutex<BTreeMap<String, Arc<ServedModel>>>>,
    late_request: Arc<AtomicBool>,
    vitals: Arc<Vitals>,
    dir: tempfile::TempDir,
}

const LIMITS: StepLimits = StepLimits {
    block_size: 16,
    max_batch_size: 4,
    max_step_tokens: 64,
    num_threads: 1,
    backend: Backend::Cpu,
    kv_dtype: KvDtype::Auto,
};

fn sim(device: &str, pool_bytes: u64) -> Maker {
    Maker::new(&Config::default(), &DeviceId::new(device), pool_bytes).expect("a sim device")
}

/// An executor and a stand-in for its batcher.
async fn build(
    device: &'static str,
    generation: u64,
    maker: Maker,
    log: &Log,
) -> (DeviceHandle, ExecutorHandle) {
    let batcher = Batcher { device, log: Arc::clone(log) }.start();
    let id = DeviceId::new(device);
    let mut running = executor::start(executor::ExecutorStart {
        device: id.clone(),
        maker,
        step_done: batcher.clone().recipient(),
        progress: Progress::new(),
        alive: crate::lifeline::Lifeline::unwatched(),
        metrics: Metrics::new("node-a").device(device),
    })
    .expect("a thread");
    (&mut running.ready).await.expect("it answers").expect("a device");
    let handle = DeviceHandle {
        id,
        generation,
        load: running.addr.clone().recipient(),
        unload: running.addr.clone().recipient(),
        add: batcher.clone().recipient(),
        remove: batcher.recipient(),
        memory: running.memory.clone(),
    };
    (handle, running)
}

impl Bench {
    async fn new(devices: Vec<(&'static str, Maker)>) -> Self {
        Self::with(devices, |_| {}).await
    }

    async fn with(
        devices: Vec<(&'static str, Maker)>,
        change: impl FnOnce(&mut ModelsStart),
    ) -> Self {
        let log = Log::default();
        let (mut handles, mut executors) = (Vec::new(), Vec::new());
        for (device, maker) in devices {
            let (handle, running) = build(device, 1, maker, &log).await;
            handles.push(handle);
            executors.push(running);
        }
        let admission = Admission { log: Arc::clone(&log), ..Admission::default() };
        let served = Arc::clone(&admission.served);
        let late_request = Arc::clone(&admission.late_request);
        let admission = admission.start();
        let metrics = Arc::new(Metrics::new("node-a"));
        let limits = crate::health::Config::default().limits();
        let vitals = Arc::new(Vitals::new("node-a", limits, metrics));
        let mut settings = ModelsStart {
            hub: HubCache::default(),
            limits: LIMITS,
            kv_bytes: None,
            planned_kv_bytes: BTreeMap::new(),
            devices: handles,
            model_up: admission.clone().recipient(),
            model_down: admission.clone().recipient(),
            failed: admission.recipient(),
            exactness: "these devices".to_owned(),
            vitals: Arc::clone(&vitals),
            progress: Progress::new(),
        };
        change(&mut settings);
        let alive = crate::lifeline::Lifeline::unwatched();
        let models = start(&Arbiter::current(), settings, alive);
        let dir = tempfile::tempdir().expect("a temporary directory");
        testing::write(dir.path());
        Self { models, executors, log, served, late_request, vitals, dir }
    }

    fn spec(&self, name: &str) -> ModelSpec {
        let spec = ModelSpec::new(name, self.dir.path());
        ModelSpec { load_format: LoadFormat::Dummy, ..spec }
    }

    async fn load(&self, name: &str) -> Result<ModelInfo> {
        self.load_spec(self.spec(name)).await
    }

    async fn load_spec(&self, spec: ModelSpec) -> Result<ModelInfo> {
        self.models.send(replicas(spec)).await.expect("it lives")
    }

    async fn unload(&self, name: &str) -> Result<()> {
        self.models.send(Unload { name: name.to_owned() }).await.expect("it lives")
    }

    async fn names(&self) -> Vec<String> {
        let list = self.models.send(List).await.expect("it lives");
        list.into_iter().map(|info| info.name).collect()
    }

    fn served(&self, name: &str) -> Arc<ServedModel> {
        Arc::clone(&self.served.lock().expect("no panic")[name])
    }

    fn used(&self) -> Vec<u64> {
        self.executors.iter().map(|running| running.memory.used_bytes()).collect()
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("no panic"))
    }

    fn stop(self) {
        self.executors.into_iter().for_each(ExecutorHandle::stop);
    }
}

fn replicas(spec: ModelSpec) -> Load {
    Load { spec, spread: Spread::EveryDevice }
}

fn kind(result: Result<ModelInfo>) -> Kind {
    result.expect_err("it is refused").kind
}

/// Bytes that one model of the tests takes at most.
fn most_bytes() -> u64 {
    let (_dir, checkpoint) = testing::dummy();
    let need = memory::ModelNeed::of(checkpoint.spec(), &LIMITS, 64).expect("a good shape");
    need.fixed_bytes + need.wish_kv_bytes
}

#[actix::test]
async fn a_model_goes_to_devices_then_batchers_then_admission() {
    let bench =
        Bench::new(vec![("sim:0", sim("sim:0", 1 << 30)), ("sim:1", sim("sim:1", 1 << 30))]).await;
    let info = bench.load("demo").await.expect("loads");
    assert_eq!(bench.take_log(), ["sim:0 add 1", "sim:1 add 1", "up demo"]);
    assert_eq!((info.name.as_str(), info.max_seq_len), ("demo", 64));
    assert_eq!(info.devices, [DeviceId::new("sim:0"), DeviceId::new("sim:1")]);
    assert!(info.weight_bytes > 0 && info.kv_bytes > 0 && info.created > 1_600_000_000);
    assert!(bench.used().iter().all(|used| *used > 0));
    let served = bench.served("demo");
    assert_eq!((served.vocab_size, served.max_seq_len, served.id), (16, 64, ModelId(1)));
    assert_eq!(served.tokenizer.encode("word3 word4", false), Ok(vec![3, 4]));
    assert!(served.chat_template.is_none());
    let listed = bench.models.send(List).await.expect("it lives");
    assert_eq!(bench.vitals.message(crate::clock::Timestamp::now()).models, listed);
    assert_eq!(listed, [info]);
    bench.stop();
}

#[actix::test]
async fn an_alias_that_is_taken_is_a_conflict() {
    let bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30))]).await;
    let (first, second) = tokio::join!(bench.load("demo"), bench.load("demo"));
    assert!(first.is_ok());
    assert_eq!(kind(second), Kind::Conflict);
    assert_eq!(kind(bench.load("demo").await), Kind::Conflict);
    assert_eq!(bench.load("other").await.expect("another alias").name, "other");
    assert_eq!(bench.names().await, ["demo", "other"]);
    bench.stop();
}

#[actix::test]
async fn what_cannot_be_loaded_is_refused_and_leaves_nothing() {
    let bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30))]).await;
    assert_eq!(kind(bench.load("Bad Name").await), Kind::Invalid);
    let too_long = ModelSpec { max_seq_len: Some(65), ..bench.spec("demo") };
    let error = bench.load_spec(too_long).await.expect_err("the model was made for 64");
    assert!(error.message.contains("max_position_embeddings 64"), "{error}");
    let no_weights = ModelSpec { load_format: LoadFormat::Safetensors, ..bench.spec("demo") };
    let error = bench.load_spec(no_weights).await.expect_err("no safetensors");
    assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("model_path")));
    assert!(error.message.contains("model.safetensors"), "{error}");
    std::fs::remove_file(bench.dir.path().join("tokenizer.json")).expect("removes");
    let error = bench.load("demo").await.expect_err("no tokenizer");
    assert!(error.message.contains("tokenizer.json"), "{error}");
    assert_eq!((bench.used(), bench.take_log()), (vec![0], vec![]));
    testing::write(bench.dir.path());
    bench.load("demo").await.expect("the alias is free");
    bench.stop();
}

#[actix::test]
async fn an_unload_waits_for_the_requests_that_are_in() {
    let bench = Bench::new(vec![("sim:0", sim("sim:0", 1 << 30))]).await;
    bench.load("demo").await.expect("loads");
    let served = bench.served("demo");
    served.in_use.store(1, Ordering::Release);
    bench.take_log();
    let mut unload = actix_rt::spawn(bench.models.send(Unload { name: "demo".to_owned() }));
    let waits = tokio::time::timeout(std::time::Duration::from_millis(60), &mut unload).await;
    assert!(waits.is_err(), "a request is in");
    assert_eq!(bench.take_log(), ["down demo"]);
    assert!(bench.names().await.is_empty());
    assert_eq!(kind(bench.load("demo").await), Kind::Conflict);
    assert_eq!(bench.unload("demo").await.map_err(|e| e.kind), Err(Kind::Conflict));
    served.in_use.store(0, Ordering::Release);
    unload.await.expect("no panic").expect("it lives").expect("unloads");
    assert_eq!(bench.take_log(), ["sim:0 remove 1"]);
    assert_eq!(bench.used(), [0]);
    assert_eq!(bench.unload("demo").await.map_err(|e| e.kind), Err(Kind::NotFound));
    assert_eq!(bench.load("demo").await.expect("loads again").devices.len(), 1);
    assert_eq!(bench.served("demo").id, ModelId(2), "an id is never given twice");
    bench.stop();
}

#[test]
fn specs_are_checked_key_by_key() {
    let spec = |name: &str, path: &str, max_seq_len| ModelSpec {
        load_format: LoadFormat::Dummy,
        max_seq_len,
        ..ModelSpec::new(name, path)
    };
    assert_eq!(spec("llama-3-8b", "x", None).check(), Ok(()));
    let faults = spec("A", "", Some(0)).check().expect_err("three faults");
    for key in ["models.name: ", "models.model_path: ", "models.max_seq_len: "] {
        assert!(faults.iter().any(|fault| fault.starts_with(key)), "{key} in {faults:?}");
    }
    assert_eq!(faults.len(), 3);
    let toml = "name = \"a\"\nmodel_path = \"m\"\nload_format = \"dummy\"\nmax_model_len = 5";
    assert_eq!(toml::from_str::<ModelSpec>(toml).expect("reads"), spec("a", "m", Some(5)));
}

#[test]
fn the_pool_is_planned_from_the_config_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    testing::write(dir.path());
    let spec = |path: &Path, max_seq_len| ModelSpec {
        load_format: LoadFormat::Dummy,
        max_seq_len,
        ..ModelSpec::new("demo", path)
    };
    let plan = |spec: ModelSpec| {
        plan_memory(&[spec], &HubCache::default(), &LIMITS, MemorySizes::default(), 1)
    };
    let whole = plan(spec(dir.path(), None)).expect("plans");
    assert_eq!(whole.pool_bytes, most_bytes().next_multiple_of(256));
    let shorter = plan(spec(dir.path(), Some(32))).expect("plans");
    assert_eq!(shorter.kv_bytes[0] * 2, whole.kv_bytes[0]);
    let error = plan(spec(dir.path(), Some(99))).expect_err("too long");
    assert!(error.starts_with("model \"demo\": models.max_seq_len"), "{error}");
    let error = plan(spec(&dir.path().join("absent"), None)).expect_err("not there");
    assert!(error.starts_with("model \"demo\":"), "{error}");
    // With no dtype in config.json the tensors would be asked, and there are none.
    let config = std::fs::read_to_string(dir.path().join("config.json")).expect("reads");
    std::fs::write(dir.path().join("config.json"), config.replace("torch_dtype", "_x"))
        .expect("writes");
    let stored = ModelSpec { load_format: LoadFormat::Safetensors, ..spec(dir.path(), None) };
    assert!(plan(stored).is_err());
    assert!(plan(spec(dir.path(), None)).is_ok());
}
