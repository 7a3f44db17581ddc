//! What a step costs, learned from the steps that a device has done: least squares with forgetting.
//!
//! Each step adds its relative error, so that a step of 4 ms counts as much as one of 200; one that took far longer than was to be
//! expected (a stall, a graph that was recorded) counts less by the square of that, so no step can lead far away.
//!
//! Steps with and without prompt tokens are forgotten apart, each by those of its own kind: minutes of decoding must not forget
//! what a prompt costs. The sums are solved one cost after the other from where they stood (projected Gauss-Seidel), so that nothing
//! falls below zero, and what the last steps do not tell apart stays as it was: at first all of it is the prompt tokens'.

use std::time::Duration;

use super::cost_model::{CostModel, StepWork};

/// So many steps of a kind count: those of a few seconds, and enough for noise of a tenth to even out.
const MEMORY_STEPS: f64 = 128.0;

/// Before so many steps the costs are not told, nor before [`TRUSTED_AFTER_PROMPTS`] with prompt tokens: a first one that takes
/// seconds is overcome by then. A burst of prompts into an empty node has about as many.
const TRUSTED_AFTER: u32 = 8;
/// See [`TRUSTED_AFTER`].
const TRUSTED_AFTER_PROMPTS: u32 = 6;

/// Rounds over all costs with each step: they go on from the last ones, so a few are enough.
const ROUNDS: usize = 8;

/// Positions of context are counted in thousands.
const CONTEXT_UNIT: f64 = 1000.0;

/// As many as there are costs.
const NUM_COSTS: usize = 4;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct CostFit {
    decode_steps: StepSums,
    prompt_steps: StepSums,
    /// Microseconds, in the order of [`counts`].
    costs: [f64; NUM_COSTS],
}

/// The normal equations of one kind of steps.
#[derive(Debug, Clone, Copy, Default)]
struct StepSums {
    num_steps: u32,
    squares: [[f64; NUM_COSTS]; NUM_COSTS],
    products: [f64; NUM_COSTS],
}

impl CostFit {
    /// A step is done. `took`: by the device's clock; zero says nothing.
    pub fn learn(&mut self, work: &StepWork, took: Duration) {
        if took.is_zero() {
            return;
        }
        let took_us = took.as_secs_f64() * 1e6;
        let counts = counts(work);
        // Held against the longer of both: a step that took next to nothing is no better known than others.
        let unit = took_us.max(dot(&counts, &self.costs));
        let sums =
            if work.prompt_tokens > 0 { &mut self.prompt_steps } else { &mut self.decode_steps };
        sums.add(counts.map(|count| count / unit), took_us / unit);
        self.solve();
    }

    /// The costs of a step, with nothing else in the model; none before they are to be trusted.
    pub fn costs(&self) -> Option<CostModel> {
        let prompts = self.prompt_steps.num_steps;
        let steps = prompts.saturating_add(self.decode_steps.num_steps);
        let [prefill_us_per_token, decode_us_per_sequence, context_us_per_1k, step_us] = self.costs;
        (steps >= TRUSTED_AFTER && prompts >= TRUSTED_AFTER_PROMPTS).then(|| CostModel {
            step_us,
            decode_us_per_sequence,
            prefill_us_per_token,
            context_us_per_1k,
            ..CostModel::default()
        })
    }

    fn solve(&mut self) {
        let Self { decode_steps: a, prompt_steps: b, costs } = self;
        for _ in 0..ROUNDS {
            for at in 0..NUM_COSTS {
                let square = a.squares[at][at] + b.squares[at][at];
                if square > 0.0 {
                    let explained = dot(&a.squares[at], costs) + dot(&b.squares[at], costs);
                    let rest = a.products[at] + b.products[at] - explained;
                    costs[at] = (costs[at] + rest / square).max(0.0);
                }
            }
        }
    }
}

/// What each cost is for. Where steps are all alike, nobody can say which part of them costs the time. The first takes it then,
/// and what every step costs comes last: thought to be large it would make steps long, and they would stay alike.
fn counts(work: &StepWork) -> [f64; NUM_COSTS] {
    let context = work.context as f64 / CONTEXT_UNIT;
    [f64::from(work.prompt_tokens), f64::from(work.decodes), context, 1.0]
}

impl StepSums {
    fn add(&mut self, counts: [f64; NUM_COSTS], took: f64) {
        self.num_steps = self.num_steps.saturating_add(1);
        let kept = 1.0 - 1.0 / MEMORY_STEPS;
        for (at, count) in counts.iter().enumerate() {
            for (square, other) in self.squares[at].iter_mut().zip(counts) {
                *square = *square * kept + count * other;
            }
            self.products[at] = self.products[at] * kept + count * took;
        }
    }
}

fn dot(a: &[f64; NUM_COSTS], b: &[f64; NUM_COSTS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// About an H200 with an 8B.
    fn device() -> CostModel {
        CostModel {
            step_us: 3700.0,
            decode_us_per_sequence: 9.0,
            prefill_us_per_token: 22.0,
            context_us_per_1k: 30.0,
            ..CostModel::default()
        }
    }

    /// Numbers that look drawn, the same in every run (Numerical Recipes' generator of 32 bits).
    struct Drawn(u32);

    impl Drawn {
        /// From 0 to 1.
        fn share(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(self.0 >> 8) / f64::from(1 << 24)
        }

        fn up_to(&mut self, most: u32) -> u32 {
            (self.share() * f64::from(most)) as u32
        }

        /// Every other step with a prompt.
        fn work(&mut self, step: u32) -> StepWork {
            let decodes = 1 + self.up_to(256);
            let prompt_tokens = if step.is_multiple_of(2) { 2 + self.up_to(2_000) } else { 0 };
            let context = u64::from(decodes) * u64::from(64 + self.up_to(1_000));
            StepWork { decodes, prompt_tokens, context: context + u64::from(prompt_tokens) }
        }
    }

    fn spend(fit: &mut CostFit, work: &StepWork, us: f64) {
        fit.learn(work, Duration::from_secs_f64(us * 1e-6));
        assert!(fit.costs.iter().all(|cost| *cost >= 0.0), "{fit:?}");
    }

    /// A fit of so many steps of a device, each times what `noise` draws.
    fn fitted(of: &CostModel, steps: u32, mut noise: impl FnMut(&mut Drawn) -> f64) -> CostFit {
        let (mut fit, mut drawn) = (CostFit::default(), Drawn(7));
        for step in 0..steps {
            let work = drawn.work(step);
            let factor = noise(&mut drawn);
            spend(&mut fit, &work, of.micros(&work) * factor);
        }
        fit
    }

    /// How far the costs are from the device's, as shares of them.
    fn errors(fit: &CostFit, of: &CostModel) -> Vec<f64> {
        let costs = fit.costs().expect("trusted").of_step();
        costs
            .iter()
            .zip(of.of_step())
            .map(|((_, got), (_, cost))| (got / cost - 1.0).abs())
            .collect()
    }

    /// The largest error of the time of steps that were not learned.
    fn error_of_steps(fit: &CostFit, of: &CostModel) -> f64 {
        let (costs, mut drawn) = (fit.costs().expect("trusted"), Drawn(99));
        let works = (0..200).map(|step| drawn.work(step));
        works.map(|work| (costs.micros(&work) / of.micros(&work) - 1.0).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn finds_the_costs_of_a_device() {
        let exact = fitted(&device(), 600, |_| 1.0);
        assert!(errors(&exact, &device()).iter().all(|error| *error < 0.01), "{exact:?}");
        let noisy = fitted(&device(), 600, |drawn| 0.95 + 0.1 * drawn.share());
        assert!(errors(&noisy, &device()).iter().all(|error| *error < 0.15), "{noisy:?}");
        assert!(error_of_steps(&noisy, &device()) < 0.03, "{noisy:?}");
    }

    #[test]
    fn stalls_and_steps_that_took_nothing_lead_nowhere() {
        // One in ten takes three times as long, one in fifty a hundred times; some clocks tell nonsense.
        let fit = fitted(&device(), 600, |drawn| match drawn.up_to(100) {
            0..10 => 3.0,
            10..12 => 100.0,
            12 => 0.001,
            _ => 0.97 + 0.06 * drawn.share(),
        });
        assert!(error_of_steps(&fit, &device()) < 0.1, "{fit:?}");
    }

    #[test]
    fn a_first_step_that_takes_seconds_is_overcome_before_anyone_trusts() {
        let mut first = true;
        let mut slow_once = |_: &mut Drawn| if std::mem::take(&mut first) { 200.0 } else { 1.0 };
        let fit = fitted(&device(), 2 * TRUSTED_AFTER_PROMPTS, &mut slow_once);
        assert!(error_of_steps(&fit, &device()) < 0.15, "{fit:?}");
    }

    #[test]
    fn tells_nothing_before_it_has_seen_enough_of_both_kinds() {
        let (mut fit, device) = (CostFit::default(), device());
        let decodes = StepWork { decodes: 8, prompt_tokens: 0, context: 800 };
        let prompts = StepWork { decodes: 8, prompt_tokens: 500, context: 1300 };
        for _ in 0..TRUSTED_AFTER * 2 {
            spend(&mut fit, &decodes, device.micros(&decodes));
        }
        for _ in 0..TRUSTED_AFTER_PROMPTS {
            assert_eq!(fit.costs(), None);
            spend(&mut fit, &prompts, device.micros(&prompts));
        }
        assert!(fit.costs().is_some());
        let known = fit.costs();
        fit.learn(&decodes, Duration::ZERO);
        assert_eq!(fit.costs(), known, "no time, no word");
    }

    #[test]
    fn follows_a_device_that_becomes_slower_or_faster() {
        for factor in [0.5, 2.0] {
            let [a, b, c, d] = device().of_step().map(|(_, cost)| cost * factor);
            let other = CostModel {
                step_us: a,
                decode_us_per_sequence: b,
                prefill_us_per_token: c,
                context_us_per_1k: d,
                ..CostModel::default()
            };
            let mut fit = fitted(&device(), 600, |_| 1.0);
            let mut drawn = Drawn(8);
            for step in 0..800 {
                let work = drawn.work(step);
                spend(&mut fit, &work, other.micros(&work));
            }
            assert!(error_of_steps(&fit, &other) < 0.1, "{factor}: {fit:?}");
        }
    }

    #[test]
    fn hours_of_decoding_forget_no_prompt() {
        let (mut fit, device) = (fitted(&device(), 600, |_| 1.0), device());
        let decodes = StepWork { decodes: 16, prompt_tokens: 0, context: 8_000 };
        let mut drawn = Drawn(3);
        for _ in 0..100_000 {
            spend(&mut fit, &decodes, device.micros(&decodes) * (0.98 + 0.04 * drawn.share()));
        }
        assert!(error_of_steps(&fit, &device) < 0.1, "{fit:?}");
    }
}
