//! What every family's `config.json` says in the same keys, and the plain decoder that comes of it: a family changes what is its own.

use half::{bf16, f16};

use crate::bridge::spec::{
    Activation, AttentionSpec, DecoderSpec, Dtype, LayerSpec, LinearSpec, MlpKind, MlpSpec,
    NormSpec, QkNorm, RouterKind, SharedExpertSpec,
};
use crate::checkpoint::fault::{CheckpointError, CheckpointFault};
use crate::checkpoint::json_file::JsonFile;

use super::super::{Decoder, Source};
use super::bounds::{
    MAX_EXPERTS_OF_ALL, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN_SIZE, MAX_INTERMEDIATE_SIZE,
    MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB_SIZE,
};
use super::names::{Names, Root};
use super::ropes::{Rope, RopeDefaults};

/// Keys without effect on what is computed here, beside those that begin with `_`.
#[rustfmt::skip]
const WITHOUT_EFFECT: &[&str] = &[
    // Read for the whole file.
    "compression_config",
    "quantization_config",
    "add_cross_attention", "architectures", "attention_dropout", "attn_implementation", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping", "embd_pdrop",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "hidden_dropout", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "is_llama_config",
    "label2id", "length_penalty", "max_length", "max_sequence_length", "min_length", "model_type", "neftune_noise_alpha",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_router_logits", "output_scores", "pad_token_id",
    "prefix", "pretraining_tp", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "resid_pdrop",
    "return_dict", "return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version",
    "use_bfloat16", "use_cache",
];

/// What a family takes where its `config.json` is silent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Defaults {
    /// `None`: as many as there are heads.
    pub num_kv_heads: Option<u32>,
    /// `None`: the hidden size divided among the heads.
    pub head_dim: Option<u32>,
    pub rms_norm_eps: f32,
    pub tied: bool,
    /// Of `hidden_act`'s name; GeGLU families.
    pub gelu: bool,
    /// Published without sizes: Gemma 3's `text_config`.
    pub sizes: Option<RequiredSizes>,
}

/// Sizes that a `config.json` has, all but Gemma 3's.
#[derive(Debug, Clone, Copy)]
pub struct RequiredSizes {
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub num_layers: u32,
    pub num_heads: u32,
    pub max_position_embeddings: u32,
}

/// The sizes of a decoder whose layers are alike.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub all: RequiredSizes,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub norm: NormSpec,
    pub tied: bool,
    pub activation: Activation,
    pub dtype: Dtype,
}

impl Sizes {
    pub fn read(source: &Source<'_>, defaults: Defaults) -> Result<Self, CheckpointError> {
        let file = source.config;
        let all = RequiredSizes::read(file, defaults.sizes)?;
        let num_kv_heads = match file.size("num_key_value_heads", MAX_HEADS)? {
            Some(found) => found,
            // An explicit null means one for each head.
            None if file.has("num_key_value_heads") => all.num_heads,
            None => defaults.num_kv_heads.unwrap_or(all.num_heads),
        };
        if !all.num_heads.is_multiple_of(num_kv_heads) {
            let heads = all.num_heads;
            let reason =
                format!("expected a divisor of num_attention_heads {heads}, got {num_kv_heads}");
            return Err(file.fault(CheckpointFault::Malformed, "num_key_value_heads", reason));
        }
        Ok(Self {
            all,
            num_kv_heads,
            head_dim: head_dim(file, all, defaults.head_dim)?,
            norm: NormSpec::rms(file.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps)),
            tied: file.boolean("tie_word_embeddings")?.unwrap_or(defaults.tied),
            activation: activation(file, defaults.gelu)?,
            dtype: source.dtype,
        })
    }

    pub fn linear(&self, bias: bool) -> LinearSpec {
        LinearSpec { bias, format: self.dtype.into(), ordered: false }
    }

    /// Full attention without biases, by the first rope.
    pub fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.all.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            qkv: self.linear(false),
            o: self.linear(false),
            qk_norm: QkNorm::None,
            qk_norm_eps: self.norm.eps,
            rope: 0,
            window: 0,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            softcap: 0.0,
            sinks: false,
            output_gate: false,
            gate: self.dtype.into(),
            k_scale: 1.0,
            v_scale: 1.0,
        }
    }

    /// One MLP without biases.
    pub fn mlp(&self) -> MlpSpec {
        MlpSpec {
            kind: MlpKind::Dense,
            intermediate_size: self.all.intermediate_size,
            activation: self.activation,
            gate_up: self.linear(false),
            down: self.linear(false),
            num_experts: 1,
            experts_per_token: 1,
            router: self.linear(false),
            router_kind: RouterKind::SoftmaxTopK,
            score_correction: false,
            renormalise: false,
            routed_scale: 1.0,
            shared: self.shared_expert(0, false),
        }
    }

    /// An expert that every token goes through; of size 0 none.
    pub fn shared_expert(&self, intermediate_size: u32, has_gate: bool) -> SharedExpertSpec {
        let format = self.dtype.into();
        SharedExpertSpec {
            intermediate_size,
            gate_up: format,
            down: format,
            has_gate,
            gate: format,
        }
    }

    /// Norms before attention and MLP.
    pub fn layer(&self) -> LayerSpec {
        LayerSpec {
            pre_attention: self.norm,
            post_attention: NormSpec::NONE,
            pre_mlp: self.norm,
            post_mlp: NormSpec::NONE,
            attention: self.attention(),
            mlp: self.mlp(),
            residual_scale: 1.0,
        }
    }

    /// Heads that turn whole, in halves.
    pub fn rope(&self) -> RopeDefaults {
        RopeDefaults::of_heads(self.head_dim, self.all.max_position_embeddings)
    }

    /// The reading as a whole, of a file that holds nothing but a decoder. Refuses what of it was not read and is not known to be
    /// without effect.
    pub fn finish(
        &self,
        config: &JsonFile,
        spec: DecoderSpec,
        ropes: Vec<Rope>,
        names: Names,
    ) -> Result<Decoder, CheckpointError> {
        config.refuse_unread(WITHOUT_EFFECT)?;
        let experts: u64 = spec.layers.iter().map(|layer| u64::from(layer.mlp.num_experts)).sum();
        if experts > MAX_EXPERTS_OF_ALL {
            let reason =
                format!("expected at most {MAX_EXPERTS_OF_ALL} in all layers, got {experts}");
            return Err(config.fault(CheckpointFault::Malformed, "num_experts", reason));
        }
        let max_position_embeddings = self.all.max_position_embeddings;
        Ok(Decoder { spec, ropes, max_position_embeddings, names, roots: Root::PLAIN })
    }

    /// Layers that are made by their index.
    pub fn decoder(&self, layer: impl FnMut(u32) -> LayerSpec) -> DecoderSpec {
        DecoderSpec {
            vocab_size: self.all.vocab_size,
            hidden_size: self.all.hidden_size,
            activation: self.dtype,
            kv: self.dtype,
            embedding: self.dtype.into(),
            embedding_scale: 1.0,
            tied_embeddings: self.tied,
            head: self.linear(false),
            final_norm: self.norm,
            logit_scale: 1.0,
            logit_softcap: 0.0,
            ropes: Vec::new(),
            layers: (0..self.all.num_layers).map(layer).collect(),
        }
    }
}

impl RequiredSizes {
    fn read(file: &JsonFile, default: Option<Self>) -> Result<Self, CheckpointError> {
        let size = |key: &str, max: u32, default: Option<u32>| match default {
            Some(default) => Ok(file.size(key, max)?.unwrap_or(default)),
            None => file.required_size(key, max),
        };
        Ok(Self {
            vocab_size: size("vocab_size", MAX_VOCAB_SIZE, default.map(|d| d.vocab_size))?,
            hidden_size: size("hidden_size", MAX_HIDDEN_SIZE, default.map(|d| d.hidden_size))?,
            intermediate_size: size(
                "intermediate_size",
                MAX_INTERMEDIATE_SIZE,
                default.map(|d| d.intermediate_size),
            )?,
            num_layers: size("num_hidden_layers", MAX_LAYERS, default.map(|d| d.num_layers))?,
            num_heads: size("num_attention_heads", MAX_HEADS, default.map(|d| d.num_heads))?,
            max_position_embeddings: size(
                "max_position_embeddings",
                MAX_POSITIONS,
                default.map(|d| d.max_position_embeddings),
            )?,
        })
    }
}

/// Biases of q, k, v and o by `attention_bias`.
pub fn with_biases(
    config: &JsonFile,
    attention: AttentionSpec,
    default: bool,
) -> Result<AttentionSpec, CheckpointError> {
    let bias = config.boolean("attention_bias")?.unwrap_or(default);
    let (qkv, o) = (LinearSpec { bias, ..attention.qkv }, LinearSpec { bias, ..attention.o });
    Ok(AttentionSpec { qkv, o, ..attention })
}

/// Biases of gate, up and down by `mlp_bias`.
pub fn with_mlp_biases(config: &JsonFile, mlp: MlpSpec) -> Result<MlpSpec, CheckpointError> {
    let bias = config.boolean("mlp_bias")?.unwrap_or(false);
    let (gate_up, down) = (LinearSpec { bias, ..mlp.gate_up }, LinearSpec { bias, ..mlp.down });
    Ok(MlpSpec { gate_up, down, ..mlp })
}

/// Refuses a key that changes the computation in a way that the family has not, unless it says the neutral thing.
pub fn refuse_unless(
    file: &JsonFile,
    key: &str,
    neutral: &serde_json::Value,
) -> Result<(), CheckpointError> {
    // 7 and 7.0 are one number.
    let is_neutral = |value: &serde_json::Value| match (value.as_f64(), neutral.as_f64()) {
        (Some(value), Some(neutral)) => value == neutral,
        _ => value == neutral,
    };
    match file.get(key) {
        Some(value) if !is_neutral(value) => {
            let reason = format!("expected {neutral}, got {value}");
            Err(file.fault(CheckpointFault::Unsupported, key, reason))
        }
        _ => Ok(()),
    }
}

fn head_dim(
    file: &JsonFile,
    sizes: RequiredSizes,
    default: Option<u32>,
) -> Result<u32, CheckpointError> {
    let (hidden_size, num_heads) = (sizes.hidden_size, sizes.num_heads);
    let head_dim = match file.size("head_dim", MAX_HEAD_DIM)?.or(default) {
        Some(head_dim) => head_dim,
        None if hidden_size % num_heads == 0 => hidden_size / num_heads,
        None => {
            let reason =
                format!("expected a divisor of hidden_size {hidden_size}, got {num_heads}");
            return Err(file.fault(CheckpointFault::Malformed, "num_attention_heads", reason));
        }
    };
    if head_dim > MAX_HEAD_DIM {
        let reason = format!(
            "expected 1 to {MAX_HEAD_DIM}, got {head_dim}: hidden_size {hidden_size} divided among {num_heads} heads"
        );
        return Err(file.fault(CheckpointFault::Malformed, "head_dim", reason));
    }
    if head_dim % 2 != 0 {
        let reason =
            format!("expected an even number (rotary embedding turns pairs), got {head_dim}");
        return Err(file.fault(CheckpointFault::Malformed, "head_dim", reason));
    }
    Ok(head_dim)
}

fn activation(file: &JsonFile, gelu: bool) -> Result<Activation, CheckpointError> {
    // `hidden_act` has no effect beside Gemma's `hidden_activation`.
    let key = if gelu { "hidden_activation" } else { "hidden_act" };
    file.get("hidden_act");
    let default = if gelu { "gelu_pytorch_tanh" } else { "silu" };
    let name = file.text(key)?.unwrap_or(default);
    match name {
        // Two names of x · sigmoid(x).
        "silu" | "swish" if !gelu => Ok(Activation::SILU),
        "gelu_pytorch_tanh" if gelu => Ok(Activation::GELU_TANH),
        _ => {
            let reason = format!("expected \"{default}\", got \"{name}\"");
            Err(file.fault(CheckpointFault::Unsupported, key, reason))
        }
    }
}

/// A factor as the family's code has it beside weights of this type.
pub fn rounded_to(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_has_the_bits_of_the_weights_type() {
        let root = 3072.0_f32.sqrt();
        assert_eq!(rounded_to(Dtype::BF16, root), 55.5);
        assert_eq!(rounded_to(Dtype::F32, root), root);
    }
}
