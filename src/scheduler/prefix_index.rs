//! A guess at what a device has in its prefix cache, from the prompts that were sent there. Nothing depends on its truth: a wrong
//! guess costs time, and the batcher looks into the real cache.

use std::collections::{HashMap, VecDeque};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::ModelId;
use crate::sequence::Prefix;

/// Tokens of one hash: the default size of a KV block. Where blocks have another size the guess is off by less than one of them.
pub(super) const TOKENS_PER_HASH: usize = 16;

/// Chained hashes of the beginning of a sequence, one for each 16 tokens.
pub(super) fn prefix_hashes(model: ModelId, prefix: Prefix<'_>) -> Vec<u64> {
    let mut hash = xxh3_64_with_seed(&prefix.salt.to_le_bytes(), u64::from(model.0));
    let mut bytes = [0_u8; TOKENS_PER_HASH * 4];
    let chunks = prefix.token_ids.chunks_exact(TOKENS_PER_HASH).map(|tokens| {
        for (to, token) in bytes.chunks_exact_mut(4).zip(tokens) {
            to.copy_from_slice(&token.to_le_bytes());
        }
        hash = xxh3_64_with_seed(&bytes, hash);
        hash
    });
    chunks.collect()
}

/// Remembers the hashes sent to one device, those not used for longest forgotten first.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// Hash → when it was last used.
    last_used: HashMap<u64, u64>,
    /// Uses in their order; one that is not the hash's last is passed over.
    uses: VecDeque<(u64, u64)>,
    clock: u64,
    capacity: usize,
}

impl PrefixIndex {
    /// Remembers at most `capacity` hashes.
    pub fn new(capacity: usize) -> Self {
        Self { last_used: HashMap::new(), uses: VecDeque::new(), clock: 0, capacity }
    }

    /// How many tokens of a prompt have been sent here before.
    pub fn cached_tokens(&self, hashes: &[u64]) -> usize {
        // Chained: a hash is known only if all before it were sent along.
        hashes.iter().take_while(|hash| self.last_used.contains_key(hash)).count() * TOKENS_PER_HASH
    }

    /// A prompt is sent here.
    pub fn insert(&mut self, hashes: &[u64]) {
        self.clock += 1;
        // From the end, so that of one prompt the beginning is forgotten last.
        for hash in hashes.iter().rev() {
            self.last_used.insert(*hash, self.clock);
            self.uses.push_back((*hash, self.clock));
        }
        while self.last_used.len() > self.capacity {
            self.forget_oldest();
        }
        // Uses that were overtaken by later ones go now and then, so the list stays within twice the capacity.
        if self.uses.len() > 2 * self.capacity {
            self.uses.retain(|(hash, at)| self.last_used.get(hash) == Some(at));
        }
    }

    fn forget_oldest(&mut self) {
        while let Some((hash, at)) = self.uses.pop_front() {
            if self.last_used.get(&hash) == Some(&at) {
                self.last_used.remove(&hash);
                return;
            }
        }
    }

    /// The device lost everything.
    pub fn clear(&mut self) {
        self.last_used.clear();
        self.uses.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(model: u32, token_ids: &[u32]) -> Vec<u64> {
        prefix_hashes(ModelId(model), Prefix { salt: 0, token_ids })
    }

    fn prompt(lead: u32, len: u32) -> Vec<u64> {
        hashes(0, &(0..len).map(|at| lead + at).collect::<Vec<_>>())
    }

    #[test]
    fn finds_common_beginnings_of_one_model() {
        let mut index = PrefixIndex::new(100);
        let tokens: Vec<u32> = (0..70).collect();
        index.insert(&hashes(1, &tokens));
        assert_eq!(index.cached_tokens(&hashes(1, &tokens)), 64);
        assert_eq!(index.cached_tokens(&hashes(1, &tokens[..40])), 32);
        assert_eq!(index.cached_tokens(&hashes(2, &tokens)), 0);
        let salted = prefix_hashes(ModelId(1), Prefix { salt: 1, token_ids: &tokens });
        assert_eq!(index.cached_tokens(&salted), 0);
        index.clear();
        assert_eq!(index.cached_tokens(&hashes(1, &tokens)), 0);
    }

    #[test]
    fn stays_within_its_bound_and_forgets_the_oldest() {
        let mut index = PrefixIndex::new(6);
        for lead in 0..50 {
            index.insert(&prompt(0, 32));
            index.insert(&prompt(1000 * (lead + 1), 32));
            assert!(index.last_used.len() <= 6 && index.uses.len() <= 12);
        }
        assert_eq!(index.cached_tokens(&prompt(0, 32)), 32, "used every time");
        assert_eq!(index.cached_tokens(&prompt(50_000, 32)), 32);
        assert_eq!(index.cached_tokens(&prompt(40_000, 32)), 0);
    }

    #[test]
    fn remembers_nothing_when_it_is_off() {
        let mut index = PrefixIndex::new(0);
        index.insert(&prompt(0, 64));
        assert_eq!(index.cached_tokens(&prompt(0, 64)), 0);
        assert!(index.uses.len() <= 2);
    }
}
