//! Goal: a completion's text in pieces is the text of all its ids at once, and no piece splits a character.
//! Method: tiny tokenizers of the real kinds, trained here; random texts, cut at random places.

use std::sync::Arc;

use inferno_node::tokenizer::{IncrementalDecoder, Tokenizer, TokenizerFolder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, PreTokenizerWrapper};

const TEXT: &str = "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox is quick.\n\
    Once upon a time there was a small fox who liked the big dog. 你好，世界！你好，朋友。\n\
    Ça alors, où est le garçon? Der Fuchs läuft über die Brücke. 🙂🙃🙂 👩‍👩‍👧 done.\n";

/// Characters that the tokenizers have not seen in training, beside those that they have.
const ALPHABET: &[&str] = &[
    "a",
    "e",
    " ",
    "  ",
    "The",
    " fox",
    "\n",
    ".",
    "é",
    "ß",
    "你",
    "好",
    "界",
    "龘",
    "🙂",
    "🦊",
    "👩‍👩‍👧",
    "\u{0301}",
    "\t",
    "<",
    "0x41",
    "▁",
    "\u{10FFFF}",
];

fn train(pre_tokenizer: PreTokenizerWrapper, special: &[String]) -> Value {
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let special = special.iter().map(|token| AddedToken::from(token.as_str(), true)).collect();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(700)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = tokenizers::models::TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, TEXT.lines()).expect("trains");
    serde_json::to_value(&tokenizer).expect("serialises")
}

fn build(config: &Value) -> Arc<Tokenizer> {
    let inner = tokenizers::Tokenizer::from_bytes(config.to_string()).expect("a tokenizer");
    Arc::new(Tokenizer::new(inner).expect("it has tokens"))
}

/// As Llama 3 and Qwen have it.
fn byte_level_config() -> Value {
    let special = ["<|begin|>".to_owned(), "<|end|>".to_owned()];
    let mut config = train(ByteLevel::new(false, true, true).into(), &special);
    config["decoder"] = json!({"type": "ByteLevel", "add_prefix_space": true,
        "trim_offsets": true, "use_regex": true});
    config["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}});
    config
}

/// As Llama 2 has it: a leading mark, byte fallback, and a decoder that takes one leading space off.
fn sentencepiece_config() -> Value {
    let mut special: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    special.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut config = train(Metaspace::new('▁', PrependScheme::Always, true).into(), &special);
    let added = config["added_tokens"].as_array_mut().expect("a list");
    added.retain(|token| !token["content"].as_str().unwrap_or_default().starts_with("<0x"));
    config["model"]["byte_fallback"] = json!(true);
    config["model"]["fuse_unk"] = json!(true);
    config["model"]["unk_token"] = json!("<unk>");
    config["pre_tokenizer"] = Value::Null;
    config["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    config["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    config
}

/// As T5's and XLNet's: marks without byte fallback.
fn metaspace_config() -> Value {
    let mut config = train(
        Metaspace::new('▁', PrependScheme::First, true).into(),
        &["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()],
    );
    config["decoder"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    config
}

fn with_decoder(mut config: Value, decoder: Value) -> Value {
    config["decoder"] = decoder;
    config
}

fn all_kinds() -> Vec<(&'static str, Arc<Tokenizer>)> {
    let spiece = sentencepiece_config();
    // Gemma's: nothing is taken off at the start.
    let gemma = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}]});
    // A sequence in another order is left to the window of ids.
    let window = json!({"type": "Sequence", "decoders": [
        {"type": "ByteFallback"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]});
    vec![
        ("byte-level", build(&byte_level_config())),
        ("sentencepiece", build(&spiece)),
        ("gemma", build(&with_decoder(spiece.clone(), gemma))),
        ("window", build(&with_decoder(spiece, window))),
        ("metaspace", build(&metaspace_config())),
    ]
}

fn pieces(tokenizer: &Arc<Tokenizer>, prompt: &[u32], completion: &[u32]) -> Vec<String> {
    let mut decoder = IncrementalDecoder::new(Arc::clone(tokenizer), prompt);
    let mut push = |&id| {
        let mut text = String::new();
        decoder.push(id, &mut text);
        text
    };
    completion.iter().map(&mut push).collect()
}

#[test]
fn text_in_pieces_is_the_text_at_once() {
    for (kind, tokenizer) in all_kinds() {
        for seed in 0..400u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let len = rng.random_range(1..40);
            let text: String =
                (0..len).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())]).collect();
            let ids = tokenizer.encode(&text, seed % 2 == 0).expect("encodes");
            let whole = tokenizer.decode(&ids, true).expect("decodes");
            // The prompt ends anywhere, in the middle of a character too.
            let cut = rng.random_range(0..=ids.len());
            let context = tokenizer.decode(&ids[..cut], true).expect("decodes");
            let shown = pieces(&tokenizer, &ids[..cut], &ids[cut..]).concat();
            if let Some(expected) = whole.strip_prefix(&context) {
                assert_eq!(shown, expected, "{kind}, seed {seed}: {text:?} cut at {cut}");
            }
            let from_start = pieces(&tokenizer, &[], &ids).concat();
            assert_eq!(from_start, whole, "{kind}, seed {seed}: {text:?}");
        }
    }
}

#[test]
fn no_piece_splits_a_character() {
    for (kind, tokenizer) in all_kinds().into_iter().take(4) {
        let ids = tokenizer.encode("a🦊b龘\u{10FFFF}c", false).expect("encodes");
        let shown = pieces(&tokenizer, &ids[..1], &ids[1..]);
        assert!(shown.iter().any(String::is_empty), "{kind}: no character took several tokens");
        assert!(shown.iter().all(|piece| !piece.contains('\u{FFFD}')), "{kind}: {shown:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_replaced_and_text_goes_on() {
    for (kind, tokenizer) in all_kinds().into_iter().take(4) {
        let byte = if kind == "byte-level" { "ÿ" } else { "<0xFF>" };
        let id = tokenizer.token_to_id(byte).expect("every byte is a token");
        let tail = tokenizer.encode(" fox", false).expect("encodes");
        let prompt = tokenizer.encode("The", false).expect("encodes");
        let shown = pieces(&tokenizer, &prompt, &[vec![id; 40], tail].concat()).concat();
        assert!(shown.starts_with('\u{FFFD}'), "{kind}: {shown:?}");
        assert!(shown.ends_with(" fox"), "{kind}: {shown:?}");
        assert!(shown.matches('\u{FFFD}').count() >= 40, "{kind}: {shown:?}");
    }
}

#[test]
fn a_completion_after_text_keeps_its_leading_space_and_one_after_marks_does_not() {
    let tokenizer = build(&sentencepiece_config());
    let fox = tokenizer.token_to_id("▁fox").expect("trained");
    let begin = tokenizer.token_to_id("<s>").expect("given");
    let prompt = tokenizer.encode("The", false).expect("encodes");
    assert_eq!(pieces(&tokenizer, &prompt, &[fox, fox]), [" fox", " fox"]);
    assert_eq!(pieces(&tokenizer, &[begin], &[fox, fox]), ["fox", " fox"]);
    assert_eq!(pieces(&tokenizer, &[], &[begin, fox]), ["", "fox"]);
}

#[test]
fn special_and_absent_ids_show_nothing() {
    for (kind, tokenizer) in all_kinds() {
        let special: Vec<u32> = tokenizer.special_ids().iter().copied().collect();
        assert!(special.len() >= 2 && special.iter().all(|&id| tokenizer.is_special(id)));
        let mut ids = tokenizer.encode("The fox", false).expect("encodes");
        let whole = tokenizer.decode(&ids, true).expect("decodes");
        ids.extend(special);
        ids.push(tokenizer.vocab_size() + 7);
        assert_eq!(pieces(&tokenizer, &[], &ids).concat(), whole, "{kind}");
    }
}

#[test]
fn special_tokens_are_added_only_when_asked_for() {
    let tokenizer = build(&byte_level_config());
    let with = tokenizer.encode("The", true).expect("encodes");
    let without = tokenizer.encode("The", false).expect("encodes");
    assert_eq!(with, [vec![0], without].concat());
    assert_eq!(tokenizer.id_to_token(0).as_deref(), Some("<|begin|>"));
    // As in a rendered chat template.
    assert_eq!(tokenizer.encode("<|end|>", false).expect("encodes"), [1]);
    assert!(format!("{tokenizer:?}").contains("vocab_size"));
}

#[test]
fn truncation_and_padding_of_the_file_are_taken_off() {
    let mut config = byte_level_config();
    config["truncation"] = json!({"direction": "Right", "max_length": 3,
        "strategy": "LongestFirst", "stride": 0});
    config["padding"] = json!({"strategy": {"Fixed": 4000}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0, "pad_token": "<|end|>"});
    let ids = build(&config).encode(TEXT, false).expect("encodes");
    assert!(ids.len() > 3 && ids.len() < 4000, "{}", ids.len());
}

#[test]
fn a_tokenizer_directory_is_read_or_its_file_and_fault_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = Tokenizer::from_dir(dir.path()).expect_err("no file").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    let file = dir.path().join("tokenizer.json");
    let write = |text: &str| std::fs::write(&file, text).expect("writes");
    for broken in ["", "{", "{}", "[1,2]", r#"{"version":"1.0","model":{"type":"Magic"}}"#] {
        write(broken);
        let error = Tokenizer::from_dir(dir.path()).expect_err(broken);
        assert!(error.file.ends_with("tokenizer.json") && !error.reason.is_empty());
    }
    write(r#"{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}"#);
    assert!(Tokenizer::from_dir(dir.path()).is_err(), "no tokens");
    write(&byte_level_config().to_string());
    assert!(Tokenizer::from_dir(dir.path()).expect("whole").vocab_size() > 256);
}

/// A folder with the byte-level tokenizer, and its text before it is broken.
fn folder() -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = byte_level_config();
    std::fs::write(dir.path().join("tokenizer.json"), config.to_string()).expect("writes");
    (dir, config)
}

#[test]
fn the_files_beside_it_add_tokens_and_say_which_are_special() {
    let (dir, config) = folder();
    let write = |name: &str, value: Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("writes")
    };
    let plain = Tokenizer::from_dir(dir.path()).expect("whole");
    let known = plain.vocab_size();
    assert!(plain.encode("<new>", false).expect("encodes").len() > 1);

    // Old folders: special tokens by name alone.
    write(
        "special_tokens_map.json",
        json!({"bos_token": {"content": "<new>"}, "eos_token": "<|end|>"}),
    );
    write("added_tokens.json", json!({"<more>": known + 1}));
    let old = Tokenizer::from_dir(dir.path()).expect("whole");
    assert_eq!(old.encode("<more><new>", false), Ok(vec![known, known + 1]));
    assert!(old.is_special(known + 1) && !old.is_special(known));

    // New ones: the decoder's word counts, also of a token that the tokenizer has as a plain one.
    let mut plain_end = config;
    plain_end["added_tokens"][1]["special"] = json!(false);
    write("tokenizer.json", plain_end);
    let token = |content: &str, special: bool| {
        json!({"content": content, "lstrip": false, "normalized": false,
        "rstrip": false, "single_word": false, "special": special})
    };
    write(
        "tokenizer_config.json",
        json!({"added_tokens_decoder":
        {"1": token("<|end|>", true), (known + 5).to_string(): token("<own>", false)}}),
    );
    let new = Tokenizer::from_dir(dir.path()).expect("whole");
    assert!(new.is_special(1), "shown, though it is a mark");
    assert_eq!(new.encode("<own>", false), Ok(vec![known]));
    assert!(!new.is_special(known));
    assert!(new.encode("<new>", false).expect("encodes").len() > 1, "the map is for old folders");
}

#[test]
fn ids_that_the_model_does_not_have_are_refused_by_name() {
    let (dir, mut config) = folder();
    config["model"]["vocab"]["far"] = json!(4_000_000_000_u32);
    std::fs::write(dir.path().join("tokenizer.json"), config.to_string()).expect("writes");
    let folder = TokenizerFolder::open(dir.path()).expect("readable");
    for tokenizer in [Tokenizer::from_dir(dir.path()), Tokenizer::of_folder(&folder, Some(300))] {
        let error = tokenizer.expect_err("an id out of all bounds");
        assert!(error.file.ends_with("tokenizer.json"), "{error}");
        assert!(error.reason.contains("4000000000 for \"far\""), "{error}");
    }
}
