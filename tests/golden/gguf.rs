//! Goal: a model of one GGUF file computes what the weights that its blocks stand for compute in `transformers`, and keeps its bits
//! however it is run. Method: a small file of each architecture in `tests/fixtures/gguf`, all types of tensors among them, the same
//! facts as of Llama's.

super::facts::facts_of! { "gguf/" [];
    llama: "llama",
    mixtral: "mixtral",
    qwen2: "qwen2",
    qwen3: "qwen3",
    qwen3_moe: "qwen3-moe",
    gemma2: "gemma2",
    gemma3: "gemma3",
    phi3: "phi3",
}

/// A folder without its tests would go unnoticed.
#[test]
fn every_gguf_fixture_is_tested() {
    let listed = include_str!("gguf.rs");
    for entry in std::fs::read_dir(super::harness::fixture("gguf")).expect("the fixtures") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(listed.contains(&format!(": \"{name}\",")), "{name}");
    }
}
