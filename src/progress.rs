//! What an actor stamps so that health can see whether it moves, and how much room it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;

/// One actor's progress: how much it has to do, and when it last finished a unit. Cloned freely, one cell.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Cell>);

#[derive(Debug, Default)]
struct Cell {
    pending: AtomicU64,
    last_micros: AtomicU64,
}

impl Progress {
    /// A cell with nothing to do.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many units the actor has to do at this moment (running sequences, steps in flight, waiting requests).
    pub fn set_pending(&self, pending: u64, now: Timestamp) {
        // From idle to busy starts the time; otherwise an idle hour would count as a stall.
        if self.0.pending.swap(pending, Ordering::Relaxed) == 0 && pending > 0 {
            self.0.last_micros.store(now.as_micros(), Ordering::Relaxed);
        }
    }

    /// A unit was finished.
    pub fn stamp(&self, now: Timestamp) {
        self.0.last_micros.store(now.as_micros(), Ordering::Relaxed);
    }

    /// Units to do.
    pub fn pending(&self) -> u64 {
        self.0.pending.load(Ordering::Relaxed)
    }

    /// Time since the last finished unit; zero with nothing to do.
    pub fn stalled_for(&self, now: Timestamp) -> Duration {
        if self.pending() == 0 {
            return Duration::ZERO;
        }
        now.since(Timestamp::from_micros(self.0.last_micros.load(Ordering::Relaxed)))
    }
}

/// How many KV blocks of a device are free, and how many it has, as its batcher last said. Cloned freely, one cell.
#[derive(Debug, Clone, Default)]
pub struct FreeBlocks(Arc<AtomicU64>);

impl FreeBlocks {
    /// Sets both at once.
    pub fn set(&self, free: u32, total: u32) {
        self.0.store(u64::from(total) << 32 | u64::from(free), Ordering::Relaxed);
    }

    /// Free, and total.
    pub fn get(&self) -> (u32, u32) {
        let both = self.0.load(Ordering::Relaxed);
        (both as u32, (both >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_blocks_and_all_blocks_are_of_one_moment() {
        let blocks = FreeBlocks::default();
        assert_eq!(blocks.get(), (0, 0));
        blocks.clone().set(7, u32::MAX);
        assert_eq!(blocks.get(), (7, u32::MAX));
    }

    #[test]
    fn idle_time_is_no_stall() {
        let progress = Progress::new();
        let at = Timestamp::from_micros;
        assert_eq!(progress.stalled_for(at(9_000_000)), Duration::ZERO);
        progress.set_pending(2, at(10_000_000));
        assert_eq!(progress.stalled_for(at(10_000_500)), Duration::from_micros(500));
        progress.stamp(at(10_000_600));
        progress.set_pending(1, at(10_000_600));
        assert_eq!(progress.stalled_for(at(10_000_700)), Duration::from_micros(100));
        progress.set_pending(0, at(10_000_800));
        assert_eq!(progress.stalled_for(at(99_000_000)), Duration::ZERO);
    }
}
