//! Goal: what waits for a link to NATS that takes nothing is bounded, and the node is well again when it does. Method: a node process
//! behind a proxy of the test's own, which stops reading what the node writes while a client floods it with requests to refuse.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use super::harness::{NodeProcess, client, external, request};
use super::nats::NatsServer;

/// More than the window (8,192) and what may wait behind it (8,192).
const REFUSALS: usize = 24_000;

/// A proxy to NATS that can stop taking what comes from the node. Its threads end with the connections, the first with the test's
/// process.
struct Proxy {
    url: String,
    is_stuck: Arc<AtomicBool>,
}

impl Proxy {
    fn start(nats: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("nats://{}", listener.local_addr().expect("bound"));
        let (nats, is_stuck) = (nats.replace("nats://", ""), Arc::new(AtomicBool::new(false)));
        let stuck = is_stuck.clone();
        std::thread::spawn(move || {
            for node in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&nats) else { return };
                let twin = |socket: &TcpStream| socket.try_clone().expect("a second handle");
                let (to_server, to_node, stuck) = (twin(&server), twin(&node), stuck.clone());
                std::thread::spawn(move || forward(node, to_server, &stuck));
                std::thread::spawn(move || forward(server, to_node, &AtomicBool::new(false)));
            }
        });
        Self { url, is_stuck }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_stuck: &AtomicBool) {
    let mut piece = vec![0; 1 << 16];
    loop {
        while is_stuck.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        match from.read(&mut piece) {
            Ok(count) if count > 0 && to.write_all(&piece[..count]).is_ok() => {}
            _ => break,
        }
    }
    // The other side may be gone already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[tokio::test]
async fn refusals_that_a_stuck_link_does_not_take_are_bounded_and_the_others_are_answered() {
    let server = NatsServer::start();
    let proxy = Proxy::start(&server.url());
    let node = NodeProcess::start_sim(0, &external(&proxy.url, "node-a"));
    let raw = async_nats::connect(server.url()).await.expect("NATS is there");
    let inbox = raw.new_inbox();
    let mut answers = raw.subscribe(inbox.clone()).await.expect("subscribes");
    proxy.is_stuck.store(true, Ordering::SeqCst);
    for _ in 0..REFUSALS {
        // No prompt; with an id, so that each has one answer.
        let body = "{\"request_id\": \"flood\"}";
        let sent = raw.publish_with_reply("inferno.v1.generate.demo", inbox.clone(), body.into());
        sent.await.expect("publishes");
    }
    raw.flush().await.expect("is connected");
    let refused = ["inferno_requests_refused_total", "kind=\"invalid\""];
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.metric(&refused).await < REFUSALS as f64 {
        assert!(Instant::now() < deadline, "all come:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, health) = node.get("/health/ready").await;
    assert_eq!(status, 200, "HTTP does not notice: {health}");
    proxy.is_stuck.store(false, Ordering::SeqCst);
    // The link takes everything again, after the connection was replaced or without that.
    let bus = client(&server.url()).await;
    let mut generation = loop {
        match bus.generate("demo", request(2, 0)).await {
            Ok(generation) => break generation,
            Err(error) => assert!(Instant::now() < deadline, "{error}\n{}", node.log()),
        }
    };
    while generation.next().await.expect("streams").is_some() {}
    let dropped = node.metric(&["inferno_bus_refusals_dropped_total"]).await as usize;
    assert!(dropped > 0 && dropped < REFUSALS, "{dropped}");
    let lost = node.metric(&["inferno_bus_messages_lost_total"]).await;
    assert_eq!(lost, 0.0, "every request was taken");
    for _ in 0..REFUSALS - dropped {
        let answer = tokio::time::timeout(Duration::from_secs(20), answers.next()).await;
        let answer = answer.expect("in time").expect("NATS lives");
        let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(body["error"]["kind"], "invalid");
    }
}
