//! Goal: the bus contract holds, over a real nats-server. Method: each test has a server, a bus and a fake admission of its own,
//! and talks to them through plain NATS messages.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use inferno_node::bus::client::{Client as Asker, ClientError, Follower, Verdict};
use inferno_node::bus::{Config, Managed, ManagedServer, Mode};
use inferno_node::lifeline::Lifeline;
use inferno_node::request::FinishReason;
use inferno_node::secret::Secret;
use serde_json::{Value, json};

#[path = "bus/access.rs"]
mod access;
#[path = "bus/callers.rs"]
mod callers;
#[path = "bus/control.rs"]
mod control;
#[path = "bus/fake.rs"]
mod fake;
#[path = "bus/link_limits.rs"]
mod link_limits;
#[allow(dead_code, reason = "no test binary that has a server needs all of it")]
#[path = "bus/nats.rs"]
mod nats;
#[path = "bus/outage.rs"]
mod outage;
#[path = "bus/owners.rs"]
mod owners;
#[path = "bus/streams.rs"]
mod streams;

use fake::{Node, token_text};
use nats::NatsServer;

const SOON: Duration = Duration::from_secs(20);
const GENERATE: &str = "inferno.v1.generate.demo";

fn config(server: &NatsServer) -> Config {
    Config { url: Some(server.url()), ..Config::default() }
}

async fn connect(server: &NatsServer) -> Client {
    async_nats::connect(server.url()).await.expect("connects")
}

/// A server, a node that serves `demo` on it, and a connection; requests reach the node from here on.
async fn setup() -> (NatsServer, Node, Client) {
    let server = NatsServer::start();
    let node = Node::start(config(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    (server, node, client)
}

/// Waits until a node answers for `demo`.
async fn wait_ready(client: &Client) {
    eventually("a node serves demo", || async {
        let info = client.request("$SRV.INFO.inferno", "".into()).await.ok()?;
        let info: Value = serde_json::from_slice(&info.payload).ok()?;
        (!info["endpoints"].as_array()?.is_empty()).then_some(())
    })
    .await;
}

async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn next(subscriber: &mut Subscriber) -> Message {
    tokio::time::timeout(SOON, subscriber.next()).await.expect("in time").expect("open")
}

async fn nothing_more(subscriber: &mut Subscriber) {
    let more = tokio::time::timeout(Duration::from_millis(200), subscriber.next()).await;
    assert!(more.is_err(), "{more:?}");
}

fn parsed(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// Events until the last one, without repetitions; panics where tokens are missing.
async fn whole(events: &mut Subscriber) -> (Vec<u32>, String, Value) {
    let (mut ids, mut text, mut follower) = (Vec::new(), String::new(), Follower::default());
    loop {
        let mut event = parsed(&next(events).await);
        let tokens = event["token_ids"].as_array().expect("an array").len();
        let seq = event["seq"].as_u64().expect("a number") as u32;
        match follower.judge(seq, tokens) {
            Verdict::Fresh => {}
            Verdict::Repeated => continue,
            // Of two nodes that run one id for a moment, the events have other borders.
            Verdict::Gap { expected } if seq < expected => {
                let end = seq + tokens as u32;
                assert_eq!(follower.judge(expected, (end - expected) as usize), Verdict::Fresh);
                event["token_ids"] = (expected..end).collect();
                event["text"] = (expected..end).map(token_text).collect::<String>().into();
            }
            Verdict::Gap { expected } => panic!("expected {expected}, got {event}"),
        }
        ids.extend(
            event["token_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|id| id.as_u64().expect("an id") as u32),
        );
        text.push_str(event["text"].as_str().expect("text"));
        if event.get("finish_reason").is_some() {
            return (ids, text, event);
        }
    }
}

fn expect_tokens(n: u32, ids: &[u32], text: &str) {
    assert_eq!(ids, (0..n).collect::<Vec<_>>());
    assert_eq!(text, (0..n).map(token_text).collect::<String>());
}

/// The ids of the nodes that serve something, by the service API.
async fn nodes(client: &Client) -> Vec<String> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    client.publish_with_reply("$SRV.INFO.inferno", inbox, "".into()).await.expect("publishes");
    let mut nodes = Vec::new();
    let mut wait = SOON; // for the first
    while let Ok(Some(answer)) = tokio::time::timeout(wait, answers.next()).await {
        wait = Duration::from_millis(100);
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            break;
        }
        let info = parsed(&answer);
        if info["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty()) {
            nodes.push(info["id"].as_str().expect("an id").to_owned());
        }
    }
    nodes
}
