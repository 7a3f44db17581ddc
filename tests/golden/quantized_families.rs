//! Goal: what `quantization` makes at load goes with every family. Method: each family's checkpoint in each format; logits near those of
//! `transformers`, as near as so few bits let random weights be, the same within rounding on every device, and with the same bits alone
//! and in a batch.

use inferno_node::bridge::ffi::Isa;
use inferno_node::checkpoint::{Checkpoint, Quantization};

use super::facts::bits;
use super::harness::{
    Device, Engine, Query, blocks, checkpoint, devices_running, fixture, golden, ids,
    largest_difference, query,
};

/// How far logits may be, whose spread is about 4: measured, with room.
struct Bounds {
    /// From `transformers` with weights in float32: what the format costs weights that are random, with nothing to even an error out.
    from_reference: f32,
    /// From plain products of floats with the same codes: what rounding inputs to 8 bits costs.
    between_devices: f32,
}

const FP8: Bounds = Bounds { from_reference: 1.6, between_devices: 0.3 };
const INT8: Bounds = Bounds { from_reference: 0.5, between_devices: 0.6 };
const INT4: Bounds = Bounds { from_reference: 10.0, between_devices: 0.8 };

fn families() -> Vec<String> {
    let folder = std::fs::read_dir(fixture("families")).expect("the fixtures");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        format!("families/{}", entry.expect("an entry").file_name().to_string_lossy())
    };
    let mut names: Vec<_> = folder.map(name).collect();
    names.sort();
    names
}

fn engine(checkpoint: &Checkpoint, device: Device) -> Engine {
    Engine::with_spec(checkpoint, device.spec(checkpoint), device, 2)
}

/// The logits behind a prompt.
fn answer(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    engine.run(&[query(tokens, 0, &blocks(0, tokens.len()))])
}

fn every_family_in(format: Quantization, bounds: &Bounds) {
    for name in families() {
        let mut quantized = checkpoint(&name);
        quantized.quantize(Some(format), None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let golden = golden(&name);
        // Of some dozens of tokens, and of 150.
        for prompt in golden.greedy_prompts().skip(1) {
            let label = prompt["name"].as_str().expect("a name");
            let expected = &golden.logits[&format!("{label}.logits")];
            let tokens = ids(&prompt["prompt_token_ids"]);
            check(&format!("{name} {format:?} {label}"), &quantized, (&tokens, expected), bounds);
        }
    }
}

fn check(
    label: &str,
    quantized: &Checkpoint,
    (tokens, expected): (&[u32], &[f32]),
    bounds: &Bounds,
) {
    let plain = answer(&mut engine(quantized, Device::Cpu(Isa::Portable)), tokens);
    let lost = largest_difference(&plain, &expected[expected.len() - plain.len()..]);
    let (mut farthest, mut by_codes) = (0.0_f32, 0.0_f32);
    for device in devices_running(label, quantized) {
        let mut engine = engine(quantized, device);
        let alone = answer(&mut engine, tokens);
        // With other weights than those codes it is held against `transformers` alone.
        let holds_codes = device.holds_codes(quantized);
        let lost = largest_difference(&alone, &expected[expected.len() - alone.len()..]);
        assert!(holds_codes || lost <= bounds.from_reference, "{label} {device:?}: {lost}");
        let difference = if holds_codes { largest_difference(&alone, &plain) } else { 0.0 };
        if device == (Device::Gpu { deterministic: false }) {
            by_codes = by_codes.max(difference);
            continue;
        }
        farthest = farthest.max(difference);
        let beside = Query { seat: 1, ..query(&tokens[..5], 0, &blocks(20, 5)) };
        let whole = query(tokens, 0, &blocks(30, tokens.len()));
        let together = engine.run(&[beside, whole]);
        assert_eq!(bits(&together[alone.len()..]), bits(&alone), "{label} {device:?}");
    }
    println!("{label}: {lost:.2} from transformers; between devices {farthest:.2}, {by_codes:.2}");
    assert!(lost > 0.0 && lost <= bounds.from_reference, "{label}: {lost}");
    assert!(farthest <= bounds.between_devices, "{label}: {farthest}");
    assert!(by_codes <= bounds.between_devices.max(1.5), "{label}: {by_codes}");
}

#[test]
fn every_family_runs_in_fp8() {
    every_family_in(Quantization::Fp8, &FP8);
}

#[test]
fn every_family_runs_in_int8() {
    every_family_in(Quantization::Int8, &INT8);
}

#[test]
fn every_family_runs_in_int4() {
    every_family_in(Quantization::Int4, &INT4);
}
