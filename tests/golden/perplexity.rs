//! Goal: what a format costs in quality is known and small. Method: the demo model on text that it was not trained on, its perplexity
//! in each format beside that of the 16 bits that it is stored in.

use inferno_node::checkpoint::Quantization;
use inferno_node::config::Config;
use inferno_node::engine::{Engine, InferRequest};
use inferno_node::memory::KvDtype;
use inferno_node::request::{Params, Prompt};

use crate::harness::{fixture, ids, json};

async fn engine(layers: Option<Quantization>, head: Option<Quantization>, kv: KvDtype) -> Engine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let mut config = Config::library("demo", path);
    config.executor.devices = vec!["cpu:0".to_owned()];
    config.executor.kv_dtype = kv;
    config.models[0].quantization = layers;
    config.models[0].quantization_head = head;
    Engine::new(config).await.expect("the engine starts")
}

/// e to the mean negative log probability of the tokens after each document's first.
async fn perplexity(engine: &Engine, documents: &[Vec<u32>]) -> f64 {
    let (mut sum, mut count) = (0.0, 0_u32);
    for document in documents {
        let params = Params { max_tokens: Some(0), prompt_logprobs: Some(0), ..Params::default() };
        let prompt = Prompt::TokenIds(document.clone());
        let request = InferRequest::new("demo", prompt).params(params);
        let answer = engine.infer(request).await.expect("an answer");
        for entry in answer.prompt_logprobs.expect("wanted") {
            let Some(logprob) = entry.logprob else { continue };
            sum -= f64::from(logprob);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

#[tokio::test]
async fn fewer_bits_cost_the_demo_model_little() {
    use Quantization::{Fp8, Int4, Int8};
    let held_out = json(&fixture("held-out.json"));
    let documents: Vec<_> = held_out.as_array().expect("documents").iter().map(ids).collect();
    let stored = perplexity(&engine(None, None, KvDtype::Auto).await, &documents).await;
    println!("bf16: {stored:.6}");
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
        let found = perplexity(&engine(layers, head, kv).await, &documents).await;
        let worse = found / stored - 1.0;
        println!("{name}: {found:.6}, {:+.3} %", worse * 100.0);
        assert!(worse <= allowed, "{name}: {found} is {worse:+.4} beside {stored}");
    }
}
