//! What the link has no room for: messages that come faster than they are taken, and events that another server takes in smaller
//! messages, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use inferno_node::telemetry::Metrics;
use metrics::{Counter, CounterFn};

use super::*;

/// A counter that keeps whoever counts waiting while it is held.
#[derive(Default)]
struct HeldCounter {
    is_held: AtomicBool,
    count: AtomicU64,
}

impl CounterFn for HeldCounter {
    fn increment(&self, value: u64) {
        while self.is_held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.count.fetch_add(value, Ordering::SeqCst);
    }

    fn absolute(&self, _: u64) {}
}

#[tokio::test]
async fn each_message_that_comes_faster_than_it_is_taken_is_counted() {
    let server = NatsServer::start();
    let (dropped, lost) = (Arc::new(HeldCounter::default()), Arc::new(AtomicU64::new(0)));
    let mut metrics = Metrics::new("node-a");
    metrics.requests_dropped = Counter::from_arc(dropped.clone());
    metrics.bus_messages_lost = Counter::from_arc(lost.clone());
    let node = Node::counted_by(metrics, config(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut sent = 0;
    // More than a subscription has room for; how much of it comes at once is the server's matter.
    while lost.load(Ordering::SeqCst) == 0 {
        assert!(sent < 2_000_000, "none of {sent} is lost");
        dropped.is_held.store(true, Ordering::SeqCst);
        for _ in 0..200_000 {
            // Neither an id nor a reply subject: the bus's thread counts it, and does nothing else while that is held.
            client.publish(GENERATE, "".into()).await.expect("publishes");
            sent += 1;
        }
        client.flush().await.expect("is connected");
        dropped.is_held.store(false, Ordering::SeqCst);
        let seen = || dropped.count.load(Ordering::SeqCst) + lost.load(Ordering::SeqCst);
        eventually("each is dropped or lost", || async { (seen() == sent).then_some(()) }).await;
    }
    let asker = Asker::over(client, "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
    assert_eq!(dropped.count.load(Ordering::SeqCst) + lost.load(Ordering::SeqCst), sent);
    node.stop().await;
}

/// A node that holds nothing back for long after a reconnect, and its count of what cannot be published.
async fn setup_counted(server: &NatsServer) -> (Node, Client, Arc<AtomicU64>) {
    let failed = Arc::new(AtomicU64::new(0));
    let mut metrics = Metrics::new("node-a");
    metrics.bus_publishes_failed = Counter::from_arc(failed.clone());
    let config = Config { reconnect_hold_ms: 1_000, ..config(server) };
    let node = Node::counted_by(metrics, config, "node-a").await;
    let client = connect(server).await;
    wait_ready(&client).await;
    (node, client, failed)
}

#[tokio::test]
async fn an_answer_that_another_server_takes_in_smaller_messages_only_comes_in_several() {
    let mut server = NatsServer::start();
    let (node, client, failed) = setup_counted(&server).await;
    let mut events = client.subscribe("inferno.v1.tokens.long").await.expect("subscribes");
    let params = json!({"max_tokens": 1_000, "stream": false});
    let body = json!({"request_id": "long", "prompt": "pace 1", "params": params});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    server.freeze();
    eventually("it ends", || async { node.seen.end_of("long") }).await;
    // The answer is on its way by then, in one message that nobody confirms.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill();
    server.start_again_with("max_payload: 4096\n");
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(1_000, &ids, &text);
    assert_eq!(
        (&last["finish_reason"], &last["usage"]["completion_tokens"]),
        (&json!("length"), &json!(1_000))
    );
    assert!(last["seq"].as_u64() > Some(0), "in several messages: {last}");
    nothing_more(&mut events).await;
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    node.stop().await;
}

#[tokio::test]
async fn a_request_ends_whose_least_event_a_server_does_not_take_and_that_is_counted() {
    let mut server = NatsServer::start();
    let (node, client, failed) = setup_counted(&server).await;
    let id = "x".repeat(64);
    let mut events = client.subscribe(format!("inferno.v1.tokens.{id}")).await.expect("subscribes");
    let params = json!({"max_tokens": 100_000});
    let body = json!({"request_id": id, "prompt": "pace 5", "params": params});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    server.kill();
    server.start_again_with("max_payload: 128\n");
    let ended = eventually("it ends", || async { node.seen.end_of(&id) }).await;
    assert_eq!(ended.reason, FinishReason::Cancelled);
    assert!(failed.load(Ordering::SeqCst) > 0);
    node.stop().await;
}
