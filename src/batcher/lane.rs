//! One model's sequences on one device: who has a seat, and who holds which blocks.
//!
//! Blocks are taken as they are needed; when there are none, the sequence of the lowest rank gives its own back and waits in front
//! of all newcomers.

use std::time::Duration;

use super::Credit;
use super::gathering::{Newcomers, STEPS_OF_ENDS};
use super::kv::KvBlocks;
use super::seated::{Output, SeatState, Seated, Started, Waiting, Wishes};
use crate::executor::{CostFit, CostModel};
use crate::ids::{DeviceId, ModelId};
use crate::reply::Delivery;
use crate::request::FinishReason;
use crate::sequence::{Sequence, blocks_needed};

/// What a lane is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSpec {
    /// The model that the lane runs.
    pub model: ModelId,
    /// Its KV blocks.
    pub num_blocks: u32,
    /// Positions of one block.
    pub block_size: u32,
    /// Most sequences with a seat.
    pub max_batch_size: u32,
    /// Most tokens of one step.
    pub max_step_tokens: u32,
    /// Most time of a step in which sequences decode; see [`Config`](super::Config).
    pub step_time_target: Option<Duration>,
    /// Most positions of one sequence.
    pub max_seq_len: u32,
    /// Where every layer sees so many positions at most: blocks before them are given back. A prefix longer than the window is found
    /// again only while memory is free: its first blocks are idle, and taken for others, before its last ones. What is left of
    /// it then gives way when the same prefix is computed again.
    pub window: Option<u32>,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
    /// See [`Config`](super::Config).
    pub enable_prefix_cache: bool,
    /// See [`Config`](super::Config).
    pub reserve_tokens: u32,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Whose: a seat keeps its sequence while a step in flight holds it.
    pub seat: u32,
    /// Position of its first token.
    pub start: u32,
    /// Tokens computed.
    pub query_len: u32,
    /// Whether a token is sampled after the last one.
    pub sample: bool,
    /// Its only token is the one sampled last, which the host has not seen.
    pub feed_sampled: bool,
    /// Prompt tokens, those that follow its first ones, whose log probabilities it brings.
    pub num_scored: u32,
    /// Alternatives that each of them comes with.
    pub num_top: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lane<S> {
    pub spec: LaneSpec,
    /// False: no more credit; what is here runs to its end.
    pub open: bool,
    /// Assignments received.
    pub assigned: u64,
    pub kv: KvBlocks,
    /// \[max_batch_size\]
    pub seats: Vec<Option<Seated<S>>>,
    pub free_seats: Vec<u32>,
    /// Seats in state `Running`, best rank first.
    pub order: Vec<u32>,
    /// Seats in state `Preempting` or `Ended`: their blocks are on their way back.
    pub leaving: u32,
    /// In the order in which they get seats.
    pub waiting: Vec<Waiting<S>>,
    /// Seats whose sequences the device does not know yet.
    pub unbound: Vec<u32>,
    /// Somebody got no block in the step being planned.
    pub stalled: bool,
    /// The next step is a suspect's, if there is one.
    pub suspect_next: bool,
    /// What its steps cost, by those that are done.
    pub cost: CostFit,
    /// Kept for its memory.
    pub walk: Vec<u32>,
    /// Of those with a seat, as of the last walk over them.
    pub num_held: u32,
    /// Sequences that ended with the device's last steps, the newest first, none of those that ended before one last got a seat.
    pub ended: [u32; STEPS_OF_ENDS],
}

impl<S: Clone> Lane<S> {
    /// A lane with all blocks free.
    pub fn new(spec: LaneSpec) -> Self {
        // Everyone with a seat decodes in every step, so the budget bounds the seats.
        let seats = spec.max_batch_size.min(spec.max_step_tokens);
        Self {
            open: true,
            assigned: 0,
            kv: KvBlocks::new(spec.num_blocks, spec.block_size, spec.enable_prefix_cache),
            seats: (0..seats).map(|_| None).collect(),
            free_seats: (0..seats).rev().collect(),
            order: Vec::with_capacity(seats as usize),
            leaving: 0,
            waiting: Vec::new(),
            unbound: Vec::new(),
            stalled: false,
            suspect_next: false,
            cost: CostFit::default(),
            walk: Vec::with_capacity(seats as usize),
            num_held: 0,
            ended: [0; STEPS_OF_ENDS],
            spec,
        }
    }

    /// Puts a sequence among those that wait for a seat.
    pub fn enqueue(&mut self, waiting: Waiting<S>) {
        let order = waiting.order();
        let at = self.waiting.partition_point(|other| other.order() < order);
        self.waiting.insert(at, waiting);
    }

    /// No sequence is here, and so no step in flight.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.free_seats.len() == self.seats.len()
    }

    /// What the scheduler may send.
    pub fn credit(&self, device: &DeviceId, generation: u64) -> Credit {
        Credit {
            device: device.clone(),
            generation,
            model: self.spec.model,
            assigned: self.assigned,
            seats: (self.free_seats.len() as u32).saturating_sub(self.waiting.len() as u32),
            free_blocks: self.unpromised_blocks().saturating_sub(self.blocks_awaited()),
            total_blocks: self.kv.num_blocks(),
            block_size: self.spec.block_size,
            reserve_tokens: self.spec.reserve_tokens,
            open: self.open,
        }
    }

    /// Ends a sequence: its seat and blocks are free once no step in flight holds it.
    pub fn end(&mut self, seat: u32) {
        self.order.retain(|other| *other != seat);
        if let Some(run) = &mut self.seats[seat as usize] {
            self.ended[0] += 1;
            run.state = SeatState::Ended;
            if run.in_flight > 0 {
                self.leaving += 1;
            } else {
                self.vacate(seat);
            }
        }
    }

    /// Frees a seat and its blocks. Only without a step in flight that holds them.
    pub fn vacate(&mut self, seat: u32) -> Option<Seated<S>> {
        let run = self.seats[seat as usize].take()?;
        debug_assert_eq!(run.in_flight, 0, "a step in flight writes these blocks");
        self.kv.release(run.held());
        self.free_seats.push(seat);
        self.unbound.retain(|other| *other != seat);
        Some(run)
    }

    /// Takes seat and blocks from a sequence that no step in flight holds, and lets it wait in front.
    pub fn preempt(&mut self, seat: u32, out: &mut Output<S>) {
        self.order.retain(|other| *other != seat);
        if let Some(run) = self.vacate(seat) {
            out.preemptions += 1;
            self.enqueue(Waiting {
                sequence: run.sequence,
                stream: run.stream,
                preemptions: run.preemptions + 1,
                started: true,
            });
        }
    }

    /// Lets go of those that were cancelled, or ended by the reply stage, before work is spent on them.
    pub fn retire_unwanted(&mut self, out: &mut Output<S>) {
        let mut walk = std::mem::take(&mut self.walk);
        walk.clone_from(&self.order);
        self.num_held = 0;
        for seat in &walk {
            let Some(run) = &self.seats[*seat as usize] else { continue };
            if run.sequence.handle.wants_no_more() {
                announce_cancel(&run.sequence, &run.stream, out);
                self.end(*seat);
            } else if run.sequence.handle.is_held() {
                self.num_held += 1;
            }
        }
        self.walk = walk;
        self.waiting.retain(|waiting| {
            let leaves = waiting.sequence.handle.wants_no_more();
            if leaves {
                announce_cancel(&waiting.sequence, &waiting.stream, out);
            }
            !leaves
        });
    }

    /// Takes blocks for a sequence's next tokens, from others of lower rank if not one token fits; returns how many tokens
    /// its table then holds, `budget` new ones at most.
    pub(super) fn secure(&mut self, seat: u32, budget: u32, out: &mut Output<S>) -> u32 {
        loop {
            let Some(run) = &mut self.seats[seat as usize] else { return 0 };
            let wanted = run.computed + run.remaining().min(budget);
            let held = self.kv.grow(&mut run.table, wanted);
            if held > run.computed || !self.make_room(seat, out) {
                return held;
            }
        }
    }

    /// Pre-empts the sequence of the lowest rank, if that is not the one in need; true if blocks are free now. One that a
    /// step in flight holds keeps its blocks until that is done, and the one in need waits for it.
    fn make_room(&mut self, needy: u32, out: &mut Output<S>) -> bool {
        if self.leaving > 0 {
            return false;
        }
        let victim = self.order.iter().rev().copied().find(|seat| {
            *seat == needy
                || self.seats[*seat as usize].as_ref().is_some_and(|run| !run.held().is_empty())
        });
        let Some(victim) = victim.filter(|victim| *victim != needy) else { return false };
        let Some(run) = &mut self.seats[victim as usize] else { return false };
        if run.in_flight > 0 {
            run.state = SeatState::Preempting;
            self.order.retain(|other| *other != victim);
            self.leaving += 1;
            return false;
        }
        self.preempt(victim, out);
        true
    }

    /// Gives the lane's next free seat.
    pub(super) fn seat(&mut self, waiting: Waiting<S>, out: &mut Output<S>) -> u32 {
        let seat = self.free_seats.pop().expect("the caller has seen a free seat");
        let Waiting { sequence, stream, preemptions, started } = waiting;
        let mut table = Vec::with_capacity(self.estimate(&sequence) as usize);
        let mut shared = sequence.prefix();
        if sequence.needs_scores() {
            shared.token_ids = &[];
        }
        let chain = self.kv.share_prefix(shared, &mut table);
        let computed = table.len() as u32 * self.spec.block_size;
        if !started {
            out.started.push(Started {
                stream: stream.clone(),
                cached_tokens: computed.min(sequence.num_prompt_tokens),
                prompt_tokens: sequence.num_prompt_tokens,
            });
        }
        let run = Seated {
            promised: self.estimate(&sequence),
            // Even if the prefix cache reaches past that point: only a step of its own clears it.
            suspect: sequence.failed_at > 0,
            wishes: Wishes::of(&sequence.sampler),
            sequence,
            stream,
            state: SeatState::Running,
            preemptions,
            table,
            released: 0,
            chain,
            computed,
            settled: computed,
            unseen: 0,
            in_flight: 0,
            prompt_scores: Vec::new(),
        };
        let rank = run.rank();
        let at = self.order.partition_point(|other| {
            self.seats[*other as usize].as_ref().is_some_and(|other| other.rank() < rank)
        });
        self.order.insert(at, seat);
        self.seats[seat as usize] = Some(run);
        self.unbound.push(seat);
        self.ended = [0; STEPS_OF_ENDS];
        seat
    }

    /// A step of the device ended, of this lane or another.
    pub(super) fn step_ended(&mut self) {
        self.ended.rotate_right(1);
        self.ended[0] = 0;
    }

    /// Those that wait, if they are new and nobody with a seat goes on.
    pub(super) fn newcomers(&self) -> Option<Newcomers> {
        let max_seq_len = self.spec.max_seq_len;
        let running = self.order.iter().filter_map(|seat| self.seats[*seat as usize].as_ref());
        let is_new = |waiting: &Waiting<S>| !waiting.started && waiting.sequence.failed_at == 0;
        if running.clone().any(|run| run.is_runnable(max_seq_len))
            || !self.waiting.iter().all(is_new)
        {
            return None;
        }
        // Those whose last step is in flight.
        let ending = running.filter(|run| run.is_exhausted(max_seq_len)).count() as u32;
        let returning = self.ended.iter().sum::<u32>() + ending;
        let tokens: u32 = self.waiting.iter().map(|waiting| waiting.sequence.len()).sum();
        Some(Newcomers {
            waiting: self.waiting.len() as u32,
            returning: returning.min(self.seats.len() as u32),
            fill_step: tokens >= self.spec.max_step_tokens,
        })
    }

    pub(super) fn estimate(&self, sequence: &Sequence) -> u32 {
        blocks_needed(sequence, self.spec.block_size, self.spec.reserve_tokens)
    }

    /// Blocks to be had, without those that seated sequences were promised and do not hold yet.
    pub(super) fn unpromised_blocks(&self) -> u32 {
        let promised = self.order.iter().filter_map(|seat| self.seats[*seat as usize].as_ref());
        let promised: u32 =
            promised.map(|run| run.promised.saturating_sub(run.table.len() as u32)).sum();
        self.kv.num_available().saturating_sub(promised)
    }

    /// Blocks that those without a seat need, and those that will be in a moment.
    fn blocks_awaited(&self) -> u32 {
        let waiting: u32 = self.waiting.iter().map(|one| self.estimate(&one.sequence)).sum();
        if self.leaving == 0 {
            return waiting;
        }
        let preempting =
            self.seats.iter().flatten().filter(|run| run.state == SeatState::Preempting);
        let preempting: u32 = preempting
            .map(|run| self.estimate(&run.sequence).saturating_sub(run.table.len() as u32))
            .sum();
        waiting + preempting
    }

    /// What its steps cost and how many blocks it has, as a `sim` device would have it; none before that is known.
    pub fn costs(&self) -> Option<CostModel> {
        let costs = self.cost.costs()?;
        Some(CostModel { num_blocks: Some(self.spec.num_blocks), ..costs })
    }

    /// The model that this lane runs.
    pub fn model(&self) -> ModelId {
        self.spec.model
    }
}

/// A cancelled sequence ends here; one that the reply stage ended needs no word.
fn announce_cancel<S: Clone>(sequence: &Sequence, stream: &S, out: &mut Output<S>) {
    if sequence.handle.is_cancelled() {
        let end = Delivery::end(stream.clone(), sequence.attempt, FinishReason::Cancelled);
        out.produced.push(end);
    }
}
