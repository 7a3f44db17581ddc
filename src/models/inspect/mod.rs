//! What a checkpoint is and needs, before it is loaded: read and checked as loading does, with the same errors.
//!
//! [`inspect`] gives a [`Report`], which `--json` prints as it stands; `Display` is the same for people. Bytes on a device are the
//! engine's own reckoning, so they are what loading takes.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bridge::spec::{DecoderSpec, Dtype, MlpKind};
use crate::tokenizer::{ChatTemplate, Tokenizer};

use super::open::tokenizer_folder;
use super::{ModelSpec, max_seq_len};
use crate::checkpoint::families::Decoder;
use crate::checkpoint::{Checkpoint, HubCache, LoadFormat, Quantization};
use crate::memory::{KvDtype, StepLimits};

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
    /// Weights by the format that their matrices have on a device, the most first.
    pub formats: Vec<(String, u64)>,
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
    /// Longest sequence that is planned for: the context, or less if that was asked for.
    pub max_seq_len: u32,
    /// Tokens that end a completion.
    pub end_token_ids: Vec<u32>,
    /// Ids of the tokenizer; absent if there is none (the node needs one).
    pub tokenizer_ids: Option<u32>,
    /// Whether `messages` can be sent.
    pub has_chat_template: bool,
    /// Why the chat template cannot be rendered, where it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_fault: Option<String>,
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
    /// As `config.json` names it; of the first rope where there are two. `none` without rotation.
    pub rope_type: &'static str,
    /// 1 without scaling.
    pub rope_factor: f32,
    pub tie_word_embeddings: bool,
    /// Of the layers that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts_per_token: Option<u32>,
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

/// What is wanted of a model, as in the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct InspectedAs {
    /// Longest sequence; absent: the checkpoint's.
    pub max_seq_len: Option<u32>,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
    /// What becomes of weights in 16 bits: of the layers, and of the head.
    pub quantization: Option<Quantization>,
    #[allow(missing_docs)]
    pub quantization_head: Option<Quantization>,
}

/// Reads the checkpoint at a directory or hub id. Blocks on the disk.
///
/// # Errors
/// What loading would say: file, key or tensor, and reason.
pub fn inspect(
    model_path: &Path,
    inspected_as: InspectedAs,
    hub: &HubCache,
    devices: &[DeviceHere],
) -> Result<Report, String> {
    let directory = hub.resolve(model_path).map_err(|error| error.to_string())?;
    let mut checkpoint =
        Checkpoint::open(&directory, LoadFormat::Safetensors).map_err(|error| error.to_string())?;
    let InspectedAs { max_seq_len, kv_dtype, quantization, quantization_head } = inspected_as;
    checkpoint.quantize(quantization, quantization_head).map_err(|error| error.to_string())?;
    checkpoint.hold_kv_as(kv_dtype).map_err(|error| error.to_string())?;
    let spec = ModelSpec { max_seq_len, ..ModelSpec::new("inspected", &directory) };
    let max_seq_len = self::max_seq_len(&spec, checkpoint.max_position_embeddings())?;
    let folder = tokenizer_folder(&directory)?;
    let tokenizer = folder
        .has_tokenizer()
        .then(|| Tokenizer::of_folder(&folder, Some(checkpoint.spec().vocab_size)))
        .transpose()
        .map_err(|error| error.to_string())?;
    let template = ChatTemplate::of_folder(&folder).map_err(|error| error.to_string())?;
    let spec = checkpoint.spec();
    let kv_bytes_per_token = devices::kv_bytes_per_token(spec, max_seq_len)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let parts = Parts::of(checkpoint.decoder());
    Ok(Report {
        family: checkpoint.family().model_type,
        architecture: Architecture::of(checkpoint.decoder()),
        dtype: dtype_name(spec.activation),
        formats: Parts::by_format(checkpoint.decoder()),
        parameters: Parameters::of(&parts),
        checkpoint_bytes: checkpoint.total_bytes(),
        kv_bytes_per_token,
        context_length: checkpoint.max_position_embeddings(),
        max_seq_len,
        end_token_ids: checkpoint.end_token_ids().to_vec(),
        tokenizer_ids: tokenizer.map(|tokenizer| tokenizer.vocab_size()),
        chat_template_fault: template.as_ref().and_then(|t| t.fault().map(str::to_owned)),
        has_chat_template: template.is_some(),
        devices: devices.iter().map(|device| device.fit(spec, max_seq_len)).collect(),
        parts,
        directory,
    })
}

impl Architecture {
    /// Layers may differ: what is said of one is said of the first.
    fn of(decoder: &Decoder) -> Self {
        let spec = &decoder.spec;
        let (attention, rope) = (&spec.layers[0].attention, decoder.ropes.first());
        let experts =
            spec.layers.iter().map(|layer| &layer.mlp).find(|mlp| mlp.kind == MlpKind::Experts);
        Self {
            num_layers: spec.layers.len() as u32,
            hidden_size: spec.hidden_size,
            intermediate_size: spec.layers[0].mlp.intermediate_size,
            num_heads: attention.num_heads,
            num_kv_heads: attention.num_kv_heads,
            head_dim: attention.head_dim,
            vocab_size: spec.vocab_size,
            rope_theta: rope.map_or(0.0, |rope| rope.theta),
            rope_type: rope.map_or("none", |rope| rope.kind()),
            rope_factor: rope.map_or(1.0, |rope| rope.factor()),
            tie_word_embeddings: spec.tied_embeddings,
            sliding_window: spec
                .layers
                .iter()
                .map(|layer| layer.attention.window)
                .find(|window| *window > 0),
            num_experts: experts.map(|mlp| mlp.num_experts),
            experts_per_token: experts.map(|mlp| mlp.experts_per_token),
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
