//! A tokenizer without training: the 256 bytes, words of three syllables for every other id, special tokens at their true ids.
//!
//! Text of any kind encodes (what is none of the words, byte by byte) and every id decodes. With `ignore_merges` a word of the
//! vocabulary is found whole, so that generated text encodes to the ids that it came from.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::like::Recipe;

/// Which special tokens there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tokens {
    /// The last 256 ids; bytes from 0.
    Llama3,
    /// The first 3 ids; bytes from 3.
    Llama2,
}

/// Where Llama 3's special tokens begin.
const LLAMA3_SPECIAL: u32 = 128_000;

const LLAMA3_NAMED: [(u32, &str); 8] = [
    (128_000, "<|begin_of_text|>"),
    (128_001, "<|end_of_text|>"),
    (128_004, "<|finetune_right_pad_id|>"),
    (128_006, "<|start_header_id|>"),
    (128_007, "<|end_header_id|>"),
    (128_008, "<|eom_id|>"),
    (128_009, "<|eot_id|>"),
    (128_010, "<|python_tag|>"),
];

const LLAMA3_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    <|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>\
    {% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

const LLAMA2_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'assistant' %}\
    {{ ' ' + message['content'] | trim + ' ' + eos_token }}{% else %}\
    {{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}";

impl Tokens {
    /// Stands before every text.
    pub(super) fn begin(self) -> u32 {
        match self {
            Tokens::Llama3 => LLAMA3_SPECIAL,
            Tokens::Llama2 => 1,
        }
    }

    /// `eos_token_id` as the families' chat checkpoints have it.
    pub(super) fn end_ids(self) -> Value {
        match self {
            Tokens::Llama3 => json!([128_001, 128_008, 128_009]),
            Tokens::Llama2 => json!(2),
        }
    }

    fn end_token(self) -> &'static str {
        match self {
            Tokens::Llama3 => "<|eot_id|>",
            Tokens::Llama2 => "</s>",
        }
    }

    fn template(self) -> &'static str {
        match self {
            Tokens::Llama3 => LLAMA3_TEMPLATE,
            Tokens::Llama2 => LLAMA2_TEMPLATE,
        }
    }

    /// Special tokens by id.
    pub(super) fn special(self) -> BTreeMap<u32, String> {
        match self {
            Tokens::Llama2 => {
                [(0, "<unk>"), (1, "<s>"), (2, "</s>")].map(|(id, s)| (id, s.to_owned())).into()
            }
            Tokens::Llama3 => {
                let named: BTreeMap<_, _> = LLAMA3_NAMED.into();
                let mut reserved = 0..;
                (LLAMA3_SPECIAL..LLAMA3_SPECIAL + 256)
                    .map(|id| match named.get(&id) {
                        Some(name) => (id, (*name).to_owned()),
                        None => {
                            let number: u32 = reserved.next().unwrap_or_default();
                            (id, format!("<|reserved_special_token_{number}|>"))
                        }
                    })
                    .collect()
            }
        }
    }
}

/// `tokenizer.json` for ids below `vocab_size`.
pub(super) fn tokenizer(tokens: Tokens, vocab_size: u32) -> Value {
    let special = tokens.special();
    let mut vocab = Map::new();
    let mut plain = byte_alphabet().into_iter().map(String::from).chain((0..).map(word));
    for id in 0..vocab_size {
        let token = special.get(&id).cloned().or_else(|| plain.next()).unwrap_or_default();
        vocab.insert(token, id.into());
    }
    let added: Vec<Value> = special
        .iter()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": begin_first(tokens.begin(), &special), "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": []}
    })
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config(recipe: &Recipe) -> Value {
    let special = recipe.tokens.special();
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": recipe.max_positions(),
        "bos_token": special.get(&recipe.tokens.begin()), "eos_token": recipe.tokens.end_token(),
        "clean_up_tokenization_spaces": false, "chat_template": recipe.tokens.template()
    })
}

/// The begin token before every text, as these families' tokenizers add it.
fn begin_first(begin: u32, special: &BTreeMap<u32, String>) -> Value {
    let name = special.get(&begin);
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name.map_or("", String::as_str): {"id": name, "ids": [begin], "tokens": [name]}}})
}

/// The characters that stand for the 256 bytes, in GPT-2's order (Llama 3's first 256 ids): those that print, then the others.
fn byte_alphabet() -> Vec<char> {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(|byte| !prints(*byte)).count() as u32;
    let printing = (0..=u8::MAX).filter(|byte| prints(*byte)).map(char::from);
    printing.chain((0x100..0x100 + others).filter_map(char::from_u32)).collect()
}

/// A word of three syllables with its space before it, another one for every number below 10^6.
fn word(number: u32) -> String {
    const CONSONANTS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
    const VOWELS: &[u8; 5] = b"aeiou";
    let mut word = String::from('Ġ');
    for place in [10_000, 100, 1] {
        let syllable = (number / place % 100) as usize;
        word.push(char::from(CONSONANTS[syllable / 5]));
        word.push(char::from(VOWELS[syllable % 5]));
    }
    word
}
