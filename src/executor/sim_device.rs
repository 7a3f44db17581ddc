//! A device that computes nothing: it takes the time of a [`CostModel`] and samples printable tokens.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use crate::bridge::ffi::{Backend, MemoryStats, RowStatus, StepBatch, StepOutput};
use crate::bridge::{DeviceError, DeviceErrorCode, NO_MASK, NO_TOKEN};
use crate::memory::{self, KvDtype, StepLimits};

use super::cost_model::CostModel;
use super::vocabulary::{SimSampler, Vocabulary};
use super::{Device, DeviceLoad, LoadState, LoadedModel, SeatBinding};
use crate::ids::ModelId;
use crate::memory::ModelBudget;

/// A step sleeps no shorter than this: below it, a sleep takes longer than it is asked to.
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);

/// See the module.
pub(super) struct SimDevice {
    costs: CostModel,
    reserved_bytes: u64,
    used_bytes: u64,
    peak_bytes: u64,
    models: HashMap<ModelId, SimModel>,
    /// Time owed by steps shorter than [`SHORTEST_SLEEP`].
    debt: Duration,
}

struct SimModel {
    vocabulary: Vocabulary,
    /// \[max_batch_size\]
    seats: Vec<Option<SimSampler>>,
    budget: ModelBudget,
    loaded: LoadedModel,
    taken_bytes: u64,
}

impl SimDevice {
    /// A device of `pool_bytes`, unless the cost model says how much memory it has.
    pub(super) fn new(costs: CostModel, pool_bytes: u64) -> Self {
        Self {
            reserved_bytes: costs.memory.map_or(pool_bytes, |memory| memory.0),
            costs,
            used_bytes: 0,
            peak_bytes: 0,
            models: HashMap::new(),
            debt: Duration::ZERO,
        }
    }

    fn stats(&self) -> MemoryStats {
        MemoryStats {
            reserved_bytes: self.reserved_bytes,
            used_bytes: self.used_bytes,
            peak_bytes: self.peak_bytes,
            num_allocations: self.models.len() as u64,
        }
    }

    fn spend(&mut self, time: Duration) {
        self.debt += time;
        if self.debt >= SHORTEST_SLEEP {
            std::thread::sleep(self.debt);
            self.debt = Duration::ZERO;
        }
    }
}

impl Device for SimDevice {
    fn begin_load(&mut self, load: DeviceLoad) -> Result<(), DeviceError> {
        let limits = StepLimits {
            backend: Backend::Cpu,
            block_size: load.budget.block_size,
            max_batch_size: load.budget.max_batch_size,
            max_step_tokens: load.budget.max_step_tokens,
            num_threads: 1,
            kv_dtype: KvDtype::Auto,
        };
        let need = memory::engine_need(load.checkpoint.spec(), &limits, load.budget.max_seq_len)?;
        let (weight_bytes, block_bytes) = (need.weight_bytes, need.kv_bytes_per_block.max(1));
        let blocks = self.costs.num_blocks.map_or(load.budget.kv_bytes / block_bytes, u64::from);
        let kv_bytes = match self.costs.num_blocks {
            // The cost model's word on the blocks; the budget's on the bytes.
            Some(_) => load.budget.kv_bytes.min(blocks * block_bytes),
            None => blocks * block_bytes,
        };
        // As much as the engine would take, so that memory plans can be tried too.
        let taken_bytes =
            weight_bytes.saturating_add(need.workspace_bytes).saturating_add(kv_bytes);
        let free = self.reserved_bytes - self.used_bytes;
        if taken_bytes > free || blocks == 0 {
            return Err(DeviceError {
                code: DeviceErrorCode::OutOfMemory,
                message: format!("need {taken_bytes} bytes and at least one block, have {free}"),
            });
        }
        self.used_bytes += taken_bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        let loaded = LoadedModel {
            num_blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            weight_bytes,
            kv_bytes,
            memory: self.stats(),
        };
        let vocabulary = Vocabulary::of(&load.checkpoint);
        let seats = vec![None; load.budget.max_batch_size as usize];
        let model = SimModel { vocabulary, seats, budget: load.budget, loaded, taken_bytes };
        self.models.insert(load.model, model);
        Ok(())
    }

    fn load_next(&mut self, model: ModelId) -> Result<LoadState, DeviceError> {
        self.spend(self.costs.load_time());
        let memory = self.stats();
        let loading = self.models.get_mut(&model).ok_or_else(|| unknown(model))?;
        loading.loaded.memory = memory;
        Ok(LoadState::Done(loading.loaded.clone()))
    }

    fn unload(&mut self, model: ModelId) -> Result<(), DeviceError> {
        let gone = self.models.remove(&model).ok_or_else(|| unknown(model))?;
        self.used_bytes -= gone.taken_bytes;
        Ok(())
    }

    fn bind(&mut self, model: ModelId, binding: &SeatBinding) -> Result<(), DeviceError> {
        let loaded = self.models.get_mut(&model).ok_or_else(|| unknown(model))?;
        let Some(seat) = loaded.seats.get_mut(binding.seat as usize) else {
            return Err(invalid(format!("seat {}: the model has fewer", binding.seat)));
        };
        *seat = Some(SimSampler::of(&binding.sampler));
        Ok(())
    }

    fn run(
        &mut self,
        model: ModelId,
        batch: &mut StepBatch,
        output: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        let loaded = self.models.get(&model).ok_or_else(|| unknown(model))?;
        check(batch, &loaded.budget).map_err(invalid)?;
        loaded.sample(batch, self.costs.end_after, output).map_err(invalid)?;
        self.spend(self.costs.step_time(batch));
        Ok(())
    }

    fn memory(&self) -> Result<MemoryStats, DeviceError> {
        Ok(self.stats())
    }
}

fn unknown(model: ModelId) -> DeviceError {
    DeviceError::other(format!("model {} is not on this device", model.0))
}

fn invalid(message: String) -> DeviceError {
    DeviceError { code: DeviceErrorCode::InvalidBatch, message }
}

impl SimModel {
    /// Fills `output`; `end_after` is as in the cost model.
    fn sample(
        &self,
        batch: &StepBatch,
        end_after: Option<u32>,
        output: &mut StepOutput,
    ) -> Result<(), String> {
        clear(output);
        let mut first = 0;
        for (row, seat) in batch.seats.iter().enumerate() {
            let tokens = first..first + batch.query_lens[row] as usize;
            first = tokens.end;
            let sampler = self.seats.get(*seat as usize).and_then(Option::as_ref);
            let sampler = sampler.ok_or_else(|| format!("seats: {seat} is not bound"))?;
            let position = batch.context_lens[row];
            let may_end = end_after.is_some_and(|end| position >= end);
            let (status, token_id) = match self.vocabulary.sample(sampler, position, may_end) {
                _ if !batch.sample[row] => (RowStatus::None, 0),
                Some(token_id) => (RowStatus::Sampled, token_id),
                None => (RowStatus::NothingLeft, 0),
            };
            output.token_ids.push(token_id);
            output.status.push(status);
            let wanted = sampler.num_top.filter(|_| status == RowStatus::Sampled);
            output.logprobs.push(wanted.map_or(0.0, |_| likelihood(0)));
            if let Some(num_top) = wanted {
                let others = self.vocabulary.others(token_id);
                let top = std::iter::once(token_id).chain(others).take(num_top as usize);
                let told = output.top_ids.len();
                output.top_ids.extend(top);
                output.top_logprobs.extend((0..output.top_ids.len() - told).map(likelihood));
            }
            output.top_starts.push(output.top_ids.len() as u32);
            if batch.score[row] {
                self.score(batch, row, tokens, sampler.num_scored_top as usize, output);
            }
            output.score_starts.push(output.score_logprobs.len() as u32);
        }
        Ok(())
    }

    /// Every prompt token was the likeliest. `tokens`: the row's in the batch.
    fn score(
        &self,
        batch: &StepBatch,
        row: usize,
        tokens: Range<usize>,
        num_top: usize,
        output: &mut StepOutput,
    ) {
        let next = Some(batch.next_token_ids[row]).filter(|id| *id != NO_TOKEN);
        let targets = batch.token_ids[tokens].iter().skip(1).copied().chain(next);
        for token_id in targets {
            output.score_logprobs.push(likelihood(0));
            let top = std::iter::once(token_id).chain(self.vocabulary.others(token_id));
            let top = top.chain(std::iter::repeat(NO_TOKEN)).take(num_top);
            output.score_top_ids.extend(top);
            output.score_top_logprobs.extend((0..num_top).map(likelihood));
        }
    }
}

/// The log probability of the `rank`-th likeliest token: half of those before it.
fn likelihood(rank: usize) -> f32 {
    -std::f32::consts::LN_2 * (rank + 1) as f32
}

fn clear(output: &mut StepOutput) {
    output.token_ids.clear();
    output.status.clear();
    output.logprobs.clear();
    output.top_starts.clear();
    output.top_ids.clear();
    output.top_logprobs.clear();
    output.score_starts.clear();
    output.score_logprobs.clear();
    output.score_top_ids.clear();
    output.score_top_logprobs.clear();
    output.logits.clear();
    output.top_starts.push(0);
    output.score_starts.push(0);
}

/// The sizes of the flat arrays against each other and the budget.
fn check(batch: &StepBatch, budget: &ModelBudget) -> Result<(), String> {
    let tokens = batch.token_ids.len();
    let sequences = batch.context_lens.len();
    for (name, len, expected) in [
        ("query_lens", batch.query_lens.len(), sequences),
        ("seats", batch.seats.len(), sequences),
        ("feed_sampled", batch.feed_sampled.len(), sequences),
        ("sample", batch.sample.len(), sequences),
        ("score", batch.score.len(), sequences),
        ("next_token_ids", batch.next_token_ids.len(), sequences),
        ("mask_rows", batch.mask_rows.len(), sequences),
        ("block_tables", batch.block_tables.len(), sequences * batch.block_table_stride as usize),
    ] {
        if len != expected {
            return Err(format!("{name}: expected {expected} entries, got {len}"));
        }
    }
    let lens = &batch.query_lens;
    if lens.contains(&0) || lens.iter().map(|len| *len as usize).sum::<usize>() != tokens {
        return Err(format!("query_lens: expected {tokens} tokens, got {lens:?}"));
    }
    if lens.iter().zip(&batch.context_lens).any(|(query, context)| query > context) {
        return Err("context_lens: expected at least query_lens".to_owned());
    }
    if tokens > budget.max_step_tokens as usize || sequences > budget.max_batch_size as usize {
        return Err(format!(
            "{tokens} tokens of {sequences} sequences, expected at most {} of {}",
            budget.max_step_tokens, budget.max_batch_size
        ));
    }
    if batch.want_logits || batch.mask_rows.iter().any(|row| *row != NO_MASK) {
        return Err("want_logits, mask_rows: a sim device has neither".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bridge::ffi::SamplerSpec;
    use crate::checkpoint::testing;

    const MODEL: ModelId = ModelId(1);

    /// A sequence that samples the token at a position.
    #[derive(Clone)]
    struct Row {
        sampler: SamplerSpec,
        position: u32,
    }

    fn row(seed: u64, position: u32) -> Row {
        Row { sampler: SamplerSpec { seed, ..SamplerSpec::neutral() }, position }
    }

    /// Sequences that each compute one token.
    fn batch(rows: &[Row]) -> StepBatch {
        let len = rows.len() as u32;
        StepBatch {
            token_ids: vec![2; rows.len()],
            query_lens: vec![1; rows.len()],
            context_lens: rows.iter().map(|row| row.position).collect(),
            block_tables: (0..len).collect(),
            block_table_stride: 1,
            seats: (0..len).collect(),
            feed_sampled: vec![false; rows.len()],
            sample: vec![true; rows.len()],
            score: vec![false; rows.len()],
            next_token_ids: vec![NO_TOKEN; rows.len()],
            mask_rows: vec![NO_MASK; rows.len()],
            ..StepBatch::default()
        }
    }

    fn bind(device: &mut SimDevice, rows: &[Row]) {
        for (seat, row) in (0..).zip(rows) {
            let sampler = Arc::new(row.sampler.clone());
            let token_ids = vec![2; row.position as usize];
            let num_prompt_tokens = row.position;
            let binding = SeatBinding { seat, sampler, num_prompt_tokens, token_ids };
            device.bind(MODEL, &binding).expect("a seat");
        }
    }

    fn loaded(costs: CostModel) -> (SimDevice, LoadedModel) {
        let (_dir, checkpoint) = testing::dummy();
        let mut device = SimDevice::new(costs, 1 << 30);
        let budget = ModelBudget {
            block_size: 16,
            kv_bytes: 1 << 20,
            max_batch_size: 32,
            max_step_tokens: 64,
            max_seq_len: 64,
        };
        let load = DeviceLoad { model: MODEL, checkpoint: Arc::clone(&checkpoint), budget };
        device.begin_load(load).expect("there is room");
        match device.load_next(MODEL).expect("loads") {
            LoadState::Done(loaded) => (device, loaded),
            LoadState::More(_) => panic!("a sim device loads in one go"),
        }
    }

    fn step(device: &mut SimDevice, rows: &[Row]) -> StepOutput {
        let mut output = StepOutput::default();
        bind(device, rows);
        device.run(MODEL, &mut batch(rows), &mut output).expect("a good batch");
        output
    }

    fn run(device: &mut SimDevice, rows: &[Row]) -> Vec<u32> {
        step(device, rows).token_ids
    }

    #[test]
    fn samples_words_that_depend_on_seed_and_position_only() {
        let (mut device, _) = loaded(CostModel::default());
        let rows: Vec<_> = (1..=30).map(|position| row(5, position)).collect();
        let together = run(&mut device, &rows);
        assert!(together.iter().all(|id| testing::WORDS.contains(id)), "{together:?}");
        let alone: Vec<u32> =
            rows.iter().flat_map(|row| run(&mut device, std::slice::from_ref(row))).collect();
        assert_eq!(together, alone);
        let other: Vec<_> = (1..=30).map(|position| row(6, position)).collect();
        assert_ne!(run(&mut device, &other), together);
        let distinct: std::collections::BTreeSet<_> = together.iter().collect();
        assert!(distinct.len() > 5, "{together:?}");
    }

    #[test]
    fn what_is_not_to_be_sampled_is_zero() {
        let (mut device, _) = loaded(CostModel::default());
        let rows = [row(1, 3), row(1, 4)];
        bind(&mut device, &rows);
        let mut batch = batch(&rows);
        batch.sample[0] = false;
        let mut output =
            StepOutput { token_ids: vec![9; 5], logits: vec![1.0], ..StepOutput::default() };
        device.run(MODEL, &mut batch, &mut output).expect("a good batch");
        assert_eq!((output.token_ids.len(), output.token_ids[0]), (2, 0));
        assert_eq!(output.status, [RowStatus::None, RowStatus::Sampled]);
        assert!(output.logits.is_empty());
    }

    #[test]
    fn the_end_token_comes_only_when_asked_for() {
        let costs = CostModel { end_after: Some(10), ..CostModel::default() };
        let (mut device, _) = loaded(costs);
        let mut held_back = row(1, 10);
        held_back.sampler.end_from = 11;
        let tokens = run(&mut device, &[row(1, 9), row(1, 10), held_back, row(1, 11)]);
        let ends: Vec<bool> = tokens.iter().map(|id| *id == testing::END).collect();
        assert_eq!(ends, [false, true, false, true]);
    }

    #[test]
    fn what_is_allowed_and_not_banned_is_sampled_or_the_row_says_so() {
        let (mut device, _) = loaded(CostModel::default());
        let mut rows = [row(1, 3), row(1, 4), row(1, 5)];
        let words: Vec<u32> = testing::WORDS.collect();
        rows[0].sampler.allowed_ids = vec![words[1]];
        rows[1].sampler.banned_ids = words.clone();
        rows[1].sampler.allowed_ids = words.clone();
        let output = step(&mut device, &rows);
        assert_eq!(output.status, [RowStatus::Sampled, RowStatus::NothingLeft, RowStatus::Sampled]);
        assert_eq!(output.token_ids[0], words[1]);
    }

    #[test]
    fn log_probabilities_come_where_they_are_wanted() {
        let (mut device, _) = loaded(CostModel::default());
        let mut rows = [row(1, 3), row(1, 4), row(1, 5)];
        rows[0].sampler.want_logprob = true;
        rows[2].sampler.want_logprob = true;
        rows[2].sampler.num_logprobs = 3;
        let output = step(&mut device, &rows);
        assert_eq!(output.logprobs, [likelihood(0), 0.0, likelihood(0)]);
        assert_eq!(output.top_starts, [0, 0, 0, 3]);
        assert_eq!((output.top_ids.len(), output.top_ids[0]), (3, output.token_ids[2]));
        assert_eq!(output.top_logprobs, [0, 1, 2].map(likelihood));
    }

    #[test]
    fn a_seat_that_is_not_bound_is_refused() {
        let (mut device, _) = loaded(CostModel::default());
        let error = device.run(MODEL, &mut batch(&[row(1, 3)]), &mut StepOutput::default());
        assert_eq!(error.map_err(|e| e.code), Err(DeviceErrorCode::InvalidBatch));
        let (sampler, seat) = (Arc::new(SamplerSpec::neutral()), 32);
        let binding = SeatBinding { seat, sampler, num_prompt_tokens: 1, token_ids: vec![2] };
        assert!(device.bind(MODEL, &binding).is_err());
    }

    #[test]
    fn the_cost_model_may_say_how_many_blocks_and_how_much_memory() {
        let costs = CostModel {
            num_blocks: Some(5),
            memory: Some(crate::memory::ByteSize(1 << 20)),
            ..CostModel::default()
        };
        let (device, loaded) = loaded(costs);
        assert_eq!(loaded.num_blocks, 5);
        assert_eq!(device.memory().expect("always").reserved_bytes, 1 << 20);
        let (_, loaded) = super::tests::loaded(CostModel::default());
        // Keys and values of 32 dimensions of 2 bytes in 16 positions.
        assert_eq!(u64::from(loaded.num_blocks), (1 << 20) / (2 * 32 * 2 * 16));
    }

    #[test]
    fn time_passes_as_the_cost_model_says() {
        let costs = CostModel { step_us: 15.0, ..CostModel::default() };
        let (mut device, _) = loaded(costs);
        run(&mut device, &[row(1, 1)]);
        assert_eq!(device.debt, Duration::from_micros(15), "too short to sleep, so it is owed");
        run(&mut device, &[row(1, 2)]);
        assert_eq!(device.debt, Duration::ZERO);
    }

    #[test]
    fn arrays_that_contradict_each_other_are_refused() {
        let (mut device, _) = loaded(CostModel::default());
        let good = batch(&[row(1, 1), row(1, 2)]);
        type Break = fn(&mut StepBatch);
        let breaks: [(&str, Break); 12] = [
            ("query_lens", |b| b.query_lens = vec![2]),
            ("query_lens", |b| b.query_lens = vec![0, 2]),
            ("query_lens", |b| b.query_lens = vec![1, 2]),
            ("context_lens", |b| b.context_lens[1] = 0),
            ("seats", |b| b.seats.push(3)),
            ("feed_sampled", |b| b.feed_sampled.clear()),
            ("score", |b| b.score.truncate(1)),
            ("next_token_ids", |b| b.next_token_ids.truncate(1)),
            ("mask_rows", |b| b.mask_rows.clear()),
            ("block_tables", |b| b.block_table_stride = 2),
            ("want_logits", |b| b.want_logits = true),
            ("want_logits, mask_rows", |b| b.mask_rows[0] = 0),
        ];
        for (name, break_it) in breaks {
            let mut bad = good.clone();
            break_it(&mut bad);
            let error = device.run(MODEL, &mut bad, &mut StepOutput::default()).expect_err(name);
            assert_eq!(error.code, DeviceErrorCode::InvalidBatch);
            assert!(error.message.starts_with(name), "{error}");
        }
        let many: Vec<_> = (1..=33).map(|position| row(1, position)).collect();
        assert!(device.run(MODEL, &mut batch(&many), &mut StepOutput::default()).is_err());
        let mut good = good;
        assert!(device.run(ModelId(9), &mut good, &mut StepOutput::default()).is_err());
    }
}
