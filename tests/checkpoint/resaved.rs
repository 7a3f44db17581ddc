//! Goal: first files, re-saved and fine-tuned ones are read as those they come from. Method: the keys that they add or
//! leave out.

use inferno_node::checkpoint::ModelConfig;
use serde_json::{Value, json};

use super::published::{config, read};

#[test]
fn llama_is_read_from_its_first_files_on() {
    let sizes = [32000, 4096, 11008, 32, 32, 32, 2048];
    let first = read(config(
        "LlamaForCausalLM",
        "llama",
        sizes,
        &json!({
            "max_sequence_length": 2048, "num_key_value_heads": null, "pad_token_id": 0,
            "tie_word_embeddings": false,
        }),
    ));
    assert_eq!(first.layers[0].attention.num_kv_heads, 32);
    let yarn = read(config(
        "LlamaForCausalLM",
        "llama",
        [32000, 4096, 11008, 32, 32, 32, 131072],
        &json!({
            "pretraining_tp": 1, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "rope_scaling": {
                "factor": 32.0, "finetuned": true, "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        }),
    ));
    assert!(yarn.ropes[0].scale > 1.0);
    let small = read(config(
        "LlamaForCausalLM",
        "llama",
        [49152, 2048, 8192, 24, 32, 32, 8192],
        &json!({
            "attention_bias": false, "mlp_bias": false, "neftune_noise_alpha": 5,
            "rope_interleaved": false, "rope_scaling": null, "rope_theta": 130000,
            "tie_word_embeddings": true, "transformers.js_config": {"dtype": "q4"},
        }),
    ));
    assert!(small.tied_embeddings);
}

#[test]
fn the_end_of_a_multimodal_file_may_stand_with_its_text() {
    let text = json!({
        "eos_token_id": [1, 106], "hidden_size": 2560, "intermediate_size": 10240,
        "model_type": "gemma3_text", "num_attention_heads": 8, "num_hidden_layers": 34,
        "num_key_value_heads": 4, "sliding_window": 1024, "dtype": "bfloat16",
    });
    let whole = |text: Value| {
        json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "text_config": text,
        })
    };
    let config = ModelConfig::parse(whole(text.clone())).expect("a config");
    assert_eq!(config.end_token_ids, [1, 106]);
    assert!(config.dtype.is_some());
    let mut quantized = whole(text);
    quantized["quantization_config"] = json!({"quant_method": "exl3"});
    let error = ModelConfig::parse(quantized).err().map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains("awq or mxfp4, got \"exl3\"")));
}

#[test]
fn a_text_part_is_refused_where_the_family_has_none() {
    let own = json!({"tie_word_embeddings": false, "text_config": {"dtype": "bfloat16"}});
    let config = config("LlamaForCausalLM", "llama", [32000, 4096, 11008, 32, 32, 32, 2048], &own);
    let error = ModelConfig::parse(config).err().map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains("text_config")));
}
