//! The health message on the bus and over HTTP.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::harness::NodeProcess;

fn stamped(health: &Value) -> OffsetDateTime {
    let text = health["timestamp"].as_str().expect("a text");
    OffsetDateTime::parse(text, &Rfc3339).expect("RFC 3339")
}

/// Times are compared as the messages have them, so a machine that is slow to read them changes nothing.
#[tokio::test]
async fn health_comes_every_second_and_is_never_older_than_five() {
    let node = NodeProcess::start_sim(0, "[bus]\nmode = \"managed\"\n");
    let raw = async_nats::connect(node.nats()).await.expect("NATS is there");
    let subject = format!("inferno.v1.node.{}.health", node.id());
    let mut messages = raw.subscribe(subject).await.expect("subscribes");
    let mut stamps = Vec::new();
    for _ in 0..4 {
        let message = tokio::time::timeout(Duration::from_secs(20), messages.next()).await;
        let payload = message.expect("in time").expect("NATS lives").payload;
        let health: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!((&health["node_id"], &health["status"]), (&node.id().into(), &"healthy".into()));
        let names = health["checks"].as_array().expect("checks").iter().map(|c| c["name"].clone());
        let names: Vec<Value> = names.collect();
        assert_eq!(names, ["memory", "model", "latency", "batching", "progress", "bus", "log"]);
        stamps.push(stamped(&health));
    }
    for pair in stamps.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap.is_positive() && gap < Duration::from_secs(5), "{gap}");
    }
    let mean = (stamps[3] - stamps[0]) / 3;
    assert!(mean > Duration::from_millis(500), "a message a second, not {mean}");

    // Over HTTP it is of the moment of the question.
    let newest = *stamps.last().expect("four");
    let (first, second) = (node.get("/v1/health").await.1, node.get("/v1/health").await.1);
    assert!(stamped(&first) >= newest && stamped(&second) >= stamped(&first));
}
