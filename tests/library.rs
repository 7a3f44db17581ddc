//! Goal: the node as a library does what the plan's interface promises. Method: engines in this process with the demo model and a
//! fixture, on the same actors as the binary, without bus or HTTP.

#[path = "library/going_on.rs"]
mod going_on;

use std::collections::BTreeSet;

use futures_util::StreamExt;
use inferno_node::config::Config;
use inferno_node::engine::{Answer, Engine, InferRequest};
use inferno_node::error::{Error, Kind};
use inferno_node::ids::RequestId;
use inferno_node::memory::{ByteSize, PoolSize};
use inferno_node::models::ModelSpec;
use inferno_node::request::{FinishReason, Params, Prompt};

fn config() -> Config {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut config = Config::library("demo", format!("{root}/models/demo"));
    config.executor.threads = 1;
    // Room for a second model; by default there is just what the configured ones need.
    config.executor.memory_pool_size = Some(PoolSize::Bytes(ByteSize(1 << 30)));
    config
}

fn fixture() -> ModelSpec {
    let path = format!("{}/tests/fixtures/llama3-tiny", env!("CARGO_MANIFEST_DIR"));
    ModelSpec { max_seq_len: Some(128), ..ModelSpec::new("tiny", path) }
}

fn request(seed: u64) -> InferRequest {
    InferRequest::text("demo", "Once upon a time").params(Params {
        max_tokens: Some(24),
        seed: Some(seed),
        ignore_eos: Some(true),
        ..Params::default()
    })
}

/// Where the answers were computed, each device once.
fn devices(answers: Vec<Result<Answer, Error>>) -> Vec<String> {
    let device = |answer: Result<Answer, Error>| answer.expect("an answer").receipt.device;
    answers.into_iter().map(device).collect::<BTreeSet<_>>().into_iter().collect()
}

async fn start(config: Config) -> Engine {
    Engine::new(config).await.expect("the engine starts")
}

#[tokio::test]
async fn an_answer_has_everything_the_plan_names() {
    let engine = start(config()).await;
    assert!(engine.is_ready());
    let mut asked = request(1);
    asked.request_id = Some(RequestId::parse("mine").expect("an id"));
    let answer = engine.infer(asked).await.expect("an answer");
    let Answer {
        request_id,
        generated_text,
        token_ids,
        logprobs,
        prompt_logprobs,
        finish_reason,
        usage,
        latency,
        receipt,
        others,
    } = answer;
    assert!(others.is_empty(), "one choice");
    assert_eq!((logprobs, prompt_logprobs), (None, None), "not asked for");
    assert_eq!(request_id.as_str(), "mine");
    assert!(!generated_text.is_empty());
    assert_eq!((token_ids.len(), usage.completion_tokens), (24, 24));
    assert_eq!(finish_reason, FinishReason::Length);
    assert!(latency.as_secs_f64() > 0.0);
    assert_eq!((receipt.device.as_str(), receipt.attempt), ("cpu:0", 1));
    assert_eq!(engine.shutdown().await, Ok(0));
}

#[tokio::test]
async fn a_batch_gives_the_tokens_of_each_request_alone_in_order() {
    let engine = start(config()).await;
    let mut alone = Vec::new();
    for seed in 0..6 {
        alone.push(engine.infer(request(seed)).await.expect("an answer").token_ids);
    }
    let together = engine.batch_infer((0..6).map(request).collect()).await;
    let together: Vec<_> =
        together.into_iter().map(|answer| answer.expect("an answer").token_ids).collect();
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_stream_gives_the_same_tokens_event_by_event() {
    let engine = start(config()).await;
    let whole = engine.infer(request(5)).await.expect("an answer");
    let mut stream = engine.stream(request(5)).expect("the door is open");
    let (mut token_ids, mut text, mut events) = (Vec::new(), String::new(), 0);
    while let Some(event) = stream.next().await {
        let event = event.expect("no failure");
        assert_eq!(event.seq as usize, token_ids.len());
        token_ids.extend(event.token_ids);
        text.push_str(&event.text);
        events += 1;
    }
    assert_eq!((token_ids, text), (whole.token_ids, whole.generated_text));
    assert!(events > 1, "it streams");
}

#[tokio::test]
async fn dropping_a_stream_cancels_the_request() {
    let engine = start(config()).await;
    let mut long = request(1);
    long.params.max_tokens = Some(1_900);
    long.request_id = Some(RequestId::parse("long").expect("an id"));
    let mut stream = engine.stream(long.clone()).expect("the door is open");
    stream.next().await.expect("an event").expect("no failure");
    drop(stream);
    // Its id is free again only when it has ended.
    long.params.max_tokens = Some(1);
    loop {
        match engine.infer(long.clone()).await {
            Ok(answer) => break assert_eq!(answer.token_ids.len(), 1),
            Err(error) => assert_eq!(error.kind, Kind::Conflict, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn models_come_and_go_while_others_serve() {
    let engine = start(config()).await;
    let tiny = || InferRequest::new("tiny", Prompt::TokenIds(vec![1, 2, 3])).max_tokens(4);
    let unknown = engine.infer(tiny()).await.expect_err("not loaded yet");
    assert_eq!(unknown.kind, Kind::NotFound);
    let info = engine.load_model(fixture()).await.expect("loads");
    assert_eq!((info.name.as_str(), info.max_seq_len), ("tiny", 128));
    let taken = engine.load_model(fixture()).await.expect_err("the alias is taken");
    assert_eq!(taken.kind, Kind::Conflict);
    assert!(engine.infer(tiny()).await.is_ok());
    assert!(engine.infer(request(1)).await.is_ok());
    engine.unload_model("tiny").await.expect("unloads");
    assert_eq!(engine.infer(tiny()).await.expect_err("gone").kind, Kind::NotFound);
    assert_eq!(engine.unload_model("tiny").await.expect_err("gone").kind, Kind::NotFound);
    assert!(engine.infer(request(1)).await.is_ok());
}

#[tokio::test]
async fn a_configured_model_is_on_every_device_and_a_later_one_on_the_best() {
    let mut two = config();
    two.executor.devices = vec!["cpu:0".to_owned(), "cpu:1".to_owned()];
    let engine = start(two).await;
    let info = engine.load_model(fixture()).await.expect("loads");
    assert_eq!(info.devices.len(), 1);
    let tiny = InferRequest::new("tiny", Prompt::TokenIds(vec![1, 2, 3])).max_tokens(4);
    let answers = engine.batch_infer(vec![tiny; 8]).await;
    assert_eq!(devices(answers), [info.devices[0].to_string()]);
    let answers = engine.batch_infer((0..8).map(request).collect()).await;
    assert_eq!(devices(answers), ["cpu:0", "cpu:1"]);
}

#[tokio::test]
async fn the_least_recently_used_idle_model_makes_room() {
    let mut tight = config();
    tight.executor.memory_pool_size = None;
    let engine = start(tight).await;
    engine.load_model(fixture()).await.expect("takes the place of the idle one");
    assert_eq!(engine.infer(request(1)).await.expect_err("unloaded").kind, Kind::NotFound);
}

/// A text's log probability in the demo model, token by token.
async fn scored(engine: &Engine, text: &str, params: Params) -> Answer {
    let request = InferRequest::text("demo", text).params(Params {
        temperature: Some(0.0),
        ignore_eos: Some(true),
        ..params
    });
    engine.infer(request).await.expect("an answer")
}

#[tokio::test]
async fn a_completion_has_the_log_probabilities_that_its_text_has_as_a_prompt() {
    let engine = start(config()).await;
    let wants = |max_tokens| Params {
        max_tokens: Some(max_tokens),
        echo: Some(true),
        logprobs: Some(2),
        ..Params::default()
    };
    let once = scored(&engine, "Once upon a time", wants(8)).await;
    let prompt = once.prompt_logprobs.expect("echo beside logprobs");
    let completion = once.logprobs.expect("wanted");
    assert!(once.generated_text.starts_with("Once upon a time"));
    assert_eq!((once.usage.prompt_tokens as usize, completion.len()), (prompt.len(), 8));
    let all: Vec<_> = prompt.iter().chain(&completion).cloned().collect();

    // The whole as a prompt of ids, nothing sampled.
    let tokens = Prompt::TokenIds(all.iter().map(|entry| entry.token_id).collect());
    let asked = InferRequest::new("demo", tokens).params(wants(0));
    let again = engine.infer(asked).await.expect("an answer");
    assert_eq!((again.token_ids.len(), again.finish_reason), (0, FinishReason::Length));
    assert_eq!(again.generated_text, once.generated_text);
    assert_eq!(again.prompt_logprobs, Some(all));

    let echo = Params { logprobs: None, ..wants(0) };
    let only_text = scored(&engine, "Once upon a time", echo).await;
    assert_eq!(only_text.generated_text, "Once upon a time");
    assert_eq!((only_text.prompt_logprobs, only_text.logprobs), (None, None));
}

#[tokio::test]
async fn two_engines_live_in_one_process() {
    let mut second = config();
    second.models = vec![fixture()];
    let (first, second) = tokio::join!(start(config()), start(second));
    let tiny = InferRequest::new("tiny", Prompt::TokenIds(vec![1, 2, 3])).max_tokens(4);
    let (here, there) = tokio::join!(first.infer(request(1)), second.infer(tiny.clone()));
    assert!(here.is_ok() && there.is_ok());
    assert_eq!(first.infer(tiny).await.expect_err("not here").kind, Kind::NotFound);
    first.shutdown().await.expect("it ends");
    assert!(second.is_ready());
}

#[tokio::test]
async fn a_configuration_at_fault_is_refused_before_anything_starts() {
    let mut bad = config();
    bad.batcher.block_size = 3;
    let error = Engine::new(bad).await.err().expect("refused");
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.message.contains("batcher.block_size"), "{error}");
    let missing = Config::library("demo", "no/such/folder");
    let error = Engine::new(missing).await.err().expect("refused");
    assert!(error.message.contains("no/such/folder"), "{error}");
}

#[tokio::test]
async fn choices_are_drawn_with_seeds_of_their_own_after_one_prefill() {
    let engine = start(config()).await;
    let alone = engine.infer(request(5)).await.expect("an answer");
    let prompt: Vec<u32> = (0..100).map(|at| 300 + at % 50).collect();
    let ask = |n, best_of| {
        let params = Params { n, best_of, ..request(5).params };
        InferRequest::new("demo", Prompt::TokenIds(prompt.clone())).params(params)
    };
    let first = engine.infer(ask(Some(1), None)).await.expect("an answer");
    assert!(alone.others.is_empty() && first.others.is_empty());
    assert_eq!(
        engine.infer(ask(Some(4), None)).await.expect("an answer").receipt.cached_tokens,
        4 * 96
    );

    // Another prompt, of which nothing is cached.
    let prompt: Vec<u32> = (0..100).map(|at| 900 + at % 50).collect();
    let params = Params { n: Some(4), ..request(5).params };
    let asked = InferRequest::new("demo", Prompt::TokenIds(prompt.clone())).params(params.clone());
    let answer = engine.infer(asked).await.expect("an answer");
    assert_eq!(answer.others.len(), 3);
    let mut texts: BTreeSet<_> = answer.others.iter().map(|one| one.token_ids.clone()).collect();
    texts.insert(answer.token_ids.clone());
    assert_eq!(texts.len(), 4, "each is drawn anew");
    assert!(answer.others.iter().all(|one| one.finish_reason == Some(FinishReason::Length)));
    let usage = answer.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (100, 96, 196));
    assert_eq!(usage.cached_tokens, 0, "the first sample found nothing");
    // The last, unfilled block is computed by each.
    assert_eq!((answer.receipt.prefill_tokens, answer.receipt.cached_tokens), (112, 3 * 96));

    // The same choices whatever else runs, and the first is what one alone is.
    let params = Params { n: None, ..params };
    let asked = InferRequest::new("demo", Prompt::TokenIds(prompt)).params(params);
    let single = engine.infer(asked).await.expect("an answer");
    assert_eq!(single.token_ids, answer.token_ids);
    engine.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn the_best_of_several_samples_has_the_highest_mean_log_probability() {
    let engine = start(config()).await;
    let ask = |n, best_of, logprobs| {
        let params = Params { n, best_of, logprobs, ..request(9).params };
        engine.infer(request(9).params(params))
    };
    let all = ask(Some(4), None, Some(0)).await.expect("an answer");
    let mean = |entries: &Option<Vec<_>>| {
        let entries: &Vec<inferno_node::request::TokenLogprob> = entries.as_ref().expect("wanted");
        let sum: f64 = entries.iter().map(|one| f64::from(one.logprob.expect("told"))).sum();
        sum / entries.len() as f64
    };
    let mut ranked = vec![(mean(&all.logprobs), all.generated_text)];
    ranked.extend(all.others.into_iter().map(|one| (mean(&one.logprobs), one.generated_text)));
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = ask(Some(2), Some(4), None).await.expect("an answer");
    assert_eq!(best.generated_text, ranked[0].1);
    assert_eq!((best.others.len(), &best.others[0].generated_text), (1, &ranked[1].1));
    assert_eq!((best.logprobs, best.usage.completion_tokens), (None, 96), "all are paid for");
    engine.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_sample_that_cannot_be_drawn_ends_its_request_with_one_error() {
    let engine = start(config()).await;
    let params = Params {
        n: Some(3),
        allowed_token_ids: Some(vec![5]),
        banned_token_ids: vec![5],
        ..request(1).params
    };
    let failed = engine.infer(request(1).params(params)).await;
    assert_eq!(failed.map_err(|error| error.kind).err(), Some(Kind::Invalid));
    assert!(engine.infer(request(1)).await.is_ok(), "the device goes on");
    engine.shutdown().await.expect("it ends");
}
