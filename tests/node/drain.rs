//! The end of a node: gentle, late, and sudden.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use inferno_node::bus::client::ClientError;
use inferno_node::error::Kind;
use inferno_node::request::FinishReason;
use serde_json::{Value, json};

use super::harness::{NodeProcess, children_of, client, collect, external, json_lines, request};
use super::nats::NatsServer;

#[tokio::test]
async fn sigterm_finishes_what_runs_and_takes_no_more() {
    let nats = NatsServer::start();
    let mut node = NodeProcess::start_sim(5_000, &external(&nats.url(), "leaving"));
    let bus = client(&nats.url()).await;
    let mut generation = bus.generate("demo", request(600, 1)).await.expect("accepted");
    generation.next().await.expect("streams");
    node.signal("-TERM");
    node.wait_health("draining", |health| health["draining"] == true).await;
    let ready = reqwest::get(format!("{}/health/ready", node.http())).await.expect("answers");
    assert_eq!(ready.status().as_u16(), 503);
    match bus.generate("demo", request(8, 2)).await.map(|generation| generation.id().clone()) {
        // Usually the subject is left already; a request that slips in before is refused.
        Err(ClientError::NoResponders(_)) => {}
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::Draining),
        other => panic!("{other:?}"),
    }
    let (_, _, last) = collect(&mut generation).await.expect("streams to its end");
    assert_eq!(last.finish_reason, Some(FinishReason::Length));
    assert!(node.wait().success(), "{}", node.log());
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_and_named() {
    let nats = NatsServer::start();
    let sections = external(&nats.url(), "hurried") + "drain_timeout_s = 1\n";
    let mut node = NodeProcess::start_sim(20_000, &sections);
    let bus = client(&nats.url()).await;
    let mut body = request(1500, 1);
    body["request_id"] = "too-long".into();
    let mut generation = bus.generate("demo", body).await.expect("accepted");
    generation.next().await.expect("streams");
    node.signal("-TERM");
    let (_, _, last) = collect(&mut generation).await.expect("a last event comes");
    assert_eq!(last.finish_reason, Some(FinishReason::Failed));
    assert_eq!(last.error.map(|error| error.kind), Some(Kind::Draining));
    assert!(!node.wait().success(), "something was cut");
    assert!(node.log().contains("too-long"), "the log names it: {}", node.log());
}

#[tokio::test]
async fn a_hung_device_keeps_neither_its_requests_nor_the_stop() {
    let nats = NatsServer::start();
    let fault = "[[executor.faults]]\nstep = 5\nkind = \"hang\"\n";
    let sections = external(&nats.url(), "hung") + "drain_timeout_s = 1\n" + fault;
    let mut node = NodeProcess::start_sim(0, &sections);
    let bus = client(&nats.url()).await;
    let mut generation = bus.generate("demo", request(1500, 1)).await.expect("accepted");
    generation.next().await.expect("streams");
    node.signal("-TERM");
    let (_, _, last) = collect(&mut generation).await.expect("a last event comes");
    assert_eq!(last.error.map(|error| error.kind), Some(Kind::Draining));
    assert!(!node.wait().success(), "its thread is left behind");
    assert!(
        node.log().contains("it waits for the executor of sim:0: a step or a load"),
        "{}",
        node.log()
    );
}

#[tokio::test]
async fn a_second_signal_ends_the_node_at_once() {
    let mut node = NodeProcess::start_sim(20_000, "[bus]\nmode = \"managed\"\n");
    let children = children_of(node.pid());
    let bus = client(&node.nats()).await;
    let mut generation = bus.generate("demo", request(1500, 1)).await.expect("accepted");
    generation.next().await.expect("streams");
    node.signal("-TERM");
    node.wait_health("draining", |health| health["draining"] == true).await;
    let asked = Instant::now();
    node.signal("-INT");
    assert!(!node.wait().success(), "what ran was cut");
    // The request would have run for half a minute, and the drain lets it.
    assert!(asked.elapsed() < Duration::from_secs(15), "{}", node.log());
    assert!(node.log().contains("second signal"), "{}", node.log());
    let deadline = Instant::now() + Duration::from_secs(10);
    while children.iter().any(|child| child.exists()) {
        assert!(Instant::now() < deadline, "its nats-server is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A node whose only model takes `load_ms` to load, while it does: its doors are open, and it has said for two seconds, each time
/// without a model, how it is. It opens the model's files in the first moment of them.
async fn loading(nats: &NatsServer, load_ms: u32) -> NodeProcess {
    let raw = async_nats::connect(nats.url()).await.expect("NATS is there");
    let mut told = raw.subscribe("inferno.v1.node.loading.health").await.expect("subscribes");
    raw.flush().await.expect("NATS has it");
    let costs = format!("load_ms = {load_ms}\nnum_blocks = 4096\n");
    let node = NodeProcess::spawn_sim_that(&costs, &external(&nats.url(), "loading"));
    for _ in 0..3 {
        let health = tokio::time::timeout(Duration::from_secs(60), told.next()).await;
        let health = health.expect("in time").expect("NATS lives").payload;
        let health: Value = serde_json::from_slice(&health).expect("JSON");
        assert_eq!((&health["models"], &health["draining"]), (&json!([]), &json!(false)));
    }
    node
}

#[tokio::test]
async fn sigterm_while_a_model_loads_ends_the_node_in_order() {
    let nats = NatsServer::start();
    let mut node = loading(&nats, 8_000).await;
    node.signal("-TERM");
    assert!(node.wait().success(), "{}", node.log());
    // The load may end before its actor does; nobody is told that the node is ready.
    let log = json_lines(&node.log());
    let said: Vec<&str> =
        log.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    let end = said.iter().position(|text| *text == "draining").expect("it drains");
    assert!(said[end + 1..].iter().all(|text| *text == "loaded"), "{said:?}");
    assert!(!said.contains(&"ready"), "{said:?}");
}

#[tokio::test]
async fn a_second_signal_while_a_model_loads_ends_the_node_at_once() {
    let nats = NatsServer::start();
    let mut node = loading(&nats, 600_000).await;
    node.signal("-TERM");
    // Who comes before the node has begun to drain is no second one; the first waits for the load, which takes ten minutes.
    let deadline = Instant::now() + Duration::from_secs(15);
    while node.said("a second signal: ended at once").is_empty() {
        assert!(Instant::now() < deadline, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.signal("-TERM");
    }
    assert!(!node.wait().success(), "its load was cut");
}

#[tokio::test]
async fn a_killed_node_leaves_no_nats_server_behind() {
    let mut node = NodeProcess::start_sim(0, "[bus]\nmode = \"managed\"\n");
    let children = children_of(node.pid());
    assert_eq!(children.len(), 1, "its nats-server");
    node.signal("-KILL");
    node.wait();
    let deadline = Instant::now() + Duration::from_secs(10);
    while children[0].exists() {
        assert!(Instant::now() < deadline, "{} is still there", children[0].display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_node_whose_model_cannot_be_loaded_says_why_and_ends() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let sections = format!(
        "[bus]\nmode = \"off\"\n[[models]]\nname = \"broken\"\nmodel_path = {:?}\n",
        folder.path()
    );
    let mut node = NodeProcess::spawn_sim(0, &sections);
    assert!(!node.wait().success());
    let log = node.log();
    assert!(log.contains("broken") && log.contains("config.json"), "{log}");
}
