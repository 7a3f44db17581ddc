//! Which durable request is which: by its key, its model, its body, and for whom which node answers.

use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::durable_http::{body, post};
use super::harness::{CPU, NodeProcess, external};
use super::jobs::{wait_for_empty_queue, wait_for_streams};
use super::nats::NatsServer;

/// A further alias of the model that every node here has.
fn second_model() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    format!("[[models]]\nname = \"second\"\nmodel_path = {path:?}\n")
}

fn of_second(max_tokens: u32) -> Value {
    let mut body = body(max_tokens);
    body["model"] = "second".into();
    body
}

#[tokio::test]
async fn a_key_is_one_request_of_one_model() {
    let nats = NatsServer::with_jetstream("");
    let sections = format!("{CPU}{}{}", external(&nats.url(), "one"), second_model());
    let node = NodeProcess::start(&sections);
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    let key = [("idempotency-key", "order 17")];
    assert_eq!(post(&node, &key, &body(5)).await.status(), 200);
    let other = post(&node, &key, &of_second(5)).await;
    assert_eq!(other.status(), 409, "the same words to another model");
}

#[tokio::test]
async fn a_gateways_id_is_shown_again_and_is_nobodys_identity() {
    let nats = NatsServer::with_jetstream("");
    let node = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let traced = [("inferno-durable", "true"), ("x-request-id", "trace-1")];
    let mut ids = Vec::new();
    for max_tokens in [5, 6, 6] {
        let reply = post(&node, &traced, &body(max_tokens)).await;
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["x-request-id"], "trace-1");
        let body: Value = reply.json().await.expect("JSON");
        assert_eq!(body["usage"]["completion_tokens"], max_tokens);
        ids.push(body["id"].to_string());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each is a request of its own: {ids:?}");
    wait_for_empty_queue(&bus).await;
}

#[tokio::test]
async fn any_node_takes_a_durable_request_for_a_model_of_another() {
    let nats = NatsServer::with_jetstream("");
    let one = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let two = format!("{CPU}{}{}", external(&nats.url(), "two"), second_model());
    let two = NodeProcess::start(&two);
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    let durable = [("inferno-durable", "true")];
    let here: Value = post(&two, &durable, &of_second(7)).await.json().await.expect("JSON");
    let reply = post(&one, &durable, &of_second(7)).await;
    assert_eq!(reply.status(), 200);
    let there: Value = reply.json().await.expect("JSON");
    assert_eq!(there["choices"], here["choices"]);
    // What only the model's node can judge ends the request.
    let long = post(&one, &durable, &of_second(1_000_000)).await;
    assert_eq!(long.status(), 400);
    let mut unknown = body(5);
    unknown["model"] = "third".into();
    assert_eq!(post(&one, &durable, &unknown).await.status(), 404, "of no node");
}

#[tokio::test]
async fn a_store_that_is_wiped_ends_what_waits_as_well() {
    let nats = NatsServer::with_jetstream("");
    let one = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let two = format!("{CPU}{}{}", external(&nats.url(), "two"), second_model());
    let two = NodeProcess::start(&two);
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let durable = [("inferno-durable", "true")];
    assert_eq!(post(&one, &durable, &of_second(5)).await.status(), 200);
    wait_for_empty_queue(&bus).await;
    // It is missed after ten seconds.
    two.signal("-KILL");
    let stream = jetstream::new(bus);
    let wiped = async {
        for _ in 0..500 {
            let jobs = stream.get_stream("inferno_jobs").await.expect("is there");
            if jobs.cached_info().state.messages == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for name in ["inferno_log", "inferno_jobs", "inferno_dead"] {
            stream.delete_stream(name).await.expect("wiped");
        }
    };
    let asked = of_second(6);
    let (reply, ()) = tokio::join!(post(&one, &durable, &asked), wiped);
    let status = reply.status();
    let refused: Value = reply.json().await.expect("JSON");
    assert_eq!(
        (status.as_u16(), &refused["error"]["code"]),
        (503, &"log_unavailable".into()),
        "{refused}"
    );
}

/// The tokens of each choice in server-sent events, and the id of each event.
async fn read(reply: reqwest::Response) -> Vec<(Option<String>, Value)> {
    let text = reply.text().await.expect("text");
    let event = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str(field("data: ").expect("data")).expect("JSON");
        (field("id: ").map(str::to_owned), data)
    };
    text.split_terminator("\n\n").map(event).collect()
}

fn tokens_of<'a>(events: impl Iterator<Item = &'a Value>, choice: u64) -> Vec<u64> {
    let own = events.filter(|event| event["index"] == choice);
    let ids = own.flat_map(|event| event["token_ids"].as_array().expect("a list"));
    ids.map(|id| id.as_u64().expect("an id")).collect()
}

#[tokio::test]
async fn a_reader_of_several_choices_goes_on_in_each_where_it_was() {
    let nats = NatsServer::with_jetstream("");
    let start = |id: &str| NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), id)));
    let nodes = [start("one"), start("two")];
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    let mut asked = body(40);
    (asked["n"], asked["request_id"], asked["stream"]) = (3.into(), "mine".into(), true.into());
    (asked["temperature"], asked["seed"]) = (json!(0.9), 3.into());
    let mut live = post(&nodes[0], &[("inferno-durable", "true")], &asked).await.bytes_stream();
    let mut chunks = Vec::new();
    while let Some(chunk) = live.next().await {
        chunks.extend_from_slice(&chunk.expect("streams"));
    }
    let chunks = String::from_utf8(chunks).expect("UTF-8");
    let last = chunks.lines().filter_map(|line| line.strip_prefix("id: ")).next_back();
    assert_eq!(last, Some("39,39,39"), "a stream of chunks says it as well");
    let events = |node: &NodeProcess, after: Option<&str>| {
        let url = format!("{}/v1/requests/mine/events", node.http());
        let request = reqwest::Client::new().get(url);
        let request = after.into_iter().fold(request, |it, id| it.header("last-event-id", id));
        async move { read(request.send().await.expect("answers")).await }
    };
    let whole = events(&nodes[0], None).await;
    for (at, (id, _)) in whole.iter().enumerate().filter(|(_, (id, _))| id.is_some()) {
        let rest = events(&nodes[1], id.as_deref()).await;
        for choice in 0..3 {
            let before = tokens_of(whole[..=at].iter().map(|(_, event)| event), choice);
            let after = tokens_of(rest.iter().map(|(_, event)| event), choice);
            let all = tokens_of(whole.iter().map(|(_, event)| event), choice);
            assert_eq!([before, after].concat(), all, "choice {choice} behind {id:?}");
        }
    }
}
