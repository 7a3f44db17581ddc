//! Small checkpoint directories for unit tests.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Checkpoint, LoadFormat};

/// The end token of [`write`]'s vocabulary.
pub(crate) const END: u32 = 1;
/// Ids of [`write`]'s words.
pub(crate) const WORDS: std::ops::Range<u32> = 2..16;

/// `config.json` and `tokenizer.json` of a model with 16 tokens: `<s>`, `</s>` and words.
pub(crate) fn write(dir: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16,
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
        "eos_token_id": END
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("writes");
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let mut vocab: serde_json::Map<String, Value> =
        WORDS.map(|id| (format!("word{id}"), json!(id))).collect();
    vocab.insert("<s>".to_owned(), json!(0));
    vocab.insert("</s>".to_owned(), json!(END));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(END, "</s>")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"}
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("writes");
}

/// The directory and its checkpoint as `dummy`.
pub(crate) fn dummy() -> (tempfile::TempDir, Arc<Checkpoint>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), LoadFormat::Dummy).expect("a good checkpoint");
    (dir, Arc::new(checkpoint))
}
