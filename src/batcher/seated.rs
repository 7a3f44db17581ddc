//! A sequence on a device, and what the policy says about sequences to its actor.
//!
//! `S` is what travels with a sequence: the reply stream in the node, a record of its own in the simulator.

use std::cmp::Reverse;

use super::kv::{BlockId, Chain};
use crate::bridge::ffi::SamplerSpec;
use crate::clock::Timestamp;
use crate::ids::SequenceId;
use crate::reply::Delivery;
use crate::request::Scores;
use crate::sequence::{NUM_LEVELS, Sequence};

/// A sequence got a seat for the first time in this attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Started<S> {
    /// The stream of the sequence.
    pub stream: S,
    /// Tokens of its prompt that the prefix cache had.
    pub cached_tokens: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
}

/// A sequence that goes without having ended.
#[derive(Debug, Clone)]
pub struct Departure<S> {
    /// With everything generated so far.
    pub sequence: Sequence,
    /// Where its tokens went.
    pub stream: S,
    /// It had a seat: its attempt was counted up, and deliveries of the old one are to be ignored.
    pub restarted: bool,
}

/// What the policy has to tell; the actor empties it.
#[derive(Debug)]
pub struct Output<S> {
    /// New tokens and ends.
    pub produced: Vec<Delivery<S>>,
    /// First steps.
    pub started: Vec<Started<S>>,
    /// Sequences that gave their blocks back.
    pub preemptions: u32,
}

impl<S> Default for Output<S> {
    fn default() -> Self {
        Self { produced: Vec::new(), started: Vec::new(), preemptions: 0 }
    }
}

/// Who goes first: least is first. Every pre-emption lifts by a level, so that one sequence is not thrown out for ever.
pub(super) type Rank = (Reverse<u8>, Timestamp, SequenceId);

fn rank(sequence: &Sequence, preemptions: u32) -> Rank {
    let level = u32::from(sequence.level()).saturating_add(preemptions);
    let level = level.min(u32::from(NUM_LEVELS) - 1) as u8;
    (Reverse(level), sequence.accepted_at, sequence.id)
}

/// A sequence of this device without a seat: assigned just now, or pre-empted.
#[derive(Debug)]
pub(super) struct Waiting<S> {
    pub sequence: Sequence,
    pub stream: S,
    pub preemptions: u32,
    /// It had a seat in this attempt.
    pub started: bool,
}

impl<S> Waiting<S> {
    /// Pre-empted ones first: newcomers must not take the blocks that they wait for.
    pub fn order(&self) -> (bool, Rank) {
        (self.preemptions == 0, rank(&self.sequence, self.preemptions))
    }
}

/// Whether a seated sequence goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeatState {
    /// Gets steps.
    Running,
    /// Gives its blocks back once no step in flight holds it.
    Preempting,
    /// Has ended; its blocks go back once no step in flight holds it.
    Ended,
}

/// See [`Seated::wishes`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    pub want_logprob: bool,
    /// Alternatives beside a log probability.
    pub num_top: u32,
    pub has_stop_tokens: bool,
}

impl Wishes {
    pub fn of(sampler: &SamplerSpec) -> Self {
        Self {
            want_logprob: sampler.want_logprob,
            num_top: sampler.num_logprobs,
            has_stop_tokens: !sampler.stop_token_ids.is_empty(),
        }
    }
}

/// A sequence with a seat.
///
/// Its counters by example: a prompt of 6 tokens, a budget of 4 tokens a step, `max_tokens` 3, and two steps in flight. Step 3 is formed
/// before the host knows the token that step 2 samples: it is `unseen`, and the device feeds it to itself. No step 5 is formed, because
/// the tokens known and unseen are already all that is wanted.
///
/// | event | known | `computed` | `settled` | `unseen` | `in_flight` |
/// | --- | --- | --- | --- | --- | --- |
/// | step 1 formed: tokens 0 to 3 | 6 | 4 | 0 | 0 | 1 |
/// | step 2 formed: tokens 4 and 5, samples | 6 | 6 | 0 | 1 | 2 |
/// | step 1 done | 6 | 6 | 4 | 1 | 1 |
/// | step 3 formed: feeds token 6, samples | 6 | 7 | 4 | 2 | 2 |
/// | step 2 done: token 6 is known | 7 | 7 | 6 | 1 | 1 |
/// | step 4 formed: feeds token 7, samples | 7 | 8 | 6 | 2 | 2 |
/// | step 3 done: token 7 is known | 8 | 8 | 7 | 1 | 1 |
/// | step 4 done: token 8, the end | | | | | |
///
/// A pre-emption forgets `computed` and `settled` (the blocks are gone) and keeps what is known; a failure of the device also forgets what
/// its stream has not taken. `promised` are the blocks counted for it when it got its seat; `suspect` and the sequence's
/// `failed_at` belong to `docs/decisions/suspects-run-alone.md`.
#[derive(Debug)]
pub(super) struct Seated<S> {
    pub sequence: Sequence,
    pub stream: S,
    pub state: SeatState,
    pub preemptions: u32,
    /// Block table. The first `released` entries are of blocks that have left every layer's window: given back, and read by nobody.
    pub table: Vec<BlockId>,
    pub released: u32,
    pub chain: Chain,
    /// Tokens whose KV exists once all steps in flight are done.
    pub computed: u32,
    /// Tokens whose KV exists now.
    pub settled: u32,
    /// Tokens sampled in steps in flight: the host has not seen them.
    pub unseen: u32,
    /// Steps in flight that hold it.
    pub in_flight: u32,
    /// Blocks counted for it when it started.
    pub promised: u32,
    /// What a step needs of its sampler, which lies elsewhere in memory.
    pub wishes: Wishes,
    /// Of the prompt's tokens from the second on, as far as they are computed, where they are wanted.
    pub prompt_scores: Vec<Scores>,
    /// It may be what made a step fail, so it runs alone until it is past that point.
    pub suspect: bool,
}

impl<S> Seated<S> {
    pub fn rank(&self) -> Rank {
        rank(&self.sequence, self.preemptions)
    }

    /// Tokens once all steps in flight are done.
    pub fn total(&self) -> u32 {
        self.sequence.len() + self.unseen
    }

    /// Tokens whose KV is still to be computed.
    pub fn remaining(&self) -> u32 {
        self.total() - self.computed
    }

    /// The blocks that it holds.
    pub fn held(&self) -> &[BlockId] {
        &self.table[self.released as usize..]
    }

    /// The blocks that have left every layer's window, told once. What steps in flight compute begins where the settled tokens end, or
    /// later.
    pub fn pass(&mut self, window: u32, block_size: u32) -> &[BlockId] {
        let first = self.released;
        let first_seen = (self.settled + 1).saturating_sub(window);
        self.released = first.max(first_seen / block_size);
        &self.table[first as usize..self.released as usize]
    }

    /// Whether the next step is its usual one: one token in, one out.
    pub fn decodes(&self) -> bool {
        self.remaining() == 1
    }

    /// Whether a part of its prompt is still to be computed for log probabilities.
    pub fn has_unscored_prompt(&self) -> bool {
        self.sequence.needs_scores() && self.computed < self.sequence.num_prompt_tokens
    }

    /// Whether it is known already that the steps in flight bring the last that it wants.
    pub fn is_exhausted(&self, max_seq_len: u32) -> bool {
        if self.has_unscored_prompt() {
            return false;
        }
        self.total() - self.sequence.num_prompt_tokens.min(self.total()) >= self.sequence.max_tokens
            || self.total() >= max_seq_len
    }

    /// Whether it may be in the next step.
    pub fn is_runnable(&self, max_seq_len: u32) -> bool {
        self.state == SeatState::Running
            && self.remaining() > 0
            && !self.is_exhausted(max_seq_len)
            && !self.sequence.handle.is_held()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::lane::LaneSpec;
    use super::*;
    use crate::ids::ModelId;
    use crate::sequence::testing::sequence;

    /// Eight blocks of four positions.
    pub fn spec() -> LaneSpec {
        LaneSpec {
            model: ModelId(0),
            num_blocks: 8,
            block_size: 4,
            max_batch_size: 4,
            max_step_tokens: 8,
            step_time_target: None,
            window: None,
            max_seq_len: 32,
            end_token_ids: vec![7],
            enable_prefix_cache: true,
            reserve_tokens: 0,
        }
    }

    #[test]
    fn higher_levels_then_earlier_ones_go_first_and_preemption_lifts() {
        let early = sequence(1, 1, 1);
        let late = sequence(2, 1, 1);
        let mut urgent = sequence(3, 1, 1);
        urgent.priority = 255;
        assert!(rank(&early, 0) < rank(&late, 0));
        assert!(rank(&urgent, 0) < rank(&early, 0));
        assert!(rank(&late, 1) < rank(&early, 0));
        assert!(rank(&late, 100) < rank(&urgent, 0), "at the top, acceptance decides");
    }
}
