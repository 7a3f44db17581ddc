//! Steps of a target time: what prompts get beside decodes, once it is known what steps cost.

use super::super::seated::tests::spec;
use super::super::*;
use crate::bridge::ffi::StepOutput;
use crate::executor::{CostModel, StepWork};
use crate::sequence::testing::sequence;

/// A block of prompt costs as much as two sequences that decode.
fn device() -> CostModel {
    CostModel {
        step_us: 1_000.0,
        decode_us_per_sequence: 100.0,
        prefill_us_per_token: 50.0,
        ..CostModel::default()
    }
}

/// The policy before a device of such costs.
struct Bench {
    policy: Batching<u64>,
    out: Output<u64>,
    device: CostModel,
    sequences: u64,
}

impl Bench {
    /// Nothing is known yet. A step may hold 128 tokens: 7.4 ms.
    fn new(target_ms: u64, device: CostModel) -> Self {
        let config = Config { step_time_target_ms: target_ms as u32, ..Config::default() };
        let mut policy = Batching::new();
        policy.add_model(LaneSpec {
            num_blocks: 4_096,
            max_batch_size: 16,
            max_step_tokens: 128,
            max_seq_len: 2_048,
            step_time_target: config.step_time_target(),
            ..spec()
        });
        Self { policy, out: Output::default(), device, sequences: 0 }
    }

    /// Has served some requests of different lengths.
    fn taught(target_ms: u64, device: CostModel) -> Self {
        let mut bench = Self::new(target_ms, device);
        for round in 0..12 {
            for of in 0..round % 5 + 1 {
                bench.assign(20 + 17 * of, 4 + round);
            }
            while bench.step().is_some() {}
        }
        assert!(bench.policy.costs(ModelId(0)).is_some());
        bench
    }

    fn assign(&mut self, prompt: u32, completion: u32) {
        self.sequences += 1;
        let id = self.sequences;
        self.policy.assign(sequence(id, prompt, completion), id).expect("it fits");
    }

    /// The next step's work; it is done at once.
    fn step(&mut self) -> Option<StepWork> {
        let step = self.policy.next_step(&mut self.out)?;
        let work = StepWork::of(&step.batch);
        let answer = StepOutput {
            device_us: self.device.micros(&work) as f32,
            ..StepOutput::of_tokens(vec![50; step.batch.seats.len()], &step.batch.sample)
        };
        self.policy.settle(step.step, &answer, step.batch, &mut self.out).expect("in order");
        assert_eq!(self.policy.audit(), Ok(()));
        Some(work)
    }

    /// Prompt tokens of the next steps, while `decodes` sequences decode and another one's prompt of 1,000 tokens comes.
    fn chunks_beside(&mut self, decodes: u32, steps: usize) -> Vec<u32> {
        (0..decodes).for_each(|_| self.assign(4, 1_900));
        while self.step().is_some_and(|work| work.decodes < decodes) {}
        self.assign(1_000, 1);
        (0..steps).map(|_| self.step().expect("work").prompt_tokens).collect()
    }
}

fn chunks(target_ms: u64, decodes: u32) -> Vec<u32> {
    Bench::taught(target_ms, device()).chunks_beside(decodes, 4)
}

#[test]
fn chunks_keep_the_time_of_a_step_in_which_sequences_decode() {
    for (decodes, most) in [(1, 58), (4, 52), (10, 40)] {
        let chunks = chunks(4, decodes);
        let near = |chunk: &u32| (most - 3..=most + 1).contains(chunk);
        assert!(chunks.iter().all(near), "beside {decodes}: {chunks:?}, expected {most}");
    }
}

#[test]
fn chunks_are_the_same_in_every_run() {
    assert_eq!(chunks(4, 3), chunks(4, 3));
}

#[test]
fn a_step_without_decodes_takes_all_tokens() {
    let mut bench = Bench::taught(4, device());
    bench.assign(1_000, 1);
    assert_eq!(bench.step().map(|work| work.prompt_tokens), Some(128));
}

#[test]
fn without_a_target_chunks_are_bounded_by_tokens_only() {
    assert_eq!(chunks(0, 4), [124; 4]);
}

#[test]
fn before_the_costs_are_known_chunks_are_bounded_by_tokens_only() {
    assert_eq!(Bench::new(4, device()).chunks_beside(4, 2), [124; 2]);
}

#[test]
fn a_target_that_decodes_alone_miss_leaves_prompts_as_much_time_as_they_take() {
    // 1.4 ms of decodes: 28 tokens more.
    let chunks = chunks(1, 4);
    assert!(chunks.iter().all(|chunk| (26..=29).contains(chunk)), "{chunks:?}");
}

#[test]
fn a_prompt_gets_a_block_where_there_is_time_for_less() {
    let slow = CostModel { prefill_us_per_token: 2_000.0, ..device() };
    assert_eq!(Bench::taught(4, slow).chunks_beside(4, 4), [4; 4]);
}

#[test]
fn chunks_follow_a_device_that_becomes_slower() {
    let mut bench = Bench::taught(4, device());
    let before = bench.chunks_beside(4, 4)[3];
    bench.device.prefill_us_per_token *= 2.0;
    for _ in 0..15 {
        while bench.step().is_some_and(|work| work.prompt_tokens > 0) {}
        bench.assign(1_000, 1);
    }
    let after = bench.step().expect("work").prompt_tokens;
    assert!(after * 10 <= before * 6, "{before}, then {after}");
}
