//! What a checkpoint is and needs, before it is loaded: read and checked as loading does, with the same errors.
//!
//! [`inspect`] gives a [`Report`], which `--json` prints as it stands; `Display` is the same for people. Bytes on a device are the
//! engine's own reckoning, so they are what loading takes.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bridge::ffi::{Dtype, ModelShape, RopeScaling};
use crate::tokenizer::{ChatTemplate, Tokenizer};

use super::memory::StepLimits;
use super::{Checkpoint, HubCache, LoadFormat, ModelSpec, max_seq_len};

mod devices;
mod parts;
mod text;

#[cfg(test)]
mod tests;

pub use devices::{DeviceHere, Fit, devices_here};
pub use parts::{Part, Parts};

/// All that is said about a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it is; of a hub id, the snapshot in the cache.
    pub directory: PathBuf,
    /// Its kind, as `model_type` names it.
    pub family: &'static str,
    /// Sizes of the decoder.
    pub architecture: Architecture,
    /// Of the weights on a device.
    pub dtype: &'static str,
    /// Weights by part, tied ones once.
    pub parameters: Parameters,
    /// Weights and bytes of each part.
    pub parts: Parts,
    /// Bytes of all tensors in the files.
    pub checkpoint_bytes: u64,
    /// Keys and values of one token in all layers.
    pub kv_bytes_per_token: u64,
    /// The checkpoint's `max_position_embeddings`.
    pub context_length: u32,
    /// Longest sequence that is reckoned with: the context, or less if that was asked for.
    pub max_seq_len: u32,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
    /// Ids of the tokenizer; absent if there is none (the node needs one).
    pub tokenizer_ids: Option<u32>,
    /// Whether `messages` can be sent.
    pub has_chat_template: bool,
    /// What fits on which device of this machine, at this moment.
    pub devices: Vec<Fit>,
}

/// Sizes of the decoder, in the names of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Architecture {
    pub num_layers: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub vocab_size: u32,
    pub rope_theta: f32,
    /// `default`, `linear` or `llama3`.
    pub rope_type: &'static str,
    /// 1 without scaling.
    pub rope_factor: f32,
    pub tie_word_embeddings: bool,
}

/// Numbers of weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parameters {
    /// All of them; a tied `lm_head` is the embedding and not counted again.
    pub total: u64,
    /// The same for people: `8.03 B`.
    pub rounded: String,
    /// Of the token embedding.
    pub embedding: u64,
    /// All but the embedding.
    pub without_embedding: u64,
}

/// Reads the checkpoint at a directory or hub id; `max_seq_len` as in the configuration. Blocks on the disk.
///
/// # Errors
/// What loading would say: file, key or tensor, and reason.
pub fn inspect(
    model_path: &Path,
    max_seq_len: Option<u32>,
    hub: &HubCache,
    devices: &[DeviceHere],
) -> Result<Report, String> {
    let directory = hub.resolve(model_path).map_err(|error| error.to_string())?;
    let checkpoint =
        Checkpoint::open(&directory, LoadFormat::Safetensors).map_err(|error| error.to_string())?;
    let spec = ModelSpec {
        name: "inspected".to_owned(),
        model_path: directory.clone(),
        load_format: LoadFormat::Safetensors,
        max_seq_len,
    };
    let max_seq_len = self::max_seq_len(&spec, checkpoint.max_position_embeddings())?;
    let has_tokenizer = directory.join("tokenizer.json").exists();
    let tokenizer = has_tokenizer
        .then(|| Tokenizer::from_dir(&directory))
        .transpose()
        .map_err(|error| error.to_string())?;
    let template = ChatTemplate::from_dir(&directory).map_err(|error| error.to_string())?;
    let shape = checkpoint.shape();
    let kv_bytes_per_token = devices::kv_bytes_per_token(shape, max_seq_len)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let parts = Parts::of(shape);
    Ok(Report {
        family: "llama",
        architecture: Architecture::of(shape),
        dtype: dtype_name(shape.dtype),
        parameters: Parameters::of(&parts),
        checkpoint_bytes: checkpoint.total_bytes(),
        kv_bytes_per_token,
        context_length: checkpoint.max_position_embeddings(),
        max_seq_len,
        end_token_ids: checkpoint.end_token_ids().to_vec(),
        tokenizer_ids: tokenizer.map(|tokenizer| tokenizer.vocab_size()),
        has_chat_template: template.is_some(),
        devices: devices.iter().map(|device| device.fit(shape, max_seq_len)).collect(),
        parts,
        directory,
    })
}

impl Architecture {
    fn of(shape: &ModelShape) -> Self {
        Self {
            num_layers: shape.num_layers,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_heads: shape.num_heads,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            vocab_size: shape.vocab_size,
            rope_theta: shape.rope_theta,
            rope_type: match shape.rope_scaling {
                RopeScaling::Linear => "linear",
                RopeScaling::Llama3 => "llama3",
                _ => "default",
            },
            rope_factor: shape.rope_factor,
            tie_word_embeddings: shape.tie_word_embeddings,
        }
    }
}

impl Parameters {
    fn of(parts: &Parts) -> Self {
        let total = parts.total().parameters;
        let embedding = parts.embedding.parameters;
        Self {
            total,
            rounded: text::rounded(total),
            embedding,
            without_embedding: total - embedding,
        }
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}
