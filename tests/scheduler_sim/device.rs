//! A fake device that really keeps KV: every slot holds the token that was computed into it, its position, and a digest of all
//! before it, as real keys and values depend on all before them. What it samples is a pure function of seed, position and digest.

use std::collections::{HashMap, HashSet};

use inferno_node::batcher::{LaneSpec, PlannedStep};
use inferno_node::executor::ModelId;

use super::chance::mix;

/// The token that ends a completion.
pub const END_TOKEN: u32 = 7;
const VOCABULARY: u64 = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    token: u32,
    position: u32,
    digest: u64,
}

struct Memory {
    slots: Vec<Option<Slot>>,
    block_size: u32,
    last_sampled: Vec<Option<u32>>,
    spec: LaneSpec,
}

#[derive(Default)]
pub struct FakeDevice {
    models: HashMap<ModelId, Memory>,
}

/// What is before the first token.
pub fn root(model: ModelId) -> u64 {
    mix(u64::from(model.0) + 1)
}

pub fn extend(digest: u64, token: u32) -> u64 {
    mix(digest ^ mix(u64::from(token) + 0x51))
}

/// The token at `position` after everything that `digest` stands for.
pub fn sample(seed: u64, position: u32, digest: u64, suppress_end: bool) -> u32 {
    let token = (mix(digest ^ mix(seed) ^ u64::from(position)) % VOCABULARY) as u32;
    if token == END_TOKEN && suppress_end { END_TOKEN + 1 } else { token }
}

impl FakeDevice {
    pub fn add_model(&mut self, spec: LaneSpec) {
        let slots = vec![None; (spec.num_blocks * spec.block_size) as usize];
        let last_sampled = vec![None; spec.max_batch_size as usize];
        let memory = Memory { slots, block_size: spec.block_size, last_sampled, spec };
        self.models.insert(memory.spec.model, memory);
    }

    /// Runs a step; every contradiction in its arrays is an error.
    pub fn run(&mut self, step: &PlannedStep) -> Result<Vec<u32>, String> {
        let batch = &step.batch;
        let memory = self.models.get_mut(&step.model).ok_or("unknown model")?;
        let rows = batch.seats.len();
        let limit = memory.spec.max_step_tokens as usize;
        check(batch.token_ids.len() <= limit, || "token budget exceeded".into())?;
        check(rows <= memory.spec.max_batch_size as usize, || "too many rows".into())?;
        check(batch.cu_query_lens.len() == rows + 1, || "cu_query_lens".into())?;
        let written: HashSet<_> = batch.slot_mapping.iter().collect();
        check(written.len() == batch.slot_mapping.len(), || "a slot is written twice".into())?;
        let seats: HashSet<_> = batch.seats.iter().collect();
        check(seats.len() == rows, || "a seat has two rows".into())?;
        (0..rows).map(|row| memory.run_row(step, row)).collect()
    }
}

impl Memory {
    fn run_row(&mut self, step: &PlannedStep, row: usize) -> Result<u32, String> {
        let batch = &step.batch;
        let who = format!("step {} row {row}", step.step);
        let stride = batch.block_table_stride as usize;
        let table = &batch.block_tables[row * stride..(row + 1) * stride];
        let slot_of = |position: u32| {
            table[(position / self.block_size) as usize] * self.block_size
                + position % self.block_size
        };
        let (from, to) = (batch.cu_query_lens[row] as usize, batch.cu_query_lens[row + 1] as usize);
        let seat = batch.seats[row] as usize;
        check(from < to, || format!("{who}: no tokens"))?;
        check(!batch.feed_sampled[row] || to - from == 1, || format!("{who}: fed and long"))?;
        for at in from..to {
            let position = batch.positions[at];
            let token = if batch.feed_sampled[row] {
                self.last_sampled[seat].ok_or_else(|| format!("{who}: nothing sampled"))?
            } else {
                batch.token_ids[at]
            };
            check(batch.slot_mapping[at] == slot_of(position), || format!("{who}: slot"))?;
            let before = match position.checked_sub(1) {
                None => root(step.model),
                Some(before) => {
                    let slot = self.slots[slot_of(before) as usize];
                    slot.ok_or_else(|| format!("{who}: no KV at {before}"))?.digest
                }
            };
            let slot = Slot { token, position, digest: extend(before, token) };
            self.slots[slot_of(position) as usize] = Some(slot);
        }
        let context_len = batch.context_lens[row];
        check(batch.positions[to - 1] + 1 == context_len, || format!("{who}: context_len"))?;
        let mut digest = root(step.model);
        for position in 0..context_len {
            let slot = self.slots[slot_of(position) as usize];
            let slot = slot.ok_or_else(|| format!("{who}: no KV at {position}"))?;
            digest = extend(digest, slot.token);
            let sound = slot.position == position && slot.digest == digest;
            check(sound, || format!("{who}: foreign KV at {position}"))?;
        }
        if !batch.sample[row] {
            return Ok(0);
        }
        let sampling = &batch.sampling[row];
        check(sampling.position == context_len, || format!("{who}: sampled position"))?;
        let token = sample(sampling.seed, context_len, digest, sampling.suppress_end);
        self.last_sampled[seat] = Some(token);
        Ok(token)
    }
}

fn check(holds: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text()) }
}
