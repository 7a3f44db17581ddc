//! Forming a step and taking its answer, with two in flight; sequences of 64 + 64 tokens end and others take their places.

use std::collections::VecDeque;

use criterion::{BenchmarkId, Criterion, Throughput};
use inferno_node::batcher::{Batching, LaneSpec, Output, PlannedStep};
use inferno_node::bridge::ffi::StepOutput;

use super::{LEN, MODEL, sequence};

struct Device {
    policy: Batching<u64>,
    out: Output<u64>,
    in_flight: VecDeque<PlannedStep>,
    answer: StepOutput,
    last_id: u64,
}

impl Device {
    fn with(batch: u32) -> Self {
        let mut policy = Batching::new();
        policy.add_model(LaneSpec {
            model: MODEL,
            num_blocks: 16_384,
            block_size: 16,
            max_batch_size: batch,
            max_step_tokens: batch.max(64) * 8,
            max_seq_len: 2_048,
            end_token_ids: vec![1],
            enable_prefix_cache: true,
            reserve_tokens: LEN,
        });
        let (out, answer) = (Output::default(), StepOutput::default());
        let mut device = Self { policy, out, in_flight: VecDeque::new(), answer, last_id: 0 };
        for index in 0..batch {
            // Of different lengths, so that in every step some end.
            device.assign(1 + index * LEN / batch);
        }
        (0..2 * LEN).for_each(|_| device.step());
        device
    }

    fn assign(&mut self, max_tokens: u32) {
        self.last_id += 1;
        let taken = self.policy.assign(sequence(self.last_id, max_tokens), self.last_id);
        taken.expect("the model is here");
    }

    fn step(&mut self) {
        self.in_flight.extend(self.policy.next_step(&mut self.out));
        let Some(done) = self.in_flight.pop_front() else { return };
        self.answer.token_ids.clear();
        self.answer.token_ids.resize(done.batch.seats.len(), 100);
        let settled = self.policy.settle(done.step, &self.answer, done.batch, &mut self.out);
        settled.expect("in order");
        self.out.started.clear();
        let ended = self.out.produced.drain(..).filter(|one| one.finish.is_some()).count();
        (0..ended).for_each(|_| self.assign(LEN));
    }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher_step");
    for batch in [8_u32, 256] {
        let mut device = Device::with(batch);
        group.throughput(Throughput::Elements(batch.into()));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| b.iter(|| device.step()));
    }
    group.finish();
}
