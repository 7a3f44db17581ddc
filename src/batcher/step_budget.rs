//! How much a step may hold: tokens, and where sequences decode in it also the time that it is expected to take.

use std::time::Duration;

use super::lane::LaneSpec;
use crate::executor::{CostModel, StepWork};

/// So many sequences that wait for their prompts, for each one that decodes, are many: what they lose by short steps counts.
const MANY_WAIT: f64 = 4.0;

/// What every step costs may be so much of it where throughput counts: tokens/s are within that of the most there are.
const FIXED_SHARE: f64 = 0.03;

/// What is left of a step.
#[derive(Debug, Clone)]
pub(super) struct StepBudget {
    tokens: u32,
    /// Prompts get so many tokens whatever time they take, or none would end on a device that is slower than it seems: a block.
    least: u32,
    time: Option<PromptTime>,
}

/// The time that a step has for prompts.
#[derive(Debug, Clone)]
struct PromptTime {
    left_us: f64,
    costs: CostModel,
}

impl StepBudget {
    /// The tokens of a lane's step, whatever time they take.
    pub fn of(spec: &LaneSpec) -> Self {
        Self { tokens: spec.max_step_tokens, least: spec.block_size, time: None }
    }

    /// From here on prompts share what `target` leaves of the step's time, `decoding` being in it already. `waiting` sequences
    /// wait for their prompts.
    ///
    /// Prompts get as much time as the decodes at least, or a device that is slower than its target would hardly take any. Where
    /// [`MANY_WAIT`], the step is longer in their proportion, until what every step costs is [`FIXED_SHARE`] of it.
    pub fn bound_time(
        &mut self,
        costs: CostModel,
        target: Duration,
        decoding: &StepWork,
        waiting: usize,
    ) {
        let taken_us = costs.micros(decoding);
        let target_us = (target.as_secs_f64() * 1e6).max(2.0 * taken_us);
        let longest_us = target_us.max(costs.step_us / FIXED_SHARE);
        let many = waiting as f64 / (MANY_WAIT * f64::from(decoding.decodes.max(1)));
        let step_us = (target_us * many.max(1.0)).min(longest_us);
        self.time = Some(PromptTime { left_us: step_us - taken_us, costs });
    }

    /// Tokens that a sequence may have of it from position `start` on.
    pub fn tokens_from(&self, start: u32) -> u32 {
        let in_time = |time: &PromptTime| time.tokens_from(start).max(self.least).min(self.tokens);
        self.time.as_ref().map_or(self.tokens, in_time)
    }

    /// A sequence got so many.
    pub fn spend(&mut self, start: u32, query_len: u32) {
        self.tokens -= query_len;
        if let Some(time) = &mut self.time {
            time.left_us -= chunk_us(&time.costs, start, query_len);
            self.least = self.least.saturating_sub(query_len);
        }
    }

    /// Whether nobody may have any more.
    pub fn is_spent(&self) -> bool {
        self.tokens_from(0) == 0
    }
}

impl PromptTime {
    fn tokens_from(&self, start: u32) -> u32 {
        let in_time =
            (self.left_us - chunk_us(&self.costs, start, 0)) / chunk_us(&self.costs, 0, 1);
        // A number below zero, or none, becomes zero, and one without end the largest there is.
        in_time as u32
    }
}

/// What a chunk of a prompt adds to a step: its context ends with it.
fn chunk_us(costs: &CostModel, start: u32, query_len: u32) -> f64 {
    costs.prefill_us_per_token * f64::from(query_len)
        + costs.context_us_per_1k * (f64::from(start) + f64::from(query_len)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::seated::tests::spec;
    use super::*;

    const TARGET: Duration = Duration::from_millis(50);

    fn costs() -> CostModel {
        CostModel {
            step_us: 4_000.0,
            decode_us_per_sequence: 10.0,
            prefill_us_per_token: 20.0,
            context_us_per_1k: 30.0,
            ..CostModel::default()
        }
    }

    /// With blocks of four.
    fn budget(max_step_tokens: u32) -> StepBudget {
        StepBudget::of(&LaneSpec { max_step_tokens, ..spec() })
    }

    fn decoding(decodes: u32) -> StepWork {
        StepWork { decodes, prompt_tokens: 0, context: u64::from(decodes) * 100 }
    }

    /// Chunks of prompts that begin at `start`, of `len` tokens each, and how long the step then takes.
    fn step(decodes: u32, waiting: usize, start: u32, len: u32) -> (Vec<u32>, f64) {
        let mut left = budget(8_192 - decodes);
        let mut work = decoding(decodes);
        left.bound_time(costs(), TARGET, &work, waiting);
        let mut chunks = Vec::new();
        while !left.is_spent() {
            let chunk = left.tokens_from(start).min(len);
            if chunk == 0 {
                break;
            }
            left.spend(start, chunk);
            work.add(chunk, start + chunk);
            chunks.push(chunk);
        }
        (chunks, costs().micros(&work) / 1e3)
    }

    #[test]
    fn without_a_bound_of_time_all_tokens_are_there() {
        let mut left = budget(100);
        assert_eq!(left.tokens_from(5_000), 100);
        left.spend(5_000, 100);
        assert!(left.is_spent());
    }

    #[test]
    fn prompts_fill_the_step_up_to_its_target() {
        for (decodes, start) in [(1, 0), (100, 0), (512, 0), (100, 20_000), (100, 300_000)] {
            let (chunks, ms) = step(decodes, 1, start, 500);
            assert!(ms <= 50.0 && ms > 45.0 - f64::from(start) / 3e4, "{decodes}: {chunks:?} {ms}");
        }
    }

    #[test]
    fn a_step_holds_no_more_tokens_than_the_device_takes() {
        let free = CostModel { prefill_us_per_token: 0.0, context_us_per_1k: 0.0, ..costs() };
        let mut left = budget(300);
        left.bound_time(free, TARGET, &decoding(4), 1);
        assert_eq!(left.tokens_from(9), 300);
    }

    #[test]
    fn on_a_slow_device_prompts_get_as_much_time_as_decodes_and_a_block_in_any_case() {
        let slow = CostModel { step_us: 2e6, prefill_us_per_token: 5e3, ..costs() };
        let mut left = budget(500);
        left.bound_time(slow, TARGET, &decoding(4), 1);
        assert_eq!(left.tokens_from(0), 400, "two seconds' worth");
        let slower = CostModel { step_us: 2e5, prefill_us_per_token: 1e5, ..costs() };
        left.bound_time(slower, TARGET, &decoding(4), 1);
        assert_eq!(left.tokens_from(0), 4);
        left.spend(0, 3);
        assert_eq!(left.tokens_from(0), 1);
        left.spend(0, 1);
        assert!(left.is_spent());
    }

    #[test]
    fn where_more_wait_than_decode_the_step_is_longer_until_throughput_gains_nothing() {
        let lengths = [1, 400, 600, 800, 10_000].map(|waiting| step(100, waiting, 0, 500).1);
        let rounded = lengths.map(|ms| (ms / 5.0).round() * 5.0);
        assert_eq!(rounded, [50.0, 50.0, 75.0, 100.0, 135.0], "{lengths:?}");
        assert!(costs().step_us / (lengths[4] * 1e3) < FIXED_SHARE * 1.01);
    }
}
