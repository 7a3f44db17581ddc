//! Durable streams whose tokens are known before, their readers, and what is compared at the end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::Request;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::StreamExt;
use futures_util::future::join_all;
use inferno_node::bus::client::{Client, Timeouts};
use inferno_node::error::Kind;
use inferno_node::ids::RequestId;
use inferno_node::request::{Event, FinishReason};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::fleet::{Fleet, costs};
use super::harness::NodeProcess;
use super::jobs::{publish, wait_for_empty_queue};

/// Longer than any fault.
const PATIENCE: Duration = Duration::from_secs(120);

/// Readers on one connection, as programs have it.
const READERS_A_CONNECTION: usize = 100;

/// Tokens and text.
pub type Said = (Vec<u32>, String);

/// A request of `tokens` that ends by length; what it says depends on `seed` alone.
pub fn request(tokens: u32, seed: usize) -> Value {
    let params =
        json!({"max_tokens": tokens, "seed": seed, "ignore_eos": true, "temperature": 1.0});
    json!({"prompt_token_ids": [5, 6, 7], "params": params})
}

/// The id of a stream.
pub fn id_of(seed: usize) -> RequestId {
    RequestId::parse(&format!("s{seed}")).expect("an id")
}

/// What streams say that nobody disturbs.
pub async fn known(streams: usize, tokens: u32) -> Vec<Said> {
    let sections = "[batcher]\nmax_batch_size = 256\n[bus]\nmode = \"managed\"\n";
    let mut quiet = NodeProcess::spawn_sim_that(&costs(50), sections);
    quiet.wait_ready();
    let bus = async_nats::connect(quiet.nats()).await.expect("connects");
    answers(&bus, streams, tokens).await
}

/// What streams say as plain requests, each in one answer.
pub async fn answers(bus: &async_nats::Client, streams: usize, tokens: u32) -> Vec<Said> {
    #[derive(Deserialize)]
    struct Answer {
        token_ids: Vec<u32>,
        text: String,
    }
    let ask = async |seed: usize| {
        let mut body = request(tokens, seed);
        body["params"]["stream"] = false.into();
        let subject = "inferno.v1.generate.demo";
        let request = Request::new().payload(body.to_string().into()).timeout(Some(PATIENCE));
        let answer = bus.send_request(subject, request).await.expect("answered");
        let answer: Answer = serde_json::from_slice(&answer.payload).expect("an answer");
        (answer.token_ids, answer.text)
    };
    let mut said = Vec::new();
    for first in (0..streams).step_by(200) {
        said.extend(join_all((first..streams.min(first + 200)).map(ask)).await);
    }
    said
}

/// What the reader of one stream has.
pub struct Heard {
    pub said: Said,
    pub last: Event,
    /// The longest time between two tokens.
    pub pause: Duration,
}

/// Reads a whole stream.
pub async fn read(client: &Client, id: &RequestId) -> Heard {
    let client = client.clone().with_timeouts(Timeouts { accept: PATIENCE, event: PATIENCE });
    let mut stream = client.follow(id, 0).await.expect("subscribes");
    let (mut said, mut pause) = ((Vec::new(), String::new()), Duration::ZERO);
    let mut heard_at = Instant::now();
    loop {
        let event = stream.next().await.unwrap_or_else(|error| panic!("{id}: {error}"));
        let event = event.expect("a last event comes first");
        let is_next = match &event.error {
            // A server may die, with its store, between a record's acknowledgement and its way to readers.
            Some(error) if error.kind == Kind::LogUnavailable => event.seq as usize >= said.0.len(),
            _ => event.seq as usize == said.0.len(),
        };
        assert!(is_next, "{id}: no gap and no repetition: {} read, then {event:?}", said.0.len());
        if !event.token_ids.is_empty() {
            // The queue before the first is no pause.
            if !said.0.is_empty() {
                pause = pause.max(heard_at.elapsed());
            }
            heard_at = Instant::now();
        }
        said.0.extend(&event.token_ids);
        said.1.push_str(&event.text);
        if event.is_last() {
            return Heard { said, last: event, pause };
        }
    }
}

/// Starts readers of all streams, then publishes them.
pub async fn start(fleet: &Fleet, streams: usize, tokens: u32) -> Vec<JoinHandle<Heard>> {
    let mut readers = Vec::new();
    for first in (0..streams).step_by(READERS_A_CONNECTION) {
        let client = fleet.client().await;
        for seed in first..streams.min(first + READERS_A_CONNECTION) {
            let client = client.clone();
            readers.push(tokio::spawn(async move { read(&client, &id_of(seed)).await }));
        }
    }
    let bus = fleet.connection().await;
    for seed in 0..streams {
        publish(&bus, &id_of(seed), request(tokens, seed)).await;
    }
    readers
}

/// The same, one after the other: a reader with each. Resolves when the last is published.
pub async fn start_in_turn(
    (client, bus): (Client, async_nats::Client),
    (streams, tokens): (usize, u32),
    every: Duration,
) -> Vec<JoinHandle<Heard>> {
    let (mut readers, begin) = (Vec::new(), Instant::now());
    for seed in 0..streams {
        tokio::time::sleep_until((begin + every * seed as u32).into()).await;
        let client = client.clone();
        readers.push(tokio::spawn(async move { read(&client, &id_of(seed)).await }));
        publish(&bus, &id_of(seed), request(tokens, seed)).await;
    }
    readers
}

/// What readers saw and what the log holds is what is known; one line says how it went. Gives how many streams moved.
pub async fn compare(
    what: &str,
    fleet: &Fleet,
    readers: Vec<JoinHandle<Heard>>,
    known: &[Said],
) -> u32 {
    let (mut moved, mut moves, mut pause) = (0, 0, Duration::ZERO);
    let count = readers.len();
    for (seed, reader) in readers.into_iter().enumerate() {
        let heard = reader.await.expect("no reader fails");
        let (how, why) = (heard.last.finish_reason, &heard.last.error);
        assert_eq!(how, Some(FinishReason::Length), "{seed}: {why:?}");
        assert!(heard.said == known[seed], "{seed}: not what it says when nobody disturbs it");
        moved += u32::from(heard.last.attempt > 1);
        moves += heard.last.attempt - 1;
        pause = pause.max(heard.pause);
    }
    compare_log(&fleet.connection().await, known).await;
    wait_for_empty_queue(&fleet.connection().await).await;
    let tokens = known.first().map_or(0, |said| said.0.len());
    println!(
        "{what}: {count} streams of {tokens} tokens: 0 lost, 0 repeated, 0 reordered, all as undisturbed; {moved} moved \
         ({moves} moves), longest pause {:.1} s",
        pause.as_secs_f64()
    );
    moved
}

/// What the log has of one stream so far.
#[derive(Default)]
struct Logged {
    tokens: Vec<u32>,
    attempt: u32,
    ends: u32,
}

/// Every record follows the one before, and none of an old holder stands behind the claim of a new one.
async fn compare_log(bus: &async_nats::Client, known: &[Said]) {
    let log = jetstream::new(bus.clone()).get_stream("inferno_log").await.expect("is there");
    let last = log.cached_info().state.last_sequence;
    let config = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
    let consumer = log.create_consumer(config).await.expect("made");
    let mut records =
        consumer.stream().max_messages_per_batch(1_000).messages().await.expect("read");
    let mut logged: HashMap<String, Logged> = HashMap::new();
    loop {
        let record = records.next().await.expect("more").expect("a record");
        let sequence = record.info().expect("a place").stream_sequence;
        let event: Event = serde_json::from_slice(&record.payload).expect("an event");
        let stream = logged.entry(event.request_id.to_string()).or_default();
        let id = &event.request_id;
        assert!(event.attempt >= stream.attempt, "{id}: an old holder wrote behind a claim");
        assert_eq!(event.seq as usize, stream.tokens.len(), "{id}: a gap or a repetition");
        assert_eq!(stream.ends, 0, "{id}: something stands behind its end");
        stream.attempt = event.attempt;
        stream.tokens.extend(&event.token_ids);
        stream.ends += u32::from(event.is_last());
        if sequence == last {
            break;
        }
    }
    for (seed, said) in known.iter().enumerate() {
        let stream = logged.remove(id_of(seed).as_str()).expect("in the log");
        assert_eq!(stream.ends, 1, "{seed} has one end");
        assert!(stream.tokens == said.0, "{seed}: the log holds what is known");
    }
}
