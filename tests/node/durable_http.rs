//! Durable requests over HTTP: the same answer, whatever node is asked and whichever runs them; one generation for one key.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::harness::{CPU, NodeProcess, external};
use super::jobs::{wait_for_empty_queue, wait_for_streams};
use super::nats::NatsServer;

const COMPLETIONS: &str = "/v1/completions";

fn start(nats: &NatsServer, id: &str) -> NodeProcess {
    NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), id)))
}

/// Two nodes on one bus.
async fn nodes(nats: &NatsServer) -> [NodeProcess; 2] {
    let nodes = [start(nats, "one"), start(nats, "two")];
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    nodes
}

pub async fn post(node: &NodeProcess, headers: &[(&str, &str)], body: &Value) -> reqwest::Response {
    let mut request = reqwest::Client::new().post(format!("{}{COMPLETIONS}", node.http()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.json(body).send().await.expect("the node answers")
}

pub fn body(max_tokens: u32) -> Value {
    json!({"model": "demo", "prompt": "Once upon a time", "max_tokens": max_tokens, "seed": 4,
        "ignore_eos": true, "temperature": 0.7, "logit_bias": {"9": -5.5}, "stop": ["never said"]})
}

/// `id:` and `data:` of each line of a stream.
fn lines(stream: &str) -> Vec<(Option<u32>, String)> {
    let event = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let id = field("id: ").map(|id| id.parse().expect("a number"));
        (id, field("data: ").expect("data").to_owned())
    };
    stream.split("\n\n").filter(|event| !event.is_empty()).map(event).collect()
}

#[tokio::test]
async fn a_durable_answer_is_the_plain_one_streamed_or_whole() {
    let nats = NatsServer::with_jetstream("");
    let nodes = nodes(&nats).await;
    let plain: Value = post(&nodes[0], &[], &body(20)).await.json().await.expect("JSON");
    let durable = [("inferno-durable", "true")];
    for node in &nodes {
        let whole: Value = post(node, &durable, &body(20)).await.json().await.expect("JSON");
        assert_eq!(whole["choices"], plain["choices"]);
        assert_eq!(whole["usage"]["completion_tokens"], 20);
        let mut streamed = body(20);
        streamed["stream"] = true.into();
        let stream = post(node, &durable, &streamed).await.text().await.expect("text");
        let lines = lines(&stream);
        assert_eq!(lines.last().map(|(_, data)| data.as_str()), Some("[DONE]"));
        let chunk = |data: &String| serde_json::from_str::<Value>(data).ok();
        let text: String = lines
            .iter()
            .filter_map(|(_, data)| chunk(data))
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(plain["choices"][0]["text"], text);
        let ids: Vec<u32> = lines.iter().filter_map(|(id, _)| *id).collect();
        assert!(ids.is_sorted() && ids.last() == Some(&19), "{ids:?}");
    }
}

#[tokio::test]
async fn a_hundred_posts_of_one_key_at_three_nodes_are_one_generation() {
    let nats = NatsServer::with_jetstream("");
    let [one, two] = nodes(&nats).await;
    let nodes = [one, two, start(&nats, "three")];
    let key = [("idempotency-key", "order 17")];
    let posts = (0..100).map(|i| {
        let node = &nodes[i % 3];
        async move {
            let reply = post(node, &key, &body(15)).await;
            assert_eq!(reply.status(), 200);
            reply.json::<Value>().await.expect("JSON")
        }
    });
    let answers = join_all(posts).await;
    assert!(answers.iter().all(|answer| answer["choices"] == answers[0]["choices"]));
    assert!(answers.iter().all(|answer| answer["id"] == answers[0]["id"]));
    let mut tokens = 0.0;
    for node in &nodes {
        tokens += node.metric(&["inferno_completion_tokens_total"]).await;
    }
    assert_eq!(tokens, 15.0, "one generation");
    let other = post(&nodes[1], &key, &body(16)).await;
    assert_eq!(other.status(), 409);
    let again: Value = post(&nodes[0], &key, &body(15)).await.json().await.expect("JSON");
    assert_eq!(again["choices"], answers[0]["choices"], "from its start, at any node");
    wait_for_empty_queue(&async_nats::connect(nats.url()).await.expect("connects")).await;
}

/// Jobs that were ever published.
async fn published(nats: &NatsServer) -> u64 {
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    let jobs = async_nats::jetstream::new(bus).get_stream("inferno_jobs").await.expect("is there");
    jobs.cached_info().state.last_sequence
}

#[tokio::test]
async fn several_prompts_are_several_durable_requests_under_one_key() {
    let nats = NatsServer::with_jetstream("");
    let nodes = nodes(&nats).await;
    let asking = |prompts: Value| {
        let mut body = body(12);
        body["prompt"] = prompts;
        body
    };
    let both = asking(json!(["Once upon a time", "The little cat"]));
    let plain: Value = post(&nodes[0], &[], &both).await.json().await.expect("JSON");
    let key = [("idempotency-key", "both")];
    for node in &nodes {
        let durable: Value = post(node, &key, &both).await.json().await.expect("JSON");
        assert_eq!(durable["choices"], plain["choices"]);
        assert_eq!(durable["usage"]["completion_tokens"], 24);
        let id = durable["id"].as_str().expect("an id");
        let url = format!("{}/v1/requests/{id}-1/events", node.http());
        let stream = reqwest::get(url).await.expect("answers").text().await.expect("text");
        let text = |(_, data): &(Option<u32>, String)| {
            let event: Value = serde_json::from_str(data).expect("JSON");
            event["text"].as_str().expect("text").to_owned()
        };
        let second: String = lines(&stream).iter().map(text).collect();
        assert_eq!(plain["choices"][1]["text"], second);
    }
    assert_eq!(published(&nats).await, 2, "one generation of each");
    for other in [
        json!("Once upon a time"),
        json!(["Once upon a time", "The little dog"]),
        json!(["Once upon a time", "The little cat", "and more"]),
    ] {
        let refused = post(&nodes[1], &key, &asking(other)).await;
        assert_eq!(refused.status(), 409);
    }
    assert_eq!(published(&nats).await, 2, "another list is another request, of which none is made");
    wait_for_empty_queue(&async_nats::connect(nats.url()).await.expect("connects")).await;
}

#[tokio::test]
async fn events_are_read_again_at_any_node_from_any_token() {
    let nats = NatsServer::with_jetstream("");
    let nodes = nodes(&nats).await;
    let mut asked = body(25);
    asked["request_id"] = "mine".into();
    let durable = [("inferno-durable", "true")];
    let whole: Value = post(&nodes[0], &durable, &asked).await.json().await.expect("JSON");
    for (node, path, from) in
        [(&nodes[1], "mine/events", 0_usize), (&nodes[0], "cmpl-mine/events?starting_after=9", 10)]
    {
        let url = format!("{}/v1/requests/{path}", node.http());
        let stream = reqwest::get(url).await.expect("answers").text().await.expect("text");
        let events: Vec<Value> = lines(&stream)
            .iter()
            .map(|(_, data)| serde_json::from_str(data).expect("JSON"))
            .collect();
        let tokens: usize =
            events.iter().map(|event| event["token_ids"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(tokens, 25 - from);
        let text: String =
            events.iter().map(|event| event["text"].as_str().expect("text")).collect();
        let all = whole["choices"][0]["text"].as_str().expect("text");
        assert!(all.ends_with(&text) && (from > 0 || all == text), "{text:?} of {all:?}");
        assert!(events.last().is_some_and(|last| last["usage"]["completion_tokens"] == 25));
    }
    let client = reqwest::Client::new();
    let url = format!("{}/v1/requests/mine/events", nodes[1].http());
    let rest = client.get(&url).header("last-event-id", "24").send().await.expect("answers");
    let rest = lines(&rest.text().await.expect("text"));
    assert!(rest.iter().all(|(_, data)| data.contains("\"token_ids\":[]")), "{rest:?}");
    let (status, refused) = nodes[0].get("/v1/requests/nobody/events").await;
    assert_eq!((status, &refused["error"]["param"]), (404, &"request_id".into()));
    let of_key = format!("/v1/requests/cmpl-idem-{}/events", "0".repeat(40));
    assert_eq!(nodes[0].get(&of_key).await.0, 410, "nobody else makes such an id");
    let wrong = client.get(&url).header("last-event-id", "x").send().await.expect("answers");
    assert_eq!(wrong.status(), 400);
    assert_eq!(nodes[1].metric(&["inferno_durable_replays_total"]).await, 2.0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_nothing_and_any_node_cancels_by_id() {
    let nats = NatsServer::with_jetstream("");
    let start = |id: &str| NodeProcess::start_sim(10_000, &external(&nats.url(), id));
    let nodes = [start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let mut asked = body(1_000);
    (asked["request_id"], asked["stream"]) = ("mine".into(), true.into());
    let reply = post(&nodes[0], &[("inferno-durable", "true")], &asked).await;
    assert_eq!(reply.status(), 200);
    drop(reply);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client = reqwest::Client::new();
    let delete =
        |node: &NodeProcess| client.delete(format!("{}/v1/requests/mine", node.http())).send();
    let mut answers: Vec<Value> = Vec::new();
    for node in &nodes {
        let answer = delete(node).await.expect("answers");
        assert_eq!(answer.status(), 200);
        answers.push(answer.json().await.expect("JSON"));
    }
    assert_eq!(answers[0], answers[1], "the same when asked again");
    assert_eq!(
        (&answers[0]["request_id"], &answers[0]["cancelled"]),
        (&"mine".into(), &true.into())
    );
    assert!(answers[0]["tokens"].as_u64().is_some_and(|tokens| tokens > 0 && tokens < 1_000));
    wait_for_empty_queue(&bus).await;
}

#[tokio::test]
async fn what_a_node_would_refuse_is_refused_before_it_is_promised() {
    let nats = NatsServer::with_jetstream("");
    let nodes = nodes(&nats).await;
    let durable = [("inferno-durable", "true")];
    let with = |name: &str, value: Value| {
        let mut body = body(5);
        body[name] = value;
        body
    };
    for (wrong, status, param) in [
        (with("max_tokens", 1_000_000.into()), 400, "max_tokens"),
        (with("model", "other".into()), 404, "model"),
        (with("temperature", 3.into()), 400, "temperature"),
        (with("best_of", 2.into()), 400, "best_of"),
        (with("prompt", json!([[1], [9_999_999]])), 400, "prompt[1]"),
    ] {
        let reply = post(&nodes[0], &durable, &wrong).await;
        assert_eq!(reply.status(), status, "{param}");
        let error: Value = reply.json().await.expect("JSON");
        assert_eq!(error["error"]["param"], param);
    }
    let wrong = post(&nodes[0], &[("inferno-durable", "maybe")], &body(5)).await;
    assert_eq!(wrong.status(), 400);
    assert_eq!(published(&nats).await, 0, "nothing was published");
}

#[tokio::test]
async fn one_that_is_longer_than_a_message_of_nats_is_refused_and_a_plain_one_is_answered() {
    let nats = NatsServer::with_jetstream("max_payload: 8192\n");
    let node = NodeProcess::start_sim(1_000, &external(&nats.url(), "one"));
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    let mut long = body(5);
    long["prompt"] = vec![1_000; 1_900].into();
    let refused = post(&node, &[("inferno-durable", "true")], &long).await;
    assert_eq!(refused.status(), 413);
    let error: Value = refused.json().await.expect("JSON");
    assert_eq!(error["error"]["code"], "too_large", "{error}");
    assert_eq!(published(&nats).await, 0, "nothing was promised");
    assert_eq!(post(&node, &[], &long).await.status(), 200);
}

#[tokio::test]
async fn without_jetstream_durable_requests_are_refused_by_name_and_all_else_works() {
    let nats = NatsServer::start();
    let node = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let refused = post(&node, &[("inferno-durable", "true")], &body(5)).await;
    assert_eq!(refused.status(), 503);
    let error: Value = refused.json().await.expect("JSON");
    assert_eq!(error["error"]["code"], "log_unavailable", "{error}");
    assert_eq!(post(&node, &[], &body(5)).await.status(), 200);
}
