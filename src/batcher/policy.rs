//! The batcher's policy: lanes of models that take turns, and the steps in flight.

use std::collections::VecDeque;

use super::gathering::Newcomers;
use super::lane::{Lane, LaneSpec, Row};
use super::seated::{Departure, Output, SeatState, Waiting};
use super::settle::check_answer;
use super::{Credit, step_batch};
use crate::bridge::ffi::{StepBatch, StepOutput};
use crate::executor::{CostModel, SeatBinding};
use crate::ids::{DeviceId, ModelId};
use crate::sequence::{Sequence, most_blocks_needed};

/// Steps that the device may hold: one runs, the next stands ready, so it never waits for the host. A third would only make
/// decisions earlier than necessary.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;

/// A step for the device.
#[derive(Debug)]
pub struct PlannedStep {
    /// Its number, growing.
    pub step: u64,
    /// The model whose weights and blocks the step uses.
    pub model: ModelId,
    /// Seats that the device is to bind before.
    pub bindings: Vec<SeatBinding>,
    /// The flat arrays.
    pub batch: Box<StepBatch>,
}

/// An answer of the device that fits no step: nothing it says can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Defect(pub String);

/// Why a sequence was not taken.
#[derive(Debug)]
pub enum Refused<S> {
    /// The model is not, or no longer, here.
    UnknownModel(Sequence, S),
    /// At its full length it needs more KV blocks than the model has.
    TooLong {
        /// What was to run.
        sequence: Sequence,
        /// Where its tokens go.
        stream: S,
        /// Blocks needed.
        needed: u32,
        /// Blocks there are.
        total: u32,
    },
}

/// How much is here, over all lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Sequences with a seat.
    pub running: u32,
    /// Sequences without one.
    pub waiting: u32,
    /// KV blocks held by sequences.
    pub used_blocks: u32,
    /// All KV blocks.
    pub total_blocks: u32,
}

#[derive(Debug)]
struct InFlight {
    step: u64,
    model: ModelId,
    rows: Vec<Row>,
}

/// The policy of one device. Pure: what happens comes in by calls, what is to be told goes out through [`Output`].
#[derive(Debug)]
pub struct Batching<S> {
    lanes: Vec<Lane<S>>,
    in_flight: VecDeque<InFlight>,
    next_step: u64,
    /// The lane that is asked first.
    turn: usize,
    #[expect(clippy::vec_box, reason = "what lies here goes from actor to actor")]
    spare_batches: Vec<Box<StepBatch>>,
    spare_rows: Vec<Vec<Row>>,
}

impl<S: Clone> Default for Batching<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone> Batching<S> {
    /// A device without models.
    pub fn new() -> Self {
        Self {
            lanes: Vec::new(),
            in_flight: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            next_step: 1,
            turn: 0,
            spare_batches: Vec::with_capacity(MAX_STEPS_IN_FLIGHT),
            spare_rows: Vec::with_capacity(MAX_STEPS_IN_FLIGHT),
        }
    }

    /// Opens a lane for a model whose weights are on the device.
    pub fn add_model(&mut self, spec: LaneSpec) {
        self.lanes.push(Lane::new(spec));
    }

    /// Gives no more credit for a model.
    pub fn close_model(&mut self, model: ModelId) {
        if let Some(lane) = self.lane_mut(model) {
            lane.open = false;
        }
    }

    /// Forgets a model, if none of its sequences is here (and so no step of it in flight); false if one is.
    pub fn remove_model(&mut self, model: ModelId) -> bool {
        if self.lane(model).is_some_and(|lane| !lane.is_empty()) {
            return false;
        }
        self.lanes.retain(|lane| lane.model() != model);
        self.turn = 0;
        true
    }

    /// Takes a sequence; it gets a seat with one of the next steps.
    ///
    /// # Errors
    /// Gives it back with the reason.
    pub fn assign(&mut self, sequence: Sequence, stream: S) -> Result<(), Refused<S>> {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.model() == sequence.model) else {
            return Err(Refused::UnknownModel(sequence, stream));
        };
        lane.assigned += 1;
        let needed = most_blocks_needed(&sequence, lane.spec.block_size);
        let total = lane.spec.num_blocks;
        if needed > total || sequence.is_empty() {
            return Err(Refused::TooLong { sequence, stream, needed, total });
        }
        lane.enqueue(Waiting { sequence, stream, preemptions: 0, started: false });
        Ok(())
    }

    /// Lets go of sequences that nobody wants any more, whatever is in flight.
    pub fn sweep(&mut self, out: &mut Output<S>) {
        self.lanes.iter_mut().for_each(|lane| lane.retire_unwanted(out));
    }

    /// Forms a step, if there is something to do and room for one in flight. The lanes with work take turns.
    pub fn next_step(&mut self, out: &mut Output<S>) -> Option<PlannedStep> {
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT {
            return None;
        }
        let mut rows = self.spare_rows.pop().unwrap_or_default();
        rows.clear();
        for offset in 0..self.lanes.len() {
            let index = (self.turn + offset) % self.lanes.len();
            let lane = &mut self.lanes[index];
            lane.plan(&mut rows, out);
            if rows.is_empty() {
                continue;
            }
            self.turn = index + 1;
            let mut batch = self.spare_batches.pop().unwrap_or_default();
            step_batch::fill(&mut batch, lane, &rows);
            let bindings = step_batch::bindings(lane);
            let (step, model) = (self.next_step, lane.model());
            self.next_step += 1;
            self.in_flight.push_back(InFlight { step, model, rows });
            return Some(PlannedStep { step, model, bindings, batch });
        }
        self.spare_rows.push(rows);
        None
    }

    /// Newcomers of the one lane that has any, if nothing else is to be done.
    pub(super) fn newcomers(&self) -> Option<Newcomers> {
        let mut of_all = None;
        for lane in &self.lanes {
            let newcomers = lane.newcomers()?;
            if newcomers.waiting > 0 && of_all.replace(newcomers).is_some() {
                return None;
            }
        }
        of_all
    }

    /// Takes a step's answer in; returns how many tokens it computed.
    ///
    /// # Errors
    /// [`Defect`] if it is not the answer of the step that was sent first; treat it as a failed step.
    pub fn settle(
        &mut self,
        step: u64,
        output: &StepOutput,
        batch: Box<StepBatch>,
        out: &mut Output<S>,
    ) -> Result<u32, Defect> {
        let Some(sent) = self.in_flight.front().filter(|sent| sent.step == step) else {
            let sent = self.in_flight.front().map(|sent| sent.step);
            return Err(Defect(format!("expected the answer of step {sent:?}, got {step}'s")));
        };
        check_answer(&sent.rows, output).map_err(Defect)?;
        let Some(sent) = self.in_flight.pop_front() else { return Ok(0) };
        let computed = sent.rows.iter().map(|row| row.query_len).sum();
        self.lanes.iter_mut().for_each(Lane::step_ended);
        if let Some(lane) = self.lane_mut(sent.model) {
            lane.settle(&sent.rows, output, out);
        }
        self.spare_rows.push(sent.rows);
        self.spare_batches.push(batch);
        Ok(computed)
    }

    /// Gives up all sequences and lanes. `failed` is the step that did so, if one did: its members have
    /// one failed step more.
    pub fn depart(&mut self, failed: Option<u64>) -> Vec<Departure<S>> {
        let failed = self.in_flight.iter().find(|sent| Some(sent.step) == failed);
        let mut gone = Vec::new();
        for lane in &mut self.lanes {
            let rows = failed.filter(|sent| sent.model == lane.model());
            gone.append(&mut lane.depart(rows.map_or(&[], |sent| &sent.rows)));
        }
        self.lanes.clear();
        self.in_flight.clear();
        gone
    }

    /// What the scheduler may send, one for each lane.
    pub fn credits<'a>(
        &'a self,
        device: &'a DeviceId,
        generation: u64,
    ) -> impl Iterator<Item = Credit> + 'a {
        self.lanes.iter().map(move |lane| lane.credit(device, generation))
    }

    /// How much is here.
    pub fn load(&self) -> Occupancy {
        self.lanes.iter().fold(Occupancy::default(), |sum, lane| Occupancy {
            running: sum.running + lane.order.len() as u32 + lane.leaving,
            waiting: sum.waiting + lane.waiting.len() as u32,
            used_blocks: sum.used_blocks + lane.kv.num_blocks() - lane.kv.num_available(),
            total_blocks: sum.total_blocks + lane.kv.num_blocks(),
        })
    }

    /// Sequences with a seat that were held when the unwanted were retired: no step is formed for them until somebody lets them go on.
    pub fn num_held(&self) -> u32 {
        self.lanes.iter().map(|lane| lane.num_held).sum()
    }

    /// What a model's steps cost, by those that are done; none before that is known.
    pub fn costs(&self, model: ModelId) -> Option<CostModel> {
        self.lane(model)?.costs()
    }

    /// Steps in flight.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Seats of all lanes: as many sequences can be assigned at once.
    pub fn num_seats(&self) -> usize {
        self.lanes.iter().map(|lane| lane.seats.len()).sum()
    }

    /// Holds every count against what it counts; for tests, after every event.
    ///
    /// # Errors
    /// Says which is wrong.
    pub fn audit(&self) -> Result<(), String> {
        if self.in_flight.len() > MAX_STEPS_IN_FLIGHT {
            return Err(format!("{} steps in flight", self.in_flight.len()));
        }
        self.lanes.iter().try_for_each(|lane| self.audit_lane(lane))
    }

    fn audit_lane(&self, lane: &Lane<S>) -> Result<(), String> {
        let seated = || lane.seats.iter().flatten();
        lane.kv.audit(seated().map(|run| run.held()))?;
        let running = seated().filter(|run| run.state == SeatState::Running).count();
        if running != lane.order.len() || running + lane.leaving as usize != seated().count() {
            return Err(format!("{running} running, {} leaving, wrong order", lane.leaving));
        }
        let sent = self.in_flight.iter().filter(|sent| sent.model == lane.model());
        let mut steps = vec![0; lane.seats.len()];
        for row in sent.flat_map(|sent| &sent.rows) {
            steps[row.seat as usize] += 1;
            let held = lane.seats[row.seat as usize].as_ref().map_or(0, |run| run.table.len());
            if (held as u32 * lane.spec.block_size) < row.start + row.query_len {
                return Err(format!(
                    "seat {}: a step in flight writes blocks given back",
                    row.seat
                ));
            }
        }
        for (seat, steps) in lane.seats.iter().zip(steps) {
            if seat.as_ref().map_or(0, |run| run.in_flight) != steps {
                return Err(format!("a sequence counts other than {steps} steps in flight"));
            }
        }
        Ok(())
    }

    fn lane(&self, model: ModelId) -> Option<&Lane<S>> {
        self.lanes.iter().find(|lane| lane.model() == model)
    }

    fn lane_mut(&mut self, model: ModelId) -> Option<&mut Lane<S>> {
        self.lanes.iter_mut().find(|lane| lane.model() == model)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::seated::tests::spec;
    use super::*;
    use crate::bridge::ffi::RowStatus;
    use crate::reply::RowFault;
    use crate::request::{FinishReason, Scores};
    use crate::sequence::testing::sequence;

    /// A policy with the sequences given: (id, prompt, max_tokens).
    fn policy(spec: LaneSpec, of: &[(u64, u32, u32)]) -> (Batching<u64>, Output<u64>) {
        let mut policy = Batching::default();
        policy.add_model(spec);
        for (id, prompt, max_tokens) in of {
            policy.assign(sequence(*id, *prompt, *max_tokens), *id).expect("the model is here");
        }
        (policy, Output::default())
    }

    /// The query lengths of a step.
    fn lens(step: &PlannedStep) -> Vec<u32> {
        step.batch.query_lens.clone()
    }

    fn settle(policy: &mut Batching<u64>, out: &mut Output<u64>, step: PlannedStep, token: u32) {
        let token_ids = vec![token; step.batch.seats.len()];
        let output = StepOutput::of_tokens(token_ids, &step.batch.sample);
        policy.settle(step.step, &output, step.batch, out).expect("in order");
        assert_eq!(policy.audit(), Ok(()));
    }

    #[test]
    fn the_counters_go_as_the_example_of_a_seat_has_it() {
        let spec = LaneSpec { max_step_tokens: 4, ..spec() };
        let (mut policy, mut out) = policy(spec, &[(1, 6, 3)]);
        let counters = |policy: &Batching<u64>| {
            let run = policy.lanes[0].seats[0].as_ref().expect("it has a seat");
            (run.sequence.len(), run.computed, run.settled, run.unseen, run.in_flight)
        };
        let (mut seen, mut sent) = (Vec::new(), VecDeque::new());
        for event in ["form", "form", "done", "form", "done", "form", "done"] {
            match event {
                "form" => sent.push_back(policy.next_step(&mut out).expect("work")),
                _ => settle(&mut policy, &mut out, sent.pop_front().expect("in flight"), 50),
            }
            seen.push(counters(&policy));
        }
        assert!(policy.next_step(&mut out).is_none(), "all that is wanted is under way");
        settle(&mut policy, &mut out, sent.pop_front().expect("the last"), 50);
        assert!(policy.lanes[0].is_empty());
        let page =
            include_str!("seated.rs").lines().filter_map(|line| line.strip_prefix("/// | step"));
        let rows = page.filter_map(|line| {
            let mut cells = line.split('|').skip(1).map(|cell| cell.trim().parse::<u32>());
            let mut next = || cells.next()?.ok();
            Some((next()?, next()?, next()?, next()?, next()?))
        });
        assert_eq!(seen, rows.collect::<Vec<_>>(), "the code (left) and the table (right)");
    }

    #[test]
    fn decodes_come_first_and_prefill_chunks_share_the_rest_of_the_budget() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9), (2, 10, 9)]);
        let first = policy.next_step(&mut out).expect("work");
        assert_eq!(lens(&first), [3, 5]);
        assert_eq!(first.batch.sample, [true, false]);
        let second = policy.next_step(&mut out).expect("formed while the first runs");
        assert_eq!(lens(&second), [1, 5]);
        assert_eq!(second.batch.feed_sampled, [true, false]);
        assert_eq!(second.batch.context_lens, [4, 10]);
        assert!(policy.next_step(&mut out).is_none(), "two are in flight");
        settle(&mut policy, &mut out, first, 50);
        assert_eq!(out.produced.len(), 1);
        assert_eq!(out.started.len(), 2);
        let third = policy.next_step(&mut out).expect("one is in flight");
        assert_eq!(
            (lens(&third), third.batch.feed_sampled.clone()),
            (vec![1, 1], vec![true, true])
        );
        settle(&mut policy, &mut out, second, 51);
        settle(&mut policy, &mut out, third, 52);
        let tokens = out.produced.iter().filter(|one| one.stream == 1);
        assert_eq!(
            tokens.flat_map(|one| one.token.as_ref().map(|token| token.id)).collect::<Vec<_>>(),
            [50, 51, 52]
        );
    }

    #[test]
    fn a_known_last_token_is_not_computed_any_further() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 1)]);
        let only = policy.next_step(&mut out).expect("work");
        assert!(policy.next_step(&mut out).is_none());
        settle(&mut policy, &mut out, only, 50);
        assert_eq!(out.produced[0].finish, Some(FinishReason::Length));
        assert!(policy.next_step(&mut out).is_none());
        assert_eq!(policy.load(), Occupancy { total_blocks: 8, ..Occupancy::default() });
    }

    #[test]
    fn what_is_sampled_after_an_end_token_is_told_to_nobody() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9)]);
        let first = policy.next_step(&mut out).expect("work");
        let second = policy.next_step(&mut out).expect("it may go on");
        settle(&mut policy, &mut out, first, 7);
        assert_eq!(policy.load().running, 1, "its blocks are still written");
        assert!(policy.load().used_blocks > 0);
        settle(&mut policy, &mut out, second, 50);
        assert_eq!(out.produced.len(), 1);
        assert_eq!(out.produced[0].finish, Some(FinishReason::Stop));
        assert_eq!((policy.load().running, policy.load().used_blocks), (0, 0));
    }

    #[test]
    fn a_cancel_is_looked_at_before_a_step_is_formed() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9), (2, 3, 9)]);
        let cancelled = sequence(3, 3, 9);
        let handle = cancelled.handle.clone();
        policy.assign(cancelled, 3).expect("the model is here");
        let first = policy.next_step(&mut out).expect("work");
        assert_eq!(first.batch.seats.len(), 3);
        handle.cancel();
        let second = policy.next_step(&mut out).expect("two go on");
        assert_eq!(second.batch.seats.len(), 2);
        assert_eq!(out.produced[0].finish, Some(FinishReason::Cancelled));
        settle(&mut policy, &mut out, first, 50);
        let ended: Vec<_> = out.produced.iter().filter(|one| one.stream == 3).collect();
        assert_eq!(ended.len(), 1, "its token of the first step comes too late");
    }

    #[test]
    fn the_youngest_gives_its_blocks_to_the_oldest_and_loses_no_token() {
        // Eight blocks of four; each grows to four and a half of them.
        let (mut policy, mut out) = policy(spec(), &[(1, 4, 15), (2, 4, 15)]);
        let mut ended = Vec::new();
        for round in 0..200 {
            let Some(step) = policy.next_step(&mut out) else { break };
            settle(&mut policy, &mut out, step, 100 + round);
            ended.extend(out.produced.iter().filter(|one| one.finish.is_some()).map(|o| o.stream));
        }
        assert_eq!(out.preemptions, 1);
        assert_eq!(ended.first(), Some(&1), "the older one was not held up");
        for stream in [1, 2] {
            let taken = out.produced.iter().filter(|one| one.stream == stream);
            assert_eq!(taken.filter(|one| one.token.is_some()).count(), 15);
        }
        assert_eq!(out.started.len(), 2, "a pre-emption is no new start");
    }

    #[test]
    fn lanes_with_work_take_turns() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9)]);
        policy.add_model(LaneSpec { model: ModelId(1), ..spec() });
        let mut other = sequence(2, 3, 9);
        other.model = ModelId(1);
        policy.assign(other, 2).expect("the model is here");
        let models: Vec<_> = (0..6)
            .filter_map(|_| {
                let step = policy.next_step(&mut out)?;
                let model = step.model.0;
                settle(&mut policy, &mut out, step, 50);
                Some(model)
            })
            .collect();
        assert_eq!(models, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn credit_counts_off_what_was_promised_and_what_waits() {
        let spec = LaneSpec { reserve_tokens: 8, ..spec() };
        let (mut policy, mut out) = policy(spec, &[(1, 4, 20)]);
        let device = DeviceId::new("sim:0");
        let credit = |policy: &Batching<u64>| policy.credits(&device, 3).next().expect("a lane");
        let waits = credit(&policy);
        assert_eq!((waits.assigned, waits.seats, waits.free_blocks), (1, 3, 5));
        policy.next_step(&mut out).expect("work");
        assert_eq!(credit(&policy), waits, "from waiting to running, nothing changes");
        policy.close_model(ModelId(0));
        assert!(!credit(&policy).open && !policy.remove_model(ModelId(0)));
        policy.depart(None);
        assert!(policy.remove_model(ModelId(0)));
        assert_eq!((policy.credits(&device, 3).count(), policy.num_seats()), (0, 0));
    }

    #[test]
    fn what_cannot_run_here_is_given_back() {
        let (mut policy, _) = policy(spec(), &[]);
        let mut foreign = sequence(1, 3, 9);
        foreign.model = ModelId(9);
        assert!(matches!(policy.assign(foreign, 1), Err(Refused::UnknownModel(_, 1))));
        assert!(matches!(
            policy.assign(sequence(2, 30, 9), 2),
            Err(Refused::TooLong { needed: 10, total: 8, .. })
        ));
    }

    #[test]
    fn members_of_a_failed_step_come_back_marked_and_run_alone_then() {
        let roomy = LaneSpec { num_blocks: 16, ..spec() };
        let (mut policy, mut out) = policy(roomy.clone(), &[(1, 3, 9), (2, 3, 9), (3, 8, 9)]);
        let first = policy.next_step(&mut out).expect("work");
        assert_eq!(lens(&first), [3, 3, 2]);
        policy.assign(sequence(4, 3, 9), 4).expect("the model is here");
        let mut gone = policy.depart(Some(first.step));
        gone.sort_by_key(|one| one.stream);
        let marks: Vec<_> = gone
            .iter()
            .map(|one| (one.sequence.failed_steps, one.sequence.failed_at, one.sequence.attempt))
            .collect();
        assert_eq!(marks, [(1, 3, 2), (1, 3, 2), (1, 2, 2), (0, 0, 1)]);
        assert_eq!(policy.load(), Occupancy::default());

        policy.add_model(roomy);
        for one in gone {
            policy.assign(one.sequence, one.stream).expect("the model is here");
        }
        let mut sizes = Vec::new();
        for _ in 0..8 {
            let step = policy.next_step(&mut out).expect("work");
            sizes.push(step.batch.seats.len());
            settle(&mut policy, &mut out, step, 50);
        }
        assert_eq!(sizes, [1, 1, 2, 1, 3, 1, 4, 4], "suspects alone, by turns with the others");
    }

    #[test]
    fn a_cached_beginning_does_not_clear_a_suspect() {
        let (mut policy, mut out) = policy(spec(), &[(1, 9, 9)]);
        for _ in 0..2 {
            let step = policy.next_step(&mut out).expect("work");
            settle(&mut policy, &mut out, step, 50);
        }
        let mut suspect = sequence(2, 9, 9);
        suspect.token_ids = sequence(1, 9, 9).token_ids;
        (suspect.failed_steps, suspect.failed_at) = (1, 4);
        policy.assign(suspect, 2).expect("the model is here");
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let step = policy.next_step(&mut out).expect("work");
            sizes.push(step.batch.seats.len());
            settle(&mut policy, &mut out, step, 50);
        }
        assert_eq!(
            out.started.last().map(|one| one.cached_tokens),
            Some(8),
            "past where it failed"
        );
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 2], "alone once, then with the other");
    }

    #[test]
    fn blocks_that_have_left_every_window_are_given_back() {
        let used = |window| {
            let spec = LaneSpec { window, enable_prefix_cache: false, ..spec() };
            let (mut policy, mut out) = policy(spec, &[(1, 8, 20)]);
            let mut used = Vec::new();
            while let Some(step) = policy.next_step(&mut out) {
                settle(&mut policy, &mut out, step, 50);
                used.push(policy.load().used_blocks);
            }
            assert_eq!(out.produced.len(), 20);
            used.into_iter().max()
        };
        assert_eq!(used(None), Some(7), "27 positions of four a block");
        assert_eq!(
            used(Some(6)),
            Some(2),
            "a window of six lies in three blocks at most, one of them new"
        );
    }

    #[test]
    fn only_what_a_done_step_has_computed_is_shared() {
        let roomy = LaneSpec { num_blocks: 16, ..spec() };
        let (mut policy, mut out) = policy(roomy, &[(1, 16, 2)]);
        let first = policy.next_step(&mut out).expect("half of the prompt");
        let second = policy.next_step(&mut out).expect("the other half");
        settle(&mut policy, &mut out, first, 50);
        let mut twin = sequence(2, 16, 2);
        twin.token_ids = sequence(1, 16, 2).token_ids;
        policy.assign(twin, 2).expect("the model is here");
        let third = policy.next_step(&mut out).expect("the first decodes");
        assert_eq!(out.started.len(), 1, "not what is in flight: the twin waits for it");
        settle(&mut policy, &mut out, second, 50);
        let fourth = policy.next_step(&mut out).expect("the twin starts");
        assert_eq!(out.started.last().map(|one| one.cached_tokens), Some(12));
        settle(&mut policy, &mut out, third, 50);
        settle(&mut policy, &mut out, fourth, 50);
    }

    #[test]
    fn an_answer_that_fits_no_step_is_a_defect() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9)]);
        let first = policy.next_step(&mut out).expect("work");
        let answer = StepOutput::of_tokens(vec![1], &[true]);
        assert!(policy.settle(99, &answer, Box::default(), &mut out).is_err());
        type Break = fn(&mut StepOutput);
        let breaks: [Break; 6] = [
            |output| output.token_ids.clear(),
            |output| output.status[0] = RowStatus::None,
            |output| output.logprobs.clear(),
            |output| output.top_starts.clear(),
            |output| output.top_starts[1] = 1,
            |output| output.top_logprobs.push(0.0),
        ];
        for break_it in breaks {
            let mut bad = answer.clone();
            break_it(&mut bad);
            assert!(policy.settle(first.step, &bad, Box::default(), &mut out).is_err());
        }
        assert_eq!(policy.settle(first.step, &answer, first.batch, &mut out), Ok(3));
    }

    #[test]
    fn a_seat_is_bound_with_its_first_step_and_again_after_a_preemption() {
        // Four blocks of four: two sequences of eight tokens fill them.
        let tight = LaneSpec { num_blocks: 4, ..spec() };
        let (mut policy, mut out) = policy(tight, &[(1, 7, 8), (2, 7, 8)]);
        let mut bound = Vec::new();
        for token in 50..70 {
            let Some(step) = policy.next_step(&mut out) else { break };
            for binding in &step.bindings {
                assert!(step.batch.seats.contains(&binding.seat));
                let known = binding.token_ids.len();
                bound.push((binding.sampler.seed, binding.num_prompt_tokens, known));
                assert!(binding.token_ids[7..].iter().all(|id| *id >= 50), "its completion");
            }
            settle(&mut policy, &mut out, step, token);
        }
        assert_eq!(bound[..2], [(1, 7, 7), (2, 7, 7)]);
        assert_eq!(bound.len(), 3, "{bound:?}");
        assert!(bound[2].0 == 2 && bound[2].2 > 7, "with what it has: {bound:?}");
    }

    #[test]
    fn a_row_that_cannot_be_sampled_ends_its_own_sequence() {
        for (status, fault) in [
            (RowStatus::NotANumber, RowFault::NotANumber),
            (RowStatus::NothingLeft, RowFault::NothingLeft),
        ] {
            let (mut policy, mut out) = policy(spec(), &[(1, 3, 9), (2, 3, 9)]);
            let first = policy.next_step(&mut out).expect("work");
            let second = policy.next_step(&mut out).expect("formed while the first runs");
            let mut answer = StepOutput::of_tokens(vec![50, 0], &first.batch.sample);
            answer.status[1] = status;
            policy.settle(first.step, &answer, first.batch, &mut out).expect("a sound step");
            let ended: Vec<_> = out.produced.iter().filter(|one| one.stream == 2).collect();
            assert_eq!((ended[0].token.as_ref(), ended[0].fault), (None, Some(fault)));
            assert_eq!(ended[0].finish, Some(FinishReason::Failed));
            settle(&mut policy, &mut out, second, 51);
            assert_eq!(out.produced.iter().filter(|one| one.stream == 2).count(), 1);
            let third = policy.next_step(&mut out).expect("the other goes on");
            assert_eq!(third.batch.seats.len(), 1);
        }
    }

    #[test]
    fn a_prefix_that_led_to_no_numbers_is_found_by_nobody() {
        let (mut policy, mut out) = policy(spec(), &[(1, 11, 9)]);
        let with_prompt_of_1 =
            |id| Sequence { token_ids: sequence(1, 11, 9).token_ids, ..sequence(id, 11, 9) };
        let first = policy.next_step(&mut out).expect("two blocks of the prompt");
        settle(&mut policy, &mut out, first, 50);
        let second = policy.next_step(&mut out).expect("the rest");
        policy.assign(with_prompt_of_1(2), 2).expect("the model is here");
        let third = policy.next_step(&mut out).expect("the twin starts");
        let mut answer = StepOutput::of_tokens(vec![0], &second.batch.sample);
        answer.status[0] = RowStatus::NotANumber;
        policy.settle(second.step, &answer, second.batch, &mut out).expect("a sound step");
        assert_eq!(policy.audit(), Ok(()));
        policy.assign(with_prompt_of_1(3), 3).expect("the model is here");
        let fourth = policy.next_step(&mut out).expect("another twin starts");
        let cached: Vec<_> = out.started.iter().map(|one| one.cached_tokens).collect();
        assert_eq!(cached, [0, 8, 0], "the second one holds what it found");
        settle(&mut policy, &mut out, third, 51);
        settle(&mut policy, &mut out, fourth, 52);
    }

    #[test]
    fn log_probabilities_stay_with_the_token_whose_seat_wants_them() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 9)]);
        let mut curious = sequence(2, 3, 9);
        Arc::make_mut(&mut curious.sampler).want_logprob = true;
        policy.assign(curious, 2).expect("the model is here");
        let first = policy.next_step(&mut out).expect("work");
        let answer = StepOutput {
            logprobs: vec![0.0, -0.5],
            top_starts: vec![0, 0, 2],
            top_ids: vec![51, 9],
            top_logprobs: vec![-0.5, -1.5],
            ..StepOutput::of_tokens(vec![50, 51], &first.batch.sample)
        };
        policy.settle(first.step, &answer, first.batch, &mut out).expect("a sound step");
        let scores = |at: usize| out.produced[at].token.clone().and_then(|token| token.scores);
        assert_eq!(scores(0), None);
        let expected = Scores { logprob: -0.5, top: vec![(51, -0.5), (9, -1.5)] };
        assert_eq!(scores(1), Some(Box::new(expected)));
    }

    #[test]
    fn nothing_is_computed_for_a_sequence_that_may_get_nothing() {
        let (mut policy, mut out) = policy(spec(), &[(1, 3, 0)]);
        assert!(policy.next_step(&mut out).is_none());
        assert_eq!(out.produced[0].finish, Some(FinishReason::Length));
        assert_eq!(policy.load().running, 0);
    }
}
