//! From a [`ModelSpec`] to everything that serving needs of its files; blocks on the disk.

use std::path::{Path, PathBuf};

use crate::tokenizer::{ChatTemplate, Tokenizer, TokenizerFolder};

use super::ModelSpec;
use crate::bridge::ffi::Backend;
use crate::bridge::spec::DecoderSpec;
use crate::checkpoint::{Checkpoint, CheckpointError, HubCache, ModelConfig, gguf_tokenizer};
use crate::memory::{self, KvDtype, MemoryPlan, MemorySizes, ModelNeed, StepLimits};

/// A model's files, opened and checked.
#[derive(Debug)]
pub(super) struct Opened {
    pub checkpoint: Checkpoint,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    pub max_seq_len: u32,
}

/// Opens all of it.
///
/// # Errors
/// The text names file, key or tensor, and reason.
pub(super) fn open(
    spec: &ModelSpec,
    hub: &HubCache,
    limits: &StepLimits,
) -> Result<Opened, String> {
    let directory = hub.resolve(&spec.model_path).map_err(|error| error.to_string())?;
    let checkpoint =
        open_checkpoint(spec, &directory, limits.kv_dtype).map_err(|error| error.to_string())?;
    let max_seq_len = max_seq_len(spec, checkpoint.max_position_embeddings())?;
    let vocab_size = checkpoint.spec().vocab_size;
    let folder = tokenizer_folder(&directory)?;
    let tokenizer =
        Tokenizer::of_folder(&folder, Some(vocab_size)).map_err(|error| error.to_string())?;
    let chat_template = ChatTemplate::of_folder(&folder).map_err(|error| error.to_string())?;
    let opened = Opened { checkpoint, tokenizer, chat_template, max_seq_len };
    opened.tell(&spec.name);
    opened.tell_widened(&spec.name, limits.backend);
    Ok(opened)
}

/// What a checkpoint says of its tokenizer and its chat template.
///
/// # Errors
/// The text names file, key and reason.
pub(super) fn tokenizer_folder(path: &Path) -> Result<TokenizerFolder, String> {
    if path.is_file() {
        return gguf_tokenizer(path).map_err(|error| error.to_string());
    }
    TokenizerFolder::open(path).map_err(|error| error.to_string())
}

/// The checkpoint in the formats that are asked for.
fn open_checkpoint(
    spec: &ModelSpec,
    directory: &Path,
    kv: KvDtype,
) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint::open(directory, spec.load_format)?;
    checkpoint.quantize(spec.quantization, spec.quantization_head)?;
    checkpoint.hold_kv_as(kv)?;
    Ok(checkpoint)
}

impl Opened {
    /// What somebody who serves the checkpoint should know of it, one line each.
    fn tell(&self, model: &str) {
        let not_honoured = &self.checkpoint.generation().not_honoured;
        if !not_honoured.is_empty() {
            let keys = not_honoured.join(", ");
            tracing::warn!(%model, "generation_config.json: not honoured here: {keys}");
        }
        match &self.chat_template {
            None => tracing::warn!(
                %model,
                "the checkpoint has no chat template: requests with messages are refused"
            ),
            Some(template) => {
                if let Some(fault) = template.fault() {
                    tracing::warn!(
                        %model,
                        "the chat template cannot be rendered, requests with messages are refused: {fault}"
                    );
                }
            }
        }
        let vocab_size = self.checkpoint.spec().vocab_size;
        let num_ids = self.tokenizer.vocab_size();
        if num_ids > vocab_size {
            // Common (tokens were added and never trained); such ids are refused with the prompt that has them.
            tracing::warn!(%model, "the tokenizer has {num_ids} ids, the model only {vocab_size}");
        }
    }

    /// What takes more memory on these devices than in the files.
    fn tell_widened(&self, model: &str, backend: Backend) {
        // What there is no device of is refused with the first word on its memory.
        let widened = memory::widened(backend, self.checkpoint.spec()).unwrap_or_default();
        if !widened.is_empty() {
            let widened: Vec<_> = widened.iter().map(ToString::to_string).collect();
            tracing::warn!(%model, "held in 16 bits, for lack of kernels: {}", widened.join(", "));
        }
    }
}

/// The longest sequence that the model serves.
///
/// # Errors
/// When the configuration asks for more than the model was made for.
pub fn max_seq_len(spec: &ModelSpec, max_position_embeddings: u32) -> Result<u32, String> {
    match spec.max_seq_len {
        None => Ok(max_position_embeddings),
        Some(0) => Err("models.max_seq_len: expected at least 1, got 0".to_owned()),
        Some(asked) if asked > max_position_embeddings => Err(format!(
            "models.max_seq_len: expected at most the checkpoint's max_position_embeddings \
             {max_position_embeddings}, got {asked}"
        )),
        Some(asked) => Ok(asked),
    }
}

/// Sizes the devices' pools for the configured models, from their `config.json` and, where that leaves something open, their
/// tensors' headers; blocks on the disk. The plan's `kv_bytes` are in the order of `specs`.
///
/// # Errors
/// The model whose files cannot be read, with file, key and reason.
pub fn plan_memory(
    specs: &[ModelSpec],
    hub: &HubCache,
    limits: &StepLimits,
    sizes: MemorySizes,
    num_devices: usize,
) -> Result<MemoryPlan, String> {
    let mut needs = Vec::with_capacity(specs.len());
    for spec in specs {
        let named = |error: String| format!("model {:?}: {error}", spec.name);
        let directory: PathBuf =
            hub.resolve(&spec.model_path).map_err(|error| named(error.to_string()))?;
        let opened = spec_of(spec, &directory, limits.kv_dtype);
        let (decoder, positions) = opened.map_err(|error| named(error.to_string()))?;
        let max_seq_len = max_seq_len(spec, positions).map_err(named)?;
        let need = ModelNeed::of(&decoder, limits, max_seq_len);
        needs.push(need.map_err(|error| named(format!("{}: {error}", directory.display())))?);
    }
    // Where the machine does not say, nothing is capped: the reservation itself fails then.
    let available = memory::available_bytes().unwrap_or(u64::MAX);
    let plan = memory::plan(&needs, sizes, available, num_devices as u64);
    if sizes == MemorySizes::default() {
        let cut = specs.iter().zip(&needs).zip(&plan.kv_bytes);
        for ((spec, need), kv) in cut.filter(|((_, need), kv)| **kv < need.wish_kv_bytes) {
            tracing::warn!(model = %spec.name, "{}", kv_note(*kv, need, limits.max_batch_size));
        }
    }
    Ok(plan)
}

/// What a KV cache below its wish holds, and which keys change it.
fn kv_note(kv_bytes: u64, need: &ModelNeed, max_batch_size: u32) -> String {
    let sequences = kv_bytes / need.min_kv_bytes.max(1);
    format!(
        "the KV cache gets {}, which holds {sequences} sequences of full length ({max_batch_size} would take {}): \
         --max-seq-len makes them shorter, executor.kv_cache_size gives more",
        memory::rounded(kv_bytes),
        memory::rounded(need.wish_kv_bytes)
    )
}

/// The decoder as loading will find it. A `config.json` with no dtype leaves that to the tensors, and a tied model's files may hold a head
/// of their own; both are opened to see, and so is a GGUF file.
fn spec_of(
    spec: &ModelSpec,
    directory: &Path,
    kv: KvDtype,
) -> Result<(DecoderSpec, u32), CheckpointError> {
    if directory.is_file() {
        let checkpoint = open_checkpoint(spec, directory, kv)?;
        return Ok((checkpoint.spec().clone(), checkpoint.max_position_embeddings()));
    }
    let config = ModelConfig::read(&directory.join("config.json"), None)?;
    let positions = config.decoder.max_position_embeddings;
    let settled =
        config.dtype.is_some() && !config.decoder.spec.tied_embeddings && !config.is_quantized();
    let is_changed =
        spec.quantization.is_some() || spec.quantization_head.is_some() || kv != KvDtype::Auto;
    if settled && !is_changed {
        return Ok((config.spec(), positions));
    }
    let checkpoint = open_checkpoint(spec, directory, kv)?;
    Ok((checkpoint.spec().clone(), positions))
}
