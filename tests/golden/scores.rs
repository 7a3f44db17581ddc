//! Goal: what a client reads of a prompt's log probabilities is what `transformers` computes. Method: the library on checkpoints of
//! `tests/fixtures`, against the log-softmax of their stored logits, with the prompt in one chunk and in many.

use inferno_node::config::Config;
use inferno_node::engine::{Engine, InferRequest};
use inferno_node::request::{FinishReason, Params, Prompt, TokenLogprob};

use crate::harness::{fixture, golden, ids};

/// With f32 and with bf16 weights and activations. The golden values are in float32 throughout: run in bf16, `transformers` itself
/// loses up to 0.2 of a logit of these random models.
const MODELS: [(&str, f32); 2] = [("llama32-tiny-f32", 1e-4), ("llama32-tiny-bf16", 0.1)];

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - largest - sum.ln()).collect()
}

/// A prompt's entries, nothing sampled.
async fn entries(engine: &Engine, tokens: &[u32]) -> Vec<TokenLogprob> {
    let params = Params { max_tokens: Some(0), prompt_logprobs: Some(3), ..Params::default() };
    let request = InferRequest::new("tiny", Prompt::TokenIds(tokens.to_vec())).params(params);
    let answer = engine.infer(request).await.expect("an answer");
    assert_eq!((answer.finish_reason, answer.token_ids.len()), (FinishReason::Length, 0));
    assert_eq!(answer.usage.cached_tokens, 0, "it is computed each time");
    answer.prompt_logprobs.expect("wanted")
}

#[tokio::test]
async fn prompt_logprobs_agree_with_transformers_in_one_chunk_and_in_many() {
    for (name, allowed) in MODELS {
        let golden = golden(name);
        let mut config = Config::library("tiny", fixture(name).display().to_string());
        // Where there is a GPU, too: a pool of its own would be most of the card.
        config.executor.devices = vec!["cpu:0".to_owned()];
        config.executor.threads = 1;
        let whole = Engine::new(config.clone()).await.expect("the engine starts");
        config.batcher.max_batch_size = Some(4);
        config.batcher.max_step_tokens = Some(5);
        let chunked = Engine::new(config).await.expect("the engine starts");
        let mut worst = 0.0_f64;
        for prompt in &golden.prompts {
            let tokens = ids(&prompt["prompt_token_ids"]);
            let told = entries(&whole, &tokens).await;
            assert_eq!(told, entries(&chunked, &tokens).await, "{name}: the same bits");
            assert_eq!((told.len(), told[0].logprob), (tokens.len(), None));
            let stored =
                &golden.logits[&format!("{}.logits", prompt["name"].as_str().expect("a name"))];
            let vocab_size = golden.logits.values().map(Vec::len).min().expect("logits");
            // The rows of the last positions are stored.
            let rows: Vec<_> = stored.chunks_exact(vocab_size).map(log_softmax).collect();
            let skipped = tokens.len() - rows.len();
            for (row, entry) in rows.iter().zip(&told[skipped + 1..]) {
                let expected = row[entry.token_id as usize];
                worst = worst.max((f64::from(entry.logprob.expect("told")) - expected).abs());
                let likeliest = row.iter().copied().fold(f64::MIN, f64::max);
                worst = worst.max((f64::from(entry.top[0].logprob) - likeliest).abs());
                assert_eq!(entry.top.len(), 3);
            }
        }
        println!("{name}: largest difference of a log probability {worst:.2e}");
        assert!(worst <= f64::from(allowed), "{name}: {worst}");
    }
}
