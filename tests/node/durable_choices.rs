//! A durable request of several choices across a move: log probabilities, penalties and stop strings go on as if nothing had happened.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use inferno_node::request::Event;
use serde_json::{Value, json};

use super::durable::kill_owner;
use super::harness::{CPU, NodeProcess, external};
use super::jobs::{publish, wait_for_streams};
use super::nats::NatsServer;

/// Choices with their tokens, texts and log probabilities.
type Choices = HashMap<u32, (Vec<u32>, String, Vec<Option<f32>>)>;

#[tokio::test]
async fn choices_log_probabilities_and_penalties_go_on_across_a_move_as_if_nothing_had_happened() {
    let nats = NatsServer::with_jetstream("");
    let quick = "[log]\nack_wait_ms = 1000\n";
    let start =
        |id: &str| NodeProcess::start(&format!("{CPU}{quick}{}", external(&nats.url(), id)));
    let mut nodes = vec![start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let body = json!({"prompt": "Once upon a time", "params": {
        "max_tokens": 800, "n": 3, "seed": 11, "ignore_eos": true, "logprobs": 2,
        "presence_penalty": 0.4, "repetition_penalty": 1.1, "temperature": 0.9, "min_tokens": 3,
        "stop": [" the quite long stop string that never comes"],
    }});
    let whole = choices(&bus, "whole", &body, async || ()).await;
    let mut is_killed = false;
    let moved = choices(&bus, "moved", &body, async || {
        if !is_killed {
            is_killed = true;
            kill_owner(&bus, &mut nodes, "moved").await;
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
