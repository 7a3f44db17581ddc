//! What a step's end means for the sequences that were in it.

use super::Sequence;
use super::lane::{Lane, Row};
use super::running::{Departure, Output, Produced, State};
use crate::request::FinishReason;

/// Failed steps after which a sequence is not tried again.
pub(super) const MAX_FAILED_STEPS: u32 = 2;

impl<S: Clone> Lane<S> {
    /// Takes in what a step sampled, one id per row.
    pub fn settle(&mut self, rows: &[Row], sampled: &[u32], out: &mut Output<S>) {
        for (row, token) in rows.iter().zip(sampled) {
            self.settle_row(row, *token, out);
        }
    }

    fn settle_row(&mut self, row: &Row, token: u32, out: &mut Output<S>) {
        let Some(run) = &mut self.seats[row.seat as usize] else { return };
        run.in_flight -= 1;
        run.settled += row.query_len;
        run.unseen -= u32::from(row.sample);
        let left_alone = run.in_flight == 0;
        if run.state == State::Ended {
            // It ended in the step before, so what this one sampled for it is nobody's.
            if left_alone {
                self.leaving -= 1;
                self.vacate(row.seat);
            }
            return;
        }
        let preempting = run.state == State::Preempting;
        let mut finish = None;
        if row.sample {
            run.sequence.token_ids.push(token);
            finish = finish_reason(&run.sequence, &self.spec.end_token_ids, self.spec.max_seq_len);
            out.produced.push(Produced {
                stream: run.stream.clone(),
                attempt: run.sequence.attempt,
                token_ids: vec![token],
                finish,
            });
        }
        self.kv.register(&mut run.chain, &run.sequence.token_ids, &run.table, run.settled);
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
            if run.state != State::Ended {
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

/// Whether a sequence's last token ends it.
fn finish_reason(sequence: &Sequence, ends: &[u32], max_seq_len: u32) -> Option<FinishReason> {
    let completion = sequence.num_completion_tokens();
    let last = sequence.token_ids.last()?;
    if !sequence.ignore_eos && completion > sequence.min_tokens && ends.contains(last) {
        Some(FinishReason::Stop)
    } else if completion >= sequence.max_tokens || sequence.len() >= max_seq_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::running::tests::sequence;
    use super::*;

    #[test]
    fn ends_at_an_end_token_or_at_its_length() {
        let mut sequence = sequence(1, 4, 3);
        let ends = [7];
        sequence.token_ids.push(5);
        assert_eq!(finish_reason(&sequence, &ends, 100), None);
        sequence.token_ids.push(7);
        assert_eq!(finish_reason(&sequence, &ends, 100), Some(FinishReason::Stop));
        sequence.min_tokens = 2;
        assert_eq!(finish_reason(&sequence, &ends, 100), None, "two must come before an end");
        assert_eq!(finish_reason(&sequence, &ends, 6), Some(FinishReason::Length));
        sequence.min_tokens = 0;
        sequence.ignore_eos = true;
        assert_eq!(finish_reason(&sequence, &ends, 100), None);
        sequence.token_ids.push(7);
        assert_eq!(finish_reason(&sequence, &ends, 100), Some(FinishReason::Length));
    }
}
