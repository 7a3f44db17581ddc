//! Readers on the bus that are slow or take nothing at all: nobody else notices, and every request has one end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use inferno_node::request::FinishReason;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{NodeProcess, client, collect, external, request};
use super::nats::NatsServer;

/// A subscriber of all tokens that speaks the protocol itself, so that it can stop reading. Its receive buffer is as small as can be.
async fn reader(url: &str) -> TcpStream {
    let address: std::net::SocketAddr =
        url.trim_start_matches("nats://").parse().expect("an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&address.into()).expect("NATS is there");
    socket.set_nonblocking(true).expect("for tokio");
    let mut stream = TcpStream::from_std(socket.into()).expect("a socket of tokio's");
    let hello =
        "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB inferno.v1.tokens.* 1\r\nPING\r\n";
    stream.write_all(hello.as_bytes()).await.expect("NATS reads");
    let mut said = Vec::new();
    while !said.ends_with(b"PONG\r\n") {
        stream.read_buf(&mut said).await.expect("NATS answers");
    }
    stream
}

/// The events in what a reader got; the last line may be cut off.
fn events(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn named(id: &str, max_tokens: u32) -> Value {
    let mut body = request(max_tokens, 1);
    body["request_id"] = id.into();
    body
}

async fn publish(nats: &async_nats::Client, body: &Value) {
    let body = body.to_string().into();
    nats.publish("inferno.v1.generate.demo", body).await.expect("publishes");
    nats.flush().await.expect("NATS takes it");
}

#[tokio::test]
async fn a_slow_reader_gets_every_token_in_order() {
    let nats = NatsServer::start();
    let node = NodeProcess::start_sim(500, &external(&nats.url(), "patient"));
    let mut slow = reader(&nats.url()).await;
    let raw = async_nats::connect(nats.url()).await.expect("NATS is there");
    publish(&raw, &named("slow", 1_000)).await;
    let bus = client(&nats.url()).await;
    let (mut got, mut piece) = (Vec::new(), [0; 4_096]);
    let seen = loop {
        let count = slow.read(&mut piece).await.expect("NATS keeps it");
        got.extend(&piece[..count]);
        let seen = events(&got);
        let of_slow: Vec<Value> = seen.into_iter().filter(|e| e["request_id"] == "slow").collect();
        if of_slow.last().is_some_and(|event| event.get("finish_reason").is_some()) {
            break of_slow;
        }
        // Others go on meanwhile.
        let mut other = bus.generate("demo", request(4, 2)).await.expect("accepted");
        assert_eq!(collect(&mut other).await.expect("streams").0.len(), 4);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let mut next = 0;
    for event in &seen {
        assert_eq!(event["seq"], next);
        next += event["token_ids"].as_array().expect("ids").len();
    }
    assert_eq!(next, 1_000);
    let ends = seen.iter().filter(|event| event.get("finish_reason").is_some());
    assert_eq!(ends.count(), 1);
    assert_eq!(node.get("/v1/health").await.1["status"], "healthy");
}

/// Accepted requests, and the ended ones by reason.
async fn counted(node: &NodeProcess) -> (u64, BTreeMap<String, u64>) {
    let page = reqwest::get(format!("{}/metrics", node.http())).await.expect("answers");
    let page = page.text().await.expect("text");
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
    let (mut accepted, mut ended) = (0, BTreeMap::new());
    for line in page.lines() {
        if line.starts_with("inferno_requests_accepted_total{") {
            accepted = value(line).expect("a count");
        } else if line.starts_with("inferno_requests_finished_total{") {
            let reason = line.split("reason=\"").nth(1).and_then(|rest| rest.split('"').next());
            ended.insert(reason.expect("labelled").to_owned(), value(line).expect("a count"));
        }
    }
    (accepted, ended)
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off_and_its_requests_are_cancelled() {
    const REQUESTS: u64 = 32;
    let nats = NatsServer::with("write_deadline: \"300ms\"\nmax_pending: 1048576\n");
    // Room for others beside those of the reader.
    let sections = external(&nats.url(), "steady") + "[batcher]\nmax_batch_size = 64\n";
    let node = NodeProcess::start_sim(3_000, &sections);
    let stalled = reader(&nats.url()).await;
    let raw = async_nats::connect(nats.url()).await.expect("NATS is there");
    for number in 0..REQUESTS {
        // Long names make long events, which fill the kernel's buffers sooner.
        publish(&raw, &named(&format!("{number:x<60}"), 1_900)).await;
    }
    node.wait_health("running", |health| health["running"] == REQUESTS).await;
    let bus = client(&nats.url()).await;
    let (mut others, deadline) = (0, Instant::now() + Duration::from_secs(60));
    let ended = loop {
        let mut other = bus.generate("demo", request(4, 2)).await.expect("accepted");
        let (token_ids, _, last) = collect(&mut other).await.expect("streams");
        assert_eq!((token_ids.len(), last.finish_reason), (4, Some(FinishReason::Length)));
        others += 1;
        let health = node.get("/v1/health").await.1;
        assert_eq!(health["status"], "healthy", "{health}");
        let (accepted, ended) = counted(&node).await;
        assert_eq!(accepted, REQUESTS + others);
        if ended.values().sum::<u64>() == accepted {
            break ended;
        }
        assert!(Instant::now() < deadline, "{ended:?} of {accepted}");
    };
    // Nothing comes twice: each ended once, those of the reader as cancelled.
    assert_eq!(json!(ended), json!({"cancelled": REQUESTS, "length": others}));
    drop(stalled);
}
