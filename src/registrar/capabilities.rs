//! What a node can do, as a router wants to know it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::door::ModelInfo;

/// The most that Inferno takes of one node.
const MAX_WORDS: usize = 32;

/// The longest that it takes.
const MAX_WORD_LEN: usize = 64;

/// Of those of the configuration. The node's own, six and one for each kind of model, have room beside them.
pub(super) const MAX_OWN_WORDS: usize = 16;

/// What a node can do: a fact for each name that a router may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Kinds of the loaded models, as their `config.json` names them, each once.
    pub model_type: BTreeSet<&'static str>,
    /// Sequences in one step of a device.
    pub max_batch_size: u32,
    /// Longest prompt and completion together that some model takes.
    pub max_seq_len: u32,
    /// GPUs of the node; 0: it computes on its processor.
    pub gpu_count: u32,
    /// Whether answers come token by token.
    pub supports_streaming: bool,
    /// `flash` or `reference`.
    pub attention_backend: &'static str,
}

/// What of them stays as long as the node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeTraits {
    /// See [`Capabilities::max_batch_size`].
    pub max_batch_size: u32,
    /// See [`Capabilities::gpu_count`].
    pub gpu_count: u32,
    /// See [`Capabilities::attention_backend`].
    pub attention_backend: &'static str,
}

impl Capabilities {
    /// Those of a node with these models.
    pub fn of(traits: NodeTraits, models: &[ModelInfo]) -> Self {
        let NodeTraits { max_batch_size, gpu_count, attention_backend } = traits;
        Self {
            model_type: models.iter().map(|model| model.model_type).collect(),
            max_batch_size,
            max_seq_len: models.iter().map(|model| model.max_seq_len).max().unwrap_or(0),
            gpu_count,
            supports_streaming: true,
            attention_backend,
        }
    }

    /// As words: a name alone where the fact is that it is so, else name and value, `max_batch_size_256`. `inference` says that
    /// the node generates; `own` are words of the configuration. Each is there once.
    pub fn words(&self, own: &[String]) -> Vec<String> {
        let mut words = vec!["inference".to_owned()];
        words.extend(self.supports_streaming.then(|| "supports_streaming".to_owned()));
        words.push(format!("max_batch_size_{}", self.max_batch_size));
        words.push(format!("max_seq_len_{}", self.max_seq_len));
        words.push(format!("gpu_count_{}", self.gpu_count));
        words.push(format!("attention_backend_{}", self.attention_backend));
        words.extend(own.iter().cloned());
        words.extend(self.model_type.iter().map(|name| word(&format!("model_type_{name}"))));
        let mut seen = BTreeSet::new();
        words.retain(|word| seen.insert(word.clone()));
        words.truncate(MAX_WORDS);
        words
    }
}

/// Whether Inferno takes it.
pub(super) fn is_word(text: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_WORD_LEN).contains(&text.len()) && text.bytes().all(is_letter)
}

/// The nearest that it takes.
fn word(text: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    text.chars().map(letter).take(MAX_WORD_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(model_type: &'static str, max_seq_len: u32) -> ModelInfo {
        ModelInfo {
            name: "a".to_owned(),
            model_type,
            created: 0,
            max_seq_len,
            devices: Vec::new(),
            weight_bytes: 0,
            kv_bytes: 0,
            digest: String::new(),
        }
    }

    const TRAITS: NodeTraits =
        NodeTraits { max_batch_size: 256, gpu_count: 2, attention_backend: "flash" };

    #[test]
    fn capabilities_are_words_that_inferno_takes() {
        let models = [model("llama", 8_192), model("qwen3_moe", 4_096), model("llama", 2_048)];
        let words = Capabilities::of(TRAITS, &models).words(&["rack_7".to_owned()]);
        let expected = [
            "inference",
            "supports_streaming",
            "max_batch_size_256",
            "max_seq_len_8192",
            "gpu_count_2",
            "attention_backend_flash",
            "rack_7",
            "model_type_llama",
            "model_type_qwen3_moe",
        ];
        assert_eq!(words, expected);
        assert!(words.iter().all(|word| is_word(word)));
    }

    #[test]
    fn there_are_no_more_words_than_inferno_takes_and_each_is_there_once() {
        let own: Vec<String> = (0..40).map(|i| format!("own_{i}")).collect();
        let words = Capabilities::of(TRAITS, &[model("a.b-c", 1)]).words(&own);
        assert_eq!(words.len(), MAX_WORDS);
        let twice = Capabilities::of(TRAITS, &[model("a.b-c", 1)]).words(&["inference".to_owned()]);
        assert_eq!(twice.iter().filter(|word| *word == "inference").count(), 1);
        assert!(twice.contains(&"model_type_a_b_c".to_owned()), "{twice:?}");
        assert!(!is_word("") && !is_word("a-b") && !is_word(&"x".repeat(65)));
    }
}
