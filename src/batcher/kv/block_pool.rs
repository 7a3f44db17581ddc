//! The KV blocks of one model on one device: which are free, and how often each of the others is referred to.

/// A block's number on the device.
pub type BlockId = u32;

/// Counts references. A block is free with none; a table that holds it and the prefix cache count one each.
#[derive(Debug)]
pub struct BlockPool {
    /// \[num_blocks\]
    references: Vec<u32>,
    /// Blocks without reference, the next to be given out last.
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool whose blocks are all free.
    pub fn new(num_blocks: u32) -> Self {
        Self { references: vec![0; num_blocks as usize], free: (0..num_blocks).rev().collect() }
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> u32 {
        self.references.len() as u32
    }

    /// Blocks without reference.
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Takes a free block, with one reference.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        Some(block)
    }

    /// Adds a reference to a block that has one.
    pub fn retain(&mut self, block: BlockId) {
        debug_assert!(self.references[block as usize] > 0, "a free block cannot be shared");
        self.references[block as usize] += 1;
    }

    /// Takes a reference away and says how many are left; without any the block is free.
    pub fn release(&mut self, block: BlockId) -> u32 {
        let references = &mut self.references[block as usize];
        debug_assert!(*references > 0, "block {block} is released more often than taken");
        *references = references.saturating_sub(1);
        if *references == 0 {
            self.free.push(block);
        }
        *references
    }

    /// How often a block is referred to.
    pub fn references(&self, block: BlockId) -> u32 {
        self.references[block as usize]
    }

    /// The free blocks, for audits.
    pub fn free(&self) -> &[BlockId] {
        &self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_again_after_its_last_reference() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.take().expect("two are free"), pool.take().expect("one is free"));
        assert_ne!(a, b);
        assert_eq!(pool.take(), None);
        pool.retain(a);
        assert_eq!(pool.release(a), 1);
        assert_eq!(pool.num_free(), 0);
        assert_eq!(pool.release(a), 0);
        assert_eq!((pool.num_free(), pool.num_blocks()), (1, 2));
        assert_eq!(pool.take(), Some(a));
    }
}
