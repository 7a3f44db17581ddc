//! Goal: the `config.json` of published models is read, whatever else it says. Method: their keys, as hubs have them, and a fact or two of
//! what comes out. An unknown key is refused, so a key that is missing in a family's file shows here.

use inferno_node::bridge::spec::{DecoderSpec, NO_ROPE, QkNorm};
use inferno_node::checkpoint::ModelConfig;
use serde_json::{Value, json};

/// What nearly every file says.
const COMMON: &str = r#"{
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true
}"#;

/// Sizes: vocabulary, hidden, intermediate, layers, heads, KV heads, longest sequence.
pub fn config(architecture: &str, model_type: &str, sizes: [u32; 7], own: &Value) -> Value {
    let mut config: Value = serde_json::from_str(COMMON).expect("JSON");
    let keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ];
    for (key, size) in keys.into_iter().zip(sizes) {
        config[key] = size.into();
    }
    config["architectures"] = json!([architecture]);
    config["model_type"] = model_type.into();
    for (key, value) in own.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

pub fn read(config: Value) -> DecoderSpec {
    let name = config["architectures"].to_string();
    let config = ModelConfig::parse(config).unwrap_or_else(|error| panic!("{name}: {error}"));
    config.spec()
}

pub fn windows(spec: &DecoderSpec) -> Vec<u32> {
    spec.layers.iter().map(|layer| layer.attention.window).collect()
}

#[test]
fn mistral_7b_has_a_window_and_nemo_none() {
    let first = read(config(
        "MistralForCausalLM",
        "mistral",
        [32000, 4096, 14336, 32, 32, 8, 32768],
        &json!({"rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false}),
    ));
    assert_eq!(first.layers[31].attention.window, 4096);
    let nemo = read(config(
        "MistralForCausalLM",
        "mistral",
        [131072, 5120, 14336, 40, 32, 8, 131072],
        &json!({
            "head_dim": 128, "rope_theta": 1000000.0, "sliding_window": null,
            "tie_word_embeddings": false,
        }),
    ));
    let attention = &nemo.layers[0].attention;
    assert_eq!((attention.window, attention.head_dim), (0, 128));
}

#[test]
fn ministral_3_lies_in_a_multimodal_file() {
    let text = json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 262144,
        "model_type": "ministral3", "num_attention_heads": 32, "num_hidden_layers": 34,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
            "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
        },
        "sliding_window": null, "use_cache": true, "vocab_size": 131072,
    });
    let spec = read(json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "dtype": "bfloat16",
        "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": false,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "text_config": text,
        "tie_word_embeddings": false, "transformers_version": "5.0.0.dev0",
        "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1,
    }));
    assert_eq!((spec.ropes[0].query_beta, spec.ropes[0].query_original_positions), (0.1, 16384));
    assert_eq!((spec.ropes[0].scale, spec.layers.len()), (1.0, 34));
}

#[test]
fn qwen_says_a_window_that_is_not_used() {
    let own = json!({
        "max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": false, "use_mrope": false,
        "use_sliding_window": false,
    });
    let sizes = [152064, 3584, 18944, 28, 28, 4, 32768];
    let qwen2 = read(config("Qwen2ForCausalLM", "qwen2", sizes, &own));
    assert_eq!(windows(&qwen2), [0; 28]);
    assert!(qwen2.layers[0].attention.qkv.bias && !qwen2.layers[0].attention.o.bias);
    let own = json!({
        "attention_bias": false, "head_dim": 128, "max_window_layers": 28, "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        },
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "use_sliding_window": false,
    });
    let sizes = [151936, 1024, 3072, 28, 16, 8, 40960];
    let qwen3 = read(config("Qwen3ForCausalLM", "qwen3", sizes, &own));
    assert!(qwen3.tied_embeddings && qwen3.layers[0].attention.qk_norm == QkNorm::PerHead);
    assert!((qwen3.ropes[0].scale - 1.138_629_4).abs() < 1e-6, "{}", qwen3.ropes[0].scale);
}

#[test]
fn gemma_alternates_between_windows_and_all() {
    let gemma2 = read(config(
        "Gemma2ForCausalLM",
        "gemma2",
        [256000, 4608, 36864, 46, 32, 16, 8192],
        &json!({
            "attention_bias": false, "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 128,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "pad_token_id": 0, "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        }),
    ));
    assert_eq!(windows(&gemma2)[..3], [4096, 0, 4096]);
    assert_eq!((gemma2.layers[0].attention.softcap, gemma2.logit_softcap), (50.0, 30.0));
    assert_eq!((gemma2.layers[0].attention.scale, gemma2.embedding_scale), (1.0 / 12.0, 68.0));
    let gemma3 = read(config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        [262144, 1152, 6912, 26, 4, 1, 32768],
        &json!({
            "attention_bias": false, "attn_logit_softcapping": null,
            "cache_implementation": "hybrid", "final_logit_softcapping": null, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
            "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
            "sliding_window_pattern": 6,
        }),
    ));
    assert_eq!(windows(&gemma3)[..7], [512, 512, 512, 512, 512, 0, 512]);
}

#[test]
fn gemma_3_4b_leaves_most_to_its_class() {
    let spec = read(json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }));
    let attention = &spec.layers[5].attention;
    assert_eq!((attention.num_heads, attention.num_kv_heads, attention.head_dim), (8, 4, 256));
    assert_eq!((spec.vocab_size, spec.tied_embeddings), (262208, true));
    assert_eq!((spec.ropes[0].inv_freq[0], spec.ropes[1].inv_freq[0]), (0.125, 1.0));
    assert_eq!((attention.rope, spec.layers[4].attention.rope), (0, 1));
}

#[test]
fn gemma_3_may_say_its_ropes_in_both_styles() {
    let layer_types: Vec<_> =
        (0..12).map(|i| if i % 6 == 5 { "full_attention" } else { "sliding_attention" }).collect();
    let spec = read(json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16",
        "model_type": "gemma3",
        "text_config": {
            "_sliding_window_pattern": 6, "attn_logit_softcapping": null,
            "final_logit_softcapping": null, "head_dim": 128, "hidden_size": 5376,
            "intermediate_size": 21504, "layer_types": layer_types,
            "max_position_embeddings": 131072, "model_type": "gemma3_text",
            "num_attention_heads": 32, "num_hidden_layers": 12, "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
            "rope_parameters": {
                "full_attention": {"factor": 8.0, "rope_type": "linear"},
                "sliding_attention": {"rope_type": "default"},
            },
            "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 1024,
            "use_bidirectional_attention": false, "vocab_size": 262208,
        },
    }));
    let second = |rope: usize| spec.ropes[rope].inv_freq[1];
    assert!((second(0) - 1e6_f32.powf(-1.0 / 64.0) / 8.0).abs() < 1e-7, "{}", second(0));
    assert!((second(1) - 1e4_f32.powf(-1.0 / 64.0)).abs() < 1e-7, "{}", second(1));
}

#[test]
fn phi_turns_a_part_of_its_heads_by_long_factors() {
    let factors = vec![1.5; 48];
    let mini = read(config(
        "Phi3ForCausalLM",
        "phi3",
        [200064, 3072, 8192, 32, 24, 8, 131072],
        &json!({
            "attention_bias": false, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "embd_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false,
            "mlp_bias": false, "original_max_position_embeddings": 4096, "pad_token_id": 199999,
            "partial_rotary_factor": 0.75, "resid_pdrop": 0.0,
            "rope_scaling": {
                "long_factor": factors, "short_factor": factors, "type": "longrope",
            },
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true,
        }),
    ));
    assert_eq!((mini.ropes[0].inv_freq.len(), mini.layers[0].attention.head_dim), (48, 128));
    let phi4 = read(config(
        "Phi3ForCausalLM",
        "phi3",
        [100352, 5120, 17920, 40, 40, 10, 16384],
        &json!({
            "attention_bias": false, "embd_pdrop": 0.0, "original_max_position_embeddings": 16384,
            "pad_token_id": 100349, "resid_pdrop": 0.0, "rope_scaling": null,
            "rope_theta": 250000, "sliding_window": null, "tie_word_embeddings": false,
        }),
    ));
    assert_eq!((phi4.ropes[0].scale, phi4.layers[0].attention.window), (1.0, 0));
}

#[test]
fn olmo_3_scales_the_rope_of_every_fourth_layer() {
    let layer_types: Vec<_> =
        (0..32).map(|i| if i % 4 == 3 { "full_attention" } else { "sliding_attention" }).collect();
    let spec = read(config(
        "Olmo3ForCausalLM",
        "olmo3",
        [100278, 4096, 11008, 32, 32, 32, 65536],
        &json!({
            "attention_bias": false, "layer_types": layer_types, "pad_token_id": 100277,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.207_944_2, "beta_fast": 32.0, "beta_slow": 1.0,
                "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
            "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": false,
        }),
    ));
    assert_eq!(windows(&spec)[..5], [4096, 4096, 4096, 0, 4096]);
    let scales: Vec<f32> = spec.ropes.iter().map(|rope| rope.scale).collect();
    assert_eq!(scales, [1.207_944_2, 1.0]);
    assert_eq!((spec.layers[3].attention.rope, spec.layers[4].attention.rope), (0, 1));
    let own = json!({
        "attention_bias": false, "pad_token_id": 100277, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 500000, "tie_word_embeddings": false,
    });
    let sizes = [100352, 4096, 11008, 32, 32, 32, 4096];
    let olmo2 = read(config("Olmo2ForCausalLM", "olmo2", sizes, &own));
    assert_eq!(olmo2.layers[0].attention.qk_norm, QkNorm::PerRow);
}

#[test]
fn smollm3_does_not_turn_every_fourth_layer() {
    let flags: Vec<u32> = (0..36).map(|i| u32::from(i % 4 != 3)).collect();
    let spec = read(config(
        "SmolLM3ForCausalLM",
        "smollm3",
        [128256, 2048, 11008, 36, 16, 4, 65536],
        &json!({
            "attention_bias": false, "layer_types": vec!["full_attention"; 36],
            "max_window_layers": 28, "mlp_bias": false, "no_rope_layer_interval": 4,
            "no_rope_layers": flags, "pad_token_id": 128004, "pretraining_tp": 2,
            "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 5000000.0,
            "sliding_window": null, "use_sliding_window": false,
        }),
    ));
    let ropes: Vec<u32> = spec.layers.iter().take(5).map(|layer| layer.attention.rope).collect();
    assert_eq!(ropes, [0, 0, 0, NO_ROPE, 0]);
    assert!(spec.tied_embeddings);
}

#[test]
fn granite_multiplies_and_glm_turns_neighbours() {
    let granite = read(config(
        "GraniteForCausalLM",
        "granite",
        [49159, 4096, 12800, 40, 32, 8, 131072],
        &json!({
            "attention_bias": false, "attention_multiplier": 0.0078125,
            "embedding_multiplier": 12.0, "logits_scaling": 16.0, "mlp_bias": false,
            "pad_token_id": 0, "residual_multiplier": 0.22, "rope_scaling": null,
            "rope_theta": 10000000.0, "tie_word_embeddings": true,
        }),
    ));
    assert_eq!((granite.embedding_scale, granite.logit_scale), (12.0, 1.0 / 16.0));
    assert_eq!(granite.layers[0].attention.scale, 0.0078125);
    let glm = read(config(
        "Glm4ForCausalLM",
        "glm4",
        [151552, 4096, 13696, 40, 32, 2, 32768],
        &json!({
            "attention_bias": true, "eos_token_id": [151329, 151336, 151338], "head_dim": 128,
            "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        }),
    ));
    assert!(glm.ropes[0].interleaved && glm.ropes[0].inv_freq.len() == 32);
}
