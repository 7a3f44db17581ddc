//! A device that computes nothing: it takes the time of a [`CostModel`] and samples printable tokens.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use crate::bridge::ffi::{MemoryStats, StepBatch, StepOutput};
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::models::{Checkpoint, StepLimits, memory};

use super::cost_model::CostModel;
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
            block_size: load.budget.block_size,
            max_batch_size: load.budget.max_batch_size,
            max_step_tokens: load.budget.max_step_tokens,
            num_threads: 1,
        };
        let need = memory::engine_need(load.checkpoint.shape(), &limits, load.budget.max_seq_len)?;
        let (weight_bytes, block_bytes) = (need.weight_bytes, need.kv_bytes_per_block.max(1));
        let blocks = self.costs.num_blocks.map_or(load.budget.kv_bytes / block_bytes, u64::from);
        let kv_bytes = match self.costs.num_blocks {
            // The cost model's word on the blocks; the budget's on the bytes.
            Some(_) => load.budget.kv_bytes.min(blocks * block_bytes),
            None => blocks * block_bytes,
        };
        let taken_bytes = weight_bytes.saturating_add(kv_bytes);
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

/// What a sim device may sample.
struct Vocabulary {
    printable: Vec<u32>,
    end: Option<u32>,
}

impl Vocabulary {
    /// The tokens that show as a word or a part of one; without a `tokenizer.json` (or one with no such token), all but the
    /// end tokens.
    fn of(checkpoint: &Checkpoint) -> Self {
        let ends = checkpoint.end_token_ids();
        let size = checkpoint.shape().vocab_size;
        let usable = |id: &u32| *id < size && !ends.contains(id);
        let mut printable: Vec<u32> =
            printable_ids(checkpoint.directory()).into_iter().filter(usable).collect();
        if printable.is_empty() {
            printable = (0..size).filter(usable).collect();
        }
        printable.sort_unstable();
        Self { printable, end: ends.first().copied() }
    }

    /// A pure function of its arguments.
    fn token(&self, seed: u64, position: u32) -> u32 {
        let key = mix(seed ^ mix(u64::from(position).wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let index = key % self.printable.len().max(1) as u64;
        self.printable.get(index as usize).copied().unwrap_or(0)
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Ids of `tokenizer.json` whose text is letters and digits after an optional mark of a word's beginning, added tokens left out.
/// A file that cannot be read gives none: the tokenizer's own loader is the one to complain.
fn printable_ids(directory: &Path) -> Vec<u32> {
    let Ok(bytes) = std::fs::read(directory.join("tokenizer.json")) else { return Vec::new() };
    let Ok(file) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Vec::new() };
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let plain = |text: &str| {
        let text = text.strip_prefix(['Ġ', '▁', ' ']).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let added: Vec<u32> = file["added_tokens"]
        .as_array()
        .map(|tokens| tokens.iter().filter_map(|token| id(&token["id"])).collect())
        .unwrap_or_default();
    let ids: Vec<u32> = match &file["model"]["vocab"] {
        // text → id (BPE, WordPiece, WordLevel)
        serde_json::Value::Object(vocab) => vocab
            .iter()
            .filter(|(text, _)| plain(text))
            .filter_map(|(_, value)| id(value))
            .collect(),
        // [text, score] by id (Unigram)
        serde_json::Value::Array(vocab) => (0..)
            .zip(vocab)
            .filter(|(_, entry)| entry[0].as_str().is_some_and(plain))
            .map(|(index, _)| index)
            .collect(),
        _ => Vec::new(),
    };
    ids.into_iter().filter(|id| !added.contains(id)).collect()
}
