//! The devices and what each may still be sent: credit, less what is under way.

use std::collections::VecDeque;

use super::Credit;
use super::prefix_index::PrefixIndex;
use crate::ids::{DeviceId, ModelId};
use crate::sequence::{Sequence, blocks_needed, most_blocks_needed};

/// A sequence already on a device costs a newcomer as much as so many tokens of prefill: with it every step takes longer. So a
/// cached beginning outweighs load only if it saves more than this for each sequence that the other device has less.
const TOKENS_PER_BUSY_SEAT: usize = 32;

/// The credit of one model on one device.
#[derive(Debug)]
struct DeviceCredit {
    credit: Credit,
    /// Assignments sent.
    sent: u64,
    /// Number and estimated blocks of assignments that the batcher had not seen when it gave the credit.
    under_way: VecDeque<(u64, u32)>,
    /// The most free seats ever seen: all of them, as the first credit of a lane is given while it is empty.
    num_seats: u32,
}

impl DeviceCredit {
    fn new(credit: Credit) -> Self {
        let (sent, num_seats) = (credit.assigned, credit.seats);
        Self { credit, sent, under_way: VecDeque::new(), num_seats }
    }

    fn renew(&mut self, credit: Credit) {
        while self.under_way.front().is_some_and(|(number, _)| *number <= credit.assigned) {
            self.under_way.pop_front();
        }
        self.num_seats = self.num_seats.max(credit.seats);
        self.credit = credit;
    }

    fn seats(&self) -> u32 {
        self.credit.seats.saturating_sub(self.under_way.len() as u32)
    }

    fn free_blocks(&self) -> u32 {
        let promised: u32 = self.under_way.iter().map(|(_, blocks)| blocks).sum();
        self.credit.free_blocks.saturating_sub(promised)
    }

    fn estimate(&self, sequence: &Sequence) -> u32 {
        blocks_needed(sequence, self.credit.block_size, self.credit.reserve_tokens)
    }

    fn fits(&self, sequence: &Sequence) -> bool {
        self.seats() > 0
            && self.could_ever_fit(sequence)
            && self.estimate(sequence) <= self.free_blocks()
    }

    fn could_ever_fit(&self, sequence: &Sequence) -> bool {
        most_blocks_needed(sequence, self.credit.block_size) <= self.credit.total_blocks
    }
}

#[derive(Debug)]
struct DeviceRecord {
    id: DeviceId,
    generation: u64,
    /// Its batcher has an address.
    up: bool,
    /// This build of it has ended.
    down: bool,
    /// It will not be built again.
    lost: bool,
    /// Its mailbox refused a message: nothing is sent before it has said something again.
    refusing: bool,
    lanes: Vec<DeviceCredit>,
    prefix: PrefixIndex,
}

impl DeviceRecord {
    fn lane(&self, model: ModelId) -> Option<&DeviceCredit> {
        self.lanes.iter().find(|lane| lane.credit.model == model && lane.credit.open)
    }

    fn busy_seats(&self) -> usize {
        self.lanes.iter().map(|lane| (lane.num_seats - lane.seats()) as usize).sum()
    }

    /// Forgets what a build of its actors had.
    fn reset(&mut self, generation: u64) {
        self.generation = generation;
        self.up = false;
        self.down = false;
        self.refusing = false;
        self.lanes.clear();
        self.prefix.clear();
    }
}

/// All devices that were ever heard of.
#[derive(Debug)]
pub(super) struct Devices {
    list: Vec<DeviceRecord>,
    prefix_index_blocks: usize,
}

impl Devices {
    /// None yet.
    pub fn new(prefix_index_blocks: usize) -> Self {
        Self { list: Vec::new(), prefix_index_blocks }
    }

    /// A build of a device's actors can be sent to.
    pub fn up(&mut self, id: &DeviceId, generation: u64) {
        let device = self.entry(id, generation);
        if device.generation < generation {
            device.reset(generation);
        }
        device.up = device.generation == generation && !device.down;
    }

    /// A build of a device takes nothing any more; what it says still is of the past.
    pub fn down(&mut self, id: &DeviceId, generation: u64) {
        let device = self.entry(id, generation);
        if device.generation <= generation {
            device.reset(generation);
            device.down = true;
        }
    }

    /// A device that will not be built again.
    pub fn lost(&mut self, id: &DeviceId) {
        self.entry(id, 0).lost = true;
    }

    /// Whether no device is left that could ever serve anything.
    pub fn are_all_lost(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|device| device.lost)
    }

    /// Takes a credit in; one of an earlier build is of no use.
    pub fn credit(&mut self, credit: Credit) {
        let device = self.entry(&credit.device, credit.generation);
        if (device.generation, device.down) >= (credit.generation, true) {
            return;
        }
        // The first word of a new build may be faster than the node's.
        if device.generation < credit.generation {
            device.reset(credit.generation);
        }
        device.refusing = false;
        match device.lanes.iter_mut().find(|lane| lane.credit.model == credit.model) {
            Some(lane) => lane.renew(credit),
            None => device.lanes.push(DeviceCredit::new(credit)),
        }
    }

    /// Whether a device that is up has the model.
    pub fn serve(&self, model: ModelId) -> bool {
        self.serving(model).next().is_some()
    }

    /// Whether any of `model`'s devices outside `claimed` has anything to give.
    pub fn have_room(&self, model: ModelId, claimed: &[DeviceId]) -> bool {
        self.willing(model, claimed).any(|(_, lane)| lane.seats() > 0 && lane.free_blocks() > 0)
    }

    /// Whether the model's largest device could hold the sequence if it were empty.
    pub fn could_ever_fit(&self, sequence: &Sequence) -> bool {
        self.serving(sequence.model).any(|(_, lane)| lane.could_ever_fit(sequence))
    }

    /// Whether it matters what was sent where.
    pub fn have_choice(&self) -> bool {
        self.prefix_index_blocks > 0 && self.list.iter().filter(|device| device.up).count() > 1
    }

    /// Whether a device that is up has room for the sequence, whether or not it takes messages.
    pub fn have_room_for(&self, sequence: &Sequence) -> bool {
        self.serving(sequence.model).any(|(_, lane)| lane.fits(sequence))
    }

    /// The device to send a sequence to: the one with the least to compute before its first token. Of equal ones that with
    /// the most free blocks, then the first by name.
    pub fn choose(
        &self,
        sequence: &Sequence,
        prefix: &[u64],
        claimed: &[DeviceId],
    ) -> Option<DeviceId> {
        let fitting = self.willing(sequence.model, claimed).filter(|(_, lane)| lane.fits(sequence));
        let best = fitting.min_by_key(|(device, lane)| {
            let cached = device.prefix.cached_tokens(prefix).min(sequence.token_ids.len());
            let uncached = sequence.token_ids.len() - cached;
            let cost = uncached + device.busy_seats() * TOKENS_PER_BUSY_SEAT;
            (cost, u32::MAX - lane.free_blocks(), &device.id)
        });
        best.map(|(device, _)| device.id.clone())
    }

    /// The device to keep free for a sequence that fits on none: the one that has the most free blocks already.
    pub fn choose_claim(&self, sequence: &Sequence, claimed: &[DeviceId]) -> Option<DeviceId> {
        let able = self.willing(sequence.model, claimed);
        let able = able.filter(|(_, lane)| lane.could_ever_fit(sequence));
        able.max_by_key(|(_, lane)| lane.free_blocks()).map(|(device, _)| device.id.clone())
    }

    /// Whether a claimed device still serves the model.
    pub fn is_serving(&self, id: &DeviceId, model: ModelId) -> bool {
        self.serving(model).any(|(device, _)| device.id == *id)
    }

    /// Takes what a sequence needs off the device's credit, until a newer credit has counted it. Returns the device's
    /// generation.
    pub fn take(&mut self, id: &DeviceId, sequence: &Sequence, prefix: &[u64]) -> u64 {
        let device = self.entry(id, 0);
        device.prefix.insert(prefix);
        let lane = device.lanes.iter_mut().find(|lane| lane.credit.model == sequence.model);
        if let Some(lane) = lane {
            lane.sent += 1;
            let blocks = lane.estimate(sequence);
            lane.under_way.push_back((lane.sent, blocks));
        }
        device.generation
    }

    /// The last assignment was refused by the mailbox.
    pub fn give_back(&mut self, id: &DeviceId, model: ModelId) {
        let Some(device) = self.list.iter_mut().find(|device| device.id == *id) else { return };
        device.refusing = true;
        if let Some(lane) = device.lanes.iter_mut().find(|lane| lane.credit.model == model) {
            lane.sent -= 1;
            lane.under_way.pop_back();
        }
    }

    /// Some time has passed: mailboxes that refused are tried again.
    pub fn forgive(&mut self) {
        for device in &mut self.list {
            device.refusing = false;
        }
    }

    /// Devices that are up and have the model.
    fn serving(&self, model: ModelId) -> impl Iterator<Item = (&DeviceRecord, &DeviceCredit)> {
        let up = self.list.iter().filter(|device| device.up);
        up.filter_map(move |device| Some((device, device.lane(model)?)))
    }

    /// Those of them that may be sent something now.
    fn willing<'a>(
        &'a self,
        model: ModelId,
        claimed: &'a [DeviceId],
    ) -> impl Iterator<Item = (&'a DeviceRecord, &'a DeviceCredit)> {
        self.serving(model).filter(|(device, _)| !device.refusing && !claimed.contains(&device.id))
    }

    fn entry(&mut self, id: &DeviceId, generation: u64) -> &mut DeviceRecord {
        let at = self.list.iter().position(|device| device.id == *id).unwrap_or_else(|| {
            self.list.push(DeviceRecord {
                id: id.clone(),
                generation,
                up: false,
                down: false,
                lost: false,
                refusing: false,
                lanes: Vec::new(),
                prefix: PrefixIndex::new(self.prefix_index_blocks),
            });
            self.list.len() - 1
        });
        &mut self.list[at]
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefix_index::prefix_hashes;
    use super::super::queue::tests::sequence;
    use super::*;

    fn id(name: &str) -> DeviceId {
        DeviceId::new(name)
    }

    pub fn credit(device: &str, assigned: u64, seats: u32, free_blocks: u32) -> Credit {
        Credit {
            device: id(device),
            generation: 1,
            model: ModelId(0),
            assigned,
            seats,
            free_blocks,
            total_blocks: 100,
            block_size: 16,
            reserve_tokens: 0,
            open: true,
        }
    }

    fn devices(credits: &[Credit]) -> Devices {
        let mut devices = Devices::new(1000);
        for credit in credits {
            devices.up(&credit.device, 1);
            devices.credit(credit.clone());
        }
        devices
    }

    #[test]
    fn assignments_not_yet_seen_are_subtracted_from_a_newer_credit() {
        let mut devices = devices(&[credit("a", 0, 2, 4)]);
        let one = sequence(1, 128, 32);
        devices.take(&id("a"), &one, &[]);
        devices.take(&id("a"), &one, &[]);
        assert_eq!(devices.choose(&one, &[], &[]), None, "no seat is left");
        // The batcher has seen the first only; a sequence has ended meanwhile.
        devices.credit(credit("a", 1, 2, 4));
        assert_eq!(devices.choose(&one, &[], &[]), Some(id("a")));
        devices.take(&id("a"), &one, &[]);
        assert_eq!(devices.choose(&one, &[], &[]), None);
        devices.credit(credit("a", 3, 1, 2));
        assert_eq!(devices.choose(&one, &[], &[]), Some(id("a")));
    }

    #[test]
    fn a_refusing_device_is_left_alone_until_it_speaks_or_time_passes() {
        let mut devices = devices(&[credit("a", 0, 2, 4)]);
        let one = sequence(1, 128, 32);
        devices.take(&id("a"), &one, &[]);
        devices.give_back(&id("a"), ModelId(0));
        assert_eq!(devices.choose(&one, &[], &[]), None);
        assert!(devices.serve(ModelId(0)) && !devices.have_room(ModelId(0), &[]));
        devices.forgive();
        assert_eq!(devices.choose(&one, &[], &[]), Some(id("a")));
    }

    #[test]
    fn a_cached_beginning_draws_unless_the_device_is_much_busier() {
        let mut devices = devices(&[credit("a", 0, 8, 90), credit("b", 0, 8, 100)]);
        let long = sequence(1, 128, 160);
        let prefix = prefix_hashes(ModelId(0), long.prefix());
        assert_eq!(devices.choose(&long, &prefix, &[]), Some(id("b")), "more free blocks");
        devices.take(&id("a"), &long, &prefix);
        assert_eq!(devices.choose(&long, &prefix, &[]), Some(id("a")));
        for _ in 0..5 {
            devices.take(&id("a"), &sequence(2, 128, 1), &[]);
        }
        assert_eq!(devices.choose(&long, &prefix, &[]), Some(id("b")));
    }

    #[test]
    fn words_of_an_earlier_build_are_of_no_use() {
        let mut devices = devices(&[credit("a", 0, 2, 4)]);
        devices.down(&id("a"), 1);
        devices.down(&id("a"), 1);
        assert!(!devices.serve(ModelId(0)));
        devices.credit(credit("a", 0, 2, 4));
        devices.up(&id("a"), 1);
        assert!(!devices.serve(ModelId(0)));
        devices.up(&id("a"), 2);
        devices.down(&id("a"), 1);
        assert!(!devices.serve(ModelId(0)));
        devices.credit(Credit { generation: 2, ..credit("a", 0, 2, 4) });
        assert!(devices.serve(ModelId(0)));
        // A credit may be faster than the node's word.
        devices.credit(Credit { generation: 3, ..credit("a", 0, 2, 4) });
        assert!(!devices.serve(ModelId(0)));
        devices.up(&id("a"), 3);
        assert!(devices.serve(ModelId(0)));
    }

    #[test]
    fn closed_models_and_too_small_devices_are_no_choice() {
        let mut devices = devices(&[credit("a", 0, 2, 4)]);
        let huge = sequence(1, 128, 16 * 101);
        assert!(!devices.could_ever_fit(&huge) && devices.choose_claim(&huge, &[]).is_none());
        devices.credit(Credit { open: false, ..credit("a", 0, 2, 4) });
        assert!(!devices.serve(ModelId(0)) && !devices.is_serving(&id("a"), ModelId(0)));
    }
}
