//! Goal: a family takes the kinds of rope that its class in `transformers` takes, and no others. Method: `config.json`s that differ in
//! what they say of the rope.

use inferno_node::checkpoint::{CheckpointError, CheckpointFault, ModelConfig};
use serde_json::{Value, json};

use super::published::{config, read};

const SIZES: [u32; 7] = [1000, 64, 96, 4, 4, 4, 8192];

fn refused(config: Value) -> (CheckpointFault, Option<String>) {
    let CheckpointError { fault, item, .. } = ModelConfig::parse(config).err().expect("refused");
    (fault, item)
}

#[test]
fn phi_3_takes_longrope_by_its_three_names_and_no_other_scaling() {
    let phi = |rope: Value| {
        let own = json!({"original_max_position_embeddings": 4096, "rope_scaling": rope});
        config("Phi3ForCausalLM", "phi3", SIZES, &own)
    };
    let factors = vec![2.0; 8];
    for kind in ["longrope", "su", "yarn"] {
        let rope = json!({"type": kind, "short_factor": factors, "long_factor": factors});
        assert_eq!(read(phi(rope)).ropes[0].inv_freq[0], 0.5, "{kind}");
    }
    assert_eq!(read(phi(json!({"rope_type": "default"}))).ropes[0].inv_freq[0], 1.0);
    for kind in ["linear", "dynamic", "llama3"] {
        let rope = json!({
            "type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 4096,
        });
        let fault = (CheckpointFault::Unsupported, Some("rope_scaling.type".into()));
        assert_eq!(refused(phi(rope)), fault, "{kind}");
    }
}

#[test]
fn an_older_name_of_longrope_is_known_to_phi_3_alone() {
    let rope = json!({"type": "su", "short_factor": vec![2.0; 8], "long_factor": vec![2.0; 8]});
    let llama = config("LlamaForCausalLM", "llama", SIZES, &json!({"rope_scaling": rope}));
    let fault = (CheckpointFault::Unsupported, Some("rope_scaling.type".into()));
    assert_eq!(refused(llama), fault);
}

#[test]
fn who_has_two_ropes_is_refused_a_scaling_by_its_older_name() {
    let families = [
        ("Gemma3ForCausalLM", "gemma3_text", true),
        ("Olmo3ForCausalLM", "olmo3", true),
        ("Olmo2ForCausalLM", "olmo2", false),
    ];
    for (architecture, model_type, has_two) in families {
        let of = |rope: Value| {
            let mut config =
                config(architecture, model_type, SIZES, &json!({"rope_scaling": rope}));
            config.as_object_mut().expect("an object").remove("hidden_act");
            config
        };
        let older = of(json!({"type": "linear", "factor": 8.0}));
        if has_two {
            let fault = (CheckpointFault::Unsupported, Some("rope_scaling.type".into()));
            assert_eq!(refused(older), fault, "{model_type}");
        } else {
            assert_eq!(read(older).ropes[0].inv_freq[0], 0.125);
        }
        let both = json!({"type": "linear", "rope_type": "linear", "factor": 8.0});
        assert_eq!(read(of(both)).ropes[0].inv_freq[0], 0.125, "{model_type}");
        let plain = of(json!({"type": "default"}));
        assert_eq!(read(plain).ropes[0].inv_freq[0], 1.0, "{model_type}");
    }
}
