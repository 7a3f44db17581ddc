//! What a step's end means for the sequences that were in it.

use super::lane::{Lane, LaneSpec, Row};
use super::plan::work_of;
use super::seated::{Departure, Output, SeatState, Wishes};
use super::step_gap::device_time;
use crate::bridge::NO_TOKEN;
use crate::bridge::ffi::{RowStatus, StepOutput};
use crate::reply::{Delivery, RowFault};
use crate::request::{FinishReason, Scores, Token};
use crate::sequence::Sequence;

/// Failed steps after which a sequence is not tried again.
pub(super) const MAX_FAILED_STEPS: u32 = 2;

impl<S: Clone> Lane<S> {
    /// Takes in what a step sampled; `output` answers these rows.
    pub fn settle(&mut self, rows: &[Row], output: &StepOutput, out: &mut Output<S>) {
        self.cost.learn(&work_of(rows), device_time(output.device_us));
        let mut top = 0;
        for (index, row) in rows.iter().enumerate() {
            self.settle_row(row, RowAnswer { output, index, top }, out);
            top += (row.num_scored * row.num_top) as usize;
        }
    }

    fn settle_row(&mut self, row: &Row, answer: RowAnswer<'_>, out: &mut Output<S>) {
        let Some(run) = &mut self.seats[row.seat as usize] else { return };
        run.in_flight -= 1;
        run.settled += row.query_len;
        run.unseen -= u32::from(row.sample);
        let left_alone = run.in_flight == 0;
        if run.state == SeatState::Ended {
            // It ended in the step before, so the token that this step sampled for it is dropped.
            if left_alone {
                self.leaving -= 1;
                self.vacate(row.seat);
            }
            return;
        }
        let preempting = run.state == SeatState::Preempting;
        let mut finish = None;
        let mut fault = None;
        if row.num_scored > 0 {
            answer.take_prompt_scores(row, &mut run.prompt_scores);
        }
        let scored = run.sequence.needs_scores() && run.settled >= run.sequence.num_prompt_tokens;
        if row.sample || scored {
            let token = match row.sample {
                true => answer.token(run.wishes.want_logprob).map(Some),
                false => Ok(None),
            };
            let prompt_scores = std::mem::take(&mut run.prompt_scores);
            let sound = !prompt_scores.iter().any(|scores| scores.logprob.is_nan());
            let token = if sound { token } else { Err(RowFault::PromptNotANumber) };
            if let Ok(Some(token)) = &token {
                run.sequence.token_ids.push(token.id);
            }
            run.sequence.prompt_scored = true;
            fault = token.as_ref().err().copied();
            finish = match fault {
                Some(_) => Some(FinishReason::Failed),
                None => self.spec.finish_reason(&run.sequence, run.wishes),
            };
            out.produced.push(Delivery {
                stream: run.stream.clone(),
                attempt: run.sequence.attempt,
                prompt_scores,
                fault,
                token: token.ok().flatten(),
                finish,
            });
        }
        // Keys and values that lead to no numbers are not for others, and those of earlier steps may be why.
        if matches!(fault, Some(RowFault::NotANumber | RowFault::PromptNotANumber)) {
            self.kv.forget(run.sequence.prefix());
        } else {
            self.kv.register(&mut run.chain, &run.sequence.token_ids, &run.table, run.settled);
        }
        if let Some(window) = self.spec.window {
            self.kv.release(run.pass(window, self.spec.block_size));
        }
        if run.suspect && run.settled >= run.sequence.failed_at {
            // Cleared for good: a pre-emption does not make it a suspect again. Its count of failed steps stays.
            run.suspect = false;
            run.sequence.failed_at = 0;
        }
        if finish.is_some() {
            self.leaving -= u32::from(preempting);
            self.end(row.seat);
        } else if preempting && left_alone {
            self.leaving -= 1;
            self.preempt(row.seat, out);
        }
    }

    /// Gives up everything here. `failed` are the rows of the step that failed, if it was this lane's.
    pub fn depart(&mut self, failed: &[Row]) -> Vec<Departure<S>> {
        for row in failed {
            if let Some(run) = &mut self.seats[row.seat as usize] {
                run.sequence.failed_steps += 1;
                run.sequence.failed_at = row.start + row.query_len;
            }
        }
        let mut gone = Vec::new();
        for seat in 0..self.seats.len() {
            let Some(mut run) = self.seats[seat].take() else { continue };
            if run.state != SeatState::Ended {
                run.sequence.attempt += 1;
                gone.push(Departure {
                    sequence: run.sequence,
                    stream: run.stream,
                    restarted: true,
                });
            }
        }
        for mut waiting in self.waiting.drain(..) {
            waiting.sequence.attempt += u32::from(waiting.started);
            gone.push(Departure {
                sequence: waiting.sequence,
                stream: waiting.stream,
                restarted: waiting.started,
            });
        }
        self.order.clear();
        gone
    }
}

/// One row of a step's answer.
#[derive(Clone, Copy)]
struct RowAnswer<'a> {
    output: &'a StepOutput,
    index: usize,
    /// Where the alternatives of its scored tokens begin.
    top: usize,
}

impl RowAnswer<'_> {
    /// Adds what the row says of prompt tokens.
    fn take_prompt_scores(self, row: &Row, scores: &mut Vec<Scores>) {
        let Self { output, index, top } = self;
        let first = output.score_starts[index] as usize;
        for at in 0..row.num_scored as usize {
            let range = top + at * row.num_top as usize..top + (at + 1) * row.num_top as usize;
            let ids = output.score_top_ids[range.clone()].iter().copied();
            let top = ids.zip(output.score_top_logprobs[range].iter().copied());
            scores.push(Scores {
                logprob: output.score_logprobs[first + at],
                top: top.filter(|(id, _)| *id != NO_TOKEN).collect(),
            });
        }
    }

    fn token(self, want_logprob: bool) -> Result<Token, RowFault> {
        let Self { output, index, .. } = self;
        match output.status[index] {
            RowStatus::NotANumber => Err(RowFault::NotANumber),
            RowStatus::NothingLeft => Err(RowFault::NothingLeft),
            _ => Ok(Token {
                id: output.token_ids[index],
                scores: want_logprob.then(|| Box::new(self.scores())),
            }),
        }
    }

    fn scores(self) -> Scores {
        let Self { output, index, .. } = self;
        let range = output.top_starts[index] as usize..output.top_starts[index + 1] as usize;
        let ids = output.top_ids[range.clone()].iter().copied();
        let top = ids.zip(output.top_logprobs[range].iter().copied()).collect();
        Scores { logprob: output.logprobs[index], top }
    }
}

/// Whether an answer has what these rows need of it.
///
/// # Errors
/// Says what does not fit: nothing in such an answer can be trusted.
pub(super) fn check_answer(rows: &[Row], output: &StepOutput) -> Result<(), String> {
    let expected = rows.len();
    for (name, got) in [
        ("token_ids", output.token_ids.len()),
        ("status", output.status.len()),
        ("logprobs", output.logprobs.len()),
        ("top_starts", output.top_starts.len().wrapping_sub(1)),
    ] {
        if got != expected {
            return Err(format!("{name}: expected an answer for {expected} rows, got {got}"));
        }
    }
    let tops = output.top_ids.len();
    let starts = &output.top_starts;
    let whole = starts.last().is_some_and(|last| *last as usize == tops);
    if !whole || output.top_logprobs.len() != tops || !starts.is_sorted() {
        return Err(format!("top_starts: expected a running sum up to {tops}"));
    }
    check_scores(rows, output)?;
    let none = |(row, status): (&Row, &RowStatus)| row.sample == (*status == RowStatus::None);
    if rows.iter().zip(&output.status).any(none) {
        return Err("status: expected a token, or why there is none, where one was wanted".into());
    }
    Ok(())
}

/// Whether an answer has the log probabilities of the prompt tokens that these rows score, and no others.
fn check_scores(rows: &[Row], output: &StepOutput) -> Result<(), String> {
    let starts = &output.score_starts;
    if starts.len() != rows.len() + 1 || starts.first() != Some(&0) {
        return Err(format!("score_starts: expected an answer for {} rows from 0 on", rows.len()));
    }
    let (mut scored, mut tops) = (0, 0);
    for (row, start) in rows.iter().zip(&starts[1..]) {
        scored += row.num_scored;
        tops += (row.num_scored * row.num_top) as usize;
        if *start != scored {
            return Err(format!("score_starts: expected a running sum of {scored}, got {start}"));
        }
    }
    let got = output.score_logprobs.len();
    if got != scored as usize {
        return Err(format!("score_logprobs: expected {scored}, got {got}"));
    }
    if output.score_top_ids.len() != tops || output.score_top_logprobs.len() != tops {
        return Err(format!("score_top_ids: expected {tops} alternatives"));
    }
    Ok(())
}

impl LaneSpec {
    /// Whether a sequence's last token ends it. A stop token does so even where end tokens do not.
    fn finish_reason(&self, sequence: &Sequence, wishes: Wishes) -> Option<FinishReason> {
        let completion = sequence.num_completion_tokens();
        let last = sequence.token_ids.last()?;
        let stops = (!sequence.ignore_eos && self.end_token_ids.contains(last))
            || (wishes.has_stop_tokens && sequence.sampler.stop_token_ids.contains(last));
        if stops && completion > sequence.min_tokens {
            Some(FinishReason::Stop)
        } else if completion >= sequence.max_tokens || sequence.len() >= self.max_seq_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::seated::tests::spec;
    use super::*;
    use crate::sequence::testing::sequence;

    #[test]
    fn ends_at_an_end_token_or_at_its_length() {
        let mut sequence = sequence(1, 4, 3);
        let spec = |max_seq_len| LaneSpec { max_seq_len, ..spec() };
        let reason = |sequence: &Sequence, max_seq_len| {
            spec(max_seq_len).finish_reason(sequence, Wishes::of(&sequence.sampler))
        };
        sequence.token_ids.push(5);
        assert_eq!(reason(&sequence, 100), None);
        sequence.token_ids.push(7);
        assert_eq!(reason(&sequence, 100), Some(FinishReason::Stop));
        sequence.min_tokens = 2;
        assert_eq!(reason(&sequence, 100), None, "two must come before an end");
        assert_eq!(reason(&sequence, 6), Some(FinishReason::Length));
        sequence.min_tokens = 0;
        sequence.ignore_eos = true;
        assert_eq!(reason(&sequence, 100), None);
        Arc::make_mut(&mut sequence.sampler).stop_token_ids = vec![7];
        assert_eq!(reason(&sequence, 100), Some(FinishReason::Stop));
        Arc::make_mut(&mut sequence.sampler).stop_token_ids = vec![5];
        sequence.token_ids.push(7);
        assert_eq!(reason(&sequence, 100), Some(FinishReason::Length));
    }
}
