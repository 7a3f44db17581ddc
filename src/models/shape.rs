//! `config.json`: from the checkpoint's words to the engine's [`ModelShape`]. The Llama family (2, 3, 3.1, 3.2), in
//! transformers' classic keys and in those of its version 5.

use std::path::Path;

use crate::bridge::ffi::{Dtype, ModelShape, RopeScaling};

use super::fault::{CheckpointError, CheckpointFault};
use super::json_file::JsonFile;

/// Bounds of what a config.json may claim, so that products stay inside 64 bits and a broken file asks for no absurd lists.
const MAX_WIDTH: u32 = 1 << 24;
const MAX_HEADS: u32 = 1 << 14;
const MAX_HEAD_DIM: u32 = 1 << 12;
const MAX_LAYERS: u32 = 1 << 10;
const MAX_POSITIONS: u32 = 1 << 28;

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What the engine builds; `dtype` is `None` below until the tensors have told it.
    pub shape: ModelShape,
    /// The weights' element type, where the file names it.
    pub dtype: Option<Dtype>,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: u32,
    /// `eos_token_id`, one or several.
    pub end_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// Names the key and says what was expected and what came.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let file = JsonFile::read(path)?;
        check_family(&file)?;
        let max_position_embeddings =
            file.required_size("max_position_embeddings", MAX_POSITIONS)?;
        let dtype = read_dtype(&file)?;
        let mut shape = read_sizes(&file)?;
        shape.dtype = dtype.unwrap_or(Dtype::F32);
        read_rope(&file, &mut shape)?;
        let end_token_ids = file.token_ids("eos_token_id", shape.vocab_size)?.unwrap_or_default();
        Ok(Self { shape, dtype, max_position_embeddings, end_token_ids })
    }
}

fn check_family(file: &JsonFile) -> Result<(), CheckpointError> {
    let unsupported =
        |key: &str, reason: String| Err(file.fault(CheckpointFault::Unsupported, key, reason));
    for key in ["quantization_config", "compression_config"] {
        if let Some(value) = file.get(key) {
            let method = value.get("quant_method").and_then(|m| m.as_str()).unwrap_or("unnamed");
            return unsupported(
                key,
                format!("quantized weights ({method}); expected float32, float16 or bfloat16"),
            );
        }
    }
    let model_type = file.text("model_type")?;
    if let Some(found) = model_type.filter(|found| *found != "llama") {
        return unsupported("model_type", format!("expected \"llama\", got \"{found}\""));
    }
    match file.get("architectures") {
        Some(found) => {
            let llama = found
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one.as_str() == Some("LlamaForCausalLM")));
            if !llama {
                return unsupported(
                    "architectures",
                    format!("expected [\"LlamaForCausalLM\"], got {found}"),
                );
            }
        }
        None if model_type.is_none() => {
            return Err(file.expected("architectures", "[\"LlamaForCausalLM\"]"));
        }
        None => {}
    }
    let activation = file.text("hidden_act")?.unwrap_or("silu");
    // Two names of x · sigmoid(x).
    if !matches!(activation, "silu" | "swish") {
        return unsupported("hidden_act", format!("expected \"silu\", got \"{activation}\""));
    }
    Ok(())
}

fn read_dtype(file: &JsonFile) -> Result<Option<Dtype>, CheckpointError> {
    for key in ["torch_dtype", "dtype"] {
        if let Some(name) = file.text(key)? {
            return match name.strip_prefix("torch.").unwrap_or(name) {
                "float32" => Ok(Some(Dtype::F32)),
                "float16" => Ok(Some(Dtype::F16)),
                "bfloat16" => Ok(Some(Dtype::BF16)),
                "auto" => Ok(None),
                other => Err(file.fault(
                    CheckpointFault::Unsupported,
                    key,
                    format!("expected float32, float16 or bfloat16, got \"{other}\""),
                )),
            };
        }
    }
    Ok(None)
}

/// Everything but rope and dtype.
fn read_sizes(file: &JsonFile) -> Result<ModelShape, CheckpointError> {
    let malformed = |key: &str, reason: String| file.fault(CheckpointFault::Malformed, key, reason);
    let hidden_size = file.required_size("hidden_size", MAX_WIDTH)?;
    let num_heads = file.required_size("num_attention_heads", MAX_HEADS)?;
    let num_kv_heads = file.size("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_heads);
    if num_heads % num_kv_heads != 0 {
        return Err(malformed(
            "num_key_value_heads",
            format!("expected a divisor of num_attention_heads {num_heads}, got {num_kv_heads}"),
        ));
    }
    let head_dim = match file.size("head_dim", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size % num_heads == 0 && hidden_size / num_heads <= MAX_HEAD_DIM => {
            hidden_size / num_heads
        }
        None => {
            return Err(malformed(
                "num_attention_heads",
                format!("expected a divisor of hidden_size {hidden_size}, got {num_heads}"),
            ));
        }
    };
    if head_dim % 2 != 0 {
        return Err(malformed(
            "head_dim",
            format!("expected an even number (rotary embedding turns pairs), got {head_dim}"),
        ));
    }
    Ok(ModelShape {
        vocab_size: file.required_size("vocab_size", MAX_WIDTH)?,
        hidden_size,
        intermediate_size: file.required_size("intermediate_size", MAX_WIDTH)?,
        num_layers: file.required_size("num_hidden_layers", MAX_LAYERS)?,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: file.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_factor: 1.0,
        rope_low_freq_factor: 1.0,
        rope_high_freq_factor: 1.0,
        rope_original_max_positions: 0,
        tie_word_embeddings: file.boolean("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: file.boolean("attention_bias")?.unwrap_or(false),
        mlp_bias: file.boolean("mlp_bias")?.unwrap_or(false),
        dtype: Dtype::F32,
    })
}

/// `rope_parameters` (transformers 5) holds theta and scaling; before it, `rope_theta` stood beside `rope_scaling`.
fn read_rope(file: &JsonFile, shape: &mut ModelShape) -> Result<(), CheckpointError> {
    if let Some(theta) = file.positive("rope_theta")? {
        shape.rope_theta = theta;
    }
    let rope = match file.object("rope_parameters")? {
        Some(rope) => Some(rope),
        None => file.object("rope_scaling")?,
    };
    for holder in std::iter::once(file).chain(rope.as_ref()) {
        if holder.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            let reason = "expected 1 (every dimension turns)";
            return Err(holder.fault(
                CheckpointFault::Unsupported,
                "partial_rotary_factor",
                reason,
            ));
        }
    }
    let Some(rope) = rope else { return Ok(()) };
    if let Some(theta) = rope.positive("rope_theta")? {
        shape.rope_theta = theta;
    }
    // `type` is the older name.
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let required =
        |key: &str| rope.positive(key)?.ok_or_else(|| rope.expected(key, "a number above 0"));
    match rope.text(key)?.unwrap_or("default") {
        "default" => {}
        "linear" => {
            shape.rope_scaling = RopeScaling::Linear;
            shape.rope_factor = required("factor")?;
        }
        "llama3" => {
            shape.rope_scaling = RopeScaling::Llama3;
            shape.rope_factor = required("factor")?;
            shape.rope_low_freq_factor = required("low_freq_factor")?;
            shape.rope_high_freq_factor = required("high_freq_factor")?;
            if shape.rope_high_freq_factor <= shape.rope_low_freq_factor {
                return Err(rope.expected("high_freq_factor", "more than low_freq_factor"));
            }
            shape.rope_original_max_positions =
                rope.required_size("original_max_position_embeddings", MAX_POSITIONS)?;
        }
        other => {
            return Err(rope.fault(
                CheckpointFault::Unsupported,
                key,
                format!("expected default, linear or llama3, got \"{other}\""),
            ));
        }
    }
    Ok(())
}

/// A tensor that the model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Its Hugging Face name.
    pub name: String,
    /// Row-major.
    pub shape: Vec<u64>,
}

/// Every tensor of a model of this shape, in the order of the forward pass.
pub fn expected_tensors(shape: &ModelShape) -> Vec<ExpectedTensor> {
    let hidden = u64::from(shape.hidden_size);
    let inner = u64::from(shape.intermediate_size);
    let vocab = u64::from(shape.vocab_size);
    let query = u64::from(shape.num_heads) * u64::from(shape.head_dim);
    let kv = u64::from(shape.num_kv_heads) * u64::from(shape.head_dim);
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[u64]| {
        all.push(ExpectedTensor { name, shape: shape.to_vec() });
    };
    add("model.embed_tokens.weight".to_owned(), &[vocab, hidden]);
    for layer in 0..shape.num_layers {
        let at = format!("model.layers.{layer}");
        add(format!("{at}.input_layernorm.weight"), &[hidden]);
        let projections =
            [("q", query, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, query)];
        for (name, rows, columns) in projections {
            add(format!("{at}.self_attn.{name}_proj.weight"), &[rows, columns]);
            if shape.attention_bias {
                add(format!("{at}.self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        add(format!("{at}.post_attention_layernorm.weight"), &[hidden]);
        for (name, rows, columns) in
            [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)]
        {
            add(format!("{at}.mlp.{name}_proj.weight"), &[rows, columns]);
            if shape.mlp_bias {
                add(format!("{at}.mlp.{name}_proj.bias"), &[rows]);
            }
        }
    }
    add("model.norm.weight".to_owned(), &[hidden]);
    if !shape.tie_word_embeddings {
        add("lm_head.weight".to_owned(), &[vocab, hidden]);
    }
    all
}

/// Whether a checkpoint may have this tensor although the model does not need it: what is computed anyway, and the copy of the
/// embedding that some exports keep beside tied weights.
pub fn may_be_left_out(name: &str, shape: &ModelShape) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || (shape.tie_word_embeddings && name == "lm_head.weight")
}

/// Bytes of one element.
pub fn dtype_bytes(dtype: Dtype) -> u64 {
    if dtype == Dtype::F32 { 4 } else { 2 }
}
