//! Which device a model goes to that is loaded while the node runs: the one that gives it most.

use std::cmp::Reverse;

use crate::ids::DeviceId;

use crate::memory::{self, ModelNeed};

/// A device, as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The device that has it.
    pub device: DeviceId,
    /// The whole memory pool.
    pub reserved_bytes: u64,
    /// What of it nobody has.
    pub free_bytes: u64,
    /// What idle models there would give back.
    pub idle_bytes: u64,
    /// Requests running or waiting for models that are there.
    pub requests: u64,
}

/// The device with the best free memory and load. Where the model fits, its KV cache there counts, less the more requests (in batches of
/// `max_batch_size`) the device has to do with already; where it would fit if idle models went, the least that is missing; where it
/// does not, the largest pool. Of equals the first; `None` of none.
pub fn best(rooms: &[Room], need: &ModelNeed, max_batch_size: u32) -> Option<DeviceId> {
    let batch = u128::from(max_batch_size.max(1));
    let merit = |room: &Room| {
        let missing = need.least_bytes().saturating_sub(room.free_bytes);
        match memory::kv_that_fits(need, room.free_bytes) {
            // In units of 2^-20 bytes, so that few bytes among many requests still count.
            Some(kv_bytes) => {
                let shared = (u128::from(kv_bytes) << 20) * batch;
                (2, shared / (batch + u128::from(room.requests)))
            }
            None if missing <= room.idle_bytes => (1, u128::from(u64::MAX - missing)),
            None => (0, u128::from(room.reserved_bytes)),
        }
    };
    rooms.iter().min_by_key(|room| Reverse(merit(room))).map(|room| room.device.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: ModelNeed =
        ModelNeed { fixed_bytes: 1_000, min_kv_bytes: 10, wish_kv_bytes: 1_000 };

    fn room(device: &str, free_bytes: u64, idle_bytes: u64, requests: u64) -> Room {
        let device = DeviceId::new(device);
        Room { device, reserved_bytes: 10_000, free_bytes, idle_bytes, requests }
    }

    fn chosen(rooms: &[Room]) -> String {
        best(rooms, &NEED, 8).expect("there are some").to_string()
    }

    #[test]
    fn more_memory_draws() {
        assert_eq!(chosen(&[room("a", 1_200, 0, 0), room("b", 1_900, 0, 0)]), "b");
        assert_eq!(chosen(&[room("a", 1_100, 9_000, 0), room("b", 1_200, 0, 0)]), "b");
    }

    #[test]
    fn requests_count_against_a_device_as_far_as_they_fill_batches() {
        assert_eq!(chosen(&[room("a", 2_000, 0, 1), room("b", 2_000, 0, 0)]), "b");
        // A batch's worth of requests halves what the memory is worth.
        assert_eq!(chosen(&[room("a", 2_000, 0, 8), room("b", 1_490, 0, 0)]), "a");
        assert_eq!(chosen(&[room("a", 2_000, 0, 8), room("b", 1_510, 0, 0)]), "b");
    }

    #[test]
    fn memory_beyond_the_wish_is_worth_nothing() {
        assert_eq!(chosen(&[room("a", 9_000, 0, 1), room("b", 2_000, 0, 0)]), "b");
    }

    #[test]
    fn where_none_has_room_the_least_is_evicted() {
        assert_eq!(chosen(&[room("a", 100, 9_000, 0), room("b", 500, 600, 3)]), "b");
        assert_eq!(chosen(&[room("a", 100, 9_000, 0), room("b", 500, 500, 0)]), "a");
    }

    #[test]
    fn where_nothing_helps_the_largest_pool_is_asked_and_says_why_not() {
        let small = Room { reserved_bytes: 500, ..room("a", 400, 0, 0) };
        assert_eq!(chosen(&[small, room("b", 0, 0, 0)]), "b");
        assert_eq!(best(&[], &NEED, 8), None);
    }

    #[test]
    fn of_equals_it_is_the_first() {
        assert_eq!(chosen(&[room("a", 2_000, 0, 0), room("b", 2_000, 0, 0)]), "a");
    }
}
