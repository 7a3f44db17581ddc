//! KV memory of one model on one device: blocks, who holds them, and which of them others may share.

mod block_pool;
mod blocks;
mod prefix_cache;

pub(super) use block_pool::BlockId;
pub(super) use blocks::{Chain, KvBlocks};
