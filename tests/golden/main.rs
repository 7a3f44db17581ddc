//! Goal: the engine computes what `transformers` computes, and a sequence has the same bits however
//! it is run. Method: the checkpoints of `tests/fixtures` through the border, on every instruction
//! set that the machine has and on its first GPU; logits and greedy tokens against the stored ones, then one prompt alone
//! against the same prompt in batches, chunks, over shared blocks, after recompute and on other
//! numbers of threads, bit by bit.

mod facts;
mod families;
mod formats;
mod gguf;
mod gguf_blocks;
mod harness;
mod kv;
mod logprobs;
mod packings;
mod perplexity;
mod quantized_families;
mod scores;

use std::collections::BTreeMap;

use facts::bits;
use harness::{
    CHECKPOINTS, Device, Engine, Query, batch, blocks, checkpoint, devices, gpus, limits, query,
    same_bits_devices,
};
use inferno_node::bridge::ffi::{self, DeviceOptions, Isa, SamplerSpec, TensorRows};
use inferno_node::bridge::spec::{DecoderSpec, Dtype, TensorPart, TensorSlot};
use inferno_node::bridge::{DeviceError, DeviceErrorCode};
use inferno_node::gpu;

#[test]
fn logits_of_every_prompt_position_agree_with_transformers() {
    CHECKPOINTS.iter().for_each(|name| facts::logits_agree_with_transformers(name));
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    CHECKPOINTS.iter().for_each(|name| facts::greedy_tokens_are_those_of_transformers(name));
}

#[test]
fn shards_load_the_same_weights_as_one_file() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    for device in [Device::Cpu(Isa::Portable)].into_iter().chain(gpus()) {
        let [one, many] = ["llama2-tiny", "llama2-tiny-sharded"]
            .map(|name| Engine::new(name, device, 1).run(&[query(&tokens, 0, &[0])]));
        assert_eq!(bits(&one), bits(&many), "{device:?}");
    }
}

/// A checkpoint of each dtype.
const DTYPES: [&str; 4] = ["llama2-tiny", "llama3-tiny", "llama32-tiny", "llama32-tiny-bf16"];

#[test]
fn same_bits_in_any_batch() {
    DTYPES.iter().for_each(|name| facts::same_bits_in_any_batch(name));
}

#[test]
fn same_bits_in_chunks_of_any_size() {
    DTYPES.iter().for_each(|name| facts::same_bits_in_chunks_of_any_size(name));
}

#[test]
fn same_bits_over_blocks_that_another_sequence_filled() {
    DTYPES.iter().for_each(|name| facts::same_bits_over_blocks_that_another_sequence_filled(name));
}

#[test]
fn same_bits_after_preemption_and_recompute() {
    DTYPES.iter().for_each(|name| facts::same_bits_after_preemption_and_recompute(name));
}

#[test]
fn same_bits_on_any_number_of_threads() {
    DTYPES.iter().for_each(|name| facts::same_bits_on_any_number_of_threads(name));
}

#[test]
fn the_same_seed_draws_the_same_tokens_alone_and_in_a_batch() {
    for device in same_bits_devices("llama3-tiny") {
        let mut engine = Engine::new("llama3-tiny", device, 2);
        let mut completions = BTreeMap::new();
        for seeds in [vec![1], vec![2], vec![3], vec![3, 2, 1], vec![2, 3]] {
            let drawn = draw(&mut engine, &seeds);
            for (seed, drawn) in seeds.into_iter().zip(drawn) {
                let first = completions.entry(seed).or_insert_with(|| drawn.clone());
                assert_eq!(first, &drawn, "{device:?}");
            }
        }
        assert_ne!(completions[&1], completions[&2]);
    }
}

/// 24 tokens for each seed, all at once.
fn draw(engine: &mut Engine, seeds: &[u64]) -> Vec<Vec<u32>> {
    let (temperature, top_k, top_p, min_p) = (0.9, 50, 0.95, 0.01);
    let mut queries: Vec<Query> = Vec::new();
    for (seat, &seed) in (0..).zip(seeds) {
        let neutral = SamplerSpec::neutral();
        let sampler = SamplerSpec { temperature, top_k, top_p, min_p, seed, ..neutral };
        let prompt = query(&[9, 8, 7, 6], 0, &blocks(seat * 4, 40));
        queries.push(Query { seat, sampler, ..prompt });
    }
    let mut drawn = vec![Vec::new(); seeds.len()];
    for _ in 0..24 {
        engine.run(&queries);
        for (row, query) in queries.iter_mut().enumerate() {
            drawn[row].push(engine.output.token_ids[row]);
            query.first_position += query.token_ids.len() as u32;
            query.token_ids = vec![0];
            query.feed_sampled = true;
        }
    }
    drawn
}

#[test]
fn auto_takes_an_instruction_set_that_the_machine_has() {
    let engine = Engine::new("llama32-tiny", Device::Cpu(Isa::Auto), 1);
    let isa = engine.context.isa();
    assert!(isa != Isa::Auto && ffi::isa_available(isa), "{isa:?}");
}

fn code(error: cxx::Exception) -> DeviceErrorCode {
    DeviceError::from(error).code
}

#[test]
fn errors_arrive_with_their_code() {
    for device in [Device::Cpu(Isa::Portable)].into_iter().chain(gpus()) {
        let options = device.options(1, 1 << 20);
        let mut context = ffi::new_context(&options).expect("a device");
        let added =
            context.pin_mut().add_model(&device.spec(&checkpoint("llama32-tiny")), &limits());
        assert_eq!(code(added.expect_err("1 MiB is too little")), DeviceErrorCode::OutOfMemory);
        let huge = DeviceOptions { pool_bytes: u64::MAX, ..options };
        let made = ffi::new_context(&huge).err().expect("no machine has that");
        assert_eq!(code(made), DeviceErrorCode::OutOfMemory);
        let mut engine = Engine::new("llama32-tiny", device, 1);
        let mut bad = batch(engine.model, &[query(&[1, 2], 0, &[0])]);
        bad.query_lens[0] = 1;
        let ran = engine.context.pin_mut().run_step(&bad, &mut engine.output);
        assert_eq!(code(ran.expect_err("contradicts itself")), DeviceErrorCode::InvalidBatch);
        let slot = TensorSlot { part: TensorPart::Head, layer: 0, expert: 0, first_row: 0 };
        let nothing = TensorRows {
            format: Dtype::F32.into(),
            shape: &[],
            data: &[],
            scales: &[],
            offsets: &[],
        };
        let set = engine.context.pin_mut().set_tensor(engine.model, &slot, &nothing);
        assert_eq!(code(set.expect_err("finished")), DeviceErrorCode::Other);
    }
}

#[test]
fn steps_take_nothing_from_the_pool_and_a_model_gives_all_back() {
    for device in devices() {
        let mut engine = Engine::new("llama32-tiny", device, 1);
        engine.run(&[query(&[1, 2], 0, &[0])]);
        let before = engine.context.memory_stats().expect("stats");
        for _ in 0..5 {
            engine.run(&[query(&[1, 2], 0, &[0])]);
        }
        assert_eq!(engine.context.memory_stats().expect("stats"), before);
        engine.context.pin_mut().remove_model(engine.model).expect("it is there");
        assert_eq!(engine.context.memory_stats().expect("stats").used_bytes, 0);
    }
}

#[test]
fn a_shape_that_gpus_lack_is_refused_by_name() {
    if !gpu::BUILT_IN {
        println!("left out: this build has no CUDA");
        return;
    }
    let good = Device::Gpu { deterministic: false }.spec(&checkpoint("llama32-tiny"));
    let options = DeviceOptions::cuda(1, 0);
    let mut narrow = good.clone();
    narrow.layers[0].mlp.intermediate_size = 90;
    let mut odd = good.clone();
    odd.layers[1].attention.head_dim = 72;
    assert!(ffi::required_bytes(&options, &good, &limits()).is_ok());
    for (field, spec) in [
        ("activation", good.clone().stored_as(Dtype::F32)),
        ("head_dim", odd),
        ("hidden_size", DecoderSpec { hidden_size: 60, ..good.clone() }),
        ("intermediate_size", narrow),
    ] {
        let refused = ffi::required_bytes(&options, &spec, &limits()).expect_err(field);
        let error = DeviceError::from(refused);
        assert_eq!(error.code, DeviceErrorCode::Other);
        assert!(error.message.contains(field), "{error}");
    }
}

#[test]
fn read_bandwidth_can_be_measured() {
    let bandwidth = ffi::measure_read_bandwidth(8 << 20, 2, 2).expect("memory for it");
    assert!(bandwidth > 1e6, "{bandwidth}");
    assert!(ffi::measure_read_bandwidth(0, 1, 1).is_err());
}

#[test]
fn the_rate_of_products_can_be_measured() {
    if ffi::isa_available(ffi::Isa::Avx2) {
        let rate = ffi::measure_product_rate(ffi::Isa::Auto, ffi::Factors::Bf16, 2);
        assert!(rate.expect("two threads") > 1e6);
    }
    assert!(ffi::measure_product_rate(ffi::Isa::Portable, ffi::Factors::Bytes, 1).is_err());
}
