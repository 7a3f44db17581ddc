//! Who of those that wait gets a seat.

use super::lane::{Lane, Row};
use super::seated::{Output, SeatState, Seated};
use super::step_budget::StepBudget;
use crate::reply::Delivery;
use crate::request::FinishReason;
use crate::sequence::Sequence;

impl<S: Clone> Lane<S> {
    /// Seats those that wait, in their order. None passes another for want of memory: whoever was sent here had credit, so the first
    /// one is kept back only while a pre-empted sequence needs its blocks again. Those that wait for a prefix let others pass.
    pub(super) fn start_newcomers(
        &mut self,
        budget: &mut StepBudget,
        rows: &mut Vec<Row>,
        out: &mut Output<S>,
    ) {
        while !budget.is_spent()
            && !self.stalled
            && !self.free_seats.is_empty()
            && let Some(next) = self.next_newcomer()
            && self.fits(&self.waiting[next].sequence)
        {
            let waiting = self.waiting.remove(next);
            let seat = self.seat(waiting, out);
            let exhausted = self.seats[seat as usize]
                .as_ref()
                .is_some_and(|run| run.is_exhausted(self.spec.max_seq_len));
            if exhausted {
                self.end_without_step(seat, out);
            } else if self.is_due(seat, true) || self.is_due(seat, false) {
                self.give(seat, budget, rows, out);
            }
        }
    }

    fn next_newcomer(&self) -> Option<usize> {
        self.waiting.iter().position(|waiting| !self.waits_for_prefix(&waiting.sequence))
    }

    /// Whether a seated sequence is about to compute most of what this one has to: the samples of one request, or a burst of requests
    /// with the same beginning, pay for one prefill. Who computes it has a seat, so the wait ends.
    fn waits_for_prefix(&self, sequence: &Sequence) -> bool {
        if !self.spec.enable_prefix_cache || sequence.needs_scores() {
            return false;
        }
        let soon = self.order.iter().filter_map(|seat| self.seats[*seat as usize].as_ref());
        let soon = soon.map(|run| self.soon_shared(run, sequence)).max().unwrap_or(0);
        if soon == 0 {
            return false;
        }
        let now = self.kv.num_cached(sequence.prefix());
        let (gain, rest) = (soon.saturating_sub(now), sequence.len() - now);
        gain >= rest.div_ceil(2)
    }

    /// Tokens of `sequence` that `run` brings into the prefix cache, if some of them are not there yet.
    fn soon_shared(&self, run: &Seated<S>, sequence: &Sequence) -> u32 {
        let block_size = self.spec.block_size;
        // As the cache has it: whole blocks, and never a sequence's last token.
        let shareable = run.sequence.len().min(sequence.len() - 1) / block_size * block_size;
        // Nearly everybody with a seat decodes, past what any newcomer could share: their tokens are not looked at.
        let same_salt = run.sequence.salt == sequence.salt;
        if run.state != SeatState::Running || shareable <= run.settled || !same_salt {
            return 0;
        }
        let same = run.sequence.token_ids[..shareable as usize]
            .chunks_exact(block_size as usize)
            .zip(sequence.token_ids.chunks_exact(block_size as usize))
            .take_while(|(ours, theirs)| ours == theirs)
            .count();
        let shared = same as u32 * block_size;
        if shared > run.settled { shared } else { 0 }
    }

    /// Whether the blocks that nobody was promised are enough for a sequence. An empty lane takes anyone: what could never
    /// fit was refused.
    fn fits(&self, sequence: &Sequence) -> bool {
        let alone = self.order.is_empty() && self.leaving == 0;
        alone || self.estimate(sequence) <= self.unpromised_blocks()
    }

    /// A sequence that may not have one token more than it came with.
    fn end_without_step(&mut self, seat: u32, out: &mut Output<S>) {
        if let Some(run) = &self.seats[seat as usize] {
            let (stream, attempt) = (run.stream.clone(), run.sequence.attempt);
            out.produced.push(Delivery::end(stream, attempt, FinishReason::Length));
        }
        self.end(seat);
    }
}

#[cfg(test)]
mod tests {
    use super::super::lane::LaneSpec;
    use super::super::policy::{Batching, PlannedStep};
    use super::*;
    use crate::bridge::ffi::StepOutput;
    use crate::ids::ModelId;
    use crate::sequence::testing::sequence;

    fn policy(enable_prefix_cache: bool) -> Batching<u64> {
        let mut policy = Batching::default();
        policy.add_model(LaneSpec {
            model: ModelId(0),
            num_blocks: 32,
            block_size: 4,
            max_batch_size: 8,
            max_step_tokens: 8,
            step_time_target: None,
            max_seq_len: 64,
            window: None,
            end_token_ids: Vec::new(),
            enable_prefix_cache,
            reserve_tokens: 0,
        });
        policy
    }

    /// Sequence `id` with the prompt of sequence 1.
    fn sample(id: u64, prompt: u32) -> Sequence {
        Sequence { token_ids: sequence(1, prompt, 4).token_ids, ..sequence(id, prompt, 4) }
    }

    /// Tokens that the next steps compute, until nothing is left to do.
    fn run(policy: &mut Batching<u64>, out: &mut Output<u64>) -> Vec<Vec<u32>> {
        let mut steps = Vec::new();
        while let Some(PlannedStep { step, batch, .. }) = policy.next_step(out) {
            steps.push(batch.query_lens.clone());
            let output = StepOutput::of_tokens(vec![50; batch.seats.len()], &batch.sample);
            policy.settle(step, &output, batch, out).expect("in order");
            assert_eq!(policy.audit(), Ok(()));
        }
        steps
    }

    #[test]
    fn samples_of_one_prompt_pay_for_one_prefill_and_others_pass_them() {
        let (mut policy, mut out) = (policy(true), Output::default());
        for id in 1..=3 {
            policy.assign(sample(id, 14), id).expect("the model is here");
        }
        policy.assign(sequence(9, 2, 1), 9).expect("the model is here");
        let steps = run(&mut policy, &mut out);
        assert_eq!(steps[..3], [vec![8], vec![6, 2], vec![1, 2, 2]]);
        let cached: Vec<_> =
            out.started.iter().map(|one| (one.stream, one.cached_tokens)).collect();
        assert_eq!(cached, [(1, 0), (9, 0), (2, 12), (3, 12)]);
        assert_eq!(out.produced.iter().filter(|one| one.finish.is_some()).count(), 4);
    }

    #[test]
    fn a_prompt_of_another_salt_neither_waits_nor_shares() {
        let (mut policy, mut out) = (policy(true), Output::default());
        policy.assign(sample(1, 14), 1).expect("the model is here");
        policy.assign(Sequence { salt: 7, ..sample(2, 14) }, 2).expect("the model is here");
        let steps = run(&mut policy, &mut out);
        assert_eq!(steps[..2], [vec![8], vec![6, 2]], "it starts beside the first");
        assert!(out.started.iter().all(|one| one.cached_tokens == 0));
    }

    #[test]
    fn when_the_first_goes_the_second_computes_the_prompt() {
        let (mut policy, mut out) = (policy(true), Output::default());
        let first = sample(1, 14);
        let handle = first.handle.clone();
        policy.assign(first, 1).expect("the model is here");
        policy.assign(sample(2, 14), 2).expect("the model is here");
        let step = policy.next_step(&mut out).expect("work");
        handle.cancel();
        let output = StepOutput::of_tokens(vec![50], &step.batch.sample);
        policy.settle(step.step, &output, step.batch, &mut out).expect("in order");
        let steps = run(&mut policy, &mut out);
        assert_eq!(steps[0], [6], "two blocks of the first's are left");
    }

    #[test]
    fn nobody_waits_without_a_prefix_cache_or_for_less_than_half_of_a_prompt() {
        let (mut without, mut out) = (policy(false), Output::default());
        let (mut with, mut short) = (policy(true), sequence(2, 20, 4));
        short.token_ids[..6].copy_from_slice(&sample(1, 6).token_ids);
        for policy in [&mut without, &mut with] {
            policy.assign(sample(1, 6), 1).expect("the model is here");
            policy.assign(short.clone(), 2).expect("the model is here");
            let step = policy.next_step(&mut out).expect("work");
            assert_eq!(step.batch.query_lens, [6, 2]);
        }
    }
}
