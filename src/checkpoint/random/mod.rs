//! Checkpoints of true shape with random weights: what benchmarks and trials need of a model that nobody has to download.
//!
//! [`write()`] makes a directory that loads as a trained checkpoint does: `config.json` with the family's published values
//! ([`Like`]), safetensors in Hugging Face's shards, a tokenizer with every id, `generation_config.json`. The values depend on the
//! seed and the tensor's name only, not on threads or shards. Everything is written into a hidden folder beside its place
//! and renamed at the end, `config.json` last: a run that was cut leaves nothing that looks whole.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ModelConfig;
use super::fault::CheckpointError;

mod layout;
mod like;
mod meter;
mod normal;
mod packing;
mod place;
mod tokens;
mod writer;

#[cfg(test)]
mod tests;

pub use like::Like;
pub use packing::RandomFormat;

use like::Recipe;
use meter::Meter;
use place::Place;

/// Of the weight matrices; norms are 1.
const DEVIATION: f32 = 0.02;
/// Hugging Face begins a new shard where one would grow above this.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomOptions {
    /// The model whose shape the checkpoint gets.
    pub like: Like,
    /// Fewer layers than the family has, for tests and small machines.
    pub layers: Option<u32>,
    /// Of the layers' matrices; bf16 where there is none.
    pub format: Option<RandomFormat>,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Write into a directory that is not empty; a checkpoint there is replaced, other files stay.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Weights, tied ones once.
    pub parameters: u64,
    /// Of the safetensors files.
    pub bytes: u64,
    /// How many safetensors files there are.
    pub num_shards: usize,
    /// From the first to the last byte; the system may still be writing to the disk.
    pub elapsed: Duration,
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum RandomError {
    /// Something is there already.
    #[error("{}: the directory is not empty; --force writes into it and replaces a checkpoint there", .0.display())]
    NotEmpty(PathBuf),
    /// Another process writes there.
    #[error("{}: another run is writing here", .0.display())]
    InUse(PathBuf),
    /// The disk would not hold it.
    #[error("{}: {need} bytes are needed, the file system has {free} free", directory.display())]
    NoSpace {
        /// The directory that was to be written.
        directory: PathBuf,
        /// All files together.
        need: u64,
        /// At the moment.
        free: u64,
    },
    /// More layers than the family has, or none.
    #[error("--layers: expected 1 to {max}, got {got}")]
    Layers {
        /// What the family has.
        max: u32,
        /// What was asked for.
        got: u32,
    },
    /// It was told to stop; what it had written is removed.
    #[error("stopped; nothing is left of it")]
    Stopped,
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory at fault.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Our own reader refuses what was written: a defect of ours.
    #[error("the new checkpoint does not load: {0}")]
    Unreadable(#[from] CheckpointError),
}

impl RandomError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }
}

/// Writes a checkpoint into `directory`, which is made if need be. Blocks on the disk; ends soon after `stop` is set.
///
/// # Errors
/// What stood in the way. Nothing of the new checkpoint is left then.
pub fn write(
    directory: &Path,
    options: &RandomOptions,
    stop: &AtomicBool,
) -> Result<Written, RandomError> {
    let mut recipe = Recipe::of(options.like);
    if let Some(layers) = options.layers {
        recipe.cut(layers)?;
    }
    recipe.quantize(options.format);
    let place = Place::open(directory, options.force)?;
    fill(place, &recipe, options.seed, stop, MAX_SHARD_BYTES)
}

/// The same for any recipe.
fn fill(
    place: Place,
    recipe: &Recipe,
    seed: u64,
    stop: &AtomicBool,
    max_shard_bytes: u64,
) -> Result<Written, RandomError> {
    let begun = Instant::now();
    // Our own reader says which tensors this config.json asks for, so the two cannot differ.
    let config_path = place.write_json("config.json", &recipe.config)?;
    let decoder = ModelConfig::read(&config_path, None)?.decoder;
    let tensors = decoder.usual_tensors();
    let parameters = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    let shards = layout::shards(recipe.tensors(&tensors), max_shard_bytes);
    let bytes = shards.iter().map(layout::Shard::file_bytes).sum();
    place.check_space(bytes)?;
    let meter = Meter::new(recipe.name, bytes);
    let job =
        writer::WriteJob { folder: place.partial(), shards: &shards, seed, stop, meter: &meter };
    let outcome = job.run();
    meter.finish();
    outcome?;

    let mut names: Vec<String> = shards.iter().map(|shard| shard.file.clone()).collect();
    for (name, value) in small_files(recipe, &shards) {
        place.write_json(name, &value)?;
        names.push(name.to_owned());
    }
    names.push("config.json".to_owned());
    place.publish(&names)?;
    Ok(Written { parameters, bytes, num_shards: shards.len(), elapsed: begun.elapsed() })
}

/// Everything but the weights and `config.json`.
fn small_files(recipe: &Recipe, shards: &[layout::Shard]) -> Vec<(&'static str, Value)> {
    let mut files = vec![
        ("generation_config.json", recipe.generation_config()),
        ("tokenizer.json", tokens::tokenizer(recipe.tokens, recipe.vocab_size())),
        ("tokenizer_config.json", tokens::tokenizer_config(recipe)),
    ];
    if shards.len() > 1 {
        files.push(("model.safetensors.index.json", layout::index(shards)));
    }
    files
}

/// Keys of `config.json` that are the same for every Llama.
fn common_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "attention_dropout": 0.0,
        "hidden_act": "silu", "initializer_range": 0.02, "mlp_bias": false, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16", "use_cache": true
    })
}
