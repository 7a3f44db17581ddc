//! Nodes that are killed, one after the other.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt;
use inferno_node::ids::RequestId;
use inferno_node::request::{Event, FinishReason};
use serde_json::json;

use super::fleet::{Fleet, ROOMY};
use super::jobs::{publish, wait_for_empty_queue};
use super::streams::{answers, compare, id_of, known, read, start, start_in_turn};

/// A token id that breaks the process that computes it.
const POISON: u32 = 77;

pub async fn twenty_kills_lose_repeat_and_reorder_nothing() {
    const STREAMS: usize = 1_000;
    const TOKENS: u32 = 200;
    let known = known(STREAMS, TOKENS).await;
    // What comes back comes a second after a kill, and has two until the next. With the default of 6 s it would always come as a node is
    // killed, and be given up in the end as what kills it.
    let mut fleet = Fleet::start(3, 50_000, &format!("{ROOMY}[log]\nack_wait_ms = 4000\n")).await;
    // A stream takes 10 s, and what it waits for new nodes: whenever a node is killed, hundreds run.
    let (ends, every) =
        ((fleet.client().await, fleet.connection().await), Duration::from_millis(62));
    let started = tokio::spawn(start_in_turn(ends, (STREAMS, TOKENS), every));
    let mut next = Instant::now();
    for _ in 0..20 {
        next += Duration::from_secs(3);
        tokio::time::sleep_until(next.into()).await;
        fleet.replace(0, "-KILL");
    }
    let readers = started.await.expect("all are published");
    let moved = compare("20 kills", &fleet, readers, &known).await;
    assert!(moved > STREAMS as u32 / 4, "{moved} moved");
}

pub async fn kills_under_the_cpu_engine_change_no_text() {
    const STREAMS: usize = 100;
    const TOKENS: u32 = 300;
    let mut fleet = Fleet::start_engines(3, &format!("{ROOMY}[log]\nack_wait_ms = 2000\n")).await;
    let known = answers(&fleet.connection().await, STREAMS, TOKENS).await;
    let bus = fleet.connection().await;
    let mut events = bus.subscribe("inferno.v1.tokens.*").await.expect("subscribes");
    let readers = start(&fleet, STREAMS, TOKENS).await;
    let (mut tokens, mut kills) = (0, 0);
    while kills < 2 {
        let event = events.next().await.expect("connected");
        let event: Event = serde_json::from_slice(&event.payload).expect("an event");
        tokens += event.token_ids.len();
        // After a third of all, and after two.
        if tokens > STREAMS * TOKENS as usize * (kills + 1) / 3 {
            kills += 1;
            fleet.replace(0, "-KILL");
        }
    }
    drop(events);
    let moved = compare("2 kills under the CPU engine", &fleet, readers, &known).await;
    assert!(moved > 0);
}

pub async fn a_poison_among_two_hundred_is_one_dead_letter() {
    const OTHERS: usize = 199;
    const TOKENS: u32 = 40;
    let known = known(OTHERS, TOKENS).await;
    let fault = format!(
        "{ROOMY}[log]\nack_wait_ms = 1000\n[[executor.faults]]\ntoken_id = {POISON}\nkind = \"abort\"\n"
    );
    let mut fleet = Fleet::start(3, 20_000, &fault).await;
    let readers = start(&fleet, OTHERS, TOKENS).await;
    let poison = json!({"prompt_token_ids": [5, POISON], "params": {"max_tokens": 5}});
    let (client, id) = (fleet.client().await, RequestId::parse("poison").expect("an id"));
    let bus = fleet.connection().await;
    publish(&bus, &id, poison).await;
    let poisoned = tokio::spawn(async move { read(&client, &id).await });
    let (mut crashes, deadline) = (0, Instant::now() + Duration::from_secs(60));
    while !poisoned.is_finished() {
        assert!(Instant::now() < deadline, "{crashes} crashes, and no end");
        for at in 0..fleet.nodes.len() {
            if fleet.nodes[at].has_ended() {
                crashes += 1;
                fleet.nodes.remove(at).wait();
                fleet.add();
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((1..=3).contains(&crashes), "{crashes} nodes died");
    let heard = poisoned.await.expect("read");
    assert_eq!((heard.said.0.len(), heard.last.finish_reason), (0, Some(FinishReason::Failed)));
    for (seed, reader) in readers.into_iter().enumerate() {
        let heard = reader.await.expect("no reader fails");
        assert!(heard.said == known[seed], "{}", id_of(seed));
        assert_eq!(heard.last.finish_reason, Some(FinishReason::Length));
    }
    let mut dead = jetstream::new(bus.clone()).get_stream("inferno_dead").await.expect("is there");
    assert_eq!(dead.info().await.expect("is there").state.messages, 1);
    wait_for_empty_queue(&bus).await;
    println!("poison: {OTHERS} others as undisturbed, {crashes} crashes, 1 dead letter");
}
