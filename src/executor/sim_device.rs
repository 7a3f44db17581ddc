//! A device that computes nothing: it takes the time of a [`CostModel`] and samples printable tokens.

use std::collections::HashMap;
use std::time::Duration;

use crate::bridge::ffi::{Backend, MemoryStats, StepBatch, StepOutput};
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::models::{StepLimits, memory};

use super::cost_model::CostModel;
use super::vocabulary::Vocabulary;
use super::{Device, DeviceLoad, LoadState, LoadedModel, ModelBudget, ModelId};

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
        let model = SimModel { vocabulary, budget: load.budget, loaded, taken_bytes };
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

    fn run(
        &mut self,
        model: ModelId,
        batch: &mut StepBatch,
        output: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        let loaded = self.models.get(&model).ok_or_else(|| unknown(model))?;
        check(batch, &loaded.budget)
            .map_err(|message| DeviceError { code: DeviceErrorCode::InvalidBatch, message })?;
        output.logits.clear();
        output.token_ids.clear();
        let end_after = self.costs.end_after;
        output.token_ids.extend(batch.sample.iter().zip(&batch.sampling).map(|(sample, row)| {
            let ends = end_after.is_some_and(|end| row.position >= end) && !row.suppress_end;
            match loaded.vocabulary.end {
                _ if !sample => 0,
                Some(end) if ends => end,
                _ => loaded.vocabulary.token(row.seed, row.position),
            }
        }));
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

/// The sizes of the flat arrays against each other and the budget.
fn check(batch: &StepBatch, budget: &ModelBudget) -> Result<(), String> {
    let tokens = batch.token_ids.len();
    let sequences = batch.context_lens.len();
    for (name, len, expected) in [
        ("positions", batch.positions.len(), tokens),
        ("slot_mapping", batch.slot_mapping.len(), tokens),
        ("cu_query_lens", batch.cu_query_lens.len(), sequences + 1),
        ("seats", batch.seats.len(), sequences),
        ("feed_sampled", batch.feed_sampled.len(), sequences),
        ("sample", batch.sample.len(), sequences),
        ("sampling", batch.sampling.len(), sequences),
        ("block_tables", batch.block_tables.len(), sequences * batch.block_table_stride as usize),
    ] {
        if len != expected {
            return Err(format!("{name}: expected {expected} entries, got {len}"));
        }
    }
    let sums = &batch.cu_query_lens;
    if sums.first() != Some(&0) || sums.last().map(|last| *last as usize) != Some(tokens) {
        return Err(format!("cu_query_lens: expected 0 to {tokens}, got {sums:?}"));
    }
    if sums.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("cu_query_lens: expected a token of every sequence".to_owned());
    }
    if tokens > budget.max_step_tokens as usize || sequences > budget.max_batch_size as usize {
        return Err(format!(
            "{tokens} tokens of {sequences} sequences, expected at most {} of {}",
            budget.max_step_tokens, budget.max_batch_size
        ));
    }
    if batch.want_logits {
        return Err("want_logits: a sim device has none".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bridge::ffi::SamplingRow;
    use crate::models::testing;

    const MODEL: ModelId = ModelId(1);

    fn row(seed: u64, position: u32) -> SamplingRow {
        let suppress_end = false;
        SamplingRow {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            position,
            suppress_end,
        }
    }

    /// Sequences that each compute one token.
    fn batch(rows: &[SamplingRow]) -> StepBatch {
        let len = rows.len() as u32;
        StepBatch {
            token_ids: vec![2; rows.len()],
            positions: rows.iter().map(|row| row.position - 1).collect(),
            slot_mapping: (0..len).collect(),
            cu_query_lens: (0..=len).collect(),
            context_lens: rows.iter().map(|row| row.position).collect(),
            block_tables: (0..len).collect(),
            block_table_stride: 1,
            seats: (0..len).collect(),
            feed_sampled: vec![false; rows.len()],
            sample: vec![true; rows.len()],
            sampling: rows.to_vec(),
            ..StepBatch::default()
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

    fn run(device: &mut SimDevice, rows: &[SamplingRow]) -> Vec<u32> {
        let mut output = StepOutput::default();
        device.run(MODEL, &mut batch(rows), &mut output).expect("a good batch");
        output.token_ids
    }

    #[test]
    fn samples_words_that_depend_on_seed_and_position_only() {
        let (mut device, _) = loaded(CostModel::default());
        let rows: Vec<_> = (1..=30).map(|position| row(5, position)).collect();
        let together = run(&mut device, &rows);
        assert!(together.iter().all(|id| testing::WORDS.contains(id)), "{together:?}");
        let alone: Vec<u32> = rows.iter().flat_map(|row| run(&mut device, &[*row])).collect();
        assert_eq!(together, alone);
        let other: Vec<_> = (1..=30).map(|position| row(6, position)).collect();
        assert_ne!(run(&mut device, &other), together);
        let distinct: std::collections::BTreeSet<_> = together.iter().collect();
        assert!(distinct.len() > 5, "{together:?}");
    }

    #[test]
    fn what_is_not_to_be_sampled_is_zero() {
        let (mut device, _) = loaded(CostModel::default());
        let mut batch = batch(&[row(1, 3), row(1, 4)]);
        batch.sample[0] = false;
        let mut output =
            StepOutput { token_ids: vec![9; 5], logits: vec![1.0], ..StepOutput::default() };
        device.run(MODEL, &mut batch, &mut output).expect("a good batch");
        assert_eq!((output.token_ids.len(), output.token_ids[0]), (2, 0));
        assert!(output.logits.is_empty());
    }

    #[test]
    fn the_end_token_comes_only_when_asked_for() {
        let costs = CostModel { end_after: Some(10), ..CostModel::default() };
        let (mut device, _) = loaded(costs);
        let held_back = SamplingRow { suppress_end: true, ..row(1, 10) };
        let tokens = run(&mut device, &[row(1, 9), row(1, 10), held_back, row(1, 11)]);
        let ends: Vec<bool> = tokens.iter().map(|id| *id == testing::END).collect();
        assert_eq!(ends, [false, true, false, true]);
    }

    #[test]
    fn the_cost_model_may_say_how_many_blocks_and_how_much_memory() {
        let costs = CostModel {
            num_blocks: Some(5),
            memory: Some(super::super::ByteSize(1 << 20)),
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
        let breaks: [(&str, Break); 10] = [
            ("positions", |b| b.positions.truncate(1)),
            ("slot_mapping", |b| b.slot_mapping.clear()),
            ("cu_query_lens", |b| b.cu_query_lens = vec![0, 2]),
            ("cu_query_lens", |b| b.cu_query_lens = vec![0, 1, 3]),
            ("cu_query_lens", |b| b.cu_query_lens = vec![0, 0, 2]),
            ("seats", |b| b.seats.push(3)),
            ("feed_sampled", |b| b.feed_sampled.clear()),
            ("sampling", |b| b.sampling.truncate(1)),
            ("block_tables", |b| b.block_table_stride = 2),
            ("want_logits", |b| b.want_logits = true),
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
