//! Goal and method as in `published.rs`, for families with experts.

use inferno_node::bridge::spec::{MlpKind, NO_ROPE, RouterKind};
use inferno_node::checkpoint::ModelConfig;
use serde_json::{Value, json};

use crate::published::{config, read, windows};

#[test]
fn mixtral_and_qwen_3_have_experts() {
    let mixtral = read(config(
        "MixtralForCausalLM",
        "mixtral",
        [32000, 4096, 14336, 32, 32, 8, 32768],
        &json!({
            "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": false,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
            "tie_word_embeddings": false,
        }),
    ));
    let mlp = &mixtral.layers[0].mlp;
    assert_eq!((mlp.num_experts, mlp.experts_per_token, mlp.renormalise), (8, 2, true));
    let qwen = read(config(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        [151936, 2048, 6144, 48, 32, 4, 40960],
        &json!({
            "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128,
            "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
            "norm_topk_prob": true, "num_experts": 128, "num_experts_per_tok": 8,
            "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
            "tie_word_embeddings": false, "use_sliding_window": false,
        }),
    ));
    let mlp = &qwen.layers[0].mlp;
    assert_eq!((mlp.num_experts, mlp.intermediate_size, mlp.renormalise), (128, 768, true));
    assert!(qwen.layers.iter().all(|layer| layer.mlp.kind == MlpKind::Experts));
}

#[test]
fn qwen_2_shares_a_gated_expert() {
    let spec = read(config(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        [151936, 2048, 5632, 24, 16, 16, 8192],
        &json!({
            "decoder_sparse_step": 1, "max_window_layers": 21, "moe_intermediate_size": 1408,
            "norm_topk_prob": false, "num_experts": 60, "num_experts_per_tok": 4,
            "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768, "tie_word_embeddings": false, "use_sliding_window": false,
        }),
    ));
    let (attention, mlp) = (&spec.layers[0].attention, &spec.layers[0].mlp);
    assert_eq!((attention.qkv.bias, attention.window), (true, 0));
    assert_eq!((mlp.num_experts, mlp.experts_per_token, mlp.renormalise), (60, 4, false));
    assert_eq!((mlp.shared.intermediate_size, mlp.shared.has_gate), (5632, true));
}

/// Trinity Mini.
fn afmoe(own: &Value) -> Value {
    let mut keys = json!({
        "auto_map": {"AutoConfig": "configuration_afmoe.AfmoeConfig"},
        "global_attn_every_n_layers": 4, "head_dim": 128, "load_balance_coeff": 0.0005,
        "moe_intermediate_size": 1024, "mup_enabled": true, "n_group": 1, "num_dense_layers": 2,
        "num_expert_groups": 1, "num_experts": 128, "num_experts_per_tok": 8,
        "num_limited_groups": 1, "num_shared_experts": 1, "rope_scaling": null,
        "rope_theta": 10000, "route_norm": true, "route_scale": 2.826, "score_func": "sigmoid",
        "sliding_window": 2048, "tie_word_embeddings": false, "topk_group": 1,
        "use_grouped_mm": true,
    });
    for (key, value) in own.as_object().expect("an object") {
        keys[key] = value.clone();
    }
    config("AfmoeForCausalLM", "afmoe", [200192, 2048, 6144, 32, 32, 4, 131072], &keys)
}

#[test]
fn afmoe_gates_its_attention_and_chooses_by_sigmoids() {
    let spec = read(afmoe(&json!({})));
    assert_eq!(windows(&spec)[..5], [2048, 2048, 2048, 0, 2048]);
    let ropes: Vec<u32> = spec.layers.iter().take(4).map(|layer| layer.attention.rope).collect();
    assert_eq!(ropes, [0, 0, 0, NO_ROPE]);
    assert!(spec.layers.iter().all(|layer| layer.attention.output_gate));
    assert_eq!(
        (spec.layers[1].mlp.kind, spec.layers[2].mlp.kind),
        (MlpKind::Dense, MlpKind::Experts)
    );
    let mlp = &spec.layers[2].mlp;
    assert_eq!((mlp.router_kind, mlp.score_correction), (RouterKind::Sigmoid, true));
    assert_eq!((mlp.renormalise, mlp.routed_scale), (true, 2.826));
    assert_eq!((mlp.shared.intermediate_size, mlp.shared.has_gate), (1024, false));
    assert_eq!(spec.embedding_scale, 2048.0_f32.sqrt());
}

#[test]
fn afmoe_with_groups_of_experts_is_refused() {
    for (key, value) in
        [("n_group", json!(8)), ("topk_group", json!(4)), ("score_func", json!("softmax"))]
    {
        let error = ModelConfig::parse(afmoe(&json!({ key: value }))).err().expect(key);
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn gpt_oss_in_16_bits_is_read() {
    let layer_types: Vec<_> =
        (0..24).map(|i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
    let spec = read(config(
        "GptOssForCausalLM",
        "gpt_oss",
        [201088, 2880, 2880, 24, 64, 8, 131072],
        &json!({
            "attention_bias": true, "experts_per_token": 4, "head_dim": 64,
            "initial_context_length": 4096, "layer_types": layer_types, "num_experts_per_tok": 4,
            "num_local_experts": 32, "output_router_logits": false, "pad_token_id": 199999,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false,
            },
            "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
            "swiglu_limit": 7.0, "tie_word_embeddings": false,
        }),
    ));
    assert_eq!(windows(&spec)[..2], [128, 0]);
    assert!((spec.ropes[0].scale - 1.346_573_6).abs() < 1e-6, "{}", spec.ropes[0].scale);
}
