//! One token series being generated, as the policies of scheduler and batcher see it, and how much KV memory is counted for it
//! before it runs.

use std::sync::Arc;

use crate::bridge::ffi::SamplerSpec;
use crate::clock::Timestamp;
use crate::ids::{ModelId, SequenceId};
use crate::request::Handle;

/// Priority levels; `priority / 32` is the level.
pub const NUM_LEVELS: u8 = 8;

/// One token series being generated, as the policies see it.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Our id.
    pub id: SequenceId,
    /// The model that generates it.
    pub model: ModelId,
    /// Sequences of different salts share no KV: another adapter gives other keys and values, and one tenant is not to learn from
    /// its times what another has asked.
    pub salt: u64,
    /// Prompt, then completion.
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: u32,
    /// The end is forced after so many completion tokens (already cut to the context).
    pub max_tokens: u32,
    /// No end token before so many.
    pub min_tokens: u32,
    /// End tokens do not end it.
    pub ignore_eos: bool,
    /// What its seat is bound with.
    pub sampler: Arc<SamplerSpec>,
    /// How many alternatives are wanted beside the log probability of each prompt token; none: not even that.
    pub prompt_logprobs: Option<u32>,
    /// Its stream has them.
    pub prompt_scored: bool,
    /// 0 to 255, 255 first.
    pub priority: u8,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Starts counted from 1; grows with every start after a failure.
    pub attempt: u32,
    /// Failed steps that it was part of.
    pub failed_steps: u32,
    /// Its context_len in the step that failed: it runs alone until a step of its own has got there. 0: it was in none, or has.
    pub failed_at: u32,
    /// Its flags: cancelled, stopped.
    pub handle: Arc<Handle>,
}

/// What keys and values of a sequence's first tokens depend on beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix<'a> {
    /// See [`Sequence::salt`].
    pub salt: u64,
    /// From the first one on.
    pub token_ids: &'a [u32],
}

impl Sequence {
    /// What it may share with others.
    pub fn prefix(&self) -> Prefix<'_> {
        Prefix { salt: self.salt, token_ids: &self.token_ids }
    }

    /// 0 to 7, 7 first.
    pub fn level(&self) -> u8 {
        self.priority / (u8::MAX / NUM_LEVELS + 1)
    }

    /// Tokens known so far, prompt and completion.
    pub fn len(&self) -> u32 {
        self.token_ids.len() as u32
    }

    /// Whether there is not even a prompt; admission lets none such in.
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Whether its prompt is still to be computed for log probabilities: what others have computed of it does not serve.
    pub fn needs_scores(&self) -> bool {
        self.prompt_logprobs.is_some() && !self.prompt_scored
    }

    /// Completion tokens known so far.
    pub fn num_completion_tokens(&self) -> u32 {
        self.len().saturating_sub(self.num_prompt_tokens)
    }
}

/// KV blocks that a sequence is expected to need: those of its known tokens and of as many further ones as it may still
/// generate, `reserve_tokens` at most. The last token needs no KV block: no later token attends to it.
///
/// Reserving all of `max_tokens` would leave most of the memory unused, because few completions get there; reserving nothing
/// would let so many in that they throw each other out. Scheduler and batcher use the same figure.
pub fn blocks_needed(sequence: &Sequence, block_size: u32, reserve_tokens: u32) -> u32 {
    let left = sequence.max_tokens.saturating_sub(sequence.num_completion_tokens());
    let further = left.min(reserve_tokens).saturating_sub(1);
    sequence.len().saturating_add(further).div_ceil(block_size.max(1))
}

/// KV blocks that a sequence holds at its longest.
pub fn most_blocks_needed(sequence: &Sequence, block_size: u32) -> u32 {
    blocks_needed(sequence, block_size, u32::MAX)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::ids::RequestId;

    /// A sequence of model 0 with `prompt` tokens that differ from any other's, accepted at its own id.
    pub(crate) fn sequence(id: u64, prompt: u32, max_tokens: u32) -> Sequence {
        Sequence {
            id: SequenceId(id),
            model: ModelId(0),
            salt: 0,
            token_ids: (0..prompt).map(|at| id as u32 * 1000 + at).collect(),
            num_prompt_tokens: prompt,
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            sampler: SamplerSpec { seed: id, ..SamplerSpec::greedy() }.into(),
            prompt_logprobs: None,
            prompt_scored: false,
            priority: 128,
            accepted_at: Timestamp::from_micros(id),
            attempt: 1,
            failed_steps: 0,
            failed_at: 0,
            handle: Handle::new(RequestId::generate(), SequenceId(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::sequence;
    use super::*;

    #[test]
    fn counts_the_prompt_and_a_bounded_part_of_the_completion() {
        let mut sequence = sequence(1, 20, 100);
        assert_eq!(blocks_needed(&sequence, 16, 0), 2);
        assert_eq!(blocks_needed(&sequence, 16, 64), 6);
        assert_eq!(most_blocks_needed(&sequence, 16), 8);
        sequence.token_ids.extend([0; 95]);
        assert_eq!(blocks_needed(&sequence, 16, 64), 8, "only five are left");
    }

    #[test]
    fn the_last_token_needs_no_memory() {
        assert_eq!(most_blocks_needed(&sequence(1, 16, 1), 16), 1);
        assert_eq!(most_blocks_needed(&sequence(1, 16, 2), 16), 2);
    }
}
