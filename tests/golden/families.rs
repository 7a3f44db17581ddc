//! Goal: every family computes what its class in `transformers` computes, past every window and prefill chunk, and keeps its bits
//! however it is run. Method: a small checkpoint of each in `tests/fixtures/families`, the same facts as of Llama's.

super::facts::facts_of! { "families/" [same_bits_of_a_long_prompt_beside_others];
    llama_linear: "llama-linear",
    llama_dynamic: "llama-dynamic",
    mistral: "mistral",
    ministral3: "ministral3",
    mixtral: "mixtral",
    qwen2: "qwen2",
    qwen2_moe: "qwen2-moe",
    qwen3: "qwen3",
    qwen3_moe: "qwen3-moe",
    gemma2: "gemma2",
    gemma3: "gemma3",
    gemma3_multimodal: "gemma3-multimodal",
    phi3: "phi3",
    phi4_mini: "phi4-mini",
    phi4_mini_long: "phi4-mini-long",
    olmo2: "olmo2",
    olmo3: "olmo3",
    smollm3: "smollm3",
    granite: "granite",
    glm4: "glm4",
    afmoe: "afmoe",
    gpt_oss: "gpt-oss",
    gpt_oss_f32: "gpt-oss-f32",
}

/// A folder without its tests would go unnoticed.
#[test]
fn every_fixture_of_a_family_is_tested() {
    let listed = include_str!("families.rs");
    for entry in std::fs::read_dir(super::harness::fixture("families")).expect("the fixtures") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(listed.contains(&format!(": \"{name}\",")), "{name}");
    }
}
