//! Goal: a request to which nobody listens gives its place back, whatever it has said so far. Method: a node process of one seat
//! whose steps take long, and clients that leave.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{NodeProcess, client, request};

/// A request of more tokens than the test has time for.
fn endless(id: &str, stream: bool, detached: bool) -> Value {
    json!({
        "request_id": id, "prompt": "Once upon a time", "detached": detached,
        "params": {"max_tokens": 1_000, "ignore_eos": true, "stream": stream}
    })
}

async fn wait_cancelled(node: &NodeProcess, requests: f64) {
    let cancelled = ["inferno_requests_finished_total", "reason=\"cancelled\""];
    let deadline = Instant::now() + Duration::from_secs(30);
    while node.metric(&cancelled).await < requests {
        assert!(Instant::now() < deadline, "not cancelled:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn one_whose_caller_waits_for_one_answer_is_cancelled_when_the_callers_connection_has_gone() {
    let sections = "[bus]\nmode = \"managed\"\n[batcher]\nmax_batch_size = 1\n";
    let node = NodeProcess::start_sim(50_000, sections);
    let caller = async_nats::connect(node.nats()).await.expect("NATS is there");
    let statistics = caller.statistics();
    let mut body = endless("", false, false);
    body.as_object_mut().expect("an object").remove("request_id");
    let call = tokio::spawn(async move {
        caller.request("inferno.v1.generate.demo", body.to_string().into()).await
    });
    // The node asks for the caller with a message that the library passes over.
    let deadline = Instant::now() + Duration::from_secs(30);
    while statistics.in_messages.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline && !call.is_finished(), "not asked:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    call.abort();
    wait_cancelled(&node, 1.0).await;
    let asker = client(&node.nats()).await;
    let mut generation = asker.generate("demo", request(2, 0)).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
}

#[tokio::test]
async fn one_that_has_said_nothing_yet_is_cancelled_when_its_listener_has_left() {
    let sections = "[bus]\nmode = \"managed\"\n[batcher]\nmax_batch_size = 1\n";
    let node = NodeProcess::start_sim(50_000, sections);
    let nats = async_nats::connect(node.nats()).await.expect("NATS is there");
    // The first computes an answer that it gives whole; the second, a stream, waits for its seat, as does the third.
    for (id, stream, detached) in
        [("whole", false, false), ("waits", true, false), ("detached", true, true)]
    {
        let subject = format!("inferno.v1.tokens.{id}");
        let listener = nats.subscribe(subject).await.expect("subscribes");
        let body = endless(id, stream, detached).to_string();
        nats.request("inferno.v1.generate.demo", body.into()).await.expect("accepted");
        drop(listener);
    }
    wait_cancelled(&node, 2.0).await;
    node.wait_health("the detached one has the seat", |health| {
        (&health["running"], &health["waiting"]) == (&json!(1), &json!(0))
    })
    .await;
    let asker = client(&node.nats()).await;
    let id = inferno_node::ids::RequestId::parse("detached").expect("an id");
    assert!(asker.cancel(&id).await.expect("it runs").cancelled);
    let mut generation = asker.generate("demo", request(2, 0)).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
}
