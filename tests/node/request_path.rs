//! A request's whole way, over both doors.

use std::time::Duration;

use futures_util::StreamExt;
use inferno_node::bus::client::ClientError;
use inferno_node::error::Kind;
use serde_json::{Value, json};

use super::harness::{CPU, NodeProcess, client, collect, request};

const MANAGED: &str = "[bus]\nmode = \"managed\"\n";

#[tokio::test]
async fn the_same_seed_gives_the_same_tokens_on_bus_and_http() {
    let node = NodeProcess::start(&format!("{CPU}{MANAGED}"));
    let bus = client(&node.nats()).await;
    let mut generation = bus.generate("demo", request(40, 7)).await.expect("accepted");
    assert_eq!(generation.node_id(), node.id());
    let (token_ids, text, last) = collect(&mut generation).await.expect("streams");
    assert_eq!((token_ids.len(), last.attempt), (40, 1));
    let usage = last.usage.expect("in the last event");
    assert_eq!(usage.completion_tokens, 40);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + 40);
    assert_eq!(last.receipt.expect("in the last event").node_id, node.id());

    let body = json!({
        "model": "demo", "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": true, "seed": 7,
    });
    let reply = node.post("/v1/completions", &body).await;
    assert_eq!(reply.status().as_u16(), 200);
    let whole: Value = reply.json().await.expect("JSON");
    assert_eq!(whole["choices"][0]["text"], text);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 40);
}

#[tokio::test]
async fn a_chat_streams_over_sse_what_it_answers_whole() {
    let node = NodeProcess::start(&format!("{CPU}[bus]\nmode = \"off\"\n"));
    let mut body = json!({
        "model": "demo", "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let whole: Value = node.post("/v1/chat/completions", &body).await.json().await.expect("JSON");
    let answer = whole["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert!(answer.contains("Paris"), "the demo model answers: {answer}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    body["stream"] = true.into();
    let mut stream = node.post("/v1/chat/completions", &body).await.bytes_stream();
    let mut raw = Vec::new();
    while let Some(chunk) = stream.next().await {
        raw.extend_from_slice(&chunk.expect("streams"));
    }
    let raw = String::from_utf8(raw).expect("UTF-8");
    assert!(raw.ends_with("data: [DONE]\n\n"), "{raw}");
    let text: String = raw
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).expect("JSON"))
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, answer);
}

#[tokio::test]
async fn a_chat_has_no_echo_whichever_door_it_comes_by() {
    let node = NodeProcess::start(&format!("{CPU}{MANAGED}"));
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"model": "demo", "messages": messages, "echo": true});
    let reply = node.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.status().as_u16(), 400);
    let refused: Value = reply.json().await.expect("JSON");
    assert_eq!(refused["error"]["code"], "unsupported");

    let body = json!({"messages": messages, "params": {"echo": true}});
    let on_bus = client(&node.nats()).await.generate("demo", body).await.err();
    let Some(ClientError::Refused(error)) = on_bus else { panic!("not refused") };
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(
        format!("params.{}", refused["error"]["message"].as_str().expect("text")),
        error.text()
    );
}

#[tokio::test]
async fn a_prompt_seen_before_is_taken_from_the_prefix_cache_and_gives_the_same_tokens() {
    let node = NodeProcess::start(&format!("{CPU}{MANAGED}"));
    let bus = client(&node.nats()).await;
    let prompt = "The old woman lived near the river. ".repeat(20);
    let body = json!({"prompt": prompt, "params": {"max_tokens": 24, "temperature": 0, "ignore_eos": true}});
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut generation = bus.generate("demo", body.clone()).await.expect("accepted");
        let (token_ids, _, last) = collect(&mut generation).await.expect("streams");
        runs.push((token_ids, last.usage.expect("in the last event")));
    }
    assert_eq!(runs[0].1.cached_tokens, 0);
    assert!(runs[1].1.cached_tokens > 100, "{:?}", runs[1].1);
    assert_eq!(runs[0].0, runs[1].0, "the same bits with and without the cache");
}

/// Between the steps of four tokens; the last one is counted a moment after the answer.
async fn metrics_after_three_gaps(node: &NodeProcess) -> String {
    let is_gaps = |line: &&str| line.starts_with("inferno_step_gap_seconds_count{");
    for _ in 0..500 {
        let reply = reqwest::get(format!("{}/metrics", node.http())).await.expect("answers");
        let text = reply.text().await.expect("text");
        if text.lines().find(is_gaps).and_then(|line| line.rsplit(' ').next()) == Some("3") {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not three gaps");
}

#[tokio::test]
async fn metrics_and_models_are_served() {
    let node = NodeProcess::start(&format!("{CPU}[bus]\nmode = \"off\"\n"));
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 4, "ignore_eos": true});
    assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    let (status, models) = node.get("/v1/models").await;
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("demo")));
    let text = metrics_after_three_gaps(&node).await;
    for line in ["inferno_completion_tokens_total{", "inferno_time_to_first_token_seconds_bucket{"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    let (status, health) = node.get("/v1/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("healthy")));
    assert!(health["checks"][2]["value"].as_f64().is_some_and(|p95| p95 > 0.0), "{health}");
    assert_eq!(node.get("/health/live").await.0, 200);
    assert_eq!(node.get("/health/ready").await.0, 200);
}

#[tokio::test]
async fn a_request_can_be_followed_through_the_log_by_its_id() {
    let sections = format!("{CPU}[bus]\nmode = \"off\"\n[node]\nlog = \"inferno_node=debug\"\n");
    let node = NodeProcess::start(&sections);
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 4, "request_id": "traced"});
    assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    let log = node.log();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["fields"]["request_id"] == "traced")
        .collect();
    let said = |what: &str| lines.iter().any(|line| line["fields"]["message"] == what);
    for what in ["accepted", "scheduled", "ended"] {
        assert!(said(what), "{what} in {log}");
    }
}
