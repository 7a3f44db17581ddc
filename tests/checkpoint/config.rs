//! `config.json` and `generation_config.json`.

use inferno_node::checkpoint::families::RopeScaling;
use inferno_node::checkpoint::{CheckpointFault, LoadFormat, ModelConfig};
use inferno_node::request::Params;
use serde_json::{Value, json};

use crate::builder::{Builder, tiny_config};

#[test]
fn config_json_is_checked_key_by_key() {
    use CheckpointFault::{Malformed, Unsupported};
    for (key, value, item, fault) in [
        ("architectures", json!(["GPT2LMHeadModel"]), "architectures", Unsupported),
        ("architectures", json!("LlamaForCausalLM"), "architectures", Unsupported),
        ("model_type", json!("gpt2"), "model_type", Unsupported),
        ("hidden_act", json!("gelu"), "hidden_act", Unsupported),
        (
            "quantization_config",
            json!({"quant_method": "bitsandbytes"}),
            "quantization_config.quant_method",
            Unsupported,
        ),
        ("torch_dtype", json!("float8_e4m3fn"), "torch_dtype", Unsupported),
        ("rope_scaling", json!({"type": "mrope"}), "rope_scaling.type", Unsupported),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 2, "llama_4_scaling_beta": 0.1}),
            "rope_scaling.llama_4_scaling_beta",
            Unsupported,
        ),
        (
            "rope_scaling",
            json!({"type": "longrope"}),
            "rope_scaling.original_max_position_embeddings",
            Malformed,
        ),
        ("sliding_window", json!(4096), "sliding_window", Unsupported),
        ("mixture_of_depths", json!(true), "mixture_of_depths", Unsupported),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8}),
            "rope_scaling.low_freq_factor",
            Malformed,
        ),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor", Malformed),
        ("rope_scaling", json!({"type": "yarn", "mscale": -1}), "rope_scaling.mscale", Malformed),
        ("rope_scaling", json!([]), "rope_scaling", Malformed),
        ("rope_parameters", json!({"rope_theta": -1}), "rope_parameters.rope_theta", Malformed),
        ("rope_parameters", json!({"rope_type": "dynamic"}), "rope_parameters.factor", Malformed),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor", Unsupported),
        ("rope_theta", json!("10000"), "rope_theta", Malformed),
        ("rms_norm_eps", json!(0), "rms_norm_eps", Malformed),
        ("hidden_size", json!(-8), "hidden_size", Malformed),
        ("hidden_size", json!(9), "num_attention_heads", Malformed),
        ("head_dim", json!(3), "head_dim", Malformed),
        ("num_key_value_heads", json!(3), "num_key_value_heads", Malformed),
        ("num_hidden_layers", json!(4_000_000_000_u32), "num_hidden_layers", Malformed),
        ("vocab_size", json!(1.5), "vocab_size", Malformed),
        ("vocab_size", Value::Null, "vocab_size", Malformed),
        ("max_position_embeddings", Value::Null, "max_position_embeddings", Malformed),
        ("eos_token_id", json!(10), "eos_token_id", Malformed),
        ("eos_token_id", json!([1, "2"]), "eos_token_id", Malformed),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings", Malformed),
    ] {
        let builder = Builder::new(&[]);
        let mut config = tiny_config();
        config[key] = value.clone();
        builder.write("config.json", config.to_string());
        let error = builder.open_as(LoadFormat::Dummy).expect_err(key);
        assert_eq!(
            (error.fault, error.item.as_deref()),
            (fault, Some(item)),
            "{key} = {value}: {error}"
        );
        assert!(error.file.ends_with("config.json"), "{error}");
    }
}

#[test]
fn a_config_without_a_family_is_refused() {
    let builder = Builder::new(&[]);
    let mut config = tiny_config();
    config.as_object_mut().expect("an object").remove("architectures");
    builder.write("config.json", config.to_string());
    assert!(builder.open_as(LoadFormat::Dummy).is_ok(), "model_type is enough");
    config.as_object_mut().expect("an object").remove("model_type");
    builder.write("config.json", config.to_string());
    assert!(builder.open_as(LoadFormat::Dummy).is_err());
}

#[test]
fn what_a_family_is_known_by_is_listed_as_the_key_has_it() {
    let text = |key: &str, changes: Value| {
        let mut config = tiny_config();
        config
            .as_object_mut()
            .expect("an object")
            .extend(changes.as_object().cloned().expect("an object"));
        let error = ModelConfig::parse(config).err().expect("refused");
        assert_eq!(error.item.as_deref(), Some(key));
        error.to_string()
    };
    let both = text("model_type", json!({"model_type": "gpt2"}));
    let alone = text("model_type", json!({"model_type": "gpt2", "architectures": null}));
    for error in [both, alone] {
        assert!(error.contains("gemma3_text, ") && !error.contains("ForCausalLM"), "{error}");
        assert!(error.contains("qwen3, ") && error.ends_with("; got gpt2"), "{error}");
    }
    let error = text("architectures", json!({"architectures": ["GPT2LMHeadModel"]}));
    assert!(error.contains("Gemma3ForCausalLM, ") && !error.contains("gemma3_text"), "{error}");
    assert!(error.contains("Qwen3ForCausalLM, ") && error.contains("GPT2LMHeadModel"), "{error}");
}

#[test]
fn a_head_that_is_too_large_is_told_with_its_limit() {
    let error = |hidden_size: u32, head_dim: Value| {
        let mut config = tiny_config();
        config["hidden_size"] = hidden_size.into();
        config["head_dim"] = head_dim;
        let error = ModelConfig::parse(config).err().expect("refused");
        assert_eq!(error.item.as_deref(), Some("head_dim"));
        error.to_string()
    };
    assert!(error(8, json!(1026)).contains("1 to 1024, got 1026"));
    let shared_out = error(4104, Value::Null);
    assert!(shared_out.contains("1 to 1024") && shared_out.contains("1026"), "{shared_out}");
}

#[test]
fn bad_json_and_missing_files_are_named() {
    let builder = Builder::new(&[]);
    for text in ["", "{", "null", "[]", "{\"a\":NaN}"] {
        builder.write("config.json", text);
        let error = builder.open().expect_err(text);
        assert_eq!(error.fault, CheckpointFault::Malformed, "{error}");
    }
    std::fs::remove_file(builder.path().join("config.json")).expect("removes");
    let error = builder.open().expect_err("no config");
    assert_eq!(error.fault, CheckpointFault::NotFound);
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn both_generations_of_rope_keys_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let classic = Builder::new(&[("rope_theta", json!(500_000.0)), ("rope_scaling", scaling)]);
    let new = Builder::new(&[
        ("rope_theta", Value::Null),
        ("rope_parameters", parameters),
        ("torch_dtype", Value::Null),
        ("dtype", json!("float32")),
    ]);
    let rope_of = |builder: &Builder| {
        builder.open_as(LoadFormat::Dummy).expect("good").decoder().ropes[0].clone()
    };
    let classic = rope_of(&classic);
    assert_eq!(classic, rope_of(&new));
    assert_eq!(classic.theta, 500_000.0);
    let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192);
    assert_eq!(classic.scaling, RopeScaling::Llama3 { factor, low, high, original });
    let linear = Builder::new(&[("rope_scaling", json!({"type": "linear", "factor": 4}))]);
    assert_eq!(rope_of(&linear).scaling, RopeScaling::Linear { factor: 4.0 });
    let plain = Builder::new(&[("rope_scaling", json!({"rope_type": "default"}))]);
    assert_eq!(rope_of(&plain).scaling, RopeScaling::None);
}

#[test]
fn generation_config_gives_ends_and_defaults() {
    let builder = Builder::new(&[]);
    let open = |text: &str| {
        builder.write("generation_config.json", text);
        builder.open_as(LoadFormat::Dummy)
    };
    let checkpoint = open(
        "{\"eos_token_id\": [1, 2], \"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 50, \
         \"min_p\": 0.05, \"repetition_penalty\": 1.1, \"num_beams\": 1, \"length_penalty\": 2, \"max_tokens\": 3}",
    )
    .expect("good");
    assert_eq!(checkpoint.end_token_ids(), [1, 2]);
    let expected = Params {
        temperature: Some(0.6),
        top_p: Some(0.9),
        top_k: Some(50),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        ..Params::default()
    };
    assert_eq!(checkpoint.generation().defaults, expected);
    assert_eq!(checkpoint.generation().not_honoured, ["length_penalty"]);
    assert_eq!(checkpoint.generation().default_length, None);
    let other = open(
        "{\"max_new_tokens\": 40, \"suppress_tokens\": [1], \"bad_words_ids\": [[2]], \"stop_strings\": \"x\", \
         \"num_beams\": 1.0, \"low_memory\": false, \"constraints\": [], \"forced_eos_token_id\": null}",
    )
    .expect("good");
    assert_eq!(other.generation().default_length, Some(40));
    let not_honoured = &other.generation().not_honoured;
    assert_eq!(not_honoured, &["suppress_tokens", "bad_words_ids", "stop_strings"]);

    let greedy = open("{\"do_sample\": false, \"temperature\": 0.6, \"top_k\": -1}").expect("good");
    assert_eq!(greedy.generation().defaults.temperature, Some(0.0));
    assert_eq!(greedy.generation().defaults.top_k, Some(0));
    assert_eq!(greedy.end_token_ids(), [3], "config.json's");
    let silent = open("{\"eos_token_id\": null}").expect("good");
    assert_eq!(silent.generation().defaults, Params::default());

    for (text, item) in [
        ("{\"temperature\": 3}", "temperature"),
        ("{\"temperature\": \"hot\"}", "temperature"),
        ("{\"top_p\": 0}", "top_p"),
        ("{\"min_p\": 2}", "min_p"),
        ("{\"repetition_penalty\": 0}", "repetition_penalty"),
        ("{\"top_k\": -2}", "top_k"),
        ("{\"top_k\": 1.5}", "top_k"),
        ("{\"eos_token_id\": 99}", "eos_token_id"),
        ("{\"do_sample\": 1}", "do_sample"),
        ("{\"max_new_tokens\": 0}", "max_new_tokens"),
    ] {
        let error = open(text).expect_err(text);
        assert_eq!(error.item.as_deref(), Some(item), "{error}");
        assert!(error.file.ends_with("generation_config.json"), "{error}");
    }
}
