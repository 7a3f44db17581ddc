//! The library end to end: the demo model on the CPU, completions of 50 tokens, alone and several at once; how long one waits for a first
//! token; and how long a client waits when its device throws and is built again.
//!
//! BENCH_MODEL, a name in `benches/shapes`, takes random weights of that shape instead, and prompts of 32 token ids; BENCH_DEVICES the
//! devices (comma-separated, `cuda:0`).

#![allow(missing_docs)] // of what the macros of criterion make

#[path = "support/shapes.rs"]
mod shapes;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::StreamExt as _;
use inferno_node::Engine;
use inferno_node::checkpoint::LoadFormat;
use inferno_node::config::Config;
use inferno_node::engine::InferRequest;
use inferno_node::executor::{Fault, FaultKind};
use inferno_node::request::{Params, Prompt};
use shapes::Shape;

const ALIAS: &str = "bench";
const MAX_TOKENS: u32 = 50;
/// Of a prompt for random weights.
const PROMPT_TOKENS: u32 = 32;

/// Several prompts, so that a batch is no repetition of one sequence.
fn request(index: usize) -> InferRequest {
    if shape_name().is_some() {
        let ids = (0..PROMPT_TOKENS).map(|at| 300 + (index as u32 * 131 + at * 17) % 31_000);
        return InferRequest::new(ALIAS, Prompt::TokenIds(ids.collect())).params(params());
    }
    let opening = ["Once upon a time", "There was a cat", "What is a tree?", "One day, a girl"];
    let prompt = format!("{} ({index})", opening[index % opening.len()]);
    InferRequest::text(ALIAS, prompt).params(params())
}

fn params() -> Params {
    Params {
        max_tokens: Some(MAX_TOKENS),
        temperature: Some(0.0),
        ignore_eos: Some(true),
        ..Params::default()
    }
}

fn shape_name() -> Option<String> {
    std::env::var("BENCH_MODEL").ok()
}

/// The demo model on the CPU, unless the environment says otherwise; `folder` takes the files of a shape.
fn config(folder: &Path) -> Config {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let mut config = Config::library(ALIAS, demo);
    if let Some(name) = shape_name() {
        Shape::read(&name).write(folder);
        let model = &mut config.models[0];
        model.model_path = folder.to_owned();
        model.load_format = LoadFormat::Dummy;
        model.max_seq_len = Some(2_048);
        config.batcher.max_step_tokens = Some(2_048);
    }
    let devices = std::env::var("BENCH_DEVICES").unwrap_or_else(|_| "cpu:0".to_owned());
    config.executor.devices = devices.split(',').map(str::to_owned).collect();
    config
}

/// From the last token before an exception to the first after it: the device's actors are built again, the model is loaded, the
/// prompt and what was generated are computed once more.
async fn rebuild(folder: &Path) -> Duration {
    let mut config = config(folder);
    let fault = Fault { device: None, step: Some(25), token_id: None, kind: FaultKind::Exception };
    config.executor.faults = vec![fault];
    let engine = Engine::new(config).await.expect("the demo model loads");
    let mut events = engine.stream(request(0)).expect("an idle node takes it");
    let mut last = Instant::now();
    let mut waited = None;
    while let Some(event) = events.next().await {
        let attempt = event.expect("it is tried again").attempt;
        if attempt == 2 && waited.is_none() {
            waited = Some(last.elapsed());
        }
        last = Instant::now();
    }
    engine.shutdown().await.expect("it ends");
    waited.expect("the step threw")
}

fn device_rebuild(_: &mut Criterion) {
    if shape_name().is_some() || !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut waits: Vec<Duration> =
        (0..9).map(|_| runtime.block_on(rebuild(folder.path()))).collect();
    waits.sort();
    let [median, worst] = [waits[4], waits[8]].map(|wait| wait.as_secs_f64() * 1e3);
    println!("device_rebuild: {median:.1} ms from token to token, at worst {worst:.1} ms of 9");
    println!("result\tdevice_rebuild\t{median:.1}\tms\t< 2000, exception to next token");
}

fn inference(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let engine = runtime.block_on(Engine::new(config(folder.path()))).expect("the model loads");
    let run = |batch: usize| {
        let requests = (0..batch).map(request).collect();
        for answer in runtime.block_on(engine.batch_infer(requests)) {
            let answer = answer.expect("an idle node takes it");
            assert_eq!(answer.token_ids.len(), MAX_TOKENS as usize);
        }
    };
    for batch in [1_usize, 4, 8, 16, 32] {
        let mut group = criterion.benchmark_group(format!("batch_inference_{batch}"));
        group.throughput(Throughput::Elements(batch as u64 * u64::from(MAX_TOKENS)));
        group.bench_function("50_tokens", |b| b.iter(|| run(batch)));
        group.finish();
    }
    let mut group = criterion.benchmark_group("single_inference");
    group.throughput(Throughput::Elements(MAX_TOKENS.into()));
    group.bench_function("50_tokens", |b| {
        b.iter(|| runtime.block_on(engine.infer(request(0))).expect("an idle node takes it"));
    });
    group.finish();
    let mut fresh = 100..; // prompts of which nothing is cached
    criterion.bench_function("time_to_first_token", |b| {
        b.iter(|| {
            let request = request(fresh.next().expect("endless"));
            runtime.block_on(first_token(&engine, request));
        });
    });
    runtime.block_on(engine.shutdown()).expect("it ends");
}

async fn first_token(engine: &Engine, request: InferRequest) {
    let params = Params { max_tokens: Some(1), ..params() };
    let answer = engine.infer(request.params(params)).await.expect("an idle node takes it");
    assert_eq!(answer.token_ids.len(), 1);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = device_rebuild, inference
}
criterion_main!(benches);
