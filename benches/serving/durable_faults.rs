//! What faults cost those who read durable streams: how long a cancel takes, and a move by drain or by kill -9, how soon a new request
//! is refused while NATS says nothing, and what readers that do not keep up cost those that do. `BENCH_ONLY=durable` runs it after
//! `durable.rs`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use inferno_node::bus::client::Client;
use inferno_node::ids::RequestId;
use inferno_node::request::Event;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::durable::{P, connect, publish, sections};
use super::load::{ALIAS, nearest};
use super::node::Node;

const STREAMS: usize = 200;
/// 20 tokens/s.
const STEP_US: u32 = 50_000;
/// Readers that take nothing, beside as many quick ones.
const STALLED: usize = 20;
const QUICK: usize = 100;

/// What must not be passed.
const MAX_CANCEL_MS: f64 = 100.0;
const MAX_DRAIN_MS: f64 = 1_000.0;
const MAX_KILL_MS: f64 = 8_000.0;
const MAX_REFUSAL_MS: f64 = 2_000.0;
const MAX_SLOWER: f64 = 1.5;

pub fn measure() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        println!("durable, under faults: {STREAMS} streams of 20 tokens/s");
        cancels().await;
        moves("drain", "-TERM", MAX_DRAIN_MS).await;
        moves("kill -9", "-KILL", MAX_KILL_MS).await;
        refusals().await;
        slow_readers().await;
    });
}

fn body(id: &str, tokens: u32) -> Value {
    json!({"request_id": id, "prompt_token_ids": [5, 6, 7],
        "params": {"max_tokens": tokens, "seed": 1, "ignore_eos": true}})
}

/// A nats-server with a node that takes no durable requests, which outlives those that do.
fn keeper() -> (Node, tempfile::TempDir) {
    let (sections, dir) = sections(STEP_US);
    (Node::start_with(&format!("{sections}[log]\nenabled = false\n")), dir)
}

/// Streams that run for longer than this takes, and what is heard of them.
async fn start(nats: &async_nats::Client, count: usize) -> async_nats::Subscriber {
    let mut heard = nats.subscribe(format!("{P}.tokens.*")).await.expect("subscribes");
    for number in 0..count {
        publish(nats, &body(&format!("f{number}"), 1_900)).await;
    }
    let mut begun: HashMap<RequestId, usize> = HashMap::new();
    while begun.len() < count {
        let event = next(&mut heard).await;
        if !event.token_ids.is_empty() {
            begun.insert(event.request_id, event.token_ids.len());
        }
    }
    heard
}

async fn next(heard: &mut async_nats::Subscriber) -> Event {
    let message = tokio::time::timeout(Duration::from_secs(60), heard.next()).await;
    let message = message.expect("streams go on").expect("connected");
    serde_json::from_slice(&message.payload).expect("an event")
}

fn told(what: &str, mut times_ms: Vec<f64>, most_ms: f64) {
    times_ms.sort_by(f64::total_cmp);
    let [half, most] = [0.5, 0.99].map(|quantile| nearest(&times_ms, quantile));
    println!("{what}: P50 {half:.1} ms, P99 {most:.1} ms (at most {most_ms})");
}

/// Of running requests, by any node.
async fn cancels() {
    let (keeper, _costs) = keeper();
    let (sections, _own) = sections(STEP_US);
    let node = Node::start_on(keeper.nats(), &sections);
    let nats = connect(&node).await;
    let heard = start(&nats, STREAMS).await;
    drop(heard);
    let client = Client::over(nats, P);
    let mut times = Vec::new();
    for number in 0..STREAMS {
        let id = RequestId::parse(&format!("f{number}")).expect("an id");
        let begin = Instant::now();
        assert!(client.cancel_anywhere(&id).await.expect("answered").cancelled);
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    told("cancel of a running request", times, MAX_CANCEL_MS);
}

/// From the signal to the first token of the other node, for those that move.
async fn moves(what: &str, signal: &str, most_ms: f64) {
    let (keeper, _costs) = keeper();
    let (sections, _own) = sections(STEP_US);
    let [node, other] = [0, 1].map(|_| Node::start_on(keeper.nats(), &sections));
    let nats = connect(&keeper).await;
    let mut heard = start(&nats, STREAMS).await;
    let begin = Instant::now();
    node.signal(signal);
    let mut moved: HashMap<RequestId, f64> = HashMap::new();
    // Every stream of the other node goes on all the while: what has not moved by then never will.
    while begin.elapsed() < Duration::from_millis(2 * most_ms as u64) {
        let event = next(&mut heard).await;
        if event.attempt > 1 && !event.token_ids.is_empty() {
            let at = begin.elapsed().as_secs_f64() * 1e3;
            moved.entry(event.request_id).or_insert(at);
        }
    }
    let what = format!("{what}, {} streams move, to the next token", moved.len());
    told(&what, moved.into_values().collect(), most_ms);
    // It has ended already, or is ended now.
    drop(node);
    drop(other);
}

/// Of new requests over HTTP while NATS stands still.
async fn refusals() {
    let (keeper, _costs) = keeper();
    let (sections, _own) = sections(STEP_US);
    let node = Node::start_on(keeper.nats(), &sections);
    drop(connect(&node).await);
    keeper.signal_nats("-STOP");
    let (http, mut times) = (reqwest::Client::new(), Vec::new());
    for _ in 0..10 {
        let body = json!({"model": ALIAS, "prompt": [5, 6, 7], "max_tokens": 5});
        let request = http.post(format!("{}/v1/completions", node.http()));
        let begin = Instant::now();
        let reply = request.header("inferno-durable", "true").json(&body).send().await;
        assert_eq!(reply.expect("the node answers").status(), 503);
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    keeper.signal_nats("-CONT");
    told("NATS stands still: a new request is refused", times, MAX_REFUSAL_MS);
}

/// Gaps of quick readers, alone and beside readers that take nothing.
async fn slow_readers() {
    let (keeper, _costs) = keeper();
    let (sections, _own) = sections(10_000);
    let node = Node::start_on(keeper.nats(), &sections);
    let nats = connect(&node).await;
    let mut gaps = [Vec::new(), Vec::new()];
    for round in 0..6 {
        let stalled: Vec<Socket> = match round % 2 {
            0 => Vec::new(),
            _ => (0..STALLED).map(|number| stall(&node, number)).collect(),
        };
        gaps[round % 2].push(quick(&nats, round).await);
        drop(stalled);
    }
    let [alone, beside] = gaps.map(|mut rounds| {
        rounds.sort_by(f64::total_cmp);
        nearest(&rounds, 0.5)
    });
    println!(
        "{QUICK} quick readers, ITL P99: alone {alone:.1} ms, beside {STALLED} that take nothing {beside:.1} ms: {:.2} times (at most \
         {MAX_SLOWER})",
        beside / alone
    );
}

/// The 99th percentile of the gaps of quick streams.
async fn quick(nats: &async_nats::Client, round: usize) -> f64 {
    let mut heard = nats.subscribe(format!("{P}.tokens.*")).await.expect("subscribes");
    for number in 0..QUICK {
        publish(nats, &body(&format!("q{round}-{number}"), 200)).await;
    }
    let (mut last_at, mut gaps, mut left) = (HashMap::new(), Vec::new(), QUICK);
    while left > 0 {
        let event = next(&mut heard).await;
        if !event.request_id.as_str().starts_with(&format!("q{round}-")) {
            continue;
        }
        left -= usize::from(event.is_last());
        let now = Instant::now();
        if let Some(last) = last_at.insert(event.request_id, now) {
            gaps.push(now.duration_since(last).as_secs_f64() * 1e3);
        }
    }
    gaps.sort_by(f64::total_cmp);
    nearest(&gaps, 0.99)
}

/// A reader over HTTP that takes nothing of what it asked for; every second one is durable.
fn stall(node: &Node, number: usize) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
    let address: std::net::SocketAddr =
        node.http().trim_start_matches("http://").parse().expect("an address");
    socket.connect(&address.into()).expect("the node listens");
    let durable = if number.is_multiple_of(2) { "inferno-durable: true\r\n" } else { "" };
    let body = json!({"model": ALIAS, "prompt": [5, 6, 7], "max_tokens": 1_900, "stream": true, "ignore_eos": true,
        "logprobs": 5})
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: node\r\n{durable}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let sent = socket.send(head.as_bytes()).and_then(|_| socket.send(body.as_bytes()));
    sent.expect("the node reads");
    socket
}
