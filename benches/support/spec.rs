//! Decoders of the Llama family, for benchmarks of the engine.

use inferno_node::bridge::spec::DecoderSpec;
use inferno_node::checkpoint::ModelConfig;
use serde_json::json;

/// The shape of Llama 3.2 1B: 1.24 B parameters.
#[allow(dead_code)] // only where a whole model is measured
pub mod llama_1b {
    use super::{DecoderSpec, llama};

    pub const VOCABULARY: u32 = 128_256;
    pub const HIDDEN: u32 = 2_048;
    pub const INTERMEDIATE: u32 = 8_192;
    pub const LAYERS: u32 = 16;

    pub fn spec() -> DecoderSpec {
        llama(VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS)
    }
}

/// Heads of 64, four to a head of keys and values; bf16, tied embeddings.
pub fn llama(
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_layers: u32,
) -> DecoderSpec {
    let num_heads = hidden_size.div_ceil(64);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": hidden_size,
        "intermediate_size": intermediate_size, "num_hidden_layers": num_layers, "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads.div_ceil(4), "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "max_position_embeddings": 131_072, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
    });
    ModelConfig::parse(config).expect("a good config").spec()
}
