//! The engine's critical paths, each by a step of a model whose shape makes one op the cost: products, attention over
//! long contexts, prefill, sampling; and the memory pool. Random weights, all threads, the best instruction set.

#![allow(missing_docs)] // criterion_group! makes a public function

#[path = "support/spec.rs"]
mod spec;
#[path = "support/step.rs"]
mod step;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use inferno_node::bridge::ffi::{self, DeviceOptions, Isa, SamplerSpec};
use inferno_node::bridge::spec::DecoderSpec;
use inferno_node::gpu;
use spec::llama;
use step::{FED, Runner, limits, num_threads};

fn runner(spec: &DecoderSpec, max_batch_size: u32, max_seq_len: u32) -> Runner {
    Runner::new(spec, &limits(spec, max_batch_size, max_seq_len), Isa::Auto, num_threads())
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| i % 251).collect()
}

/// A model's three ranges taken and given back.
fn memory_allocation(criterion: &mut Criterion) {
    let spec = llama(512, 64, 128, 2);
    let limits = limits(&spec, 4, 256);
    let options = DeviceOptions::cpu(1, Isa::Auto, 64 << 20);
    let mut context = ffi::new_context(&options).expect("64 MiB");
    criterion.bench_function("memory_allocation", |b| {
        b.iter(|| {
            let plan = context.pin_mut().add_model(&spec, &limits).expect("it fits");
            context.pin_mut().remove_model(plan.model).expect("it is there");
        });
    });
}

/// The same on a GPU, where there is one. Most of it is the driver's: a model takes page-locked memory too, and makes events. The pool by
/// itself is in `cpp/lab/memory_bench`.
fn gpu_memory_allocation(criterion: &mut Criterion) {
    if gpu::usable().is_empty() {
        println!("left out: gpu_memory_allocation, for this build or machine has no GPU");
        return;
    }
    let spec = llama(512, 64, 128, 2);
    let limits = limits(&spec, 4, 256);
    let options = DeviceOptions::cuda(1, 256 << 20);
    let mut context = ffi::new_context(&options).expect("256 MiB");
    criterion.bench_function("gpu_memory_allocation", |b| {
        b.iter(|| {
            let plan = context.pin_mut().add_model(&spec, &limits).expect("it fits");
            context.pin_mut().remove_model(plan.model).expect("it is there");
        });
    });
}

/// Products of one layer at several batch sizes: 46 MB of weights.
fn op_matmul(criterion: &mut Criterion) {
    let spec = llama(256, 2_048, 2_048, 1);
    let mut group = criterion.benchmark_group("op_matmul");
    for batch in [1_u32, 8, 32] {
        let mut runner = runner(&spec, batch, 64);
        let first = prompt(1);
        let rows: Vec<(u32, &[u32], u32)> = (0..batch).map(|s| (0, &first[..], s)).collect();
        runner.step(&rows);
        let fed: Vec<(u32, &[u32], u32)> = (0..batch).map(|s| (1, &[FED][..], s)).collect();
        group.throughput(Throughput::Bytes(runner.plan.weight_bytes));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| b.iter(|| runner.step(&fed)));
    }
    group.finish();
}

/// Decode attention over a long context; the weights are small beside it.
fn op_attention(criterion: &mut Criterion) {
    let spec = llama(256, 512, 64, 4);
    let mut group = criterion.benchmark_group("op_attention");
    for context in [512_u32, 4_096] {
        let mut runner = runner(&spec, 1, context + 16);
        for first in (0..context).step_by(512) {
            runner.step(&[(first, &prompt(512), 0)]);
        }
        group.throughput(Throughput::Elements(u64::from(context)));
        group.bench_function(BenchmarkId::from_parameter(context), |b| {
            b.iter(|| runner.step(&[(context, &[FED], 0)]));
        });
    }
    group.finish();
}

/// A chunk of a prompt: norms, rope, writing the cache, attention and products together.
fn prefill(criterion: &mut Criterion) {
    let spec = llama(256, 512, 1_408, 4);
    let mut group = criterion.benchmark_group("prefill");
    for length in [32_u32, 512] {
        let mut runner = runner(&spec, 1, length);
        let tokens = prompt(length);
        group.throughput(Throughput::Elements(u64::from(length)));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| runner.step(&[(0, &tokens, 0)]));
        });
    }
    group.finish();
}

/// One row of 128,256 logits.
fn op_sample(criterion: &mut Criterion) {
    let spec = llama(128_256, 64, 64, 1);
    let mut runner = runner(&spec, 1, 64);
    let mut group = criterion.benchmark_group("op_sample");
    let greedy = SamplerSpec::greedy;
    let random = SamplerSpec::neutral;
    for (name, sampler) in [
        ("greedy", greedy()),
        ("temperature", random()),
        ("top_k", SamplerSpec { top_k: 50, ..random() }),
        ("top_p", SamplerSpec { top_p: 0.9, ..random() }),
        ("all", SamplerSpec { temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.05, ..random() }),
        ("penalties", SamplerSpec { repetition_penalty: 1.1, ..greedy() }),
        ("top_logprobs", SamplerSpec { num_logprobs: 20, ..greedy() }),
    ] {
        runner.bind(&sampler);
        runner.step(&[(0, &prompt(1), 0)]);
        group.bench_function(name, |b| b.iter(|| runner.step(&[(1, &[FED], 0)])));
    }
    group.finish();
}

/// A decode step of a small model for a whole batch: what a step costs besides its weights.
fn decode(criterion: &mut Criterion) {
    let spec = llama(4_096, 256, 704, 6);
    let mut group = criterion.benchmark_group("decode");
    for batch in [1_u32, 4, 8, 16, 32] {
        let mut runner = runner(&spec, batch, 128);
        println!("decode/{batch} on {:?}, {} threads", runner.isa(), num_threads());
        let tokens = prompt(8);
        let rows: Vec<(u32, &[u32], u32)> = (0..batch).map(|s| (0, &tokens[..], s)).collect();
        runner.step(&rows);
        let fed: Vec<(u32, &[u32], u32)> = (0..batch).map(|s| (8, &[FED][..], s)).collect();
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| b.iter(|| runner.step(&fed)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = memory_allocation, gpu_memory_allocation, op_matmul, op_attention, op_sample, prefill, decode
}
criterion_main!(benches);
