//! A fake device that really keeps KV: every slot holds the token that was computed into it, its position, and a digest of all
//! before it, as real keys and values depend on all before them. What it samples is a pure function of seed, position and digest.

use std::collections::{HashMap, HashSet};

use inferno_node::batcher::{LaneSpec, PlannedStep};
use inferno_node::bridge::NO_TOKEN;
use inferno_node::bridge::ffi::{RowStatus, SamplerSpec, StepOutput};
use inferno_node::executor::SeatBinding;
use inferno_node::ids::ModelId;

use super::chance::mix;

/// The token that ends a completion.
pub const END_TOKEN: u32 = 7;
const VOCABULARY: u64 = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    token: u32,
    position: u32,
    /// The digest of all before it.
    before: u64,
    digest: u64,
}

struct Memory {
    slots: Vec<Option<Slot>>,
    block_size: u32,
    last_sampled: Vec<Option<u32>>,
    bound: Vec<Option<SeatBinding>>,
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

/// The token at `position` after everything that `digest` stands for; none where nothing can be sampled, which befalls one
/// sequence in ten sooner or later.
pub fn sample(spec: &SamplerSpec, position: u32, digest: u64) -> Option<u32> {
    let key = mix(digest ^ mix(spec.seed) ^ u64::from(position));
    if spec.seed % 10 == 3 && (key >> 32).is_multiple_of(12) {
        return None;
    }
    let token = (key % VOCABULARY) as u32;
    let held_back = token == END_TOKEN && position < spec.end_from;
    Some(if held_back { END_TOKEN + 1 } else { token })
}

/// How likely a prompt's token is after everything that `digest` stands for.
pub fn score(digest: u64, token: u32) -> f32 {
    -((extend(digest, token) % 1_000) as f32)
}

impl FakeDevice {
    pub fn add_model(&mut self, spec: LaneSpec) {
        let slots = vec![None; (spec.num_blocks * spec.block_size) as usize];
        let last_sampled = vec![None; spec.max_batch_size as usize];
        let bound = vec![None; spec.max_batch_size as usize];
        let memory = Memory { slots, block_size: spec.block_size, last_sampled, bound, spec };
        self.models.insert(memory.spec.model, memory);
    }

    /// The seed of each sequence in a step; `bind` comes first.
    pub fn members(&self, step: &PlannedStep) -> Result<Vec<u64>, String> {
        let memory = self.models.get(&step.model).ok_or("unknown model")?;
        let bound = step.batch.seats.iter().map(|seat| memory.bound[*seat as usize].as_ref());
        bound.map(|bound| Ok(bound.ok_or("a seat is not bound")?.sampler.seed)).collect()
    }

    /// Binds the seats of a step.
    pub fn bind(&mut self, step: &PlannedStep) -> Result<(), String> {
        let memory = self.models.get_mut(&step.model).ok_or("unknown model")?;
        for binding in &step.bindings {
            memory.bound[binding.seat as usize] = Some(binding.clone());
            // A new sequence has sampled nothing here.
            memory.last_sampled[binding.seat as usize] = None;
        }
        Ok(())
    }

    /// Runs a step; every contradiction in its arrays is an error.
    pub fn run(&mut self, step: &PlannedStep) -> Result<StepOutput, String> {
        let batch = &step.batch;
        let memory = self.models.get_mut(&step.model).ok_or("unknown model")?;
        let rows = batch.seats.len();
        let limit = memory.spec.max_step_tokens as usize;
        check(batch.token_ids.len() <= limit, || "token budget exceeded".into())?;
        check(rows <= memory.spec.max_batch_size as usize, || "too many rows".into())?;
        check(batch.query_lens.len() == rows, || "query_lens".into())?;
        let seats: HashSet<_> = batch.seats.iter().collect();
        check(seats.len() == rows, || "a seat has two rows".into())?;
        let (mut from, mut written) = (0, HashSet::new());
        let mut output = StepOutput::of_tokens(Vec::new(), &batch.sample);
        output.device_us = 200.0 + 20.0 * batch.token_ids.len() as f32;
        for row in 0..rows {
            let sampled = memory.run_row(step, row, from, &mut written)?;
            let end = from + batch.query_lens[row] as usize;
            if batch.score[row] {
                memory.score_row(step, row, &batch.token_ids[from..end], &mut output);
            }
            output.score_starts[row + 1] = output.score_logprobs.len() as u32;
            from = end;
            output.token_ids.push(sampled.unwrap_or(0));
            if batch.sample[row] && sampled.is_none() {
                output.status[row] = RowStatus::NothingLeft;
            }
        }
        check(from == batch.token_ids.len(), || "query_lens".into())?;
        Ok(output)
    }
}

impl Memory {
    /// Scores the tokens that follow the row's own; the only alternative is the token itself.
    fn score_row(&self, step: &PlannedStep, row: usize, own: &[u32], output: &mut StepOutput) {
        let batch = &step.batch;
        let stride = batch.block_table_stride as usize;
        let table = &batch.block_tables[row * stride..(row + 1) * stride];
        let first = batch.context_lens[row] - batch.query_lens[row];
        let next = Some(batch.next_token_ids[row]).filter(|id| *id != NO_TOKEN);
        let targets = own.iter().skip(1).copied().chain(next);
        for (position, target) in (first..).zip(targets) {
            let block = table[(position / self.block_size) as usize];
            let slot = self.slots[(block * self.block_size + position % self.block_size) as usize];
            let logprob = slot.map_or(f32::NAN, |slot| score(slot.digest, target));
            output.score_logprobs.push(logprob);
            output.score_top_ids.push(target);
            output.score_top_logprobs.push(logprob);
        }
    }

    /// The row's tokens begin at `from`; the slots that it writes are added to `written`.
    fn run_row(
        &mut self,
        step: &PlannedStep,
        row: usize,
        from: usize,
        written: &mut HashSet<u32>,
    ) -> Result<Option<u32>, String> {
        let batch = &step.batch;
        let who = format!("step {} row {row}", step.step);
        let stride = batch.block_table_stride as usize;
        let table = &batch.block_tables[row * stride..(row + 1) * stride];
        let slot_of = |position: u32| {
            table[(position / self.block_size) as usize] * self.block_size
                + position % self.block_size
        };
        let (query_len, context_len) = (batch.query_lens[row], batch.context_lens[row]);
        let seat = batch.seats[row] as usize;
        check(query_len > 0 && query_len <= context_len, || format!("{who}: lengths"))?;
        check(!batch.feed_sampled[row] || query_len == 1, || format!("{who}: fed and long"))?;
        for (at, position) in (from..).zip(context_len - query_len..context_len) {
            let token = if batch.feed_sampled[row] {
                self.last_sampled[seat].ok_or_else(|| format!("{who}: nothing sampled"))?
            } else {
                batch.token_ids[at]
            };
            check(written.insert(slot_of(position)), || format!("{who}: a slot written twice"))?;
            let before = match position.checked_sub(1) {
                None => root(step.model),
                Some(before) => {
                    let slot = self.slots[slot_of(before) as usize];
                    slot.ok_or_else(|| format!("{who}: no KV at {before}"))?.digest
                }
            };
            let slot = Slot { token, position, before, digest: extend(before, token) };
            self.slots[slot_of(position) as usize] = Some(slot);
        }
        let bound = self.bound[seat].as_ref().ok_or_else(|| format!("{who}: not bound"))?;
        // Of a model with windows only what the row's first token sees is still there; its digest stands for all before it.
        let first_query = context_len - query_len;
        let first = self.spec.window.map_or(0, |window| (first_query + 1).saturating_sub(window));
        let mut digest = match first.checked_sub(1) {
            None => root(step.model),
            Some(_) => {
                let slot = self.slots[slot_of(first) as usize];
                slot.ok_or_else(|| format!("{who}: no KV at {first}"))?.before
            }
        };
        for position in first..context_len {
            let slot = self.slots[slot_of(position) as usize];
            let slot = slot.ok_or_else(|| format!("{who}: no KV at {position}"))?;
            digest = extend(digest, slot.token);
            let sound = slot.position == position && slot.digest == digest;
            check(sound, || format!("{who}: foreign KV at {position}"))?;
            let known = bound.token_ids.get(position as usize);
            let bound_to_it = known.is_none_or(|token| *token == slot.token);
            check(bound_to_it, || format!("{who}: its seat is bound to another sequence"))?;
        }
        if !batch.sample[row] {
            return Ok(None);
        }
        let token = sample(&bound.sampler, context_len, digest);
        // A step behind this one feeds something, whatever became of the row.
        self.last_sampled[seat] = Some(token.unwrap_or(0));
        Ok(token)
    }
}

fn check(holds: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text()) }
}
