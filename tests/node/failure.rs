//! A device that breaks in the middle of the work: nobody loses an answer, and what was computed stays.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use inferno_node::error::Kind;
use inferno_node::request::FinishReason;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::harness::{NodeProcess, client, collect, request};

const MANAGED: &str = "[bus]\nmode = \"managed\"\n[executor]\nthreads = 1\n";

/// Eight completions at once: their tokens, and the largest attempt of each.
async fn eight(node: &NodeProcess) -> Vec<(Vec<u32>, u32)> {
    let bus = client(&node.nats()).await;
    let one = |seed| {
        let bus = bus.clone();
        async move {
            let mut generation = bus.generate("demo", request(200, seed)).await.expect("accepted");
            let (token_ids, _, last) = collect(&mut generation).await.expect("no gap");
            assert_eq!(last.finish_reason, Some(FinishReason::Length), "{:?}", last.error);
            (token_ids, last.attempt)
        }
    };
    join_all((0..8).map(one)).await
}

fn all_got_theirs(got: &[(Vec<u32>, u32)], expected: &[(Vec<u32>, u32)]) {
    for ((tokens, _), (expected, _)) in got.iter().zip(expected) {
        assert_eq!(tokens, expected, "the tokens of a run without a fault");
    }
    assert!(got.iter().any(|(_, attempt)| *attempt == 2), "somebody was there when it broke");
}

async fn breaks_and_loses_nothing(kind: &str) {
    let whole = NodeProcess::start(MANAGED);
    let expected = eight(&whole).await;
    assert!(expected.iter().all(|(_, attempt)| *attempt == 1));
    let fault = format!("{MANAGED}faults = [{{ step = 100, kind = \"{kind}\" }}]\n");
    let node = NodeProcess::start(&fault);
    all_got_theirs(&eight(&node).await, &expected);
    let health = node.wait_health("healthy", |health| health["status"] == "healthy").await;
    assert_eq!(health["devices"][0]["rebuilds"], 1);
}

#[tokio::test]
async fn a_step_that_throws_costs_nobody_the_answer() {
    breaks_and_loses_nothing("exception").await;
}

#[tokio::test]
async fn a_step_that_panics_costs_nobody_the_answer() {
    breaks_and_loses_nothing("panic").await;
}

/// As a GPU's context is after an illegal address: only a new process has the device again.
#[tokio::test]
async fn a_device_that_is_lost_ends_its_requests_and_the_node() {
    let fault = format!("{MANAGED}faults = [{{ step = 200, kind = \"sticky\" }}]\n");
    let mut node = NodeProcess::start(&fault);
    let raw = async_nats::connect(node.nats()).await.expect("NATS is there");
    let subject = format!("inferno.v1.node.{}.health", node.id());
    let mut health = raw.subscribe(subject).await.expect("subscribes");
    let bus = client(&node.nats()).await;
    let one = |seed| {
        let bus = bus.clone();
        async move {
            let mut generation = bus.generate("demo", request(400, seed)).await.expect("accepted");
            collect(&mut generation).await.expect("no gap").2
        }
    };
    for last in join_all((0..4).map(one)).await {
        assert_eq!(last.finish_reason, Some(FinishReason::Failed));
        let error = last.error.expect("why");
        assert_eq!(error.kind, Kind::Unavailable, "{error:?}");
        assert!(error.retry_after_ms.is_some());
    }
    let critical = loop {
        let next = timeout(Duration::from_secs(60), health.next()).await;
        let message = next.expect("in time").expect("a critical one before the end");
        let message: Value = serde_json::from_slice(&message.payload).expect("JSON");
        if message["status"] == "critical" {
            break message;
        }
    };
    assert_eq!(critical["devices"][0]["lost"], true);
    assert!(!node.wait().success(), "for the supervisor to start it again");
    assert!(node.log().contains("cpu:0 needs a new process"), "{}", node.log());
}

#[tokio::test]
async fn a_device_that_stays_finishes_for_a_lost_one_and_the_node_ends() {
    let expected = eight(&NodeProcess::start(MANAGED)).await;
    let mut node = NodeProcess::start(&format!(
        "{MANAGED}devices = [\"cpu:0\", \"cpu:1\"]\n\
         faults = [{{ device = \"cpu:1\", step = 100, kind = \"sticky\" }}]\n"
    ));
    all_got_theirs(&eight(&node).await, &expected);
    assert!(!node.wait().success(), "for the supervisor to start it again");
    assert!(node.log().contains("cpu:1 needs a new process"), "{}", node.log());
}

#[tokio::test]
async fn the_first_signal_to_a_node_that_ends_by_itself_cuts_nothing() {
    let mut node = NodeProcess::start(&format!(
        "{MANAGED}devices = [\"cpu:0\", \"cpu:1\"]\n\
         faults = [{{ device = \"cpu:1\", step = 400, kind = \"sticky\" }}]\n"
    ));
    let bus = client(&node.nats()).await;
    let mut generations = Vec::new();
    for seed in 0..4 {
        let request = request(1_900, seed);
        generations.push(bus.generate("demo", request).await.expect("accepted"));
    }
    node.wait_health("draining", |health| health["draining"] == true).await;
    node.signal("-TERM");
    for mut generation in generations {
        let (_, _, last) = collect(&mut generation).await.expect("no gap");
        assert_eq!(last.finish_reason, Some(FinishReason::Length), "{:?}", last.error);
    }
    assert!(!node.wait().success(), "for the supervisor to start it again");
    assert!(!node.log().contains("second signal"), "{}", node.log());
}

#[tokio::test]
async fn a_poison_prompt_fails_alone() {
    // No prompt of the others has this id, and none of their completions: the fault looks only at what the host sends.
    let node = NodeProcess::start(&format!(
        "{MANAGED}faults = [{{ token_id = 3000, kind = \"exception\" }}]\n"
    ));
    let bus = client(&node.nats()).await;
    let poison = json!({"prompt_token_ids": [10, 3000, 11], "params": {"max_tokens": 8}});
    let (others, poisoned) = tokio::join!(eight(&node), async {
        let mut generation = bus.generate("demo", poison).await.expect("accepted");
        collect(&mut generation).await.expect("no gap")
    });
    assert_eq!(others.len(), 8);
    let last = poisoned.2;
    assert_eq!(last.finish_reason, Some(FinishReason::Failed));
    assert_eq!(last.error.map(|error| error.kind), Some(Kind::Internal));
    assert_eq!(last.attempt, 2, "it was tried once more");
    node.wait_health("healthy", |health| health["status"] == "healthy").await;
}
