//! Tiny tokenizers for unit tests.

use std::sync::Arc;

use super::Tokenizer;

/// A byte-level tokenizer whose ids 0 to 255 are the bytes of the alphabet in its own order, with `<s>`, `</s>` behind.
pub(crate) fn bytes() -> Arc<Tokenizer> {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: serde_json::Map<String, serde_json::Value> =
        alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    let added = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let config = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(256, "<s>"), added(257, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}
    });
    let inner = tokenizers::Tokenizer::from_bytes(config.to_string()).expect("a whole tokenizer");
    Arc::new(Tokenizer::new(inner).expect("it has tokens"))
}

/// The end token of [`bytes`].
pub(crate) const END: u32 = 257;
