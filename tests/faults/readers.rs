//! Readers that leave and come back elsewhere, and readers that do not keep up.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use inferno_node::bus::client::Client;
use inferno_node::ids::RequestId;
use inferno_node::request::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fleet::{Fleet, ROOMY};
use super::jobs::publish;
use super::streams::{Said, id_of, known, read, request, start};
use super::vitals::rss_bytes;

const TOKENS: u32 = 300;

pub async fn five_hundred_resumes_anywhere_miss_and_repeat_nothing() {
    const STREAMS: usize = 20;
    const READERS: usize = 50;
    const RESUMES: usize = 10;
    let known = known(STREAMS, TOKENS).await;
    let mut fleet = Fleet::start(3, 60_000, ROOMY).await;
    let (bus, client) = (fleet.connection().await, fleet.client().await);
    let doors: Vec<String> = fleet.nodes[1..].iter().map(|node| node.http()).collect();
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (client, doors, seed) = (client.clone(), doors.clone(), reader % STREAMS);
            tokio::spawn(async move {
                let mut dice = StdRng::seed_from_u64(reader as u64);
                let mut said = Said::default();
                let mut resumes = 0;
                while resumes < RESUMES && (said.0.len() as u32) < TOKENS {
                    // So that the tenth leaves near the end of the stream, too.
                    let most = TOKENS as usize / RESUMES;
                    let some = said.0.len() + dice.random_range(1..=most);
                    match reader % 2 {
                        0 => read_on_the_bus(&client, seed, &mut said, some).await,
                        _ => read_over_http(&doors[resumes % 2], seed, &mut said, some).await,
                    }
                    resumes += 1;
                }
                match reader % 2 {
                    0 => read_on_the_bus(&client, seed, &mut said, usize::MAX).await,
                    _ => read_over_http(&doors[0], seed, &mut said, usize::MAX).await,
                }
                (seed, resumes, said)
            })
        })
        .collect();
    for seed in 0..STREAMS {
        publish(&bus, &id_of(seed), request(TOKENS, seed)).await;
    }
    // Meanwhile the streams themselves move.
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.replace(0, "-KILL");
    let mut resumes = 0;
    for reader in readers {
        let (seed, resumed, said) = reader.await.expect("no reader fails");
        assert!(said == known[seed], "reader of {seed}");
        resumes += resumed;
    }
    assert_eq!(resumes, READERS * RESUMES);
    println!("{resumes} resumes: every reader has every token and the text of all");
}

/// Reads on until it has so many tokens, and leaves.
async fn read_on_the_bus(client: &Client, seed: usize, said: &mut Said, most: usize) {
    let from = said.0.len() as u32;
    let mut stream = client.follow(&id_of(seed), from).await.expect("subscribes");
    while said.0.len() < most {
        let Some(event) = stream.next().await.expect("streams") else { return };
        said.0.extend(&event.token_ids);
        said.1.push_str(&event.text);
    }
}

/// The same over HTTP, with what it had last as a browser says it. One that nobody has published yet is asked for again.
async fn read_over_http(door: &str, seed: usize, said: &mut Said, most: usize) {
    let http = reqwest::Client::new();
    let reply = loop {
        let mut ask = http.get(format!("{door}/v1/requests/{}/events", id_of(seed)));
        if let Some(last) = said.0.len().checked_sub(1) {
            ask = ask.header("last-event-id", last.to_string());
        }
        let reply = ask.send().await.expect("the node answers");
        if reply.status() == 200 {
            break reply;
        }
        assert!(said.0.is_empty(), "{}", reply.text().await.expect("text"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (mut body, mut text) = (reply.bytes_stream(), Vec::new());
    while said.0.len() < most {
        let Some(piece) = body.next().await else { return };
        text.extend(piece.expect("streams"));
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            // What came in one piece behind the last that was wanted was not looked at.
            if said.0.len() < most {
                take(&event, said);
            }
        }
    }
}

/// Takes one event of an SSE stream; its id is the index of its last token.
fn take(event: &[u8], said: &mut Said) {
    let event = std::str::from_utf8(event).expect("text");
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    let data: Event = serde_json::from_str(field("data: ").expect("data")).expect("an event");
    if data.token_ids.is_empty() && data.text.is_empty() {
        return;
    }
    said.0.extend(&data.token_ids);
    said.1.push_str(&data.text);
    assert_eq!(
        field("id: ").map(str::to_owned),
        said.0.len().checked_sub(1).map(|last| last.to_string())
    );
}

/// A request over HTTP by a client that never reads, whose kernel takes as little as can be.
async fn stalled(door: &str, id: &str, headers: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
    let address: std::net::SocketAddr =
        door.trim_start_matches("http://").parse().expect("an address");
    socket.connect(&address.into()).expect("the node listens");
    socket.set_nonblocking(true).expect("for tokio");
    let mut stream = TcpStream::from_std(socket.into()).expect("a socket of tokio's");
    // Log probabilities make events of some kB, which no socket buffer holds for long.
    let body =
        json!({"model": "demo", "request_id": id, "prompt": "Once", "max_tokens": 1_900, "seed": 1, "stream": true,
        "ignore_eos": true, "logprobs": 5})
        .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: node\r\n{headers}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("the node reads");
    stream
}

pub async fn slow_readers_are_cut_and_told_or_resume_and_quick_ones_go_on() {
    const QUICK: usize = 40;
    const SLOW: usize = 12;
    let known = known(QUICK, TOKENS).await;
    let mut fleet = Fleet::empty(5_000, ROOMY);
    fleet.add_with(&[("INFERNO_HTTP_SLOW_READER_S", "2")]);
    fleet.wait_ready().await;
    let door = fleet.nodes[0].http();
    let mut stalled_ones = Vec::new();
    for number in 0..SLOW {
        let headers = if number % 2 == 0 { "inferno-durable: true\r\n" } else { "" };
        stalled_ones.push(stalled(&door, &format!("slow-{number}"), headers).await);
    }
    let before = rss_bytes(fleet.nodes[0].pid());
    let readers = start(&fleet, QUICK, TOKENS).await;
    for (seed, heard) in join_all(readers).await.into_iter().enumerate() {
        assert!(heard.expect("no reader fails").said == known[seed], "{seed}");
    }
    // The plain ones end as cancelled, and their connections are reset; the durable ones are finished, and read again.
    let client = fleet.client().await;
    for number in (0..SLOW).step_by(2) {
        let id = RequestId::parse(&format!("slow-{number}")).expect("an id");
        assert_eq!(read(&client, &id).await.said.0.len(), 1_900, "slow-{number}");
    }
    let cancelled = ["inferno_requests_finished_total", "reason=\"cancelled\""];
    for _ in 0..400 {
        if fleet.nodes[0].metric(&cancelled).await as usize == SLOW / 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(fleet.nodes[0].metric(&cancelled).await as usize, SLOW / 2);
    for mut stream in stalled_ones {
        let (mut rest, all) = (Vec::new(), 1_900);
        // Reset, or closed: but never the whole of it.
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        let events = String::from_utf8_lossy(&rest).matches("data: ").count();
        assert!(events < all, "a stalled reader has {events}");
    }
    let grown = rss_bytes(fleet.nodes[0].pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the node grew by {grown} bytes");
    println!(
        "slow readers: {QUICK} quick ones as undisturbed; the node grew by {} MB",
        grown >> 20
    );
}
