//! The `config.json` that a GGUF file stands for, so that each family is read by its one file, whatever its checkpoint comes in.

use serde_json::{Value, json};

use super::super::fault::{CheckpointError, CheckpointFault};
use super::kinds::TensorKind;
use super::metadata::GgufMetadata;
use super::names::{EMBEDDING, HEAD};
use super::tensors::GgufTensors;
use super::vocabulary;
use crate::bridge::spec::Dtype;

const ARCHITECTURE: &str = "general.architecture";

/// An architecture of GGUF files and the family that runs it.
struct GgufFamily {
    /// As `general.architecture` says it; the beginning of its keys.
    name: &'static str,
    architecture: &'static str,
    model_type: &'static str,
    /// Keys that others do not have.
    own: fn(&Reading<'_>, &mut Value) -> Result<(), CheckpointError>,
}

#[rustfmt::skip]
static FAMILIES: &[GgufFamily] = &[
    // Mistral's files, too: without a window the two are one.
    GgufFamily { name: "llama", architecture: "LlamaForCausalLM", model_type: "llama", own: llama },
    GgufFamily { name: "qwen2", architecture: "Qwen2ForCausalLM", model_type: "qwen2", own: nothing },
    GgufFamily { name: "qwen3", architecture: "Qwen3ForCausalLM", model_type: "qwen3", own: nothing },
    GgufFamily { name: "qwen3moe", architecture: "Qwen3MoeForCausalLM", model_type: "qwen3_moe", own: qwen3_moe },
    GgufFamily { name: "gemma2", architecture: "Gemma2ForCausalLM", model_type: "gemma2", own: gemma2 },
    GgufFamily { name: "gemma3", architecture: "Gemma3ForCausalLM", model_type: "gemma3_text", own: gemma3 },
    GgufFamily { name: "phi3", architecture: "Phi3ForCausalLM", model_type: "phi3", own: phi3 },
];

/// The same architecture where it has experts.
#[rustfmt::skip]
static MIXTRAL: GgufFamily =
    GgufFamily { name: "llama", architecture: "MixtralForCausalLM", model_type: "mixtral", own: mixtral };

/// A file while its configuration is made.
struct Reading<'a> {
    metadata: &'a GgufMetadata<'a>,
    tensors: &'a GgufTensors<'a>,
    family: &'static GgufFamily,
}

/// What `config.json` would say.
///
/// # Errors
/// Names key or tensor and says what was expected and what came.
pub fn config(
    metadata: &GgufMetadata<'_>,
    tensors: &GgufTensors<'_>,
) -> Result<Value, CheckpointError> {
    refuse_split(metadata)?;
    let family = family_of(metadata)?;
    let reading = Reading { metadata, tensors, family };
    let mut config = reading.sizes()?;
    reading.rope(&mut config)?;
    (family.own)(&reading, &mut config)?;
    metadata.refuse_unread(&format!("{}.", family.name))?;
    Ok(config)
}

fn family_of(metadata: &GgufMetadata<'_>) -> Result<&'static GgufFamily, CheckpointError> {
    let name = metadata.text(ARCHITECTURE)?;
    let name = name.ok_or_else(|| metadata.expected(ARCHITECTURE, "a text"))?;
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        let reason = format!("expected one of {}; got {name}", known.join(", "));
        return Err(metadata.fault(CheckpointFault::Unsupported, ARCHITECTURE, reason));
    };
    let experts = metadata.count(&format!("{}.expert_count", MIXTRAL.name))?.unwrap_or(0);
    Ok(if family.name == MIXTRAL.name && experts > 0 { &MIXTRAL } else { family })
}

/// One of several files holds a part of the tensors.
fn refuse_split(metadata: &GgufMetadata<'_>) -> Result<(), CheckpointError> {
    let key = "split.count";
    match metadata.count(key)? {
        None | Some(0 | 1) => Ok(()),
        Some(count) => {
            let reason = format!("one of {count} files; expected a model in one");
            Err(metadata.fault(CheckpointFault::Unsupported, key, reason))
        }
    }
}

impl Reading<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.name)
    }

    fn count(&self, name: &str) -> Result<Option<u32>, CheckpointError> {
        self.metadata.count(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<u32, CheckpointError> {
        self.metadata.required_count(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, CheckpointError> {
        self.metadata.number(&self.key(name))
    }

    fn unsupported(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        self.metadata.fault(CheckpointFault::Unsupported, &self.key(name), reason)
    }

    /// What every architecture says in the same keys, and what the tensors say.
    fn sizes(&self) -> Result<Value, CheckpointError> {
        let embedding = self.tensors.take(EMBEDDING)?;
        let vocab_size = embedding.shape.first().copied().unwrap_or(0);
        let dtype = match embedding.kind {
            TensorKind::Elements(Dtype::F32) => "float32",
            TensorKind::Elements(Dtype::F16) => "float16",
            // Beside codes the type that the models were made in: its range is that of single precision.
            _ => "bfloat16",
        };
        // Stated and not needed: the embedding has as many rows, and of layouts there is one.
        self.count("vocab_size")?;
        self.metadata.text(&self.key("tensor_data_layout"))?;
        let heads = self.required("attention.head_count")?;
        let mut config = json!({
            "architectures": [self.family.architecture],
            "model_type": self.family.model_type,
            "torch_dtype": dtype,
            "vocab_size": vocab_size,
            "hidden_size": self.required("embedding_length")?,
            "intermediate_size": self.required("feed_forward_length")?,
            "num_hidden_layers": self.required("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "max_position_embeddings": self.required("context_length")?,
            "tie_word_embeddings": !self.tensors.has(HEAD),
            "eos_token_id": vocabulary::end_token_ids(self.metadata)?,
        });
        let epsilon = "attention.layer_norm_rms_epsilon";
        let found = self.number(epsilon)?;
        config["rms_norm_eps"] =
            found.ok_or_else(|| self.metadata.expected(&self.key(epsilon), "a number"))?.into();
        config["head_dim"] = self.head_dim(size_in(&config, "hidden_size"), heads)?.into();
        if self.metadata.boolean(&self.key("attention.causal"))? == Some(false) {
            return Err(self.unsupported("attention.causal", "expected true, got false"));
        }
        Ok(config)
    }

    /// Where no key says it, the hidden size divided among the heads.
    fn head_dim(&self, hidden_size: u64, heads: u32) -> Result<u64, CheckpointError> {
        let divided = hidden_size.checked_div(heads.into()).unwrap_or(0);
        let head_dim = self.count("attention.key_length")?.map_or(divided, u64::from);
        match self.count("attention.value_length")? {
            Some(of_values) if u64::from(of_values) != head_dim => {
                let reason = format!("expected as many as keys have, {head_dim}, got {of_values}");
                Err(self.unsupported("attention.value_length", reason))
            }
            _ => Ok(head_dim),
        }
    }

    fn rope(&self, config: &mut Value) -> Result<(), CheckpointError> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        config["rope_theta"] = theta.into();
        if let Some(turning) = self.count("rope.dimension_count")? {
            let head_dim = size_in(config, "head_dim");
            if u64::from(turning) != head_dim {
                config["partial_rotary_factor"] = (f64::from(turning) / head_dim as f64).into();
            }
        }
        if let Some(scaling) = self.scaling(config)? {
            config["rope_scaling"] = scaling;
        }
        Ok(())
    }

    /// Scaling by a formula. Divisors of the frequencies are tensors, which are read by those who have them.
    fn scaling(&self, config: &Value) -> Result<Option<Value>, CheckpointError> {
        let older = self.number("rope.scale_linear")?;
        let factor = self.number("rope.scaling.factor")?.or(older);
        let original = self.count("rope.scaling.original_context_length")?;
        self.metadata.boolean(&self.key("rope.scaling.finetuned"))?;
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?;
        match (kind, factor) {
            (Some("linear"), Some(factor)) => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            (None, Some(factor)) if factor != 0.0 && factor != 1.0 => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            (Some("yarn"), Some(factor)) => {
                let context = config["max_position_embeddings"].clone();
                let original = original.map_or(context, Value::from);
                Ok(Some(json!({"rope_type": "yarn", "factor": factor,
                    "original_max_position_embeddings": original})))
            }
            (None | Some("none"), _) => Ok(None),
            (Some("longrope"), _) if self.family.name == "phi3" => Ok(None),
            (Some(other), _) => {
                let reason =
                    format!("expected none, or linear or yarn with its factor, got {other}");
                Err(self.unsupported("rope.scaling.type", reason))
            }
        }
    }

    /// Divisors are a scaling of their own: a formula beside them would count twice, or not at all.
    fn scale_by_divisors(
        &self,
        config: &mut Value,
        name: &str,
        scaling: Value,
    ) -> Result<(), CheckpointError> {
        if config["rope_scaling"].is_object() {
            let reason = format!("a scaling beside {name}; expected one of the two");
            return Err(self.unsupported("rope.scaling.type", reason));
        }
        config["rope_scaling"] = scaling;
        Ok(())
    }

    /// Divisors that are tensors, one for each pair of a head that turns.
    fn divisors(&self, name: &str) -> Result<Option<Value>, CheckpointError> {
        Ok(self.tensors.floats(name)?.map(|divisors| json!(divisors)))
    }
}

/// A size that stands in the configuration so far.
fn size_in(config: &Value, key: &str) -> u64 {
    config[key].as_u64().unwrap_or(0)
}

fn nothing(_: &Reading<'_>, _: &mut Value) -> Result<(), CheckpointError> {
    Ok(())
}

/// Biases by their tensors; Llama 3.1's scaling as the divisors that come of it.
fn llama(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    let has = |name: &str| reading.tensors.has(name);
    config["attention_bias"] = has("blk.0.attn_output.bias").into();
    config["mlp_bias"] = has("blk.0.ffn_up.bias").into();
    if let Some(divisors) = reading.divisors("rope_freqs.weight")? {
        let scaling = json!({
            "rope_type": "longrope", "attention_factor": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"],
            "short_factor": divisors, "long_factor": divisors,
        });
        reading.scale_by_divisors(config, "rope_freqs.weight", scaling)?;
    }
    Ok(())
}

fn mixtral(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    config["num_local_experts"] = reading.required("expert_count")?.into();
    config["num_experts_per_tok"] = reading.required("expert_used_count")?.into();
    Ok(())
}

fn qwen3_moe(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    for (key, name) in [
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
    ] {
        config[key] = reading.required(name)?.into();
    }
    // The format has no key for it: every model of this kind does.
    config["norm_topk_prob"] = true.into();
    Ok(())
}

fn gemma2(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    gemma(reading, config, 46)?;
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = reading.number(key)? {
            config[key] = cap.into();
        }
    }
    Ok(())
}

fn gemma3(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    gemma(reading, config, 62)?;
    if let Some(pattern) = reading.count("attention.sliding_window_pattern")? {
        config["sliding_window_pattern"] = pattern.into();
    }
    if let Some(theta) = reading.number("rope.freq_base_swa")? {
        config["rope_local_base_freq"] = theta.into();
    }
    Ok(())
}

/// The window, and the scale of attention, which the format leaves to the reader: it is that of a head, but for the models of 27
/// billion, which are known by their layers.
fn gemma(
    reading: &Reading<'_>,
    config: &mut Value,
    layers_of_27b: u32,
) -> Result<(), CheckpointError> {
    let window = reading.required("attention.sliding_window")?;
    config["sliding_window"] = window.into();
    let is_27b = size_in(config, "num_hidden_layers") == u64::from(layers_of_27b);
    config["query_pre_attn_scalar"] = if is_27b {
        let heads = size_in(config, "num_attention_heads");
        size_in(config, "hidden_size").checked_div(heads).into()
    } else {
        config["head_dim"].clone()
    };
    Ok(())
}

/// LongRoPE's divisors are tensors.
fn phi3(reading: &Reading<'_>, config: &mut Value) -> Result<(), CheckpointError> {
    let window = reading.count("attention.sliding_window")?.filter(|window| *window > 0);
    config["sliding_window"] = window.into();
    let original = reading.count("rope.scaling.original_context_length")?;
    let context = config["max_position_embeddings"].clone();
    config["original_max_position_embeddings"] = original.map_or(context, Value::from);
    let attention_factor = reading.number("rope.scaling.attn_factor")?;
    let short = reading.divisors("rope_factors_short.weight")?;
    let long = reading.divisors("rope_factors_long.weight")?;
    if short.is_some() || long.is_some() {
        let scaling = json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
            "attention_factor": attention_factor});
        reading.scale_by_divisors(config, "rope_factors_long.weight", scaling)?;
    }
    Ok(())
}
