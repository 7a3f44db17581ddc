//! Prefix cache: full KV blocks found by what was computed into them and before them.
//!
//! The key of a block is the hash of its parent's key and its own tokens. A hit is believed only if tokens and parent are
//! really the same, so two contents with one hash cost a miss and never a wrong answer.

use std::collections::{BTreeMap, HashMap};

use xxhash_rust::xxh3::Xxh3;

use super::block_pool::BlockId;
use crate::sequence::Prefix;

/// Where a chain of cached blocks has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Hash of everything up to here.
    hash: u128,
    /// The entry's number, never used twice; 0 before the first block.
    entry: u64,
}

impl Link {
    /// Before the first block of sequences with this salt.
    pub fn root(salt: u64) -> Link {
        Link { hash: u128::from(salt), entry: 0 }
    }
}

/// What came of offering a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is in the cache now: the cache refers to it.
    Taken(Link),
    /// The same, and the cache has let go of the idle block that had its key.
    Replaces(Link, BlockId),
    /// The same content is there already, in another block.
    Present(Link),
    /// Its key is taken by other content (a collision, or an entry whose parent was evicted) that a sequence still holds.
    Refused,
}

#[derive(Debug)]
struct CachedBlock {
    hash: u128,
    number: u64,
    parent: u64,
    token_ids: Box<[u32]>,
    /// Its place in the order of eviction while no sequence refers to it.
    idle: Option<u64>,
}

/// Hashes a block's tokens onto its parent's hash.
type HashFn = fn(u128, &[u32]) -> u128;

/// See the module. Knows which cached blocks are idle (held by no sequence) and which of them was so longest.
#[derive(Debug)]
pub struct PrefixCache {
    by_hash: HashMap<u128, BlockId>,
    /// By block; as long as it takes.
    entries: Vec<Option<CachedBlock>>,
    /// Idle blocks, the least recently used first.
    idle: BTreeMap<u64, BlockId>,
    next_number: u64,
    next_idle: u64,
    hash: HashFn,
}

impl PrefixCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::with_hash(chained_hash)
    }

    fn with_hash(hash: HashFn) -> Self {
        Self {
            by_hash: HashMap::new(),
            entries: Vec::new(),
            idle: BTreeMap::new(),
            next_number: 1,
            next_idle: 0,
            hash,
        }
    }

    /// The block that continues `parent` with these tokens.
    pub fn find(&self, parent: Link, token_ids: &[u32]) -> Option<(BlockId, Link)> {
        let block = *self.by_hash.get(&(self.hash)(parent.hash, token_ids))?;
        Some((block, self.link(block, parent, token_ids)?))
    }

    /// Where a block leads to, if it really continues `parent` with these tokens.
    fn link(&self, block: BlockId, parent: Link, token_ids: &[u32]) -> Option<Link> {
        let entry = self.entry(block)?;
        let same = entry.parent == parent.entry && *entry.token_ids == *token_ids;
        same.then_some(Link { hash: entry.hash, entry: entry.number })
    }

    /// The cached blocks that begin as `prefix` does, from the first one on. The last token is never among them: its logits must be
    /// computed.
    pub fn chain<'a>(
        &'a self,
        prefix: Prefix<'a>,
        block_size: u32,
    ) -> impl Iterator<Item = (BlockId, Link)> + 'a {
        let reusable = prefix.token_ids.len().saturating_sub(1);
        let mut link = Link::root(prefix.salt);
        prefix.token_ids[..reusable].chunks_exact(block_size as usize).map_while(move |tokens| {
            let found = self.find(link, tokens)?;
            link = found.1;
            Some(found)
        })
    }

    /// Offers a block whose KV was computed, a sequence still holding it.
    pub fn offer(&mut self, parent: Link, token_ids: &[u32], block: BlockId) -> Offer {
        let hash = (self.hash)(parent.hash, token_ids);
        let Some(&other) = self.by_hash.get(&hash) else {
            return Offer::Taken(self.insert(parent, hash, token_ids, block));
        };
        if let Some(link) = self.link(other, parent, token_ids) {
            return Offer::Present(link);
        }
        if self.entry(other).is_none_or(|entry| entry.idle.is_none()) {
            return Offer::Refused;
        }
        // Nobody can find it below this parent, and where windows let go of a prompt's first blocks before its last ones, that is
        // what is left of most prompts.
        self.forget(other);
        Offer::Replaces(self.insert(parent, hash, token_ids, block), other)
    }

    fn insert(&mut self, parent: Link, hash: u128, token_ids: &[u32], block: BlockId) -> Link {
        let number = self.next_number;
        self.next_number += 1;
        self.by_hash.insert(hash, block);
        let entry = CachedBlock {
            hash,
            number,
            parent: parent.entry,
            token_ids: token_ids.into(),
            idle: None,
        };
        let place = block as usize;
        if place >= self.entries.len() {
            self.entries.resize_with(place + 1, || None);
        }
        self.entries[place] = Some(entry);
        Link { hash, entry: number }
    }

    /// Whether the cache refers to this block.
    pub fn contains(&self, block: BlockId) -> bool {
        self.entry(block).is_some()
    }

    fn entry(&self, block: BlockId) -> Option<&CachedBlock> {
        self.entries.get(block as usize)?.as_ref()
    }

    fn entry_mut(&mut self, block: BlockId) -> Option<&mut CachedBlock> {
        self.entries.get_mut(block as usize)?.as_mut()
    }

    /// The last sequence has let go of a cached block: it may be evicted.
    pub fn set_idle(&mut self, block: BlockId) {
        let place = self.next_idle;
        if let Some(entry) = self.entry_mut(block)
            && entry.idle.is_none()
        {
            entry.idle = Some(place);
            self.idle.insert(place, block);
            self.next_idle += 1;
        }
    }

    /// A sequence holds a cached block.
    pub fn set_used(&mut self, block: BlockId) {
        if let Some(place) = self.entry_mut(block).and_then(|entry| entry.idle.take()) {
            self.idle.remove(&place);
        }
    }

    /// Forgets the block that was idle longest.
    pub fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.idle.pop_first()?;
        self.remove(block);
        Some(block)
    }

    /// Forgets a block, idle or not.
    pub fn forget(&mut self, block: BlockId) {
        self.set_used(block);
        self.remove(block);
    }

    fn remove(&mut self, block: BlockId) {
        if let Some(entry) = self.entries.get_mut(block as usize).and_then(Option::take) {
            self.by_hash.remove(&entry.hash);
        }
    }

    /// Blocks that may be evicted.
    pub fn num_idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// Every cached block and whether it is idle, for audits.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, bool)> {
        let known = (0..).zip(&self.entries);
        known.filter_map(|(block, entry)| Some((block, entry.as_ref()?.idle.is_some())))
    }
}

/// xxh3 (128 bits) of the parent's hash and the tokens, little-endian.
fn chained_hash(parent: u128, token_ids: &[u32]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&parent.to_le_bytes());
    for token in token_ids {
        hasher.update(&token.to_le_bytes());
    }
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(offer: Offer) -> Link {
        match offer {
            Offer::Taken(link) => link,
            other => panic!("expected it to be taken, got {other:?}"),
        }
    }

    #[test]
    fn finds_a_chain_only_from_its_root() {
        let mut cache = PrefixCache::new();
        let first = taken(cache.offer(Link::root(0), &[1, 2], 7));
        let second = taken(cache.offer(first, &[3, 4], 9));
        assert_eq!(cache.find(Link::root(0), &[1, 2]), Some((7, first)));
        assert_eq!(cache.find(first, &[3, 4]), Some((9, second)));
        assert_eq!(cache.find(Link::root(0), &[3, 4]), None);
        assert_eq!(cache.find(first, &[3, 5]), None);
    }

    #[test]
    fn the_same_content_is_kept_once() {
        let mut cache = PrefixCache::new();
        let link = taken(cache.offer(Link::root(0), &[1, 2], 7));
        assert_eq!(cache.offer(Link::root(0), &[1, 2], 8), Offer::Present(link));
        assert!(cache.contains(7) && !cache.contains(8));
    }

    #[test]
    fn evicts_the_block_that_was_idle_longest() {
        let mut cache = PrefixCache::new();
        for block in 0..3 {
            taken(cache.offer(Link::root(0), &[block], block));
        }
        assert_eq!(cache.evict(), None, "blocks in use stay");
        for block in [1, 0, 2, 1] {
            cache.set_idle(block);
        }
        cache.set_used(1);
        cache.set_idle(1);
        assert_eq!(cache.num_idle(), 3);
        assert_eq!([cache.evict(), cache.evict(), cache.evict()], [Some(0), Some(2), Some(1)]);
        assert_eq!(cache.find(Link::root(0), &[0]), None);
        assert_eq!(cache.blocks().count(), 0);
    }

    #[test]
    fn a_collision_is_a_miss_and_never_a_wrong_block() {
        let mut cache = PrefixCache::with_hash(|_, _| 42);
        let link = taken(cache.offer(Link::root(0), &[1, 2], 7));
        assert_eq!(cache.find(Link::root(0), &[9, 9]), None);
        assert_eq!(cache.offer(Link::root(0), &[9, 9], 8), Offer::Refused);
        assert_eq!(cache.find(link, &[1, 2]), None, "right tokens below a wrong parent");
    }

    #[test]
    fn a_child_of_an_evicted_block_is_not_found_below_its_successor() {
        let mut cache = PrefixCache::new();
        let first = taken(cache.offer(Link::root(0), &[1], 0));
        taken(cache.offer(first, &[2], 1));
        cache.set_idle(0);
        assert_eq!(cache.evict(), Some(0));
        let again = taken(cache.offer(Link::root(0), &[1], 5));
        assert_eq!(cache.find(again, &[2]), None);
        assert_eq!(cache.offer(again, &[2], 6), Offer::Refused, "a sequence holds the orphan");
        cache.set_idle(1);
        let Offer::Replaces(link, 1) = cache.offer(again, &[2], 6) else { panic!("it is idle") };
        assert_eq!(cache.find(again, &[2]), Some((6, link)));
        assert!(!cache.contains(1) && cache.num_idle() == 0);
    }
}
