//! More connections than are served, whether they say nothing, say half of something, or wait for answers; and a worker's faults.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::Arbiter;
use bytes::Bytes;
use inferno_node::health::{HealthSource, Status};
use inferno_node::http::{Config, start};
use inferno_node::lifeline::{Lifeline, Lifelines};
use inferno_node::request::FinishReason;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::rig::{
    Admission, PATIENCE, Rig, chat, completion, config, deps, events, fault, text_of,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// A health check has its answer so soon, whoever else is connected.
const AT_ONCE: Duration = Duration::from_millis(100);

/// So many connections that have sent `head` and wait.
fn crowd(rig: &Rig, count: usize, head: &str) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = TcpStream::connect(rig.running.address()).expect("the kernel takes it");
        stream.write_all(head.as_bytes()).expect("there is room");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    };
    (0..count).map(connect).collect()
}

/// Waits, on a thread of its own, for the server to close it.
async fn closed(mut stream: TcpStream) -> bool {
    let read = actix_web::rt::task::spawn_blocking(move || stream.read(&mut [0; 1]));
    matches!(read.await.expect("no panic"), Ok(0))
}

/// Every answer comes, and the best of several at once: a machine that is busy with other things delays one, the crowd would all.
async fn is_told_how_it_is(rig: &Rig) {
    for path in ["/health/live", "/v1/health", "/metrics"] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            // A connection of its own each time, as a prober's.
            let client = reqwest::Client::new();
            let asked = Instant::now();
            let answer = client.get(rig.url(path)).timeout(PATIENCE).send().await;
            best = best.min(asked.elapsed());
            assert_eq!(answer.expect("an answer").status(), 200);
        }
        assert!(best < AT_ONCE, "{path}: {best:?}");
    }
}

#[actix_web::test]
async fn idle_connections_give_way_and_a_running_answer_stays() {
    let mut rig = Rig::with(&Config { max_connections: 64, ..config() });
    let answer = rig.post(CHAT, chat(json!({"stream": true})));
    let mut played = rig.next().await;
    played.accept();
    played.text("be").expect("the reader is there");
    let mut streams = crowd(&rig, 100, "");
    streams.extend(crowd(&rig, 100, "GET /health/live HTTP/1.1\r\nHo"));
    is_told_how_it_is(&rig).await;
    for oldest in streams.drain(..100) {
        assert!(closed(oldest).await, "who was idle longest is closed");
    }
    let mut youngest = streams.pop().expect("the last one");
    youngest.write_all(b"st: x\r\nConnection: close\r\n\r\n").expect("it is open");
    let mut told = String::new();
    youngest.read_to_string(&mut told).expect("it is answered");
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    played.text("fore").expect("the reader is there");
    played.finish(FinishReason::Stop).expect("the reader is there");
    let answer = answer.await.unwrap().text().await.unwrap();
    assert_eq!(text_of(&events(&answer)), "before");
}

#[actix_web::test]
async fn where_all_connections_are_busy_only_health_and_metrics_are_answered() {
    let mut rig = Rig::with(&Config { max_connections: 3, ..config() });
    let mut running = Vec::new();
    for _ in 0..3 {
        let answer = rig.post(COMPLETIONS, completion(json!({})));
        running.push((answer, rig.next().await));
    }
    let refused = rig.post(COMPLETIONS, completion(json!({}))).await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, _, code, _) = fault(refused).await;
    assert_eq!((status, code.as_str()), (429, "rate_limit_exceeded"));
    let _idle = crowd(&rig, 200, "");
    is_told_how_it_is(&rig).await;
    for (answer, played) in running {
        played.play(&["whole"]);
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    let answer = rig.post(COMPLETIONS, completion(json!({})));
    rig.next().await.play(&["x"]);
    assert_eq!(answer.await.unwrap().status(), 200, "there is a place again");
}

/// A connection for which the kernel holds little.
fn narrow(rig: &Rig) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(1_024).expect("a size");
    socket.connect(&rig.running.address().into()).expect("the kernel takes it");
    socket.into()
}

/// A connection whose client asks for much and takes none of it.
fn takes_nothing(rig: &Rig) -> TcpStream {
    let mut stream = narrow(rig);
    // It may have had to give way meanwhile.
    let _ = stream.write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000).as_bytes());
    stream
}

#[actix_web::test]
async fn readers_that_take_nothing_give_way_too() {
    let rig = Rig::with(&Config { max_connections: 4, slow_reader_s: 600, ..config() });
    let mut readers = Vec::new();
    // More together than are closed at their leisure before the next are accepted.
    for _ in 0..6 {
        readers.extend((0..15).map(|_| takes_nothing(&rig)));
        is_told_how_it_is(&rig).await;
    }
}

#[actix_web::test]
async fn an_answer_that_is_being_read_is_no_idle_connection() {
    let mut rig = Rig::with(&Config { max_connections: 4, ..config() });
    let mut reader = narrow(&rig);
    let body = completion(json!({})).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length:";
    write!(reader, "{head} {}\r\n\r\n{body}", body.len()).expect("room");
    let text = "x".repeat(16 << 20);
    rig.next().await.play(&[&text]);
    let mut start = [0; 12];
    reader.read_exact(&mut start).expect("it begins");
    assert_eq!(&start, b"HTTP/1.1 200");
    let _idle = crowd(&rig, 200, "");
    is_told_how_it_is(&rig).await;
    let rest = actix_web::rt::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest.len())
    });
    assert!(rest.await.expect("no panic").expect("it ends") > text.len());
}

#[actix_web::test]
async fn large_bodies_are_as_many_as_there_is_room_for_and_small_ones_pass() {
    let mut rig = Rig::with(&Config { max_body_bytes: 100_000, ..config() });
    let text = "x".repeat(90_000);
    // Each promises more than it sends: 17 of them take the room of 16 that are as long as may be.
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 95000\r\n\r\n";
    let half = format!("{head}{{\"model\": \"demo\", \"prompt\": \"{text}");
    let halves = crowd(&rig, 40, &half);
    let large = || completion(json!({"prompt": text}));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = rig.post(COMPLETIONS, large());
        tokio::select! {
            refused = answer => {
                let refused = refused.unwrap();
                assert_eq!(refused.headers()["retry-after"], "1");
                assert_eq!(fault(refused).await.0, 429);
                break;
            }
            // It came before the others.
            played = rig.next() => played.play(&["x"]),
        }
        assert!(Instant::now() < deadline, "no bound");
    }
    let small = rig.post(COMPLETIONS, completion(json!({})));
    rig.next().await.play(&["x"]);
    assert_eq!(small.await.unwrap().status(), 200);
    is_told_how_it_is(&rig).await;
    drop(halves);
    loop {
        let answer = rig.post(COMPLETIONS, large());
        tokio::select! {
            // Those that left are not gone yet.
            refused = answer => assert_eq!(refused.unwrap().status(), 429),
            played = rig.next() => break played.play(&["x"]),
        }
        assert!(Instant::now() < deadline, "the room is not given back");
    }
}

#[actix_web::test]
async fn a_large_body_is_read_like_a_small_one() {
    let mut rig = Rig::new();
    let text = "x".repeat(1 << 20);
    let answer = rig.post(CHAT, chat(json!({"messages": [{"role": "user", "content": text}]})));
    rig.next().await.play(&["x"]);
    assert_eq!(answer.await.unwrap().status(), 200);
    let unknown: serde_json::Map<_, _> =
        (0..50_000).map(|at| (format!("key-{at:05}"), json!([at, "x"]))).collect();
    let refused = rig.post(CHAT, chat(unknown.into())).await.unwrap();
    let (status, _, code, param) = fault(refused).await;
    assert_eq!((status, code.as_str()), (400, "invalid"));
    assert!(param.is_some_and(|param| param.starts_with("key-")));
}

/// A health with a defect, once: it is asked on a worker's thread.
struct Defect {
    what: fn(),
    is_over: AtomicBool,
}

impl HealthSource for Defect {
    fn health(&self) -> (Bytes, Status) {
        if !self.is_over.swap(true, Ordering::SeqCst) {
            (self.what)();
        }
        (Bytes::from_static(b"{}"), Status::Healthy)
    }

    fn ready(&self) -> bool {
        true
    }
}

fn defect(what: fn()) -> Arc<Defect> {
    Arc::new(Defect { what, is_over: AtomicBool::new(false) })
}

#[actix_web::test]
async fn a_panic_in_a_handler_is_one_requests_500_and_the_worker_goes_on() {
    let deps = deps(Admission::deaf(), defect(|| panic!("for a test")));
    let running = start(&config(), deps, Lifeline::unwatched()).unwrap();
    let url = format!("http://{}/v1/health", running.address());
    let client = reqwest::Client::new();
    let first = client.get(&url).header("x-request-id", "mine").send().await.unwrap();
    assert_eq!(first.headers()["x-request-id"], "mine");
    assert_eq!(fault(first).await.0, 500);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
}

#[actix_web::test]
async fn a_worker_that_ends_is_heard_of() {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let note = ended.clone();
    let lines = Lifelines::new(move |name| note.lock().expect("no panic").push(name));
    let stop = || assert!(Arbiter::current().stop());
    let deps = deps(Admission::deaf(), defect(stop));
    let running = start(&config(), deps, lines.hold("HTTP server")).unwrap();
    let asked = reqwest::get(format!("http://{}/v1/health", running.address())).await;
    let deadline = Instant::now() + PATIENCE;
    while ended.lock().expect("no panic").is_empty() {
        assert!(Instant::now() < deadline, "nothing is said: {asked:?}");
        actix_web::rt::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(*ended.lock().expect("no panic"), ["HTTP worker"]);
    lines.release();
}
