//! Goal: the node as a library does what the plan's interface promises. Method: engines in this process with the demo model and a
//! fixture, on the same actors as the binary, without bus or HTTP.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use inferno_node::config::Config;
use inferno_node::engine::{Answer, Engine, InferRequest};
use inferno_node::error::{Error, Kind};
use inferno_node::executor::{ByteSize, PoolSize};
use inferno_node::models::{LoadFormat, ModelSpec};
use inferno_node::request::{FinishReason, Params, Prompt, RequestId};

fn config() -> Config {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut config = Config::library("demo", format!("{root}/models/demo"));
    config.executor.threads = 1;
    // Room for a second model; by default there is just what the configured ones need.
    config.executor.memory_pool_size = Some(PoolSize::Bytes(ByteSize(1 << 30)));
    config
}

fn fixture() -> ModelSpec {
    ModelSpec {
        name: "tiny".to_owned(),
        model_path: format!("{}/tests/fixtures/llama3-tiny", env!("CARGO_MANIFEST_DIR")).into(),
        load_format: LoadFormat::Safetensors,
        max_seq_len: Some(128),
    }
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
    } = answer;
    assert_eq!((logprobs, prompt_logprobs), (None, None), "not asked for");
    assert_eq!(request_id.as_str(), "mine");
    assert!(!generated_text.is_empty());
    assert_eq!((token_ids.len(), usage.completion_tokens), (24, 24));
    assert_eq!(finish_reason, FinishReason::Length);
    assert!(latency.as_secs_f64() > 0.0);
    assert_eq!((receipt.device.as_str(), receipt.attempt), ("cpu:0", 1));
    assert_eq!(engine.shutdown().await, 0);
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
    first.shutdown().await;
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
