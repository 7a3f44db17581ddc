//! Several nodes on one bus, cancels from anywhere, and a bus that goes away.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use inferno_node::bus::client::{Client, ClientError};
use inferno_node::error::Kind;
use inferno_node::ids::RequestId;
use inferno_node::request::FinishReason;
use serde_json::{Value, json};

use super::harness::{NodeProcess, client, collect, external, request};
use super::nats::NatsServer;

#[tokio::test]
async fn two_nodes_in_one_queue_group_share_the_requests() {
    let nats = NatsServer::start();
    let nodes = [
        NodeProcess::start_sim(500, &external(&nats.url(), "one")),
        NodeProcess::start_sim(500, &external(&nats.url(), "two")),
    ];
    let bus = client(&nats.url()).await;
    let all: BTreeSet<_> = nodes.iter().map(NodeProcess::id).collect();
    let mut who = BTreeSet::new();
    // More than one round only where a node's subject is late.
    for _ in 0..20 {
        who.extend(forty_answers(&bus).await);
        if who == all {
            return;
        }
    }
    panic!("only {who:?} answered of {all:?}");
}

/// Forty requests at once; gives who answered each.
async fn forty_answers(bus: &Client) -> Vec<String> {
    join_all((0..40).map(|seed| {
        let bus = bus.clone();
        async move {
            let mut generation = bus.generate("demo", request(20, seed)).await.expect("accepted");
            let node = generation.node_id().to_owned();
            let (token_ids, _, last) = collect(&mut generation).await.expect("streams");
            assert_eq!(token_ids.len(), 20);
            assert_eq!(last.receipt.expect("in the last event").node_id, node);
            node
        }
    }))
    .await
}

#[tokio::test]
async fn a_cancel_from_the_bus_ends_an_http_request() {
    let node = NodeProcess::start_sim(5_000, "[bus]\nmode = \"managed\"\n");
    let bus = client(&node.nats()).await;
    let body =
        json!({"model": "demo", "prompt": "Hello", "max_tokens": 1500, "request_id": "mine"});
    let (reply, cancelled) = tokio::join!(node.post("/v1/completions", &body), async {
        node.wait_health("running", |health| health["running"] == 1).await;
        bus.cancel(&RequestId::parse("mine").expect("an id")).await.expect("acknowledged")
    });
    assert!(cancelled.cancelled && cancelled.tokens < 1500, "{cancelled:?}");
    assert_eq!(reply.status().as_u16(), 499);
    let error: Value = reply.json().await.expect("JSON");
    assert!(error["error"]["message"].is_string(), "{error}");
}

#[tokio::test]
async fn a_request_with_several_prompts_runs_under_its_one_id() {
    let node = NodeProcess::start_sim(5_000, "[bus]\nmode = \"managed\"\n");
    let bus = client(&node.nats()).await;
    let body = json!({
        "model": "demo", "prompt": ["Hello", "Bye"], "max_tokens": 1500, "request_id": "both",
    });
    let (reply, cancelled) = tokio::join!(node.post("/v1/completions", &body), async {
        node.wait_health("running", |health| health["running"] == 2).await;
        for id in ["both", "both-1"] {
            let mut twin = request(8, 1);
            twin["request_id"] = id.into();
            match bus.generate("demo", twin).await.map(|generation| generation.id().clone()) {
                Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::Conflict),
                other => panic!("{other:?}"),
            }
        }
        let twin = node.post("/v1/completions", &body).await;
        assert_eq!(twin.status().as_u16(), 409);
        bus.cancel(&RequestId::parse("both").expect("an id")).await.expect("acknowledged")
    });
    assert!(cancelled.cancelled && cancelled.tokens < 3000, "{cancelled:?}");
    assert_eq!(reply.status().as_u16(), 499);
    match bus.cancel(&RequestId::parse("both").expect("an id")).await {
        Err(ClientError::NoResponders(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_delete_over_http_ends_a_bus_request() {
    let node = NodeProcess::start_sim(5_000, "[bus]\nmode = \"managed\"\n");
    let bus = client(&node.nats()).await;
    let mut body = request(1500, 1);
    body["request_id"] = "over-there".into();
    let mut generation = bus.generate("demo", body).await.expect("accepted");
    let url = format!("{}/v1/requests/cmpl-over-there", node.http());
    let reply = reqwest::Client::new().delete(&url).send().await.expect("answers");
    assert_eq!(reply.status().as_u16(), 200);
    let answer: Value = reply.json().await.expect("JSON");
    let (token_ids, _, last) = collect(&mut generation).await.expect("streams");
    assert_eq!(last.finish_reason, Some(FinishReason::Cancelled));
    let tokens = token_ids.len();
    assert_eq!(answer, json!({"request_id": "over-there", "cancelled": true, "tokens": tokens}));
    let again = reqwest::Client::new().delete(&url).send().await.expect("answers");
    assert_eq!(again.status().as_u16(), 404);
}

#[tokio::test]
async fn nats_stopped_and_started_again_loses_no_token() {
    let mut nats = NatsServer::start();
    let node = NodeProcess::start_sim(5_000, &external(&nats.url(), "alone"));
    let bus = client(&nats.url()).await;
    let mut generation = bus.generate("demo", request(400, 3)).await.expect("accepted");
    let mut token_ids = Vec::new();
    while token_ids.len() < 20 {
        let event = generation.next().await.expect("streams").expect("not at its end");
        token_ids.extend(event.token_ids);
    }
    nats.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    nats.start_again();
    // `next` fails on a gap and passes over repetitions, so this is every token once and in order.
    let (rest, _, last) = collect(&mut generation).await.expect("nothing is lost");
    assert_eq!(token_ids.len() + rest.len(), 400);
    assert_eq!((last.finish_reason, last.attempt), (Some(FinishReason::Length), 1));
    assert_eq!(node.get("/v1/health").await.1["status"], "healthy");
}

#[tokio::test]
async fn a_node_that_starts_before_nats_serves_http_and_then_the_bus() {
    let mut nats = NatsServer::later();
    let node = NodeProcess::start_sim(0, &external(&nats.url(), "early"));
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 8});
    assert_eq!(node.post("/v1/completions", &body).await.status().as_u16(), 200);
    nats.start_again();
    let bus = client(&nats.url()).await;
    let mut generation = loop {
        match bus.generate("demo", request(8, 1)).await {
            Ok(generation) => break generation,
            Err(ClientError::NoResponders(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(collect(&mut generation).await.expect("streams").0.len(), 8);
}
