//! Who is in the next step.
//!
//! First one token for every sequence that decodes, then prefill chunks of those that have begun, then newcomers, until the budget is
//! spent: tokens, and where sequences decode the time that the step is expected to take. Nobody waits for a step without decodes,
//! so that one takes all tokens.

use super::lane::{Lane, Row};
use super::seated::{Output, SeatState};
use super::step_budget::StepBudget;
use crate::executor::StepWork;

impl<S: Clone> Lane<S> {
    /// Chooses the rows of the next step; none if there is nothing to do, or nothing before a step in flight is done.
    pub fn plan(&mut self, rows: &mut Vec<Row>, out: &mut Output<S>) {
        self.retire_unwanted(out);
        self.stalled = false;
        if self.suspect_next && self.plan_suspect(rows, out) {
            self.suspect_next = false;
            return;
        }
        self.suspect_next = true;
        let mut budget = StepBudget::of(&self.spec);
        self.give_due(true, &mut budget, rows, out);
        self.bound_time(&mut budget, rows);
        self.give_due(false, &mut budget, rows, out);
        self.start_newcomers(&mut budget, rows, out);
        if rows.is_empty() && self.plan_suspect(rows, out) {
            self.suspect_next = false;
        }
    }

    /// Gives their parts of the step to those with a seat that decode, or to those that do not.
    fn give_due(
        &mut self,
        decodes: bool,
        budget: &mut StepBudget,
        rows: &mut Vec<Row>,
        out: &mut Output<S>,
    ) {
        let mut walk = std::mem::take(&mut self.walk);
        walk.clone_from(&self.order);
        for seat in &walk {
            if self.is_due(*seat, decodes) {
                self.give(*seat, budget, rows, out);
            }
        }
        self.walk = walk;
    }

    /// Bounds the time of a step that decodes `rows`, if there is a target and it is known what steps cost.
    fn bound_time(&self, budget: &mut StepBudget, rows: &[Row]) {
        let Some(target) = self.spec.step_time_target.filter(|_| !rows.is_empty()) else { return };
        let Some(costs) = self.cost.costs() else { return };
        let prompts = self.order.iter().filter(|seat| self.is_due(**seat, false)).count();
        budget.bound_time(costs, target, &work_of(rows), prompts + self.waiting.len());
    }

    pub(super) fn is_due(&self, seat: u32, decodes: bool) -> bool {
        self.seats[seat as usize].as_ref().is_some_and(|run| {
            !run.suspect && run.decodes() == decodes && run.is_runnable(self.spec.max_seq_len)
        })
    }

    /// A step with one suspect alone, so that a prompt that breaks steps takes nobody with it the second time.
    fn plan_suspect(&mut self, rows: &mut Vec<Row>, out: &mut Output<S>) -> bool {
        let suspect = self.order.iter().copied().find(|seat| {
            self.seats[*seat as usize]
                .as_ref()
                .is_some_and(|run| run.suspect && run.is_runnable(self.spec.max_seq_len))
        });
        if let Some(seat) = suspect {
            self.give(seat, &mut StepBudget::of(&self.spec), rows, out);
        }
        !rows.is_empty()
    }

    /// Gives a sequence its part of the step, as far as budget and blocks go.
    pub(super) fn give(
        &mut self,
        seat: u32,
        budget: &mut StepBudget,
        rows: &mut Vec<Row>,
        out: &mut Output<S>,
    ) {
        let Some(run) = &self.seats[seat as usize] else { return };
        let tokens = budget.tokens_from(run.computed);
        if tokens == 0 {
            return;
        }
        let held = self.secure(seat, tokens, out);
        let Some(run) = &mut self.seats[seat as usize] else { return };
        let query_len = held.saturating_sub(run.computed);
        if query_len == 0 || run.state != SeatState::Running {
            self.stalled = true;
            return;
        }
        let start = run.computed;
        let feed_sampled = start >= run.sequence.len();
        debug_assert!(!feed_sampled || query_len == 1, "only the last token can be unseen");
        let num_scored = match run.has_unscored_prompt() {
            // The last token's is the completion's first.
            true => query_len - u32::from(start + query_len == run.sequence.num_prompt_tokens),
            false => 0,
        };
        run.computed += query_len;
        run.in_flight += 1;
        // Who wants no token at all is here for the prompt's log probabilities.
        let sample = run.computed == run.total() && !run.is_exhausted(self.spec.max_seq_len);
        run.unseen += u32::from(sample);
        let num_top = run.wishes.num_top;
        rows.push(Row { seat, start, query_len, sample, feed_sampled, num_scored, num_top });
        budget.spend(start, query_len);
    }
}

/// What a step of these rows costs time for.
pub(super) fn work_of(rows: &[Row]) -> StepWork {
    let mut work = StepWork::default();
    rows.iter().for_each(|row| work.add(row.query_len, row.start + row.query_len));
    work
}
