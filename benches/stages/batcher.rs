//! What the host does between two steps: settle one, form the next. No actor, no device; the policy alone.

use std::collections::VecDeque;

use criterion::{BenchmarkId, Criterion, Throughput};
use inferno_node::batcher::{Batching, LaneSpec, Output, PlannedStep};
use inferno_node::bridge::ffi::StepOutput;
use inferno_node::ids::ModelId;
use inferno_node::sequence::Sequence;

fn spec(max_batch_size: u32) -> LaneSpec {
    LaneSpec {
        model: ModelId(0),
        num_blocks: 65_536,
        block_size: 16,
        max_batch_size,
        max_step_tokens: 2048,
        step_time_target: None,
        window: None,
        max_seq_len: 4096,
        end_token_ids: vec![2],
        enable_prefix_cache: true,
        reserve_tokens: 64,
    }
}

fn sequence(id: u64, prompt: u32, max_tokens: u32, shared: bool) -> Sequence {
    let lead = if shared { 0 } else { id as u32 * 7 };
    Sequence {
        model: ModelId(0),
        token_ids: (0..prompt).map(|at| lead + at).collect(),
        num_prompt_tokens: prompt,
        ..super::sequence(id, max_tokens)
    }
}

fn settle(policy: &mut Batching<()>, step: PlannedStep, out: &mut Output<()>) {
    let token_ids = vec![5; step.batch.seats.len()];
    let answer = StepOutput::of_tokens(token_ids, &step.batch.sample);
    policy.settle(step.step, &answer, step.batch, out).expect("in order");
    out.produced.clear();
    out.started.clear();
}

/// Every sequence decodes one token: with one step in flight, the next is formed, then the first settled. One that has come to
/// its thousandth token is followed by another, so the figure holds a thousandth of a prefill.
pub fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher/decode step");
    for batch in [1, 8, 32, 256] {
        let mut out = Output::default();
        let mut policy = Batching::new();
        policy.add_model(spec(batch));
        let mut id = 0;
        let mut in_flight = VecDeque::new();
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| {
                while policy.load().running + policy.load().waiting < batch {
                    id += 1;
                    policy.assign(sequence(id, 64, 1000, false), ()).expect("it fits");
                }
                let next = policy.next_step(&mut out);
                // None: the step in flight brings the last tokens.
                let is_due = next.is_none() || !in_flight.is_empty();
                in_flight.extend(next);
                if let Some(done) = is_due.then(|| in_flight.pop_front()).flatten() {
                    settle(&mut policy, done, &mut out);
                }
            });
        });
    }
    group.finish();
}

/// A prompt of 512 tokens comes, is computed in one step, gives one token and leaves.
pub fn prompt(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher/prompt of 512");
    for (name, shared) in [("cached", true), ("not cached", false)] {
        let mut out = Output::default();
        let mut policy = Batching::new();
        policy.add_model(spec(8));
        let mut id = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                id += 1;
                policy.assign(sequence(id, 512, 1, shared), ()).expect("it fits");
                let step = policy.next_step(&mut out).expect("work");
                settle(&mut policy, step, &mut out);
            });
        });
    }
    group.finish();
}
