//! Goal: prompts between decodes keep the gap between tokens short, and tokens/s stay. Method: the batcher's policy in front of a
//! device that takes the time of `config/sim/h200-8b.toml`, a few percent more or less as chance has it, two steps in flight; time is
//! simulated, so every figure is the same in every run.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use inferno_node::batcher::{Batching, LaneSpec, Output};
use inferno_node::bridge::ffi::{SamplerSpec, StepOutput};
use inferno_node::clock::Timestamp;
use inferno_node::executor::CostModel;
use inferno_node::ids::{ModelId, RequestId, SequenceId};
use inferno_node::request::Handle;
use inferno_node::sequence::Sequence;

use super::chance::Chance;

const TARGET: Duration = Duration::from_millis(50);

/// Sequences by their lengths, prompt and completion; so many are on the device until the last have come.
struct Load {
    sequences: Vec<(u32, u32)>,
    at_once: usize,
}

/// 1,024 requests of 128 tokens in, 256 out.
fn short_prompts() -> Load {
    Load { sequences: vec![(128, 256); 1_024], at_once: 512 }
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq)]
struct Served {
    steps: u32,
    /// Of a device's time, microseconds.
    took: f64,
    /// Gaps between two tokens of a sequence, in milliseconds, sorted.
    gaps: Vec<f64>,
    /// What the policy makes of the steps in the end.
    costs: Option<CostModel>,
}

impl Served {
    fn gap(&self, share: f64) -> f64 {
        self.gaps[((self.gaps.len() as f64 * share).ceil() as usize).max(1) - 1]
    }

    fn say(&self, name: &str) {
        println!(
            "{name}: {:.0} tok/s, ITL P50 / P99 {:.1} / {:.1} ms, {:.2} s, {} steps",
            self.gaps.len() as f64 / self.took * 1e6,
            self.gap(0.5),
            self.gap(0.99),
            self.took / 1e6,
            self.steps,
        );
    }
}

fn h200() -> CostModel {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    CostModel::read(&root.join("config/sim/h200-8b.toml")).expect("an example")
}

/// A sequence of its own tokens, which ends at its length.
fn sequence(id: usize, (prompt, max_tokens): (u32, u32)) -> Sequence {
    let sequence_id = SequenceId(id as u64);
    Sequence {
        id: sequence_id,
        model: ModelId(0),
        salt: 0,
        token_ids: (0..prompt).map(|at| id as u32 * 100_000 + at).collect(),
        num_prompt_tokens: prompt,
        max_tokens,
        min_tokens: 0,
        ignore_eos: true,
        sampler: Arc::new(SamplerSpec::greedy()),
        prompt_logprobs: None,
        prompt_scored: false,
        priority: 128,
        accepted_at: Timestamp::from_micros(id as u64),
        attempt: 1,
        failed_steps: 0,
        failed_at: 0,
        handle: Handle::new(RequestId::generate(), sequence_id),
    }
}

/// The policy, the device, and what time it is there.
struct Simulated {
    policy: Batching<usize>,
    device: CostModel,
    chance: Chance,
    now_us: f64,
    sequences: usize,
}

impl Simulated {
    fn new(step_time_target: Option<Duration>) -> Self {
        let device = h200();
        let mut policy = Batching::new();
        policy.add_model(LaneSpec {
            model: ModelId(0),
            num_blocks: device.num_blocks.expect("the example has it"),
            block_size: 16,
            max_batch_size: 512,
            max_step_tokens: 8_192,
            step_time_target,
            max_seq_len: 32_768,
            window: None,
            end_token_ids: Vec::new(),
            enable_prefix_cache: true,
            reserve_tokens: 64,
        });
        Self { policy, device, chance: Chance::new(1), now_us: 0.0, sequences: 0 }
    }

    /// The next of a load, whose number in it is given.
    fn assign(&mut self, next: Option<(usize, &(u32, u32))>) {
        if let Some((who, lens)) = next {
            self.policy.assign(sequence(self.sequences, *lens), who).expect("it fits");
            self.sequences += 1;
        }
    }

    fn serve(&mut self, load: &Load) -> Served {
        let mut coming = load.sequences.iter().enumerate();
        (0..load.at_once).for_each(|_| self.assign(coming.next()));
        let mut last_token = vec![None; load.sequences.len()];
        let (began_us, mut steps, mut gaps) = (self.now_us, 0, Vec::new());
        let (mut sent, mut out) = (VecDeque::new(), Output::default());
        loop {
            while let Some(step) = self.policy.next_step(&mut out) {
                sent.push_back(step);
            }
            let Some(step) = sent.pop_front() else { break };
            let noise = self.chance.between(970, 1_030) as f64 / 1e3;
            let device_us = self.device.step_time(&step.batch).as_secs_f64() * 1e6 * noise;
            (self.now_us, steps) = (self.now_us + device_us, steps + 1);
            let answer = StepOutput {
                device_us: device_us as f32,
                ..StepOutput::of_tokens(vec![50; step.batch.seats.len()], &step.batch.sample)
            };
            self.policy.settle(step.step, &answer, step.batch, &mut out).expect("in order");
            for told in out.produced.drain(..) {
                if let Some(before) = last_token[told.stream].replace(self.now_us) {
                    gaps.push((self.now_us - before) / 1e3);
                }
                if told.finish.is_some() {
                    self.assign(coming.next());
                }
            }
            out.started.clear();
        }
        gaps.sort_by(f64::total_cmp);
        let costs = self.policy.costs(ModelId(0));
        Served { steps, took: self.now_us - began_us, gaps, costs }
    }
}

/// By tokens and by time.
fn both(load: &Load, name: &str) -> (Served, Served) {
    let by_tokens = Simulated::new(None).serve(load);
    let by_time = Simulated::new(Some(TARGET)).serve(load);
    by_tokens.say(&format!("{name}, by tokens"));
    by_time.say(&format!("{name}, by time"));
    (by_tokens, by_time)
}

#[test]
fn gaps_are_short_at_512_at_once_and_throughput_stays() {
    let (by_tokens, by_time) = both(&short_prompts(), "1,024 x 128 / 256");
    assert!(by_tokens.gap(0.99) > 150.0, "what is to be mended");
    assert!(by_time.gap(0.99) <= 60.0, "{}", by_time.gap(0.99));
    assert!(by_tokens.took >= 0.97 * by_time.took);
}

#[test]
fn longer_prompts_keep_their_throughput() {
    let load = Load { sequences: vec![(512, 128); 1_024], at_once: 512 };
    let (by_tokens, by_time) = both(&load, "1,024 x 512 / 128");
    assert!(by_tokens.took >= 0.97 * by_time.took);
    assert!(by_time.gap(0.99) < by_tokens.gap(0.99));
}

#[test]
fn many_prompts_wait_for_few_that_decode_no_longer_than_throughput_asks() {
    let mut sequences = vec![(128, 90); 4];
    sequences.extend(vec![(2_000, 1); 400]);
    let load = Load { sequences, at_once: 68 };
    let (by_tokens, by_time) = both(&load, "4 decode, 400 x 2,000 / 1");
    assert!(by_tokens.took >= 0.97 * by_time.took);
    assert!(by_time.gap(0.99) < by_tokens.gap(0.99));
}

#[test]
fn a_long_prompt_does_not_hold_up_the_one_that_decodes() {
    let mut sequences = vec![(128, 3_000)];
    sequences.extend(vec![(16_000, 1); 20]);
    let load = Load { sequences, at_once: 2 };
    let (by_tokens, by_time) = both(&load, "1 decodes, 20 x 16,000 / 1");
    assert!(by_tokens.gap(0.99) > 150.0 && by_time.gap(0.99) <= 60.0);
}

#[test]
fn a_device_whose_costs_are_known_keeps_gaps_short_from_the_first_step_on() {
    let mut node = Simulated::new(Some(TARGET));
    node.serve(&short_prompts());
    let longer = Load { sequences: vec![(512, 128); 1_024], at_once: 512 };
    for (name, load) in [("128 / 256", short_prompts()), ("512 / 128", longer)] {
        let again = node.serve(&load);
        again.say(&format!("1,024 x {name}, by known costs"));
        assert!(again.gap(0.99) <= 60.0, "{name}: {}", again.gap(0.99));
    }
}

#[test]
fn the_costs_that_are_fitted_predict_the_device() {
    let serve = || Simulated::new(Some(TARGET)).serve(&short_prompts());
    let served = serve();
    let (costs, device) = (served.costs.clone().expect("known"), h200());
    println!("{costs:?}");
    for (decodes, prompt_tokens) in [(512, 0), (512, 1_500), (256, 1_500), (64, 4_000)] {
        let context = u64::from(decodes) * 250;
        let work = inferno_node::executor::StepWork { decodes, prompt_tokens, context };
        let share = costs.micros(&work) / device.micros(&work);
        assert!((0.9..1.1).contains(&share), "{decodes}, {prompt_tokens}: {share}");
    }
    assert_eq!(serve(), served, "the same in every run");
    // The log has it as JSON, which `sim` reads as it reads TOML.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("costs.json");
    std::fs::write(&path, serde_json::to_string(&costs).expect("numbers")).expect("writes");
    assert_eq!(CostModel::read(&path), Ok(costs));
}
