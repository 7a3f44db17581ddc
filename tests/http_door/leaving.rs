//! Clients that leave, that are slow, and that are cancelled; and a door that closes.

use std::time::Duration;

use inferno_node::error::{Error, Kind};
use inferno_node::http::Config;
use inferno_node::request::{Ended, FinishReason, SinkClosed};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig, chat, completion, config, events, fault, text_of};

const CHAT: &str = "/v1/chat/completions";

#[actix_web::test]
async fn a_client_that_leaves_while_it_waits_is_cancelled() {
    let mut rig = Rig::new();
    for stream in [false, true] {
        let answer = rig.post(CHAT, chat(json!({"stream": stream})));
        let mut played = rig.next().await;
        played.accept();
        answer.abort();
        played.cancelled().await;
        assert_eq!(played.text("x"), Err(SinkClosed));
    }
}

#[actix_web::test]
async fn a_client_that_leaves_before_it_is_accepted_is_cancelled_then() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({})));
    let mut played = rig.next().await;
    answer.abort();
    let closed = async {
        while played.text("").is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("in time");
    played.accept();
    assert!(played.handle.is_cancelled());
}

#[actix_web::test]
async fn a_client_that_leaves_in_mid_stream_is_cancelled() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({"stream": true})));
    let mut played = rig.next().await;
    played.accept();
    played.text("x").unwrap();
    let mut answer = answer.await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    played.cancelled().await;
    assert_eq!(played.text("y"), Err(SinkClosed));
}

/// A connection that has sent a streamed chat and whose kernel takes little before anyone reads.
async fn slow_client(rig: &Rig) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&rig.running.address().into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(socket.into()).unwrap();
    let body = chat(json!({"stream": true})).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[actix_web::test]
async fn for_a_slow_reader_pieces_are_merged_and_none_is_lost() {
    let mut rig = Rig::new();
    let mut client = slow_client(&rig).await;
    let mut played = rig.next().await;
    played.accept();
    // 32 MB as chunks of one piece each, which no socket buffer holds; 6 MB merged.
    const PIECES: usize = 100_000;
    let piece = |i: usize| format!("{i:059} ");
    for i in 0..PIECES {
        played.text(&piece(i)).unwrap();
        if i % 1_000 == 0 {
            // Lets the connection take what it can.
            tokio::task::yield_now().await;
        }
    }
    played.finish(FinishReason::Stop).unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 OK") && !head.contains("chunked"));
    let seen = events(body);
    assert!(seen.len() < PIECES / 2, "{} events", seen.len());
    assert_eq!(text_of(&seen), (0..PIECES).map(piece).collect::<String>());
    assert_eq!(seen.last().unwrap(), "[DONE]");
}

#[actix_web::test]
async fn a_reader_that_takes_nothing_is_cancelled_and_its_connection_closed() {
    let mut rig = Rig::with(&Config { slow_reader_s: 1, ..config() });
    let mut client = slow_client(&rig).await;
    let mut played = rig.next().await;
    played.accept();
    let piece = "x".repeat(64 << 10);
    let given_up = async {
        while played.text(&piece).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("given up in time");
    assert!(played.handle.is_cancelled());
    // The kernel gives the connection up as well: it is reset, and the end of the answer never arrives.
    let closed = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer).await;
        (String::from_utf8_lossy(&answer).contains("\"error\""), end.is_err())
    };
    let closed = tokio::time::timeout(PATIENCE, closed).await.expect("closed in time");
    if cfg!(target_os = "linux") {
        assert_eq!(closed, (false, true));
    }
}

#[actix_web::test]
async fn delete_cancels_with_and_without_prefix() {
    let mut rig = Rig::new();
    for (asked, known) in
        [("r1", "r1"), ("chatcmpl-r1", "r1"), ("cmpl-r1", "r1"), ("chatcmpl-r1", "chatcmpl-r1")]
    {
        let request = rig.client.delete(rig.url(&format!("/v1/requests/{asked}")));
        let answer = tokio::spawn(request.send());
        loop {
            let cancel = rig.next_cancel().await;
            if cancel.id.as_str() == known {
                let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 5 };
                cancel.done.send(Ok(ended)).unwrap();
                break;
            }
            cancel.done.send(Err(Error::new(Kind::NotFound, "unknown"))).unwrap();
        }
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body, json!({"request_id": known, "cancelled": true, "tokens": 5}));
    }
}

#[actix_web::test]
async fn a_post_cancels_as_well() {
    let mut rig = Rig::new();
    let request = rig.client.post(rig.url("/v1/requests/r1/cancel"));
    let answer = tokio::spawn(request.send());
    let cancel = rig.next_cancel().await;
    assert_eq!(cancel.id.as_str(), "r1");
    let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 5 };
    cancel.done.send(Ok(ended)).unwrap();
    let body: Value = answer.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(body, json!({"request_id": "r1", "cancelled": true, "tokens": 5}));
}

#[actix_web::test]
async fn delete_of_an_unknown_request_is_404() {
    let mut rig = Rig::new();
    let request = rig.client.delete(rig.url("/v1/requests/cmpl-r9"));
    let answer = tokio::spawn(request.send());
    for expected in ["cmpl-r9", "r9"] {
        let cancel = rig.next_cancel().await;
        assert_eq!(cancel.id.as_str(), expected);
        cancel.done.send(Err(Error::new(Kind::NotFound, "unknown"))).unwrap();
    }
    assert_eq!(fault(answer.await.unwrap().unwrap()).await.0, 404);
    // What cannot be an id is no id: admission is not asked.
    let answer = rig.client.delete(rig.url("/v1/requests/a%20b")).send().await.unwrap();
    assert_eq!(fault(answer).await.0, 404);
    assert!(rig.cancels.try_recv().is_err());
    let lost = tokio::spawn(rig.client.delete(rig.url("/v1/requests/r9")).send());
    drop(rig.next_cancel().await);
    assert_eq!(fault(lost.await.unwrap().unwrap()).await.0, 500);
}

#[actix_web::test]
async fn delete_of_a_request_with_several_prompts_asks_for_its_one_id() {
    let mut rig = Rig::new();
    let body = completion(json!({"prompt": ["a", "b", "c"], "request_id": "p"}));
    let answer = rig.post("/v1/completions", body);
    let mut plays = vec![rig.next().await, rig.next().await, rig.next().await];
    for played in &mut plays {
        played.accept();
    }
    let delete = tokio::spawn(rig.client.delete(rig.url("/v1/requests/cmpl-p")).send());
    let as_it_stands = rig.next_cancel().await;
    assert_eq!(as_it_stands.id.as_str(), "cmpl-p");
    as_it_stands.done.send(Err(Error::new(Kind::NotFound, "none"))).unwrap();
    let cancel = rig.next_cancel().await;
    assert_eq!(cancel.id.as_str(), "p");
    cancel.done.send(Ok(Ended { reason: FinishReason::Cancelled, completion_tokens: 6 })).unwrap();
    let body: Value = delete.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(body, json!({"request_id": "p", "cancelled": true, "tokens": 6}));
    plays[0].finish(FinishReason::Cancelled).unwrap();
    assert_eq!(fault(answer.await.unwrap()).await.0, 499);
}

#[actix_web::test]
async fn a_closing_door_lets_running_streams_end() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({"stream": true})));
    let mut played = rig.next().await;
    played.accept();
    played.text("a").unwrap();
    let answer = answer.await.unwrap();
    let address = rig.running.address();
    let stop = tokio::spawn(rig.running.stop(PATIENCE));
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("closed to new connections");
    played.text("b").unwrap();
    played.finish(FinishReason::Stop).unwrap();
    let seen = events(&answer.text().await.unwrap());
    assert_eq!(text_of(&seen), "ab");
    assert_eq!(seen.last().unwrap(), "[DONE]");
    assert!(stop.await.unwrap());
}

#[actix_web::test]
async fn at_the_deadline_what_is_left_is_cut_and_cancelled() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({"stream": true})));
    let mut played = rig.next().await;
    played.accept();
    played.text("a").unwrap();
    let answer = answer.await.unwrap();
    assert!(!rig.running.stop(Duration::from_millis(20)).await);
    played.cancelled().await;
    assert!(answer.text().await.is_err());
}
