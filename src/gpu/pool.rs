//! How much of a card's memory a node takes.

use super::{Memory, card, memory};
use crate::memory::PoolSize;

/// One part in this many of a card stays free of the pool: who watches the card wants it under 95 % full.
const KEPT_SHARE: u64 = 20;
/// What a node takes on a card beside its pool and its context, which is there when the card is read (0.51 GiB on an H100): the
/// kernels' code, recorded graphs, cuBLASLt.
const BESIDE_THE_POOL_BYTES: u64 = 3 << 28;

/// What a node may reserve of a card: what is free, less a twentieth of the card and what the node takes beside its pool. So the
/// card stays under 95 % full, whoever else is on it, other nodes included.
///
/// # Errors
/// One line with what is free and what there is, where nothing is left.
pub fn pool_of(memory: Memory) -> Result<u64, String> {
    let Memory { total_bytes, free_bytes } = memory;
    let kept = total_bytes.div_ceil(KEPT_SHARE).saturating_add(BESIDE_THE_POOL_BYTES);
    free_bytes.checked_sub(kept).filter(|pool| *pool > 0).ok_or_else(|| {
        format!(
            "nothing is left for a pool: {} free of {}, and {} of that are kept free of pools",
            size(free_bytes),
            size(total_bytes),
            size(kept)
        )
    })
}

/// What a node reserves on each of these GPUs, the same on all: what `executor.memory_pool_size` asks for (a share: of the smallest), else
/// what the fullest can give.
///
/// # Errors
/// One line: a GPU that is not there or has no room, or more asked for than [`pool_of`] allows.
pub fn pool_bytes(ordinals: &[u32], asked: Option<PoolSize>) -> Result<u64, String> {
    let mut gpus = Vec::new();
    for &ordinal in ordinals {
        let called = card(ordinal)?.called(ordinal);
        match memory(ordinal) {
            Ok(memory) => gpus.push((called, memory)),
            // Then the reservation itself is the check.
            Err(reason) if matches!(asked, Some(PoolSize::Bytes(_))) => {
                tracing::warn!(reason, "executor.memory_pool_size is not held against the card");
            }
            Err(reason) => return Err(reason),
        }
    }
    pool_among(&gpus, asked)
}

fn pool_among(gpus: &[(String, Memory)], asked: Option<PoolSize>) -> Result<u64, String> {
    let mut least = None;
    for (called, memory) in gpus {
        let pool = pool_on(*memory, asked).map_err(|reason| match asked {
            Some(_) => format!("executor.memory_pool_size: {called}: {reason}"),
            None => format!("{called}: {reason}"),
        })?;
        least = Some(least.map_or(pool, |least: u64| least.min(pool)));
    }
    Ok(least.unwrap_or_else(|| asked.map_or(0, |asked| asked.of(0))))
}

fn pool_on(memory: Memory, asked: Option<PoolSize>) -> Result<u64, String> {
    let Some(asked) = asked else { return pool_of(memory) };
    let wanted = asked.of(memory.total_bytes);
    let most = pool_of(memory).map_err(|reason| format!("asked for {}, {reason}", size(wanted)))?;
    if wanted > most {
        let (free, total) = (size(memory.free_bytes), size(memory.total_bytes));
        let (wanted, most) = (size(wanted), size(most));
        return Err(format!(
            "asked for {wanted}, at most {most} may be taken ({free} free of {total})"
        ));
    }
    Ok(wanted)
}

/// Exact, and at a glance.
fn size(bytes: u64) -> String {
    format!("{bytes} bytes ({:.2} GiB)", bytes as f64 / (1_u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ByteSize;

    const GIB: u64 = 1 << 30;

    fn gpu(total_gib: u64, free_gib: u64) -> Memory {
        Memory { total_bytes: total_gib * GIB, free_bytes: free_gib * GIB }
    }

    fn bytes(bytes: u64) -> Option<PoolSize> {
        Some(PoolSize::Bytes(ByteSize(bytes)))
    }

    #[test]
    fn the_pool_leaves_a_twentieth_of_the_card_and_what_the_node_takes_beside_it() {
        assert_eq!(pool_of(gpu(80, 80)), Ok(80 * GIB - 4 * GIB - 3 * GIB / 4));
        assert_eq!(pool_of(gpu(80, 30)), Ok(30 * GIB - 4 * GIB - 3 * GIB / 4));
    }

    #[test]
    fn a_card_with_several_nodes_stays_under_95_percent() {
        const CONTEXT_BYTES: u64 = GIB / 2;
        let mut memory = gpu(80, 78);
        // A small one first, then one that takes all that it may, then one too many.
        for asked in [bytes(10 * GIB), None] {
            memory.free_bytes -= CONTEXT_BYTES;
            let taken = pool_among(&[("cuda:0".to_owned(), memory)], asked).expect("room");
            memory.free_bytes -= taken + BESIDE_THE_POOL_BYTES;
        }
        let used = memory.total_bytes - memory.free_bytes;
        assert!(used * 100 <= memory.total_bytes * 95, "{used}");
        assert!(pool_of(memory).is_err());
    }

    #[test]
    fn a_card_without_room_says_what_is_free_and_what_there_is() {
        for free in [0, 4] {
            let reason = pool_of(gpu(80, free)).expect_err("4 GiB and 0.75 GiB are kept");
            let (free, total) = (size(free * GIB), size(80 * GIB));
            assert!(reason.contains(&free) && reason.contains(&total), "{reason}");
        }
        assert!(pool_of(Memory { total_bytes: u64::MAX, free_bytes: u64::MAX }).is_ok());
        let kept = 80 * GIB / 20 + BESIDE_THE_POOL_BYTES;
        assert!(pool_of(Memory { total_bytes: 80 * GIB, free_bytes: kept }).is_err());
    }

    #[test]
    fn a_configured_pool_is_kept_or_refused_with_key_card_and_numbers() {
        let gpus = [("cuda:0 (A)".to_owned(), gpu(80, 80)), ("cuda:1 (B)".to_owned(), gpu(80, 40))];
        let most = pool_of(gpu(80, 40)).expect("room");
        assert_eq!(pool_among(&gpus, bytes(GIB)), Ok(GIB));
        assert_eq!(pool_among(&gpus, bytes(most)), Ok(most));
        let reason = pool_among(&gpus, bytes(most + 1)).expect_err("one byte too many");
        for part in ["executor.memory_pool_size", "cuda:1 (B)", &size(most + 1), &size(most)] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
        let full = [("cuda:0".to_owned(), gpu(80, 1))];
        let reason = pool_among(&full, bytes(GIB)).expect_err("no room");
        assert!(reason.starts_with("executor.memory_pool_size: cuda:0: asked for"), "{reason}");
        // No figures: what is asked for is tried.
        assert_eq!(pool_among(&[], bytes(GIB)), Ok(GIB));
    }

    #[test]
    fn a_share_is_of_the_smallest_card_and_refused_where_one_has_no_room_for_it() {
        let gpus = [("cuda:0".to_owned(), gpu(80, 80)), ("cuda:1".to_owned(), gpu(40, 30))];
        assert_eq!(pool_among(&gpus, Some(PoolSize::Share(50))), Ok(20 * GIB));
        let reason = pool_among(&gpus, Some(PoolSize::Share(80))).expect_err("32 of 30 GiB");
        for part in ["executor.memory_pool_size: cuda:1", &size(32 * GIB), &size(30 * GIB)] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
    }

    #[test]
    fn the_pool_is_what_the_fullest_card_can_give() {
        let gpus = [("cuda:0".to_owned(), gpu(80, 80)), ("cuda:1".to_owned(), gpu(80, 40))];
        assert_eq!(pool_among(&gpus, None), pool_of(gpu(80, 40)));
        let full = [gpus[0].clone(), ("cuda:1".to_owned(), gpu(80, 2))];
        assert!(pool_among(&full, None).expect_err("no room").starts_with("cuda:1: "));
    }

    #[test]
    fn a_gpu_that_is_not_there_gives_no_pool() {
        assert!(pool_bytes(&[4096], None).is_err());
        assert!(pool_bytes(&[4096], Some(PoolSize::Share(1))).is_err());
    }
}
