//! Durable requests beside plain ones: a node, NATS with JetStream and this client on the same cores.
//!
//! First 1,000 streams at once, as fast as they go: records and tokens a second. Then 200 streams of 20 tokens/s, durable and plain
//! in turn, one after the other: time to the first token, gaps. Then the time to read a stored stream again.
//! `BENCH_ONLY=durable` runs this alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use inferno_node::bus::client::Client;
use inferno_node::ids::RequestId;
use inferno_node::request::Event;
use serde_json::{Value, json};

use super::load::{ALIAS, nearest};
use super::node::Node;

/// Before every subject.
pub const P: &str = "inferno.v1";
const MANY: u64 = 1_000;
const TOKENS_OF_MANY: u32 = 200;
const FEW: u64 = 200;
const TOKENS_OF_FEW: u32 = 100;
/// They come one after the other, as clients do.
const EVERY: Duration = Duration::from_millis(17);
const ROUNDS: usize = 3;

/// What others reach, and what must not be passed.
const MIN_RECORDS_S: f64 = 15_000.0;
const MIN_TOKENS_S: f64 = 100_000.0;
const MAX_MORE_TTFT_MS: f64 = 3.0;
const MAX_MORE_GAP_MS: f64 = 10.0;
const MAX_REPLAY_MS: f64 = 20.0;

/// Sections of a node whose steps take so long, and the folder of its costs.
pub fn sections(step_us: u32) -> (String, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let costs = dir.path().join("costs.toml");
    std::fs::write(&costs, format!("step_us = {step_us}\nnum_blocks = 65536\n")).expect("writes");
    let sections = format!(
        "[executor]\ndevices = [\"sim:0\"]\nsim_cost_model = {costs:?}\n\
         [batcher]\nmax_batch_size = 1024\nmax_step_tokens = 8192\n\
         [admission]\nmax_requests = 4096\n"
    );
    (sections, dir)
}

fn node(step_us: u32) -> (Node, tempfile::TempDir) {
    let (sections, dir) = sections(step_us);
    (Node::start_with(&sections), dir)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Durable,
}

/// What subscribers of all streams saw.
#[derive(Default)]
struct Seen {
    events: u64,
    tokens: u64,
    firsts_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    took: Duration,
}

/// Runs so many streams at once, all heard by one subscription.
async fn run(
    nats: &async_nats::Client,
    kind: Kind,
    (count, tokens, every): (u64, u32, Duration),
    round: &str,
) -> Seen {
    let mut heard = nats.subscribe(format!("{P}.tokens.*")).await.expect("subscribes");
    nats.flush().await.expect("connected");
    let begin = Instant::now();
    let mut asked_at: HashMap<String, Instant> = HashMap::new();
    for seed in 0..count {
        let due = begin + every * seed as u32;
        asked_at.insert(format!("{round}-{seed}"), due);
        tokio::spawn(ask(nats.clone(), kind, format!("{round}-{seed}"), (due, seed, tokens)));
    }
    let mut last_at: HashMap<String, Instant> = HashMap::new();
    let (mut seen, mut left) = (Seen::default(), count);
    while left > 0 {
        let next = tokio::time::timeout(Duration::from_secs(60), heard.next()).await;
        let message = next.expect("streams go on").expect("connected");
        let event: Event = serde_json::from_slice(&message.payload).expect("an event");
        seen.events += 1;
        left -= u64::from(event.is_last());
        if event.token_ids.is_empty() {
            continue;
        }
        seen.tokens += event.token_ids.len() as u64;
        let (now, id) = (Instant::now(), event.request_id.as_str());
        if let Some(asked_at) = asked_at.remove(id) {
            seen.firsts_ms.push(now.duration_since(asked_at).as_secs_f64() * 1e3);
        }
        if let Some(last) = last_at.insert(id.to_owned(), now) {
            seen.gaps_ms.push(now.duration_since(last).as_secs_f64() * 1e3);
        }
    }
    seen.took = begin.elapsed();
    seen.firsts_ms.sort_by(f64::total_cmp);
    seen.gaps_ms.sort_by(f64::total_cmp);
    seen
}

/// Sends a request when it is due.
async fn ask(
    nats: async_nats::Client,
    kind: Kind,
    id: String,
    (due, seed, tokens): (Instant, u64, u32),
) {
    tokio::time::sleep_until(due.into()).await;
    let body = json!({"request_id": id, "prompt_token_ids": [5, 6, 7],
        "params": {"max_tokens": tokens, "seed": seed, "ignore_eos": true}});
    match kind {
        Kind::Durable => publish(&nats, &body).await,
        Kind::Plain => {
            let subject = format!("{P}.generate.{ALIAS}");
            nats.publish(subject, body.to_string().into()).await.expect("sent");
        }
    }
}

/// Publishes a durable request.
pub async fn publish(nats: &async_nats::Client, body: &Value) {
    let stream = async_nats::jetstream::new(nats.clone());
    let sent = stream.publish(format!("{P}.jobs.{ALIAS}"), body.to_string().into()).await;
    sent.expect("sent").await.expect("stored");
}

pub fn measure() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        throughput().await;
        latency().await;
    });
}

/// A connection that hears of many streams, once durable requests are taken.
pub async fn connect(node: &Node) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let nats = options.connect(node.nats()).await.expect("NATS is there");
    // Until durable requests are taken.
    tokio::time::sleep(Duration::from_secs(1)).await;
    nats
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    nearest(&values, 0.5)
}

async fn throughput() {
    let (node, _costs) = node(8_000);
    let nats = connect(&node).await;
    let (mut records, mut tokens, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let many = (MANY, TOKENS_OF_MANY, Duration::ZERO);
        let seen = run(&nats, Kind::Durable, many, &format!("d{round}")).await;
        records.push(seen.events as f64 / seen.took.as_secs_f64());
        tokens.push(seen.tokens as f64 / seen.took.as_secs_f64());
        let seen = run(&nats, Kind::Plain, many, &format!("p{round}")).await;
        plain.push(seen.tokens as f64 / seen.took.as_secs_f64());
    }
    let [records, tokens, plain] = [records, tokens, plain].map(median);
    println!("durable, {MANY} streams at once: {records:.0} records/s (at least {MIN_RECORDS_S})");
    println!(
        "durable, {MANY} at once: {tokens:.0} tokens/s (at least {MIN_TOKENS_S}), plain {plain:.0}"
    );
    let [node_s, nats_s, client_s] = node.cpu_seconds();
    println!("processor seconds: node {node_s:.1}, NATS {nats_s:.1}, this client {client_s:.1}");
    replay(&nats).await;
    node.stop();
}

/// A stream of 200 records, read again.
async fn replay(nats: &async_nats::Client) {
    let (mut times, client) = (Vec::new(), Client::over(nats.clone(), P));
    run(nats, Kind::Durable, (1, TOKENS_OF_MANY, Duration::ZERO), "again").await;
    let id = RequestId::parse("again-0").expect("an id");
    for _ in 0..20 {
        let begin = Instant::now();
        let mut stream = client.follow(&id, 0).await.expect("subscribes");
        while stream.next().await.expect("stored").is_some() {}
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "replay of {TOKENS_OF_MANY} records: {:.1} ms (at most {MAX_REPLAY_MS})",
        median(times)
    );
}

async fn latency() {
    let (node, _costs) = node(50_000);
    let nats = connect(&node).await;
    let (mut firsts, mut gaps) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for (at, kind) in [Kind::Plain, Kind::Durable].into_iter().enumerate() {
            let seen =
                run(&nats, kind, (FEW, TOKENS_OF_FEW, EVERY), &format!("l{round}{at}")).await;
            firsts[at].push(nearest(&seen.firsts_ms, 0.5));
            gaps[at].push(nearest(&seen.gaps_ms, 0.99));
        }
    }
    let ([plain_first, first], [plain_gap, gap]) = (firsts.map(median), gaps.map(median));
    println!(
        "{FEW} streams of 20 tokens/s: TTFT P50 {first:.1} ms, plain {plain_first:.1} (at most {MAX_MORE_TTFT_MS} more)"
    );
    println!(
        "{FEW} streams of 20 tokens/s: ITL P99 {gap:.1} ms, plain {plain_gap:.1} (at most {MAX_MORE_GAP_MS} more)"
    );
    node.stop();
}
