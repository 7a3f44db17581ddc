//! How many bytes of text one token can stand for, so that a text that cannot fit a context is told so before it is tokenized.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use tokenizers::ModelWrapper;

/// NFC puts characters together. The most it makes of a text in UTF-8 is 7 bytes to 2 (U+1FBE U+0308 U+0301 to U+0390).
const NFC_SHRINKS_BY: usize = 4;

/// Bytes of text that one token of this vocabulary, or an added one, stands for at most. None where a text can lose bytes on its way
/// to tokens: one of any length could then be few tokens.
pub(super) fn longest_token(
    tokenizer: &tokenizers::Tokenizer,
    vocabulary: &HashMap<String, u32>,
) -> Option<usize> {
    let pre_tokenizer = parts_of(tokenizer.get_pre_tokenizer())?;
    if !pre_tokenizer.iter().all(keeps_all) {
        return None;
    }
    let normalizer = parts_of(tokenizer.get_normalizer())?;
    let shrinks_by: usize = normalizer.iter().map(shrinks_by).product::<Option<usize>>()?;
    let added = tokenizer.get_added_tokens_decoder();
    // These take the spaces beside them, however many.
    if added.values().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let is_byte_level = pre_tokenizer.iter().any(|part| part["type"] == "ByteLevel");
    let longest = longest_of_vocabulary(tokenizer.get_model(), vocabulary, is_byte_level)?;
    let longest_added = added.values().map(|token| token.content.len()).max();
    Some(longest.max(longest_added.unwrap_or(0)) * shrinks_by)
}

/// None for a model that leaves out what it does not know, or says one token for all of it.
fn longest_of_vocabulary(
    model: &ModelWrapper,
    vocabulary: &HashMap<String, u32>,
    is_byte_level: bool,
) -> Option<usize> {
    let ModelWrapper::BPE(bpe) = model else { return None };
    if is_byte_level {
        // One character of the vocabulary for each byte of the text.
        let mut alphabet =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter();
        let has_all = alphabet.all(|c| vocabulary.contains_key(c.to_string().as_str()));
        return vocabulary.keys().map(|token| token.chars().count()).max().filter(|_| has_all);
    }
    let has_all = (0..=u8::MAX).all(|byte| vocabulary.contains_key(&format!("<0x{byte:02X}>")));
    vocabulary.keys().map(String::len).max().filter(|_| has_all && bpe.byte_fallback)
}

/// The parts of a sequence of normalizers or pre-tokenizers, as `tokenizer.json` has them; none of an absent one.
fn parts_of(part: Option<&impl Serialize>) -> Option<Vec<Value>> {
    let Some(part) = part else { return Some(Vec::new()) };
    let mut parts = vec![serde_json::to_value(part).ok()?];
    while let Some(at) = parts.iter().position(|part| part["type"] == "Sequence") {
        let mut sequence = parts.swap_remove(at);
        let inside = ["normalizers", "pretokenizers"].map(|name| sequence[name].take());
        parts.extend(inside.into_iter().find_map(|list| list.as_array().cloned())?);
    }
    Some(parts)
}

/// Whether a pre-tokenizer only cuts a text, or spells it longer.
fn keeps_all(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => part["behavior"] != "Removed",
        _ => false,
    }
}

/// How many times shorter a normalizer can make a text.
fn shrinks_by(part: &Value) -> Option<usize> {
    match part["type"].as_str()? {
        "Prepend" => Some(1),
        "NFC" => Some(NFC_SHRINKS_BY),
        "Replace" => {
            let (from, to) = (part["pattern"]["String"].as_str()?, part["content"].as_str()?);
            (to.len() >= from.len()).then_some(1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::tokenizer::{Tokenizer, testing};

    #[test]
    fn of_bytes_it_is_the_longest_mark() {
        assert_eq!(testing::bytes().longest_token(), Some("</s>".len()));
    }

    #[test]
    fn no_text_of_a_checkpoint_has_more_bytes_than_its_tokens_may_stand_for() {
        let checkpoints =
            ["models/demo", "tests/fixtures/llama2-tiny", "tests/fixtures/llama3-tiny"];
        let texts =
            [" ".repeat(500), "▁".repeat(500), "\n\n\t<s> 你好 e\u{301}\u{0} the ".repeat(50)];
        for dir in checkpoints {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
            let tokenizer = Tokenizer::from_dir(&dir).expect("a checkpoint of ours");
            let longest = tokenizer.longest_token().expect("no byte is lost");
            assert!((2..=256).contains(&longest), "{longest}");
            for text in &texts {
                let tokens = tokenizer.encode(text, false).expect("encodes").len();
                assert!(tokens * longest >= text.len(), "{tokens} × {longest}: {text:?}");
            }
        }
    }

    #[test]
    fn what_may_lose_bytes_has_no_bound() {
        let keeps = json!([{"type": "Split", "behavior": "Isolated"}, {"type": "Split", "behavior": "Removed"},
            {"type": "Whitespace"}, {"type": "ByteLevel"}]);
        let kept: Vec<bool> = keeps.as_array().expect("a list").iter().map(keeps_all).collect();
        assert_eq!(kept, [true, false, false, true]);
        let replace =
            |from: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": "▁"});
        assert_eq!(shrinks_by(&replace(" ")), Some(1));
        assert_eq!(shrinks_by(&replace("    ")), None);
        assert_eq!(shrinks_by(&json!({"type": "NFC"})), Some(4));
        assert_eq!(shrinks_by(&json!({"type": "NFKC"})), None);
        assert_eq!(shrinks_by(&json!({"type": "Strip"})), None);
    }
}
