//! Goal: every family computes what its class in `transformers` computes, past every window and prefill chunk, and keeps its bits
//! however it is run. Method: a small checkpoint of each in `tests/fixtures/families`, the same facts as of Llama's.

use super::facts;

macro_rules! families {
    ($($module:ident: $name:literal),* $(,)?) => {$(
        mod $module {
            use super::facts;

            const NAME: &str = concat!("families/", $name);

            #[test]
            fn logits_agree_with_transformers() {
                facts::logits_agree_with_transformers(NAME);
            }

            #[test]
            fn greedy_tokens_are_those_of_transformers() {
                facts::greedy_tokens_are_those_of_transformers(NAME);
            }

            #[test]
            fn same_bits_in_any_batch() {
                facts::same_bits_in_any_batch(NAME);
            }

            #[test]
            fn same_bits_in_chunks_of_any_size() {
                facts::same_bits_in_chunks_of_any_size(NAME);
            }

            #[test]
            fn same_bits_over_blocks_that_another_sequence_filled() {
                facts::same_bits_over_blocks_that_another_sequence_filled(NAME);
            }

            #[test]
            fn same_bits_after_preemption_and_recompute() {
                facts::same_bits_after_preemption_and_recompute(NAME);
            }

            #[test]
            fn same_bits_on_any_number_of_threads() {
                facts::same_bits_on_any_number_of_threads(NAME);
            }

            #[test]
            fn same_bits_of_a_long_prompt_beside_others() {
                facts::same_bits_of_a_long_prompt_beside_others(NAME);
            }
        }
    )*};
}

families! {
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
