//! Goal: what a format costs in quality is known and small. Method: the demo model on text that it was not trained on, its perplexity
//! in each format beside that of the 16 bits that it is stored in: of formats that are made at load, and of files in each packing.

use std::path::Path;

use inferno_node::checkpoint::Quantization;
use inferno_node::config::Config;
use inferno_node::engine::{Engine, InferRequest};
use inferno_node::gpu;
use inferno_node::memory::{ByteSize, KvDtype, PoolSize};
use inferno_node::request::{Params, Prompt};
use tokio::sync::OnceCell;

use crate::gguf_blocks::BlockType;
use crate::harness::{fixture, ids, json};
use crate::packings::{Packing, Scheme, demo};

fn config(model_path: impl AsRef<Path>) -> Config {
    let mut config = Config::library("demo", model_path.as_ref());
    // These tests run side by side.
    config.executor.memory_pool_size = Some(PoolSize::Bytes(ByteSize(2 << 30)));
    config
}

/// e to the mean negative log probability of the tokens after each document's first.
async fn perplexity(config: Config) -> f64 {
    let engine = Engine::new(config).await.expect("the engine starts");
    let held_out = json(&fixture("held-out.json"));
    let (mut sum, mut count) = (0.0, 0_u32);
    for document in held_out.as_array().expect("documents") {
        let params = Params { max_tokens: Some(0), prompt_logprobs: Some(0), ..Params::default() };
        let request = InferRequest::new("demo", Prompt::TokenIds(ids(document))).params(params);
        let answer = engine.infer(request).await.expect("an answer");
        for entry in answer.prompt_logprobs.expect("wanted") {
            let Some(logprob) = entry.logprob else { continue };
            sum -= f64::from(logprob);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

/// Holds what a format costs below the part of bf16's perplexity that is allowed, on a CPU and on a GPU, if there is one.
async fn hold(name: &str, config: &Config, allowed: f64) {
    static STORED: [OnceCell<f64>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
    let gpu = gpu::usable().first().map(|ordinal| format!("cuda:{ordinal}"));
    for (device, stored) in ["cpu:0".to_owned()].into_iter().chain(gpu).zip(&STORED) {
        let there = |config: &Config| {
            let mut config = config.clone();
            config.executor.devices = vec![device.clone()];
            config
        };
        let measure = async || {
            let stored = perplexity(there(&self::config(demo()))).await;
            println!("{device}, bf16: {stored:.6}");
            stored
        };
        let stored = stored.get_or_init(measure).await;
        let found = perplexity(there(config)).await;
        let worse = found / stored - 1.0;
        println!("{device}, {name}: {found:.6}, {:+.3} %", worse * 100.0);
        assert!(worse <= allowed, "{device}, {name}: {found} is {worse:+.4} beside {stored}");
    }
}

#[tokio::test]
async fn fewer_bits_cost_the_demo_model_little() {
    use Quantization::{Fp8, Int4, Int8};
    let (auto, fp8) = (KvDtype::Auto, KvDtype::Fp8);
    for (name, layers, head, kv, allowed) in [
        ("fp8", Some(Fp8), None, auto, 0.005),
        ("int8", Some(Int8), None, auto, 0.005),
        ("int8, the head too", Some(Int8), Some(Int8), auto, 0.005),
        ("int4", Some(Int4), None, auto, 0.04),
        ("int4, the head in int8", Some(Int4), Some(Int8), auto, 0.04),
        ("KV in fp8", None, None, fp8, 0.005),
        ("fp8, KV too", Some(Fp8), None, fp8, 0.01),
    ] {
        let mut config = config(demo());
        config.executor.kv_dtype = kv;
        config.models[0].quantization = layers;
        config.models[0].quantization_head = head;
        hold(name, &config, allowed).await;
    }
}

#[tokio::test]
async fn fewer_bits_in_a_file_cost_the_demo_model_little() {
    let gptq = |bits, group, symmetric: bool| Packing::Gptq(Scheme { bits, group, symmetric });
    for (name, packing, allowed) in [
        ("a file in fp8, a scale for a matrix", Packing::Fp8Tensor, 0.005),
        ("a file in fp8, a scale for a row", Packing::Fp8Rows, 0.005),
        ("a file in fp8, a scale for 128 x 128", Packing::Fp8Blocks, 0.005),
        ("a file in int8, a scale for a row", Packing::Int8Rows, 0.005),
        ("GPTQ, 8 bits, groups of 128", gptq(8, 128, true), 0.005),
        ("pack-quantized, 4 bits, groups of 128", Packing::PackedRows, 0.04),
        ("GPTQ, 4 bits, groups of 128", gptq(4, 128, true), 0.04),
        ("GPTQ, 4 bits, groups of 32 with zero points", gptq(4, 32, false), 0.04),
        ("AWQ, 4 bits, groups of 128 with zero points", Packing::Awq, 0.04),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        packing.write(folder.path());
        hold(name, &config(folder.path()), allowed).await;
    }
}

#[tokio::test]
async fn blocks_of_a_gguf_file_cost_the_demo_model_little() {
    for (kind, allowed) in [
        (BlockType::Q8_0, 0.005),
        (BlockType::Q6_K, 0.005),
        (BlockType::Q5_K, 0.005),
        (BlockType::Q5_1, 0.005),
        (BlockType::Q5_0, 0.005),
        (BlockType::Q4_K, 0.04),
        (BlockType::Q4_1, 0.04),
        (BlockType::Q4_0, 0.04),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("model.gguf");
        kind.write(&path);
        hold(&format!("GGUF, {kind:?}"), &config(&path), allowed).await;
    }
}
