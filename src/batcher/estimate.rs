//! How much KV memory a sequence is reckoned with before it runs.

use super::Sequence;

/// KV blocks that a sequence is expected to need: those of its known tokens and of as many further ones as it may still
/// generate, `reserve_tokens` at most. The last token does not count: nothing ever attends to it.
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
mod tests {
    use super::super::running::tests::sequence;
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
