//! The waiting queue of one model: levels by priority, arrival inside a level, ageing between levels.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::{DeviceId, SequenceId};
use crate::sequence::{NUM_LEVELS, Sequence};

/// The place of an entry: its own level, and its order there.
pub(super) type Key = (u8, Arrival);

/// The order inside a level. Earliest deadline and the tenant's share of tokens come in front of arrival, in this one type,
/// once requests carry them.
pub(super) type Arrival = (Timestamp, SequenceId);

/// A waiting sequence.
#[derive(Debug)]
pub(super) struct QueuedSequence<S> {
    pub sequence: Sequence,
    pub stream: S,
    /// Since when it has been the turn of this one, and no device had blocks enough.
    pub blocked_since: Option<Timestamp>,
    /// The device that is kept free for it.
    pub claim: Option<DeviceId>,
    /// Chained hashes of its beginning, made when first asked for.
    pub prefix: Option<Vec<u64>>,
}

impl<S> QueuedSequence<S> {
    /// A sequence that begins to wait.
    pub fn new(sequence: Sequence, stream: S) -> Self {
        Self { sequence, stream, blocked_since: None, claim: None, prefix: None }
    }

    /// Where it stands. A sequence that comes back from a device keeps the time it was accepted, and so its place.
    pub fn key(&self) -> Key {
        (self.sequence.level(), (self.sequence.accepted_at, self.sequence.id))
    }
}

/// The waiting sequences of one model.
#[derive(Debug)]
pub(super) struct Queue<S> {
    /// By the sequences' own level. Inside one the earliest is also the most aged, so ageing moves nobody: it only decides which
    /// level's first one is next.
    levels: [BTreeMap<Arrival, QueuedSequence<S>>; NUM_LEVELS as usize],
}

impl<S> Queue<S> {
    /// Nobody waits.
    pub fn new() -> Self {
        Self { levels: std::array::from_fn(|_| BTreeMap::new()) }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.levels.iter().map(BTreeMap::len).sum()
    }

    /// Takes a sequence in.
    pub fn insert(&mut self, entry: QueuedSequence<S>) {
        let (level, arrival) = entry.key();
        self.levels[usize::from(level)].insert(arrival, entry);
    }

    /// Takes a sequence out.
    pub fn remove(&mut self, key: Key) -> Option<QueuedSequence<S>> {
        self.levels[usize::from(key.0)].remove(&key.1)
    }

    /// The entry at a place.
    pub fn get(&self, key: Key) -> Option<&QueuedSequence<S>> {
        self.levels[usize::from(key.0)].get(&key.1)
    }

    /// The entry at a place, to be changed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut QueuedSequence<S>> {
        self.levels[usize::from(key.0)].get_mut(&key.1)
    }

    /// The place after `passed` (all of them if it is empty) in the order in which sequences are to leave at `now`.
    ///
    /// `passed` remembers for each level how far the caller has come, so a walk that changes entries needs no second one.
    pub fn next(&self, passed: &mut Passed, now: Timestamp, ageing: Duration) -> Option<Key> {
        let heads = self.levels.iter().enumerate().filter_map(|(level, entries)| {
            let (arrival, _) = match passed.0[level] {
                None => entries.first_key_value()?,
                Some(last) => entries
                    .range((std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded))
                    .next()?,
            };
            Some((level as u8, *arrival))
        });
        let next = heads.min_by_key(|(level, arrival)| {
            (Reverse(aged_level(*level, now.since(arrival.0), ageing)), *arrival)
        })?;
        passed.0[usize::from(next.0)] = Some(next.1);
        Some(next)
    }

    /// Takes out everyone for whom `leaves` holds.
    pub fn extract(
        &mut self,
        mut leaves: impl FnMut(&QueuedSequence<S>) -> bool,
    ) -> Vec<QueuedSequence<S>> {
        let mut gone = Vec::new();
        for entries in &mut self.levels {
            let keys = entries.iter().filter(|(_, entry)| leaves(entry)).map(|(key, _)| *key);
            let keys: Vec<_> = keys.collect();
            gone.extend(keys.iter().filter_map(|key| entries.remove(key)));
        }
        gone
    }
}

/// How far a walk over a [`Queue`] has come, by level.
#[derive(Debug, Default)]
pub(super) struct Passed([Option<Arrival>; NUM_LEVELS as usize]);

/// The level that waiting has brought a sequence to. At the top, arrival decides, so whoever has waited long enough has nobody new
/// before it: nothing starves.
fn aged_level(level: u8, waited: Duration, ageing: Duration) -> u8 {
    let gained = waited.as_micros() / ageing.as_micros().max(1);
    let aged = u128::from(level).saturating_add(gained);
    aged.min(u128::from(NUM_LEVELS) - 1) as u8
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sequence::testing;

    /// A sequence of model 0 with `prompt` tokens of its own, accepted at second `id`.
    pub fn sequence(id: u64, priority: u8, prompt: u32) -> Sequence {
        Sequence {
            token_ids: (0..prompt).map(|at| id as u32 * 10_000 + at).collect(),
            priority,
            accepted_at: second(id),
            ..testing::sequence(id, prompt, 16)
        }
    }

    pub fn second(second: u64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn order(queue: &Queue<()>, now: Timestamp) -> Vec<u64> {
        let mut passed = Passed::default();
        let ageing = Duration::from_secs(10);
        std::iter::from_fn(|| queue.next(&mut passed, now, ageing))
            .map(|(_, (_, id))| id.0)
            .collect()
    }

    fn queue(of: &[(u64, u8)]) -> Queue<()> {
        let mut queue = Queue::new();
        for (id, priority) in of {
            queue.insert(QueuedSequence::new(sequence(*id, *priority, 4), ()));
        }
        queue
    }

    #[test]
    fn higher_levels_first_and_arrival_inside_a_level() {
        let queue = queue(&[(1, 0), (4, 255), (2, 130), (3, 128), (5, 224)]);
        assert_eq!(order(&queue, second(6)), [4, 5, 2, 3, 1]);
        assert_eq!(queue.len(), 5);
    }

    #[test]
    fn waiting_lifts_until_nobody_new_can_pass() {
        let queue = queue(&[(1, 0), (60, 100), (71, 255), (80, 255)]);
        assert_eq!(order(&queue, second(62)), [71, 80, 1, 60]);
        assert_eq!(order(&queue, second(80)), [1, 71, 80, 60]);
    }

    #[test]
    fn what_is_taken_out_is_gone() {
        let mut queue = queue(&[(1, 0), (2, 255)]);
        let first = queue.next(&mut Passed::default(), second(3), Duration::from_secs(1));
        let first = first.expect("two wait");
        assert!(queue.get_mut(first).is_some());
        assert_eq!(queue.remove(first).map(|entry| entry.sequence.id.0), Some(2));
        assert!(queue.remove(first).is_none());
        assert_eq!(queue.extract(|_| true).len(), 1);
        assert_eq!(queue.len(), 0);
    }
}
