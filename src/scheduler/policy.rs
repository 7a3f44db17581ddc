//! The scheduler's policy: who leaves the queue next, and where to.
//!
//! Rule for a sequence that is next and fits on no device: for `patience_ms` smaller ones behind it may pass, because blocks that
//! stand empty serve nobody; after that it claims the device that is nearest to having room, and nobody behind it is sent there
//! until it fits. So it does not block small ones for long (what runs there ends, and then it fits), and they do not starve it.

use std::time::Duration;

use super::devices::Devices;
use super::prefix_index::prefix_hashes;
use super::queue::{Key, Passed, Queue, QueuedSequence};
use super::{Config, Credit};
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::ids::{DeviceId, ModelId};
use crate::sequence::Sequence;

/// How many sequences that do not fit are looked past for one that does. Each look costs about a microsecond, and a queue that
/// holds many large ones is waiting for memory, not for a better order.
const MAX_PASSED: usize = 64;

/// When to try again what a node without devices refused: others have heard of its end by then.
const RETRY_ELSEWHERE_MS: u64 = 1_000;

/// A sequence to be sent.
#[derive(Debug)]
pub struct Assignment<S> {
    /// The device that it goes to.
    pub device: DeviceId,
    /// The build of its actors that the assignment is for.
    pub generation: u64,
    /// What to run.
    pub sequence: Sequence,
    /// Where its tokens go.
    pub stream: S,
}

/// Why a device did not take an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its mailbox is full.
    Full,
    /// Its batcher is gone.
    Gone,
}

/// A sequence that leaves without being sent.
#[derive(Debug)]
pub enum Leaving<S> {
    /// The client gave up.
    Cancelled(S),
    /// It cannot be run.
    Failed(S, Error),
}

#[derive(Debug)]
struct ModelQueue<S> {
    id: ModelId,
    queue: Queue<S>,
    /// Since when sequences wait and no device has the model.
    unserved_since: Option<Timestamp>,
}

/// What a walk over a queue came to.
#[derive(Default)]
struct Candidates {
    next: Option<(Key, DeviceId)>,
    unwanted: Vec<Key>,
    hopeless: Vec<Key>,
}

/// The policy. Pure: what happens comes in by calls, and the caller asks [`next`](Self::next) until there is nothing more.
#[derive(Debug)]
pub struct Scheduling<S> {
    config: Config,
    models: Vec<ModelQueue<S>>,
    devices: Devices,
    leaving: Vec<Leaving<S>>,
}

impl<S> Scheduling<S> {
    /// Nobody waits, no device is known.
    pub fn new(config: Config) -> Self {
        let devices = Devices::new(config.prefix_index_blocks);
        Self { config, models: Vec::new(), devices, leaving: Vec::new() }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.models.iter().map(|model| model.queue.len()).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a sequence in: a new one, or one that came back from a device.
    pub fn enqueue(&mut self, sequence: Sequence, stream: S) {
        let model = sequence.model;
        let at = self.models.iter().position(|one| one.id == model).unwrap_or_else(|| {
            self.models.push(ModelQueue { id: model, queue: Queue::new(), unserved_since: None });
            self.models.len() - 1
        });
        self.models[at].queue.insert(QueuedSequence::new(sequence, stream));
    }

    /// Takes a batcher's credit in.
    pub fn credit(&mut self, credit: Credit) {
        self.devices.credit(credit);
    }

    /// A device can be sent to.
    pub fn device_up(&mut self, device: &DeviceId, generation: u64) {
        self.devices.up(device, generation);
    }

    /// A build of a device takes nothing any more.
    pub fn device_down(&mut self, device: &DeviceId, generation: u64) {
        self.devices.down(device, generation);
    }

    /// A device that is down will not be built again.
    pub fn device_lost(&mut self, device: &DeviceId) {
        self.devices.lost(device);
    }

    /// The next sequence to send, its need already taken off the device's credit.
    pub fn next(&mut self, now: Timestamp) -> Option<Assignment<S>> {
        for at in 0..self.models.len() {
            let found = self.walk(at, now);
            let model = &mut self.models[at];
            for entry in found.unwanted.iter().filter_map(|key| model.queue.remove(*key)) {
                self.leaving.extend(unwanted(entry));
            }
            for entry in found.hopeless.iter().filter_map(|key| model.queue.remove(*key)) {
                let text = "prompt and max_tokens need more KV blocks than any device has";
                let error = Error::new(Kind::ContextLength, text);
                self.leaving.push(Leaving::Failed(entry.stream, error));
            }
            if let Some((key, device)) = found.next
                && let Some(entry) = model.queue.remove(key)
            {
                let prefix = entry.prefix.as_deref().unwrap_or(&[]);
                let generation = self.devices.take(&device, &entry.sequence, prefix);
                return Some(Assignment {
                    device,
                    generation,
                    sequence: entry.sequence,
                    stream: entry.stream,
                });
            }
        }
        None
    }

    /// The device refused an assignment: the sequence waits again, at its old place.
    pub fn put_back(&mut self, assignment: Assignment<S>, refusal: Refusal) {
        match refusal {
            Refusal::Full => {
                self.devices.give_back(&assignment.device, assignment.sequence.model);
            }
            Refusal::Gone => self.devices.down(&assignment.device, assignment.generation),
        }
        self.enqueue(assignment.sequence, assignment.stream);
    }

    /// Looks at everyone who waits: the cancelled leave, and those whose model no device has had for too long fail. Devices
    /// that refused are tried again.
    pub fn sweep(&mut self, now: Timestamp) {
        self.devices.forgive();
        let limit = if self.devices.are_all_lost() {
            Duration::ZERO
        } else {
            Duration::from_secs(self.config.unavailable_after_s)
        };
        for model in &mut self.models {
            let gone = model.queue.extract(|entry| entry.sequence.handle.wants_no_more());
            self.leaving.extend(gone.into_iter().filter_map(unwanted));
            if model.queue.len() == 0 || self.devices.serve(model.id) {
                model.unserved_since = None;
                continue;
            }
            let since = *model.unserved_since.get_or_insert(now);
            if now.since(since) < limit {
                continue;
            }
            model.unserved_since = None;
            self.leaving.extend(
                model
                    .queue
                    .extract(|_| true)
                    .into_iter()
                    .map(|entry| Leaving::Failed(entry.stream, no_device(limit))),
            );
        }
        self.models.retain(|model| model.queue.len() > 0);
    }

    /// Whether a sequence that is first in its queue still waits although a device has room for it. Right after
    /// [`next`](Self::next) has nothing more to send, this means that something is wrong: a batcher that gives credit and takes
    /// nothing, or a defect here.
    pub fn withholds(&self, now: Timestamp) -> bool {
        let ageing = Duration::from_secs_f64(self.config.ageing_s);
        self.models.iter().any(|model| {
            let first = model.queue.next(&mut Passed::default(), now, ageing);
            let entry = first.and_then(|key| model.queue.get(key));
            entry.is_some_and(|entry| {
                let sequence = &entry.sequence;
                !sequence.handle.wants_no_more() && self.devices.have_room_for(sequence)
            })
        })
    }

    /// Those who left without being sent, since the last call.
    pub fn take_leaving(&mut self) -> Vec<Leaving<S>> {
        std::mem::take(&mut self.leaving)
    }

    /// Looks for the first sequence of a model that fits somewhere.
    fn walk(&mut self, at: usize, now: Timestamp) -> Candidates {
        let ageing = Duration::from_secs_f64(self.config.ageing_s);
        let patience = Duration::from_millis(self.config.patience_ms);
        let model = &mut self.models[at];
        let mut found = Candidates::default();
        let mut claimed: Vec<DeviceId> = Vec::new();
        let mut passed = Passed::default();
        let mut blocked = 0;
        while blocked < MAX_PASSED && self.devices.have_room(model.id, &claimed) {
            let Some(key) = model.queue.next(&mut passed, now, ageing) else { break };
            let Some(entry) = model.queue.get_mut(key) else { break };
            if entry.sequence.handle.wants_no_more() {
                found.unwanted.push(key);
                continue;
            }
            if !self.devices.could_ever_fit(&entry.sequence) {
                found.hopeless.push(key);
                continue;
            }
            if self.devices.have_choice() && entry.prefix.is_none() {
                entry.prefix = Some(prefix_hashes(model.id, entry.sequence.prefix()));
            }
            let prefix = entry.prefix.as_deref().unwrap_or(&[]);
            if let Some(device) = self.devices.choose(&entry.sequence, prefix, &claimed) {
                found.next = Some((key, device));
                break;
            }
            blocked += 1;
            let since = *entry.blocked_since.get_or_insert(now);
            if now.since(since) >= patience {
                claim(entry, &self.devices, &mut claimed);
            }
        }
        found
    }
}

/// For a sequence that has waited for a device with its model for so long.
fn no_device(limit: Duration) -> Error {
    if limit.is_zero() {
        let text = "no device of this node is left; another node may take the request";
        return Error::new(Kind::Unavailable, text).with_retry_after_ms(RETRY_ELSEWHERE_MS);
    }
    let text = format!("no device with the model is up for {} s", limit.as_secs());
    Error::new(Kind::Unavailable, text).with_retry_after_ms(limit.as_millis() as u64)
}

/// Keeps a device free for a sequence that has waited long enough for one with room; the same one until it fits or the device
/// is gone.
fn claim<S>(entry: &mut QueuedSequence<S>, devices: &Devices, claimed: &mut Vec<DeviceId>) {
    let model = entry.sequence.model;
    let kept = entry.claim.take().filter(|id| devices.is_serving(id, model));
    entry.claim = kept
        .filter(|id| !claimed.contains(id))
        .or_else(|| devices.choose_claim(&entry.sequence, claimed));
    claimed.extend(entry.claim.clone());
}

/// A cancelled sequence is told so; one that has ended already goes without a word.
fn unwanted<S>(entry: QueuedSequence<S>) -> Option<Leaving<S>> {
    entry.sequence.handle.is_cancelled().then_some(Leaving::Cancelled(entry.stream))
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::{second, sequence};
    use super::*;

    const URGENT: u8 = 255;
    const PLAIN: u8 = 128;
    const NOBODY: [u64; 0] = [];

    fn id(name: &str) -> DeviceId {
        DeviceId::new(name)
    }

    fn credit(device: &str, assigned: u64, seats: u32, free_blocks: u32) -> Credit {
        Credit {
            device: id(device),
            generation: 1,
            model: ModelId(0),
            assigned,
            seats,
            free_blocks,
            total_blocks: 20,
            block_size: 16,
            reserve_tokens: 0,
            open: true,
        }
    }

    /// A scheduler with one device, and these sequences waiting: (id, priority, prompt).
    fn waiting(credit: Credit, of: &[(u64, u8, u32)]) -> Scheduling<u64> {
        let mut policy = Scheduling::new(Config::default());
        policy.device_up(&credit.device, credit.generation);
        policy.credit(credit);
        for (id, priority, prompt) in of {
            policy.enqueue(sequence(*id, *priority, *prompt), *id);
        }
        policy
    }

    fn sent(policy: &mut Scheduling<u64>, at: u64) -> Vec<u64> {
        std::iter::from_fn(|| policy.next(second(at)).map(|one| one.stream)).collect()
    }

    #[test]
    fn nobody_leaves_without_credit() {
        let mut policy =
            waiting(credit("a", 0, 2, 20), &[(1, PLAIN, 16), (2, PLAIN, 16), (3, URGENT, 16)]);
        assert_eq!(sent(&mut policy, 3), [3, 1]);
        assert_eq!((policy.len(), policy.is_empty()), (1, false));
        policy.credit(credit("a", 2, 1, 20));
        assert_eq!(sent(&mut policy, 4), [2]);
    }

    #[test]
    fn small_ones_pass_a_large_one_for_a_while_and_then_a_device_is_kept_for_it() {
        let mut policy = waiting(credit("a", 0, 9, 4), &[(1, PLAIN, 80), (2, PLAIN, 16)]);
        assert_eq!(sent(&mut policy, 2), [2], "three blocks are left, five are needed");
        policy.enqueue(sequence(3, PLAIN, 16), 3);
        assert_eq!(sent(&mut policy, 4), NOBODY, "its patience is at an end");
        policy.credit(credit("a", 1, 9, 5));
        assert_eq!(sent(&mut policy, 4), [1]);
        policy.credit(credit("a", 2, 8, 1));
        assert_eq!(sent(&mut policy, 5), [3]);
    }

    #[test]
    fn a_claim_leaves_the_other_devices_to_the_small_ones() {
        let mut policy = waiting(credit("a", 0, 9, 4), &[(1, PLAIN, 80)]);
        policy.device_up(&id("b"), 1);
        policy.credit(credit("b", 0, 9, 2));
        assert_eq!(sent(&mut policy, 2), NOBODY);
        policy.enqueue(sequence(3, PLAIN, 16), 3);
        let small = policy.next(second(4)).expect("b has room");
        assert_eq!((small.stream, small.device), (3, id("b")));
        // The claimed device goes: another is claimed.
        policy.device_down(&id("a"), 1);
        policy.enqueue(sequence(4, PLAIN, 16), 4);
        assert_eq!(sent(&mut policy, 5), NOBODY);
        policy.credit(credit("b", 1, 9, 6));
        assert_eq!(sent(&mut policy, 5), [1, 4]);
    }

    #[test]
    fn a_low_one_gets_its_turn_under_an_endless_stream_of_urgent_ones() {
        let mut policy = waiting(credit("a", 0, 0, 20), &[(1, 0, 16)]);
        for round in 1..=100 {
            policy.enqueue(sequence(round + 1, URGENT, 16), round + 1);
            policy.credit(credit("a", round - 1, 1, 20));
            if sent(&mut policy, round + 1) == [1] {
                // Seven levels of ten seconds each.
                assert_eq!(round, 70);
                return;
            }
        }
        panic!("it starved");
    }

    #[test]
    fn what_came_back_goes_first() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[(1, PLAIN, 16), (2, PLAIN, 16)]);
        let first = policy.next(second(3)).expect("a seat is free");
        policy.enqueue(first.sequence, first.stream);
        policy.credit(credit("a", 1, 2, 20));
        assert_eq!(sent(&mut policy, 4), [1, 2]);
    }

    #[test]
    fn a_refused_assignment_loses_nothing() {
        let mut policy = waiting(credit("a", 0, 2, 20), &[(1, PLAIN, 16), (2, PLAIN, 16)]);
        let first = policy.next(second(3)).expect("two seats are free");
        policy.put_back(first, Refusal::Full);
        assert_eq!(sent(&mut policy, 3), NOBODY, "its mailbox is full");
        policy.sweep(second(4));
        assert_eq!(sent(&mut policy, 4), [1, 2]);
        policy.enqueue(sequence(3, PLAIN, 16), 3);
        policy.credit(credit("a", 2, 2, 20));
        let third = policy.next(second(5)).expect("two seats are free");
        policy.put_back(third, Refusal::Gone);
        assert_eq!(sent(&mut policy, 5), NOBODY);
        assert_eq!(policy.len(), 1);
    }

    #[test]
    fn waiting_beside_room_is_told_from_waiting_for_room() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[(1, PLAIN, 16), (2, PLAIN, 16)]);
        assert!(policy.withholds(second(3)), "nobody has asked it yet");
        assert_eq!(sent(&mut policy, 3), [1]);
        assert!(!policy.withholds(second(3)), "the seat is taken");
        policy.credit(credit("a", 1, 1, 0));
        assert!(!policy.withholds(second(9_000)), "no block is free, for however long");
        policy.credit(credit("a", 1, 1, 20));
        let next = policy.next(second(4)).expect("there is room");
        policy.put_back(next, Refusal::Full);
        assert_eq!(sent(&mut policy, 4), NOBODY);
        assert!(policy.withholds(second(4)), "it has room and takes nothing");
        policy.device_down(&id("a"), 1);
        assert!(!policy.withholds(second(5)), "without a device nobody has room");
    }

    #[test]
    fn the_cancelled_leave_before_work_is_spent_on_them() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[]);
        let sequences = [1, 2, 3].map(|id| sequence(id, PLAIN, 16));
        let handles = sequences.clone().map(|one| one.handle);
        for one in sequences {
            let id = one.id.0;
            policy.enqueue(one, id);
        }
        handles[0].cancel();
        assert_eq!(sent(&mut policy, 4), [2]);
        assert!(matches!(policy.take_leaving()[..], [Leaving::Cancelled(1)]));
        handles[2].set_stopped();
        policy.sweep(second(5));
        assert!(policy.is_empty() && policy.take_leaving().is_empty(), "it has ended already");
    }

    #[test]
    fn waits_for_a_device_for_so_long_and_then_fails() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[]);
        policy.device_down(&id("a"), 1);
        policy.enqueue(sequence(1, PLAIN, 16), 1);
        policy.sweep(second(10));
        policy.sweep(second(39));
        assert!(policy.take_leaving().is_empty());
        policy.sweep(second(40));
        match &policy.take_leaving()[..] {
            [Leaving::Failed(1, error)] => {
                assert_eq!((error.kind, error.retry_after_ms), (Kind::Unavailable, Some(30_000)));
            }
            other => panic!("expected it to fail, got {other:?}"),
        }
        assert!(policy.is_empty());
    }

    #[test]
    fn fails_at_once_when_the_last_device_is_lost() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[]);
        policy.device_up(&id("b"), 1);
        policy.device_down(&id("a"), 1);
        policy.device_lost(&id("a"));
        policy.enqueue(sequence(1, PLAIN, 16), 1);
        policy.sweep(second(10));
        assert!(policy.take_leaving().is_empty(), "b may get the model yet");
        policy.device_down(&id("b"), 1);
        policy.device_lost(&id("b"));
        policy.sweep(second(11));
        assert!(matches!(&policy.take_leaving()[..],
            [Leaving::Failed(1, error)] if error.kind == Kind::Unavailable));
        assert!(policy.is_empty());
    }

    #[test]
    fn what_no_device_could_hold_fails_at_once() {
        let mut policy = waiting(credit("a", 0, 1, 20), &[(1, PLAIN, 16 * 21), (2, PLAIN, 16)]);
        assert_eq!(sent(&mut policy, 3), [2]);
        assert!(matches!(&policy.take_leaving()[..],
            [Leaving::Failed(1, error)] if error.kind == Kind::ContextLength));
    }
}
