//! Goal: a random checkpoint is one like any other. Method: every family with its true vocabulary and a small body is written, then
//! opened with our loader, the `safetensors` crate and our tokenizer.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;
use half::bf16;
use serde_json::Value;

use super::like::Recipe;
use super::place::Place;
use super::*;
use crate::bridge::spec::{Dtype, TensorPart};
use crate::checkpoint::families::RopeScaling;
use crate::checkpoint::{Checkpoint, LoadFormat};
use crate::request::ChatMessage;
use crate::tokenizer::{ChatTemplate, IncrementalDecoder, Tokenizer};

/// The family with two narrow layers.
fn small(like: Like) -> Recipe {
    let mut recipe = Recipe::of(like);
    recipe.cut(2).expect("it has more");
    let sizes = [
        ("hidden_size", 32),
        ("intermediate_size", 48),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 8),
    ];
    for (key, size) in sizes {
        recipe.config[key] = size.into();
    }
    recipe
}

/// Without the vocabulary's tables, which are most of a small checkpoint.
fn tiny() -> Recipe {
    let mut recipe = small(Like::Llama2With7B);
    recipe.config["vocab_size"] = 300.into();
    recipe
}

fn write_to(directory: &Path, recipe: &Recipe, seed: u64, max_shard_bytes: u64) -> Written {
    let place = Place::open(directory, false).expect("an empty directory");
    fill(place, recipe, seed, &AtomicBool::new(false), max_shard_bytes).expect("writes")
}

fn bytes_of(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(directory, LoadFormat::Safetensors).expect("loads");
    checkpoint
        .tensors()
        .map(|tensor| (tensor.expected.name.clone(), tensor.data.to_vec()))
        .collect()
}

#[test]
fn every_family_loads() {
    for like in Like::value_variants() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let recipe = small(*like);
        let written = write_to(root.path(), &recipe, 1, MAX_SHARD_BYTES);
        let checkpoint = Checkpoint::open(root.path(), LoadFormat::Safetensors).expect("loads");
        assert_eq!(checkpoint.total_bytes(), written.parameters * 2, "{}", recipe.name);
        assert_eq!(checkpoint.spec().activation, Dtype::BF16);
        assert_eq!(checkpoint.generation().defaults.top_p, Some(0.9));
        assert!(checkpoint.generation().not_honoured.is_empty());
        assert_eq!(written.num_shards, 1);
        for tensor in checkpoint.tensors() {
            let one = bf16::ONE.to_le_bytes();
            let all_one = tensor.data.chunks_exact(2).all(|two| two == one);
            let name = &tensor.expected.name;
            assert_eq!(all_one, name.ends_with("norm.weight"), "{name}");
        }
        tokenizer_is_whole(root.path(), &recipe);
    }
}

/// Every id has its own token, the node's decoder has text for each that is not special, and text survives.
fn tokenizer_is_whole(directory: &Path, recipe: &Recipe) {
    let tokenizer = std::sync::Arc::new(Tokenizer::from_dir(directory).expect("a tokenizer"));
    assert_eq!(tokenizer.vocab_size(), recipe.vocab_size());
    for (id, token) in recipe.tokens.special() {
        assert_eq!(tokenizer.token_to_id(&token), Some(id));
        assert!(tokenizer.is_special(id), "{token}");
    }
    for id in 0..recipe.vocab_size() {
        let token = tokenizer.id_to_token(id).unwrap_or_else(|| panic!("{id} has no token"));
        assert_eq!(tokenizer.token_to_id(&token), Some(id));
    }
    let begin = recipe.tokens.begin();
    for text in ["Hello, world!\n\t 12 tests", "äöü 你好 🦀", " babafe dodudi  x", ""] {
        let ids = tokenizer.encode(text, true).expect("encodes");
        assert_eq!(ids.first(), Some(&begin));
        assert_eq!(tokenizer.decode(&ids, true).as_deref(), Ok(text));
    }
    // Words of the vocabulary, decoded as the node does and encoded again, are the same ids.
    let ids: Vec<u32> =
        (300..recipe.vocab_size()).step_by(997).filter(|id| !tokenizer.is_special(*id)).collect();
    let mut decoder = IncrementalDecoder::new(std::sync::Arc::clone(&tokenizer), &[]);
    let mut text = String::new();
    ids.iter().for_each(|id| decoder.push(*id, &mut text));
    assert_eq!(tokenizer.encode(&text, false).as_ref(), Ok(&ids));
    let message = |role: &str| ChatMessage::new(role, " hi ");
    let template = ChatTemplate::from_dir(directory).expect("reads").expect("there is one");
    let prompt = template.render(&[message("user")], true).expect("renders");
    let ids = tokenizer.encode(&prompt, false).expect("encodes");
    assert_eq!(ids.first(), Some(&begin), "{prompt}");
}

#[test]
fn the_true_values_of_each_family_are_kept() {
    let parameters = |like| {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("config.json");
        std::fs::write(&path, Recipe::of(like).config.to_string()).expect("writes");
        let config = ModelConfig::read(&path, None).expect("our own reader takes it");
        let tensors = config.decoder.usual_tensors();
        let shards = layout::shards(Recipe::of(like).tensors(&tensors), MAX_SHARD_BYTES);
        let count = shards.iter().map(|shard| shard.data_bytes).sum::<u64>() / 2;
        (count, shards.len(), config)
    };
    let (count, shards, config) = parameters(Like::Llama31With8B);
    assert_eq!((count, shards), (8_030_261_248, 4));
    let rope = &config.decoder.ropes[0];
    assert!(matches!(rope.scaling, RopeScaling::Llama3 { .. }));
    assert_eq!((rope.factor(), config.decoder.max_position_embeddings), (8.0, 131_072));
    assert_eq!(config.end_token_ids, [128_001, 128_008, 128_009]);
    let (count, shards, config) = parameters(Like::Llama32With1B);
    assert_eq!((count, shards), (1_235_814_400, 1));
    let spec = config.spec();
    assert!(spec.tied_embeddings);
    assert_eq!((config.decoder.ropes[0].factor(), spec.layers[0].attention.head_dim), (32.0, 64));
    let (count, shards, config) = parameters(Like::Llama2With7B);
    assert_eq!((count, shards), (6_738_415_616, 3));
    assert_eq!((config.decoder.max_position_embeddings, config.end_token_ids), (4096, vec![2]));
}

#[test]
fn shards_seeds_and_threads_do_not_change_what_they_should_not() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| root.path().join(name);
    let recipe = tiny();
    let one = write_to(&at("one"), &recipe, 7, MAX_SHARD_BYTES);
    let many = write_to(&at("many"), &recipe, 7, 20_000);
    write_to(&at("other"), &recipe, 8, MAX_SHARD_BYTES);
    assert_eq!((one.num_shards, many.num_shards > 2), (1, true));
    assert_eq!(bytes_of(&at("one")), bytes_of(&at("many")));
    assert_ne!(bytes_of(&at("one")), bytes_of(&at("other")));
    // Fewer layers are the first ones.
    let mut shorter = recipe.clone();
    shorter.cut(1).expect("it has two");
    write_to(&at("shorter"), &shorter, 7, MAX_SHARD_BYTES);
    let whole = bytes_of(&at("one"));
    assert!(bytes_of(&at("shorter")).iter().all(|tensor| whole.contains(tensor)));
}

#[test]
fn the_format_s_own_crate_reads_every_shard() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let written = write_to(root.path(), &tiny(), 7, 20_000);
    let index = std::fs::read(root.path().join("model.safetensors.index.json")).expect("reads");
    let index: Value = serde_json::from_slice(&index).expect("an index");
    let mut sizes = 0;
    let mut tensors = bytes_of(root.path());
    for number in 1..=written.num_shards {
        let file = format!("model-{number:05}-of-{:05}.safetensors", written.num_shards);
        let bytes = std::fs::read(root.path().join(&file)).expect("reads");
        sizes += bytes.len() as u64;
        let shard = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        for (name, view) in shard.tensors() {
            assert_eq!(view.dtype(), safetensors::Dtype::BF16);
            assert_eq!(index["weight_map"][&name], file.as_str());
            let at = tensors.iter().position(|(other, _)| *other == name).expect("ours has it");
            assert_eq!(tensors.swap_remove(at).1, view.data(), "{name}");
        }
    }
    assert!(tensors.is_empty());
    assert_eq!(index["metadata"]["total_size"], written.parameters * 2);
    assert_eq!(sizes, written.bytes);
}

#[test]
fn every_format_loads_with_weights_of_one_size() {
    for format in RandomFormat::value_variants() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut recipe = small(Like::Llama2With7B);
        recipe.config["hidden_size"] = 256.into();
        recipe.config["vocab_size"] = 300.into();
        recipe.quantize(Some(*format));
        write_to(root.path(), &recipe, 1, MAX_SHARD_BYTES);
        let checkpoint = Checkpoint::open(root.path(), LoadFormat::Safetensors).expect("loads");
        let down = checkpoint.spec().format(TensorPart::GateUp, 1).expect("a matrix");
        assert!(down.is_quantized(), "{format:?}");
        let planned = Checkpoint::open(root.path(), LoadFormat::Dummy).expect("a good config");
        assert_eq!(planned.spec().format(TensorPart::GateUp, 1), Some(down), "{format:?}");
        for tensor in checkpoint.tensors() {
            for part in tensor.parts() {
                let part = part.expect("a matrix of codes");
                let finite = |value: &f32| value.is_finite() && value.abs() < 1.0;
                assert!(part.scales.iter().chain(&part.offsets).all(finite), "{format:?}");
            }
        }
    }
}

#[test]
fn a_stopped_run_leaves_nothing() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let directory = root.path().join("new");
    let place = Place::open(&directory, false).expect("opens");
    let outcome = fill(place, &tiny(), 1, &AtomicBool::new(true), MAX_SHARD_BYTES);
    assert!(matches!(outcome, Err(RandomError::Stopped)));
    assert!(!directory.exists());
}

/// The files of the tiny model, of at most so many bytes each.
fn tiny_shards(folder: &Path, max_bytes: u64) -> Vec<layout::Shard> {
    let path = folder.join("config.json");
    std::fs::write(&path, tiny().config.to_string()).expect("writes");
    let tensors = ModelConfig::read(&path, None).expect("reads").decoder.usual_tensors();
    layout::shards(tiny().tensors(&tensors), max_bytes)
}

fn fill_shards(folder: &Path, shards: &[layout::Shard], meter: &Meter) -> Result<(), RandomError> {
    let stop = AtomicBool::new(false);
    writer::WriteJob { folder, shards, seed: 1, stop: &stop, meter }.run()
}

#[test]
fn a_file_that_cannot_be_written_ends_all_threads() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let shards = tiny_shards(root.path(), 20_000);
    std::fs::write(root.path().join(&shards[1].file), b"in the way").expect("writes");
    let meter = Meter::new("tiny", 1);
    let Err(RandomError::Io { path, .. }) = fill_shards(root.path(), &shards, &meter) else {
        panic!("it is in the way")
    };
    assert!(path.ends_with(&shards[1].file));
}

#[test]
fn layers_beyond_the_family_s_are_refused() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for (layers, max, like) in
        [(0, 32, Like::Llama2With7B), (17, 16, Like::Llama32With1B), (33, 32, Like::Llama31With8B)]
    {
        let options =
            RandomOptions { like, layers: Some(layers), format: None, seed: 0, force: false };
        let directory = root.path().join("new");
        let outcome = write(&directory, &options, &AtomicBool::new(false));
        assert!(
            matches!(outcome, Err(RandomError::Layers { max: m, got }) if (m, got) == (max, layers))
        );
        assert!(!directory.exists());
    }
}

#[test]
fn the_meter_counts_every_byte() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let shards = tiny_shards(root.path(), MAX_SHARD_BYTES);
    let meter = Meter::new("tiny", shards[0].file_bytes());
    fill_shards(root.path(), &shards, &meter).expect("writes");
    assert_eq!(meter.done_bytes(), shards[0].file_bytes());
    meter.finish();
}
