//! Model families: a file each, from `config.json` to the engine's [`DecoderSpec`], and from a checkpoint's tensor names to slots.
//!
//! To add one: a file beside `llama.rs` with its [`Family`], a line in [`FAMILIES`], and a checkpoint of its own class in
//! `tests/fixtures`. What a family reads is held against its configuration class in `transformers`.

use crate::bridge::spec::{DecoderSpec, Dtype};

use super::fault::{CheckpointError, CheckpointFault};
use super::json_file::JsonFile;

mod afmoe;
mod gemma2;
mod gemma3;
mod glm4;
mod gpt_oss;
mod granite;
mod llama;
mod ministral3;
mod mistral;
mod mixtral;
mod olmo;
mod parts;
mod phi3;
mod qwen;
mod smollm3;

pub use parts::names::{ExpectedTensor, Piece, Root};
pub use parts::ropes::{Rope, RopeScaling};
pub use parts::transform::{LoadedPart, Transform};

use parts::bounds::{MAX_EXPERTS, MAX_EXPERTS_PER_TOKEN};
use parts::names::Names;

/// A family of decoders.
pub struct Family {
    /// As people call it.
    pub name: &'static str,
    /// `architectures` of its `config.json`.
    pub architecture: &'static str,
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    read: fn(&Source<'_>) -> Result<Decoder, CheckpointError>,
}

/// Every family that runs, in the order of the message that lists them.
pub static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &ministral3::MINISTRAL3,
    &ministral3::MISTRAL3,
    &mixtral::MIXTRAL,
    &qwen::qwen2::QWEN2,
    &qwen::qwen2_moe::QWEN2_MOE,
    &qwen::qwen3::QWEN3,
    &qwen::qwen3_moe::QWEN3_MOE,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &gemma3::GEMMA3_MULTIMODAL,
    &phi3::PHI3,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &glm4::GLM4,
    &gpt_oss::GPT_OSS,
    &afmoe::AFMOE,
];

/// What a family reads.
struct Source<'a> {
    /// The decoder's own part of `config.json`: of a multimodal file its `text_config`.
    config: &'a JsonFile,
    /// Of the stored weights.
    dtype: Dtype,
}

/// A family's reading of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// All but the ropes, which depend on the longest sequence.
    pub spec: DecoderSpec,
    /// In the order of the spec's.
    pub ropes: Vec<Rope>,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: u32,
    names: Names,
    roots: &'static [Root],
}

impl Decoder {
    /// What the engine runs where sequences have at most `max_seq_len` positions.
    pub fn spec_for(&self, max_seq_len: u32) -> DecoderSpec {
        let ropes = self.ropes.iter().map(|rope| rope.table(max_seq_len)).collect();
        DecoderSpec { ropes, ..self.spec.clone() }
    }

    /// The names that a checkpoint's tensors may have, the usual one first.
    pub fn roots(&self) -> &'static [Root] {
        self.roots
    }

    /// Every tensor of such a checkpoint, in the order of the forward pass.
    pub fn tensors(&self, root: &Root) -> Vec<ExpectedTensor> {
        self.names.tensors(&self.spec, root)
    }

    /// The same by the usual names.
    pub fn usual_tensors(&self) -> Vec<ExpectedTensor> {
        self.tensors(&self.roots[0])
    }
}

/// Reads a `config.json` with the family that it names. `dtype`: of the stored weights.
///
/// # Errors
/// Names the key and says what was expected and what came; for a family that does not run, which do.
pub(super) fn read(
    file: &JsonFile,
    dtype: Dtype,
) -> Result<(&'static Family, Decoder), CheckpointError> {
    let family = family_of(file)?;
    let decoder = (family.read)(&Source { config: file, dtype })?;
    Ok((family, decoder))
}

/// By `architectures`, else by `model_type`; both must mean the same.
fn family_of(file: &JsonFile) -> Result<&'static Family, CheckpointError> {
    let model_type = file.text("model_type")?;
    let by_type = model_type.map(|name| FAMILIES.iter().find(|family| family.model_type == name));
    let unsupported = |key: &str, known: String, got: &str| {
        let reason = format!("expected one of {known}; got {got}");
        Err(file.fault(CheckpointFault::Unsupported, key, reason))
    };
    let unknown_type = || unsupported("model_type", model_types(), model_type.unwrap_or_default());
    let Some(names) = file.get("architectures") else {
        return match by_type {
            Some(Some(family)) => Ok(family),
            Some(None) => unknown_type(),
            None => Err(file.expected("architectures", &format!("one of {}", architectures()))),
        };
    };
    let is_named = |family: &Family| {
        let mut listed = names.as_array().into_iter().flatten();
        listed.any(|name| name.as_str() == Some(family.architecture))
    };
    let found = FAMILIES.iter().find(|family| is_named(family));
    match (found, by_type) {
        (None, _) => unsupported("architectures", architectures(), &names.to_string()),
        (Some(_), Some(None)) => unknown_type(),
        (Some(family), Some(Some(other))) if family.model_type != other.model_type => {
            let reason =
                format!("expected \"{}\", got \"{}\"", family.model_type, other.model_type);
            Err(file.fault(CheckpointFault::Unsupported, "model_type", reason))
        }
        (Some(family), _) => Ok(family),
    }
}

/// What `architectures` may say.
fn architectures() -> String {
    FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", ")
}

/// What `model_type` may say.
fn model_types() -> String {
    FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ")
}

/// The decoder's own part of a multimodal file.
fn text_part(whole: &JsonFile) -> Result<JsonFile, CheckpointError> {
    let text = whole.object("text_config")?;
    text.ok_or_else(|| whole.expected("text_config", "the decoder's own object"))
}

/// The decoder of its text part, as it stands in the whole: of ties the top level's word counts, and the classes' default is true.
fn of_multimodal(whole: &JsonFile, decoder: Decoder) -> Result<Decoder, CheckpointError> {
    let mut decoder = decoder;
    decoder.spec.tied_embeddings = whole.boolean("tie_word_embeddings")?.unwrap_or(true);
    decoder.roots = Root::MULTIMODAL;
    Ok(decoder)
}

/// Two names of the same.
fn num_experts(config: &JsonFile, default: u32) -> Result<u32, CheckpointError> {
    let (one, other) = ("num_experts", "num_local_experts");
    let found = (config.size(one, MAX_EXPERTS)?, config.size(other, MAX_EXPERTS)?);
    match found {
        (Some(a), Some(b)) if a != b => {
            Err(config.expected(other, &format!("as many as {one}, {a}")))
        }
        (a, b) => Ok(a.or(b).unwrap_or(default)),
    }
}

fn experts_per_token(
    config: &JsonFile,
    default: u32,
    num_experts: u32,
) -> Result<u32, CheckpointError> {
    let key = "num_experts_per_tok";
    let found = config.size(key, num_experts.min(MAX_EXPERTS_PER_TOKEN))?.unwrap_or(default);
    if found > num_experts {
        return Err(config.expected(key, &format!("at most num_experts {num_experts}")));
    }
    Ok(found)
}
