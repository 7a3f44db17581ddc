//! Nodes that die, again and again, under hundreds of durable streams whose tokens are known before.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use inferno_node::ids::RequestId;
use inferno_node::request::{Event, FinishReason};
use serde_json::{Value, json};

use super::durable::{run, server, wait_for_empty_queue, wait_for_streams};
use super::harness::{CPU, NodeProcess, client, collect, external};
use super::nats::NatsServer;

/// A token id that breaks the node that computes it.
const POISON: u32 = 77;

const QUICK: &str = "[log]\nack_wait_ms = 1000\n";

fn sections(nats: &NatsServer, id: &str) -> String {
    format!("{QUICK}{}", external(&nats.url(), id))
}

fn request(tokens: u32, seed: u64) -> Value {
    let params =
        json!({"max_tokens": tokens, "seed": seed, "ignore_eos": true, "temperature": 1.0});
    json!({"prompt_token_ids": [5, 6, 7], "params": params})
}

/// Publishes a request under an id.
async fn publish(bus: &async_nats::Client, id: &str, mut body: Value) {
    body["request_id"] = id.into();
    let stream = jetstream::new(bus.clone());
    let sent = stream.publish("inferno.v1.jobs.demo", Bytes::from(body.to_string())).await;
    sent.expect("sent").await.expect("stored");
}

/// A whole durable stream.
async fn read(url: &str, id: &str) -> (Vec<u32>, String, Event) {
    let own = client(url).await;
    let id = RequestId::parse(id).expect("an id");
    let mut stream = own.follow(&id, 0).await.expect("subscribes");
    let (mut tokens, mut text) = (Vec::new(), String::new());
    loop {
        let event = stream.next().await.expect("streams").expect("a last event");
        assert_eq!(event.seq as usize, tokens.len(), "no gap and no repetition");
        tokens.extend(&event.token_ids);
        text.push_str(&event.text);
        if event.is_last() {
            return (tokens, text, event);
        }
    }
}

#[tokio::test]
async fn many_kills_lose_repeat_and_reorder_nothing() {
    const STREAMS: u64 = 150;
    const TOKENS: u32 = 120;
    let (nats, _store) = server();
    let start = |id: &str| NodeProcess::start_sim(20_000, &sections(&nats, id));
    let mut nodes = vec![start("one"), start("two"), start("three")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let url = nats.url();
    let readers: Vec<_> = (0..STREAMS)
        .map(|seed| {
            let url = url.clone();
            tokio::spawn(async move { read(&url, &format!("s{seed}")).await })
        })
        .collect();
    for seed in 0..STREAMS {
        publish(&bus, &format!("s{seed}"), request(TOKENS, seed)).await;
    }
    for kill in 0..6 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut node = nodes.remove(0);
        node.signal("-KILL");
        node.wait();
        nodes.push(start(&format!("again-{kill}")));
    }
    let answers = join_all(readers).await;
    // What each says is known from a request that nobody disturbs.
    let own = client(&url).await;
    let mut moved = 0;
    for (seed, answer) in answers.into_iter().enumerate() {
        let (tokens, text, last) = answer.expect("no reader fails");
        assert_eq!(last.finish_reason, Some(FinishReason::Length));
        moved += u32::from(last.attempt > 1);
        if seed % 10 == 0 {
            let whole = own.generate("demo", request(TOKENS, seed as u64)).await;
            let whole = collect(&mut whole.expect("accepted")).await.expect("streams");
            assert_eq!((tokens, text), (whole.0, whole.1), "stream {seed}");
        }
    }
    assert!(moved > 20, "{moved} streams moved");
    wait_for_empty_queue(&bus).await;
}

#[tokio::test]
async fn a_request_that_kills_its_node_kills_three_at_most_and_harms_no_other() {
    const OTHERS: u64 = 60;
    let (nats, _store) = server();
    let fault = format!("[[executor.faults]]\ntoken_id = {POISON}\nkind = \"abort\"\n");
    let start =
        |id: &str| NodeProcess::start_sim(5_000, &format!("{}{fault}", sections(&nats, id)));
    let mut nodes = vec![start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let poison = json!({"prompt_token_ids": [5, POISON], "params": {"max_tokens": 5}});
    let mut ids: HashSet<String> = HashSet::new();
    for seed in 0..OTHERS {
        if seed == OTHERS / 2 {
            publish(&bus, "poison", poison.clone()).await;
        }
        publish(&bus, &format!("s{seed}"), request(40, seed)).await;
        ids.insert(format!("s{seed}"));
    }
    let url = nats.url();
    let poisoned = tokio::spawn(async move { read(&url, "poison").await });
    let crashes = restart_until_done(&mut nodes, start, || poisoned.is_finished()).await;
    assert!((1..=3).contains(&crashes), "{crashes} nodes died");
    let (tokens, _, last) = poisoned.await.expect("read");
    assert_eq!((tokens.len(), last.finish_reason), (0, Some(FinishReason::Failed)));
    for id in ids {
        let (tokens, _, last) = read(&nats.url(), &id).await;
        assert_eq!((tokens.len(), last.finish_reason), (40, Some(FinishReason::Length)), "{id}");
    }
    let mut dead = jetstream::new(bus.clone()).get_stream("inferno_dead").await.expect("is there");
    assert_eq!(dead.info().await.expect("is there").state.messages, 1);
    wait_for_empty_queue(&bus).await;
}

/// Does what a supervisor does; gives how often it had to.
async fn restart_until_done(
    nodes: &mut [NodeProcess],
    start: impl Fn(&str) -> NodeProcess,
    is_done: impl Fn() -> bool,
) -> u32 {
    let (mut crashes, deadline) = (0, Instant::now() + Duration::from_secs(60));
    while !is_done() {
        assert!(Instant::now() < deadline, "{crashes} crashes, and no end");
        for node in nodes.iter_mut() {
            if node.has_ended() {
                crashes += 1;
                *node = start(&format!("again-{crashes}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    crashes
}

/// Choices with their tokens, texts and log probabilities.
type Choices = HashMap<u32, (Vec<u32>, String, Vec<Option<f32>>)>;

#[tokio::test]
async fn choices_log_probabilities_and_penalties_go_on_across_a_move_as_if_nothing_had_happened() {
    let (nats, _store) = server();
    let start = |id: &str| NodeProcess::start(&format!("{CPU}{}", sections(&nats, id)));
    let mut nodes = vec![start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let body = json!({"prompt": "Once upon a time", "params": {
        "max_tokens": 200, "n": 3, "seed": 11, "ignore_eos": true, "logprobs": 2,
        "presence_penalty": 0.4, "repetition_penalty": 1.1, "temperature": 0.9, "min_tokens": 3,
        "stop": [" the quite long stop string that never comes"],
    }});
    let whole = choices(&bus, "whole", &body, async || ()).await;
    let mut is_killed = false;
    let moved = choices(&bus, "moved", &body, async || {
        if !is_killed {
            is_killed = true;
            super::durable::kill_owner(&bus, &mut nodes, "moved").await;
        }
    })
    .await;
    assert!(is_killed);
    assert!(moved.1.attempt >= 2);
    let tokens = |event: &Event| event.usage.map(|usage| usage.completion_tokens);
    assert_eq!(tokens(&moved.1), tokens(&whole.1));
    assert_eq!(moved.0, whole.0);
}

/// Publishes a request and reads its choices; `meanwhile` is called when there are some tokens.
async fn choices(
    bus: &async_nats::Client,
    id: &str,
    body: &Value,
    mut meanwhile: impl AsyncFnMut(),
) -> (Choices, Event) {
    let mut events = bus.subscribe(format!("inferno.v1.tokens.{id}")).await.expect("subscribes");
    publish(bus, id, body.clone()).await;
    let mut choices = Choices::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
        let message = next.expect("in time").expect("connected");
        let event: Event = serde_json::from_slice(&message.payload).expect("an event");
        let (tokens, text, logprobs) = choices.entry(event.index).or_default();
        assert_eq!(event.seq as usize, tokens.len(), "no gap and no repetition");
        tokens.extend(&event.token_ids);
        text.push_str(&event.text);
        logprobs.extend(event.logprobs.iter().flatten().map(|entry| entry.logprob));
        if event.is_last() {
            return (choices, event);
        }
        if choices.values().map(|(tokens, ..)| tokens.len()).sum::<usize>() > 90 {
            meanwhile().await;
        }
    }
}

#[tokio::test]
async fn a_subscriber_that_was_away_reads_on_from_wherever_it_was() {
    let (nats, _store) = server();
    let _node = NodeProcess::start_sim(4_000, &external(&nats.url(), "one"));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let url = nats.url();
    let resumes: Vec<_> = (0..40_u32)
        .map(|point| {
            let url = url.clone();
            tokio::spawn(async move {
                // Some while it runs, some when it has ended.
                tokio::time::sleep(Duration::from_millis(u64::from(point) * 40)).await;
                let own = client(&url).await;
                let id = RequestId::parse("mine").expect("an id");
                let mut stream = own.follow(&id, point * 5).await.expect("subscribes");
                let mut tokens = Vec::new();
                while let Some(event) = stream.next().await.expect("streams") {
                    tokens.extend(event.token_ids);
                }
                (point as usize * 5, tokens)
            })
        })
        .collect();
    let heard = run(&bus, "mine", request(250, 3), async |_| ()).await;
    for resumed in join_all(resumes).await {
        let (from, tokens) = resumed.expect("no reader fails");
        assert_eq!(tokens, heard.tokens[from..], "from {from}");
    }
}
