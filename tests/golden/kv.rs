//! Goal: a KV cache in fp8 changes logits by little, uses the scales that a checkpoint has for it, and a sequence keeps its bits however
//! it is run. Method: golden prompts with KV in 16 bits and in fp8; a copy of a checkpoint with scales added, good ones and one that cuts
//! values off; a prompt whole, in chunks and beside another.

use inferno_node::checkpoint::{Checkpoint, LoadFormat};
use inferno_node::memory::KvDtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::facts::bits;
use super::harness::{
    Device, Engine, blocks, checkpoint, devices_for, fixture, golden, ids, json as read_json,
    largest_difference, query, same_bits_devices,
};

const NAME: &str = "llama32-tiny-bf16";

/// What fp8 may change of logits, whose spread is about 4: measured, with room. These weights are random, with nothing to even an error
/// out; what a trained model loses is in `perplexity.rs`.
const MOST_LOST: Lost = Lost { largest: 1.6, mean: 0.3, tokens: 0.15 };

/// What fp8 changes.
struct Lost {
    /// Difference of a logit.
    largest: f32,
    /// The root of its mean square.
    mean: f32,
    /// The share of greedy choices that are others, after the same tokens.
    tokens: f64,
}

fn engine(mut checkpoint: Checkpoint, kv: KvDtype, device: Device) -> Engine {
    checkpoint.hold_kv_as(kv).unwrap_or_else(|error| panic!("{error}"));
    Engine::with_spec(&checkpoint, device.spec(&checkpoint), device, 2)
}

/// The checkpoint with these scales in each layer.
fn with_scales(name: &str, k_scale: f32, v_scale: f32) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut config = read_json(&fixture(name).join("config.json"));
    config["quantization_config"] = json!({
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": {"type": "float", "num_bits": 8, "strategy": "tensor"}
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writes");
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).expect("reads");
    let stored = SafeTensors::deserialize(&bytes).expect("a whole file");
    let num_layers = config["num_hidden_layers"].as_u64().expect("a number");
    let scales = [("k_scale", k_scale.to_le_bytes()), ("v_scale", v_scale.to_le_bytes())];
    let mut tensors = stored.tensors();
    for layer in 0..num_layers {
        for (scale, bytes) in &scales {
            let view = TensorView::new(safetensors::Dtype::F32, vec![1], bytes);
            let view = view.expect("a whole tensor");
            tensors.push((format!("model.layers.{layer}.self_attn.{scale}"), view));
        }
    }
    let bytes = safetensors::serialize(tensors, None).expect("serialises");
    std::fs::write(folder.path().join("model.safetensors"), bytes).expect("writes");
    let checkpoint = Checkpoint::open(folder.path(), LoadFormat::Safetensors);
    let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{error}"));
    (folder, checkpoint)
}

/// The logits of each golden prompt and of 15 tokens behind it, and the greedy choice at each of them. `path`: the tokens that follow,
/// else those chosen.
fn answers(engine: &mut Engine, path: Option<&[u32]>) -> (Vec<f32>, Vec<u32>) {
    let (mut logits, mut tokens) = (Vec::new(), Vec::new());
    for prompt in golden(NAME).greedy_prompts() {
        let mut next = ids(&prompt["prompt_token_ids"]);
        let table = blocks(0, next.len() + 16);
        let mut position = 0;
        for _ in 0..16 {
            logits.extend(engine.run(&[query(&next, position, &table)]));
            position += next.len() as u32;
            next = vec![path.map_or(engine.output.token_ids[0], |path| path[tokens.len()])];
            tokens.push(engine.output.token_ids[0]);
        }
    }
    (logits, tokens)
}

fn lost(fp8: Checkpoint, device: Device) -> Lost {
    let (logits, tokens) = answers(&mut engine(checkpoint(NAME), KvDtype::Auto, device), None);
    let mut fp8 = engine(fp8, KvDtype::Fp8, device);
    let (fp8_logits, fp8_tokens) = answers(&mut fp8, Some(&tokens));
    let squares = logits.iter().zip(&fp8_logits).map(|(a, b)| (a - b) * (a - b));
    let others = tokens.iter().zip(&fp8_tokens).filter(|(a, b)| a != b).count();
    Lost {
        largest: largest_difference(&logits, &fp8_logits),
        mean: (squares.sum::<f32>() / logits.len() as f32).sqrt(),
        tokens: others as f64 / tokens.len() as f64,
    }
}

#[test]
fn kv_in_fp8_changes_little_with_scales_and_without() {
    for device in devices_for(NAME) {
        let (_kept, scaled) = with_scales(NAME, 0.031, 0.019);
        for (what, fp8) in [("without scales", checkpoint(NAME)), ("with scales", scaled)] {
            let Lost { largest, mean, tokens } = lost(fp8, device);
            let share = tokens * 100.0;
            println!("{device:?}, {what}: {largest:.3}, mean {mean:.3}, {share:.1} % of tokens");
            assert!(largest > 0.0 && largest <= MOST_LOST.largest, "{device:?} {what}: {largest}");
            assert!(mean <= MOST_LOST.mean, "{device:?} {what}: {mean}");
            assert!(tokens <= MOST_LOST.tokens, "{device:?} {what}: {tokens}");
        }
    }
}

#[test]
fn kv_in_fp8_goes_with_every_family_and_format() {
    for folder in ["families", "formats", "gguf"] {
        for entry in std::fs::read_dir(fixture(folder)).expect("the fixtures") {
            let name = entry.expect("an entry").file_name().into_string().expect("a name");
            let name = format!("{folder}/{name}");
            let tokens: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 60).collect();
            for device in devices_for(&name) {
                let logits = |kv| {
                    let mut engine = engine(checkpoint(&name), kv, device);
                    engine.run(&[query(&tokens, 0, &blocks(2, tokens.len()))])
                };
                let (auto, fp8) = (logits(KvDtype::Auto), logits(KvDtype::Fp8));
                let norm = |logits: &[f32]| logits.iter().map(|x| x * x).sum::<f32>().sqrt();
                let difference: Vec<f32> = auto.iter().zip(&fp8).map(|(a, b)| a - b).collect();
                let share = norm(&difference) / norm(&auto);
                println!("{name} {device:?}: {share:.4}");
                assert!(share > 0.0 && share < 0.25, "{name} {device:?}: {share}");
            }
        }
    }
}

#[test]
fn the_scales_of_the_checkpoint_are_those_of_the_cache() {
    for device in devices_for(NAME) {
        // Values beyond 448 times this are cut off.
        let (_kept, cut_off) = with_scales(NAME, 0.031, 1e-5);
        let mean = lost(cut_off, device).mean;
        assert!(mean > 1.5 * MOST_LOST.mean, "{device:?}: {mean}");
        // And as long as KV has the model's type they change nothing.
        let (_kept, unused) = with_scales(NAME, 0.031, 1e-5);
        let unused = answers(&mut engine(unused, KvDtype::Auto, device), None);
        let stored = answers(&mut engine(checkpoint(NAME), KvDtype::Auto, device), None);
        assert_eq!((bits(&unused.0), unused.1), (bits(&stored.0), stored.1), "{device:?}");
    }
}

#[test]
fn scales_of_a_power_of_two_change_next_to_nothing() {
    for device in devices_for(NAME) {
        // They move an exponent only, but of numbers so small that they have none of their own; what that changes is far less than
        // what fp8 does.
        let (_kept, scaled) = with_scales(NAME, 0.0625, 0.03125);
        let mut plain = engine(checkpoint(NAME), KvDtype::Fp8, device);
        let (plain, tokens) = answers(&mut plain, None);
        let (scaled, _) = answers(&mut engine(scaled, KvDtype::Fp8, device), Some(&tokens));
        let difference = largest_difference(&scaled, &plain);
        println!("{device:?}: {difference:.4}");
        assert!(difference <= 0.4, "{device:?}: {difference}");
    }
}

#[test]
fn same_bits_of_kv_in_fp8_in_chunks_and_in_a_batch() {
    for device in same_bits_devices(NAME) {
        let (_kept, scaled) = with_scales(NAME, 0.031, 0.019);
        let mut engine = engine(scaled, KvDtype::Fp8, device);
        let tokens: Vec<u32> = (0..70).map(|i| 3 + i * 7 % 90).collect();
        let table = blocks(0, tokens.len());
        let alone = engine.run(&[query(&tokens, 0, &table)]);
        let other = query(&tokens[..33], 0, &blocks(20, 33));
        for chunk in [1, 13, 40] {
            let mut found = Vec::new();
            for (index, part) in tokens.chunks(chunk).enumerate() {
                let mut beside = other.clone();
                beside.seat = 1;
                let first = (index * chunk) as u32;
                found = engine.run(&[query(part, first, &table), beside]);
            }
            found.truncate(alone.len());
            assert_eq!(bits(&found), bits(&alone), "{device:?}, chunks of {chunk}");
        }
    }
}
