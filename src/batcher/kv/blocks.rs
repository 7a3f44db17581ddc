//! The KV memory of one model on one device: block pool and prefix cache as one, handed out in block tables.

use super::block_pool::{BlockId, BlockPool};
use super::prefix_cache::{Link, Offer, PrefixCache};
use crate::sequence::Prefix;

/// How far a sequence's blocks were offered to the prefix cache.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Full blocks found or offered so far.
    blocks: u32,
    /// Where they lead; `None` once the cache has refused one, and with it all that would follow.
    link: Option<Link>,
}

/// See the module.
#[derive(Debug)]
pub struct KvBlocks {
    block_size: u32,
    pool: BlockPool,
    /// `None`: switched off.
    cache: Option<PrefixCache>,
}

impl KvBlocks {
    /// All blocks free, nothing cached.
    pub fn new(num_blocks: u32, block_size: u32, enable_prefix_cache: bool) -> Self {
        let cache = enable_prefix_cache.then(PrefixCache::new);
        Self { block_size, pool: BlockPool::new(num_blocks), cache }
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> u32 {
        self.pool.num_blocks()
    }

    /// Blocks that can be had now: free ones and idle cached ones.
    pub fn num_available(&self) -> u32 {
        self.pool.num_free() + self.cache.as_ref().map_or(0, PrefixCache::num_idle)
    }

    /// Starts a block table with the cached blocks that begin as `prefix` does. Returns how far the chain reaches.
    pub fn share_prefix(&mut self, prefix: Prefix<'_>, table: &mut Vec<BlockId>) -> Chain {
        debug_assert!(table.is_empty());
        let mut chain = Chain { blocks: 0, link: Some(Link::root(prefix.salt)) };
        let Some(cache) = &mut self.cache else { return chain };
        for (block, link) in cache.chain(prefix, self.block_size) {
            table.push(block);
            chain.link = Some(link);
        }
        chain.blocks = table.len() as u32;
        for &block in &*table {
            cache.set_used(block);
            self.pool.retain(block);
        }
        chain
    }

    /// How many tokens [`share_prefix`](Self::share_prefix) would find.
    pub fn num_cached(&self, prefix: Prefix<'_>) -> u32 {
        let blocks =
            self.cache.as_ref().map_or(0, |cache| cache.chain(prefix, self.block_size).count());
        blocks as u32 * self.block_size
    }

    /// Extends a block table to hold `num_tokens`, as far as there are blocks; returns how many tokens it holds.
    pub fn grow(&mut self, table: &mut Vec<BlockId>, num_tokens: u32) -> u32 {
        let wanted = num_tokens.div_ceil(self.block_size) as usize;
        while table.len() < wanted {
            let Some(block) = self.take() else { break };
            table.push(block);
        }
        (table.len() as u32 * self.block_size).min(num_tokens)
    }

    /// Gives blocks of a table back; those that are cached stay until their memory is needed.
    pub fn release(&mut self, blocks: &[BlockId]) {
        // From the end: a block must be evicted before those it continues, or it could not be found any more.
        for &block in blocks.iter().rev() {
            let references = self.pool.release(block);
            if let Some(cache) = &mut self.cache
                && references == 1
                && cache.contains(block)
            {
                cache.set_idle(block);
            }
        }
    }

    /// Offers the blocks that are full with the first `computed` tokens to the prefix cache. Only for KV that a device
    /// has really computed.
    pub fn register(
        &mut self,
        chain: &mut Chain,
        token_ids: &[u32],
        table: &[BlockId],
        computed: u32,
    ) {
        let Some(cache) = &mut self.cache else { return };
        let size = self.block_size as usize;
        while let Some(parent) = chain.link
            && (chain.blocks + 1) * self.block_size <= computed
        {
            let index = chain.blocks as usize;
            let tokens = &token_ids[index * size..(index + 1) * size];
            chain.link = match cache.offer(parent, tokens, table[index]) {
                Offer::Taken(link) => {
                    self.pool.retain(table[index]);
                    Some(link)
                }
                Offer::Replaces(link, other) => {
                    self.pool.retain(table[index]);
                    self.pool.release(other);
                    Some(link)
                }
                Offer::Present(link) => Some(link),
                Offer::Refused => None,
            };
            chain.blocks += 1;
        }
    }

    /// Takes the blocks that begin as `prefix` does out of the prefix cache. Sequences that hold them keep them.
    pub fn forget(&mut self, prefix: Prefix<'_>) {
        let Some(cache) = &mut self.cache else { return };
        let blocks: Vec<_> = cache.chain(prefix, self.block_size).map(|(block, _)| block).collect();
        for block in blocks {
            cache.forget(block);
            self.pool.release(block);
        }
    }

    fn take(&mut self) -> Option<BlockId> {
        if self.pool.num_free() == 0 {
            let block = self.cache.as_mut()?.evict()?;
            self.pool.release(block);
        }
        self.pool.take()
    }

    /// Holds every count against the tables given, which must be all there are.
    ///
    /// # Errors
    /// Names the first block whose counts are wrong.
    pub fn audit<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
        let mut expected = vec![0_u32; self.num_blocks() as usize];
        for block in tables.flatten() {
            expected[*block as usize] += 1;
        }
        for (block, idle) in self.cache.iter().flat_map(PrefixCache::blocks) {
            if idle != (expected[block as usize] == 0) {
                let tables = expected[block as usize];
                return Err(format!("cached block {block} in {tables} tables has idle = {idle}"));
            }
            expected[block as usize] += 1;
        }
        for block in self.pool.free() {
            if expected[*block as usize] > 0 {
                return Err(format!("block {block} is free and in use"));
            }
        }
        for (block, expected) in expected.iter().enumerate() {
            let counted = self.pool.references(block as u32);
            if counted != *expected {
                return Err(format!(
                    "block {block}: {counted} references counted, {expected} exist"
                ));
            }
        }
        let in_use = expected.iter().filter(|count| **count > 0).count();
        if in_use + self.pool.free().len() != expected.len() {
            return Err(format!(
                "{} blocks lost",
                expected.len() - in_use - self.pool.free().len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(kv: &KvBlocks, tables: &[&Vec<BlockId>]) {
        assert_eq!(kv.audit(tables.iter().map(|table| table.as_slice())), Ok(()));
    }

    /// Computes a whole prompt into a table of its own.
    fn run(kv: &mut KvBlocks, token_ids: &[u32]) -> (Vec<BlockId>, u32) {
        let mut table = Vec::new();
        let mut chain = kv.share_prefix(Prefix { salt: 0, token_ids }, &mut table);
        let cached = chain.blocks;
        let len = token_ids.len() as u32;
        assert_eq!(kv.grow(&mut table, len), len);
        kv.register(&mut chain, token_ids, &table, len);
        (table, cached)
    }

    #[test]
    fn full_blocks_are_shared_and_the_last_token_never() {
        let mut kv = KvBlocks::new(8, 2, true);
        let (first, cached) = run(&mut kv, &[1, 2, 3, 4]);
        assert_eq!(cached, 0);
        let (second, cached) = run(&mut kv, &[1, 2, 3, 4]);
        assert_eq!(cached, 1, "the block of the last token is computed again");
        assert_eq!(first[0], second[0]);
        assert_ne!(first[1], second[1]);
        let (third, cached) = run(&mut kv, &[1, 2, 3, 4, 5]);
        assert_eq!((cached, &third[..2]), (2, &first[..]));
        audit(&kv, &[&first, &second, &third]);
    }

    #[test]
    fn sequences_of_different_salts_share_nothing() {
        let mut kv = KvBlocks::new(8, 2, true);
        let token_ids = &[1, 2, 3, 4, 5];
        run(&mut kv, token_ids);
        let cached = |kv: &KvBlocks, salt| kv.num_cached(Prefix { salt, token_ids });
        assert_eq!((cached(&kv, 0), cached(&kv, 1)), (4, 0));
        kv.forget(Prefix { salt: 1, token_ids });
        assert_eq!(cached(&kv, 0), 4);
        let mut table = Vec::new();
        let mut chain = kv.share_prefix(Prefix { salt: 1, token_ids }, &mut table);
        assert_eq!(kv.grow(&mut table, 5), 5);
        kv.register(&mut chain, token_ids, &table, 5);
        assert_eq!((cached(&kv, 0), cached(&kv, 1)), (4, 4), "each has its own");
    }

    #[test]
    fn cached_blocks_stay_until_their_memory_is_needed() {
        let mut kv = KvBlocks::new(4, 2, true);
        let (table, _) = run(&mut kv, &[1, 2, 3, 4]);
        kv.release(&table);
        audit(&kv, &[]);
        assert_eq!(kv.num_available(), 4);
        // Three blocks: two were free, then the end of the idle chain goes first.
        let (other, _) = run(&mut kv, &[7, 7, 8, 8, 9]);
        let (mut again, cached) = {
            let mut table = Vec::new();
            let prefix = Prefix { salt: 0, token_ids: &[1, 2, 3, 4, 5] };
            let chain = kv.share_prefix(prefix, &mut table);
            (table, chain.blocks)
        };
        assert_eq!(cached, 1);
        audit(&kv, &[&other, &again]);
        assert_eq!(kv.grow(&mut again, 5), 2, "no block is left");
        kv.release(&again);
        kv.release(&other);
        audit(&kv, &[]);
        assert_eq!(kv.num_available(), 4);
    }

    #[test]
    fn a_prompt_whose_first_block_was_evicted_is_cached_whole_when_it_comes_again() {
        let mut kv = KvBlocks::new(6, 2, true);
        let prompt = [1, 2, 3, 4, 5];
        let (table, _) = run(&mut kv, &prompt);
        // As a window does: the first block goes back long before the last ones, and is evicted first.
        kv.release(&table[..1]);
        let (other, _) = run(&mut kv, &[7, 7, 8, 8, 9]);
        kv.release(&other);
        kv.release(&table[1..]);
        let (other, _) = run(&mut kv, &[6, 6, 9, 9, 9]);
        kv.release(&other);
        audit(&kv, &[]);
        let (again, cached) = run(&mut kv, &prompt);
        assert_eq!(cached, 0);
        audit(&kv, &[&again]);
        kv.release(&again);
        let (third, cached) = run(&mut kv, &prompt);
        assert_eq!(cached, 2, "the orphan made room");
        audit(&kv, &[&third]);
    }

    #[test]
    fn nothing_is_shared_when_the_cache_is_off() {
        let mut kv = KvBlocks::new(8, 2, false);
        let (first, _) = run(&mut kv, &[1, 2, 3, 4]);
        let (second, cached) = run(&mut kv, &[1, 2, 3, 4]);
        assert_eq!(cached, 0);
        kv.release(&first);
        audit(&kv, &[&second]);
        assert_eq!(kv.num_available(), 6);
    }

    #[test]
    fn an_audit_finds_lost_and_doubled_blocks() {
        let mut kv = KvBlocks::new(4, 2, true);
        let (table, _) = run(&mut kv, &[1, 2, 3]);
        assert!(kv.audit(std::iter::empty()).is_err());
        assert!(kv.audit([table.as_slice(), table.as_slice()].into_iter()).is_err());
    }
}
