//! GGUF files: what is refused and how, and the tokenizer of a file against the `tokenizer.json` that it was made of.

use std::path::{Path, PathBuf};

use inferno_node::bridge::spec::{WeightFormat, WeightKind};
use inferno_node::checkpoint::{Checkpoint, CheckpointFault, HubCache, LoadFormat, gguf_tokenizer};
use inferno_node::request::ChatMessage;
use inferno_node::tokenizer::{ChatTemplate, Tokenizer, TokenizerFolder};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn model(name: &str) -> PathBuf {
    fixture(name).join("model.gguf")
}

/// A file of these bytes, opened for its weights and its tokenizer.
fn faults(bytes: &[u8]) -> Vec<(CheckpointFault, String)> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("writes");
    let opened = Checkpoint::open(&path, LoadFormat::Safetensors).map(|checkpoint| {
        // Whatever was let through can be loaded.
        checkpoint.tensors().for_each(|tensor| {
            tensor.parts().for_each(|part| {
                part.expect("rows");
            });
        });
    });
    let tokenizer = gguf_tokenizer(&path).map(|folder| {
        // Unusable, maybe, but no panic.
        let _ = Tokenizer::of_folder(&folder, None);
    });
    let errors = [opened.err(), tokenizer.err()].into_iter().flatten();
    errors.map(|error| (error.fault, error.to_string())).collect()
}

#[track_caller]
fn refused(bytes: &[u8], fault: CheckpointFault, part: &str) {
    let faults = faults(bytes);
    let is_it = |(kind, text): &(CheckpointFault, String)| *kind == fault && text.contains(part);
    assert!(faults.iter().any(is_it), "{fault:?} with {part:?} in {faults:?}");
}

/// The file with one text for another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let mut bytes = bytes.to_vec();
    bytes[at.expect("it is there")..][..to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn format(kind: WeightKind, group: u32, offsets: bool) -> WeightFormat {
    WeightFormat { kind, group, offsets }
}

#[test]
fn a_file_is_a_model_path() {
    let path = model("llama");
    assert_eq!(HubCache::default().resolve(&path).expect("a file"), path);
    let checkpoint = Checkpoint::open(&path, LoadFormat::Safetensors).expect("a good file");
    assert_eq!(checkpoint.directory(), path);
    assert_eq!(checkpoint.family().model_type, "llama");
    // `eos`, and what ends a turn.
    assert_eq!(checkpoint.end_token_ids(), [1, 5]);
    let spec = checkpoint.spec();
    assert_eq!(spec.embedding, format(WeightKind::Int4, 32, false));
    assert_eq!(spec.head.format, format(WeightKind::Int8, 16, false));
    // Q4_K beside Q6_K, Q4_K alone, Q5_K; types with blocks beside types without.
    let layer = &spec.layers[0];
    assert_eq!(layer.attention.qkv.format, format(WeightKind::Int8, 16, true));
    assert_eq!(layer.mlp.gate_up.format, format(WeightKind::Int4, 32, true));
    assert_eq!(layer.attention.o.format, format(WeightKind::Int8, 32, true));
    assert_eq!(spec.layers[1].attention.qkv.format, format(WeightKind::BF16, 0, false));
}

#[test]
fn blocks_of_32_keep_their_bits_and_groups() {
    let checkpoint = Checkpoint::open(&model("qwen2"), LoadFormat::Safetensors).expect("good");
    let spec = checkpoint.spec();
    assert_eq!(spec.embedding, format(WeightKind::Int4, 32, true));
    assert_eq!(spec.head.format, format(WeightKind::Int8, 32, true));
    // Q5_0 beside Q8_0, Q5_0 alone, Q4_1, Q5_1.
    let layer = &spec.layers[0];
    assert_eq!(layer.attention.qkv.format, format(WeightKind::Int8, 32, false));
    assert_eq!(layer.attention.o.format, format(WeightKind::Int8, 32, false));
    assert_eq!(layer.mlp.gate_up.format, format(WeightKind::Int4, 32, true));
    assert_eq!(layer.mlp.down.format, format(WeightKind::Int8, 32, true));
    // Q5_1 beside Q5_0, Q4_0 beside Q4_1.
    let layer = &spec.layers[1];
    assert_eq!(layer.attention.qkv.format, format(WeightKind::Int8, 32, true));
    assert_eq!(layer.mlp.gate_up.format, format(WeightKind::Int4, 32, true));
}

#[test]
fn a_folder_of_gguf_files_says_how_to_serve_one() {
    let error = Checkpoint::open(&fixture("llama"), LoadFormat::Safetensors).expect_err("a folder");
    assert_eq!(error.fault, CheckpointFault::NotFound);
    assert!(error.reason.contains("the path of model.gguf itself is a model_path"), "{error}");
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    use CheckpointFault::{Malformed, MissingTensor, Truncated, UnexpectedTensor, Unsupported};
    let whole = std::fs::read(model("llama")).expect("reads");
    assert_eq!(faults(&whole), []);
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    refused(&with(0, b'X'), Malformed, "GGUF");
    refused(&with(4, 1), Unsupported, "version 1");
    let mut big_endian = whole.clone();
    big_endian[4..8].reverse();
    refused(&big_endian, Unsupported, "big-endian");
    refused(&whole[..3], Truncated, "the magic");
    refused(&whole[..100], Truncated, "ends inside");
    refused(&whole[..whole.len() - 1], Truncated, "bytes at offset");
    let change = |from: &str, to: &str| replaced(&whole, from, to);
    refused(&change("blk.0.ffn_up", "blk.0.ffn_xx"), MissingTensor, "blk.0.ffn_up.weight");
    refused(&change("llama.rope.freq_base", "llama.rope.freq_xxxx"), Unsupported, "freq_xxxx");
    refused(&change("llama.block_count", "llama.block_xxxxx"), Malformed, "llama.block_count");
    refused(&change("rope_freqs.weight", "rope_xxxxx.weight"), UnexpectedTensor, "rope_xxxxx");
    refused(&change("llama-bpe", "llama-xyz"), Unsupported, "llama-xyz");
    refused(&change("gpt2", "bert"), Unsupported, "bert");
    // Behind its name: the number of its dimensions, these two, its type.
    let name = b"blk.0.ffn_up.weight";
    let at = whole.windows(name.len()).position(|window| window == name).expect("there");
    let kind = at + name.len() + 4 + 2 * 8;
    refused(&with(kind, 10), Unsupported, "type Q2_K; expected F32");
    refused(&with(kind, 77), Unsupported, "type 77; expected F32");
    // The first tensor that shows it is the router.
    let mut other_count = std::fs::read(model("mixtral")).expect("reads");
    let key = b"llama.expert_count";
    let at = other_count.windows(key.len()).position(|window| window == key).expect("there");
    other_count[at + key.len() + 4] = 3;
    refused(&other_count, CheckpointFault::WrongShape, "blk.0.ffn_gate_inp.weight");
    let dummy = Checkpoint::open(&model("llama"), LoadFormat::Dummy).expect_err("no config.json");
    assert_eq!(dummy.fault, Unsupported);
}

#[test]
fn no_header_makes_it_panic() {
    for name in ["qwen3-moe", "phi3"] {
        let whole = std::fs::read(model(name)).expect("reads");
        // Header and names, whatever the data is.
        let header = whole.len().min(16_000);
        let mut state = 0x1234_5678_9abc_def0_u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut refused = 0;
        for round in 0..1_000 {
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes[next(header)] = next(256) as u8,
                1 => {
                    // A length, a count or an offset.
                    let value = [u64::MAX, 1 << 63, 1 << 40, 0][next(4)];
                    bytes[next(header)..][..8].copy_from_slice(&value.to_le_bytes());
                }
                2 => bytes.truncate(next(bytes.len())),
                _ => (0..8).for_each(|_| bytes[next(header)] = next(256) as u8),
            }
            refused += usize::from(!faults(&bytes).is_empty());
        }
        assert!(refused > 300, "{name}: {refused}");
    }
}

const TEXTS: [&str; 9] = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock.",
    "  two spaces,\n\na blank line\tand a tab   ",
    "naïve café — «ünïcode» 你好 🙂",
    "<s>a mark<end_of_turn> in <|end|> \n text</s> <|user|>",
    "<b>bold</b> the then therefore request requests",
    "fn main() { println!(\"{}\", 1 + 2); }",
    "▁a▁mark of a space",
];

#[test]
fn the_tokenizer_is_that_of_the_tokenizer_json() {
    for name in ["llama", "gemma2", "phi3"] {
        let folder = gguf_tokenizer(&model(name)).expect("a tokenizer");
        assert!(folder.has_tokenizer());
        let ours = Tokenizer::of_folder(&folder, None).expect("a tokenizer");
        let beside = TokenizerFolder::open(&fixture(name)).expect("readable");
        let theirs = Tokenizer::of_folder(&beside, None).expect("a tokenizer");
        assert_eq!(ours.vocab_size(), theirs.vocab_size());
        assert_eq!(ours.special_ids(), theirs.special_ids(), "{name}");
        for id in 0..ours.vocab_size() {
            assert_eq!(ours.id_to_token(id), theirs.id_to_token(id), "{name} {id}");
            assert_eq!(ours.token_bytes(id), theirs.token_bytes(id), "{name} {id}");
        }
        for text in TEXTS {
            for special in [false, true] {
                let ids = ours.encode(text, special).expect("ids");
                assert_eq!(ids, theirs.encode(text, special).expect("ids"), "{name}: {text:?}");
                let decoded = [&ours, &theirs].map(|of| of.decode(&ids, false).expect("text"));
                assert_eq!(decoded[0], decoded[1], "{name}: {text:?}");
            }
        }
        let [rendered, expected] = [&folder, &beside].map(|folder| {
            let template = ChatTemplate::of_folder(folder).expect("a template").expect("there");
            template.render(&[ChatMessage::new("user", "Hi")], true).expect("a prompt")
        });
        assert_eq!(rendered, expected);
        assert!(rendered.contains("<|user|>Hi"), "{rendered}");
    }
}

#[test]
fn a_file_without_a_tokenizer_says_so() {
    let folder = gguf_tokenizer(&model("qwen3")).expect("readable");
    assert!(!folder.has_tokenizer());
    let error = Tokenizer::of_folder(&folder, None).expect_err("none");
    assert!(error.to_string().contains("model.gguf: it has no tokenizer"), "{error}");
}
