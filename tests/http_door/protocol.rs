//! HTTP as RFC 9110 and 9112 have it, by clients that write every byte themselves.

use inferno_node::http::Config;
use serde_json::json;

use crate::rig::{Rig, chat, config};
use crate::wire::Wire;

const CHAT: &str = "/v1/chat/completions";
const LIVE: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";

/// A chat with these further lines in its head.
fn post(lines: &str) -> String {
    let body = chat(json!({})).to_string();
    format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The same without a length, its body in chunks.
fn chunks(version: &str, chunked: &str) -> String {
    format!("POST {CHAT} HTTP/{version}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")
}

#[actix_web::test]
async fn what_is_no_request_gets_an_error_in_json_and_the_connection_closes() {
    let rig = Rig::new();
    let get = |lines: &str| format!("GET /health/live HTTP/1.1\r\n{lines}\r\n");
    let with_host = |lines: &str| get(&format!("Host: x\r\n{lines}"));
    let posted = |lines: &str| format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\n{lines}\r\n{{}}{{}}");
    let cases: Vec<(String, u16)> = vec![
        ("HELLO\r\n\r\n".into(), 400),
        ("\u{16}\u{3}\u{1}\u{2}\r\n\r\n".into(), 400),
        ("GE,T / HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("GET /health/live HTTP/3.1\r\nHost: x\r\n\r\n".into(), 505),
        // Host: RFC 9112, 3.2.
        (get(""), 400),
        (get("Host: x\r\nHost: x\r\n"), 400),
        // Fields: RFC 9112, 5.
        (with_host("A line without a colon\r\n"), 400),
        (with_host("Space-Before : x\r\n"), 400),
        (with_host(" Space-Before-Name: x\r\n"), 400),
        (with_host("Folded: a\r\n b\r\n"), 400),
        (with_host("Null: a\0b\r\n"), 400),
        (with_host("Bare: a\rb\r\n"), 400),
        // Length: RFC 9112, 6.3.
        (posted("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"), 400),
        (posted("Content-Length: 4\r\nContent-Length: 4\r\n"), 400),
        (posted("Content-Length: 4\r\nContent-Length: 5\r\n"), 400),
        (posted("Content-Length: 4, 4\r\n"), 400),
        (posted("Content-Length: +4\r\n"), 400),
        (posted("Content-Length: -4\r\n"), 400),
        (posted("Content-Length: 4 4\r\n"), 400),
        (posted("Content-Length: 99999999999999999999\r\n"), 400),
        (posted("Transfer-Encoding: gzip, chunked\r\n"), 400),
        (posted("Transfer-Encoding: chunked, gzip\r\n"), 400),
        (posted("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
        (chunks("1.0", "0\r\n\r\n"), 400),
        // Too long: RFC 9110, 15.5.15, and RFC 6585, 5.
        (with_host(&"A: b\r\n".repeat(100)), 431),
        (with_host(&format!("A: {}\r\n", "b".repeat(200_000))), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)), 414),
    ];
    for (bytes, status) in cases {
        let shown = &bytes[..bytes.floor_char_boundary(80)];
        let mut wire = Wire::with(&rig, &bytes).await;
        let answer = wire.answer().await;
        assert_eq!(answer.status, status, "{shown:?}");
        assert_eq!(answer.code(), "malformed_request", "{shown:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{shown:?}");
        assert!(answer.header("x-request-id").is_some() && answer.header("date").is_some());
        assert!(wire.is_closed().await, "{shown:?}");
    }
}

#[actix_web::test]
async fn an_answer_to_what_is_no_request_arrives_though_the_client_goes_on_sending() {
    let rig = Rig::new();
    for _ in 0..20 {
        let mut wire = Wire::with(&rig, "HELLO\r\n\r\n").await;
        for _ in 0..50 {
            wire.send([b'x'; 4_096]).await;
        }
        assert_eq!(wire.answer().await.status, 400);
    }
}

#[actix_web::test]
async fn heads_of_every_right_form_are_served() {
    let rig = Rig::new();
    let forms = [
        LIVE,
        // Empty lines before it: RFC 9112, 2.2.
        "\r\n\r\nGET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        // A line feed alone may end a line: the same section.
        "GET /health/live HTTP/1.1\nHost: x\n\n",
        // The whole URI: 3.2.2.
        "GET http://somewhere.example:80/health/live HTTP/1.1\r\nHost: other\r\n\r\n",
        "GET /health/live?x=%20y HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /health/live HTTP/1.1\r\nHost:\r\n\r\n",
        "GET /health/live HTTP/1.1\r\nhOST:   [::1]:80  \r\n\r\n",
        "GET /health/live HTTP/1.1\r\nHost: x\r\nEmpty:\r\nUmlaut: \u{e4}\r\n\r\n",
    ];
    for form in forms {
        let mut wire = Wire::with(&rig, form).await;
        for _ in 0..2 {
            let answer = wire.answer().await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (200, r#"{"live":true}"#),
                "{form:?}"
            );
            assert_eq!(answer.header("connection"), None, "it persists: {form:?}");
            assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")));
            wire.send(LIVE).await;
        }
    }
    for host in ["a b", "user@host", "a/b", "[::1"] {
        let head = format!("GET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = Wire::with(&rig, head).await.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{host}");
    }
}

#[actix_web::test]
async fn an_upgrade_is_passed_over_and_the_connection_goes_on() {
    let mut rig = Rig::new();
    // As Java's HttpClient sends it with every request, twice on one connection.
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n";
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for upgrade in
        [h2c, websocket, "Connection: upgrade\r\nUpgrade: h2c\r\n", "Upgrade: websocket\r\n"]
    {
        let mut wire = Wire::connect(&rig).await;
        for _ in 0..2 {
            wire.send(format!("GET /health/live HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n")).await;
            let answer = wire.answer().await;
            assert_eq!((answer.status, answer.header("connection")), (200, None), "{upgrade}");
            assert_eq!(answer.header("upgrade"), None);
            wire.send(post(upgrade)).await;
            rig.next().await.play(&["x"]);
            let answer = wire.answer().await;
            assert_eq!((answer.status, answer.header("connection")), (200, None), "{upgrade}");
        }
    }
    let head = "GET /health/live HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    let mut wire = Wire::with(&rig, head).await;
    assert_eq!(wire.answer().await.status, 200);
    assert!(wire.is_closed().await);
}

#[actix_web::test]
async fn a_connection_persists_as_its_version_and_its_options_say() {
    let rig = Rig::new();
    let cases = [
        ("1.1", "", None),
        ("1.1", "Connection: keep-alive\r\n", None),
        ("1.1", "Connection: close\r\n", Some("close")),
        ("1.1", "Connection: foo, Close\r\n", Some("close")),
        ("1.1", "Connection: Upgrade, close\r\nUpgrade: h2c\r\n", Some("close")),
        ("1.0", "", None),
        ("1.0", "Connection: Keep-Alive\r\n", Some("keep-alive")),
    ];
    for (version, lines, said) in cases {
        let head = format!("GET /health/live HTTP/{version}\r\nHost: x\r\n{lines}\r\n");
        let mut wire = Wire::with(&rig, &head).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, said), "{version} {lines}");
        if said == Some("close") || (version, said) == ("1.0", None) {
            assert!(wire.is_closed().await, "{version} {lines}");
        } else {
            wire.send(head).await;
            assert_eq!(wire.answer().await.status, 200, "{version} {lines}");
        }
    }
}

#[actix_web::test]
async fn requests_sent_at_once_are_answered_in_their_order() {
    let mut rig = Rig::new();
    let both = format!("{LIVE}{}GET /v1/models/demo HTTP/1.1\r\nHost: x\r\n\r\n{LIVE}", post(""));
    let mut wire = Wire::with(&rig, both).await;
    assert_eq!(wire.answer().await.body, r#"{"live":true}"#);
    rig.next().await.play(&["first"]);
    assert!(wire.answer().await.body.contains("first"));
    assert!(wire.answer().await.body.contains("\"demo\""));
    assert_eq!(wire.answer().await.body, r#"{"live":true}"#);
}

#[actix_web::test]
async fn what_came_before_a_fault_is_answered_before_it() {
    let mut rig = Rig::new();
    let mut wire = Wire::with(&rig, format!("{LIVE}{}HELLO\r\n\r\n{LIVE}", post(""))).await;
    assert_eq!(wire.answer().await.status, 200);
    let played = rig.next().await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!played.handle.is_cancelled());
    played.play(&["whole"]);
    assert!(wire.answer().await.body.contains("whole"));
    let answer = wire.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    assert!(wire.is_closed().await);
}

#[actix_web::test]
async fn bodies_come_in_chunks_with_extensions_and_trailers() {
    let mut rig = Rig::new();
    let body = chat(json!({})).to_string();
    let (first, second) = body.split_at(10);
    let whole = format!(
        "{:x};name=value\r\n{first}\r\n{:X}\r\n{second}\r\n000\r\nSome-Trailer: x\r\nOther: y\r\n\r\n",
        first.len(),
        second.len()
    );
    let mut wire = Wire::connect(&rig).await;
    for _ in 0..2 {
        wire.send(chunks("1.1", &whole)).await;
        rig.next().await.play(&["x"]);
        assert_eq!(wire.answer().await.status, 200);
    }
    wire.send(LIVE).await;
    assert_eq!(wire.answer().await.status, 200);
}

#[actix_web::test]
async fn a_chunk_that_is_none_has_one_answer_and_nothing_after_it_is_read() {
    let mut rig = Rig::new();
    let bad = [
        "zz\r\n",
        "-1\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "5\r\nhelloX\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "\r\n",
    ];
    for chunked in bad {
        let mut wire = Wire::with(&rig, format!("{}{LIVE}", chunks("1.1", chunked))).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid"), "{chunked:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{chunked:?}");
        assert!(wire.is_closed().await, "{chunked:?}");
    }
    assert!(rig.admits.try_recv().is_err());
}

#[actix_web::test]
async fn a_body_is_never_taken_for_a_request() {
    let rig = Rig::new();
    for method in ["GET", "HEAD", "DELETE", "PUT", "OPTIONS"] {
        let inside = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let head = format!(
            "{method} /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            inside.len()
        );
        let mut wire = Wire::with(&rig, format!("{head}{inside}")).await;
        let answer = match method {
            "HEAD" => wire.answer_to_head().await,
            _ => wire.answer().await,
        };
        assert!([200, 204, 405].contains(&answer.status), "{method}: {}", answer.status);
        // What follows is the next request, or the end.
        if answer.header("connection") == Some("close") {
            assert!(wire.is_closed().await, "{method}");
        } else {
            wire.send(LIVE).await;
            assert_eq!(wire.answer().await.body, r#"{"live":true}"#, "{method}");
        }
    }
}

#[actix_web::test]
async fn a_client_that_waits_to_be_told_is_told_to_go_on() {
    let mut rig = Rig::new();
    let body = chat(json!({})).to_string();
    let head = |version: &str| {
        let length = body.len();
        format!(
            "POST {CHAT} HTTP/{version}\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut wire = Wire::with(&rig, head("1.1")).await;
    assert_eq!(wire.answer().await.status, 100);
    wire.send(&body).await;
    rig.next().await.play(&["x"]);
    assert_eq!(wire.answer().await.status, 200);
    // A client of 1.0 would take it for the answer (RFC 9110, 10.1.1).
    let mut wire = Wire::with(&rig, format!("{}{body}", head("1.0"))).await;
    rig.next().await.play(&["x"]);
    assert_eq!(wire.answer().await.status, 200);
}

#[actix_web::test]
async fn answers_without_body_are_framed_as_such() {
    let rig = Rig::new();
    let mut wire = Wire::connect(&rig).await;
    for path in ["/health/live", "/v1/models", "/v1/other", "/metrics"] {
        wire.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let answer = wire.answer_to_head().await;
        let length = answer.header("content-length").expect("that of GET");
        assert!(length.parse::<usize>().expect("a length") > 0, "{path}");
        // The next answer begins where the head ended.
        wire.send(format!("OPTIONS {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let answer = wire.answer().await;
        let status = if path == "/v1/other" { 404 } else { 204 };
        assert_eq!(answer.status, status);
        if status == 204 {
            assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"));
            assert!(
                answer.header("content-length").is_none()
                    && answer.header("transfer-encoding").is_none()
            );
        }
    }
}

#[actix_web::test]
async fn methods_are_served_refused_or_not_known() {
    let rig = Rig::new();
    let cases = [
        ("OPTIONS *", 204, Some("GET, HEAD, POST, DELETE, OPTIONS"), ""),
        ("GET *", 404, None, "not_found"),
        ("TRACE /health/live", 405, Some("GET, HEAD, OPTIONS"), "method_not_allowed"),
        ("PATCH /v1/models", 405, Some("GET, HEAD, OPTIONS"), "method_not_allowed"),
        ("BREW /v1/models", 501, None, "method_not_implemented"),
        ("get /health/live", 501, None, "method_not_implemented"),
        ("PROPFIND /nowhere", 501, None, "method_not_implemented"),
    ];
    for (line, status, allow, code) in cases {
        let mut wire = Wire::with(&rig, format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{line}");
        if status != 204 {
            assert_eq!(answer.code(), code, "{line}");
        }
        wire.send(LIVE).await;
        assert_eq!(wire.answer().await.status, 200, "{line}");
    }
    let mut wire = Wire::with(&rig, "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n").await;
    let answer = wire.answer().await;
    assert!([404, 405].contains(&answer.status), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[actix_web::test]
async fn every_head_of_a_connection_has_the_same_time() {
    let rig = Rig::with(&Config { read_timeout_s: 1, ..config() });
    let half = "GET /health/live HTTP/1.1\r\nHo";
    let mut first = Wire::with(&rig, half).await;
    let mut second = Wire::with(&rig, LIVE).await;
    assert_eq!(second.answer().await.status, 200);
    second.send(half).await;
    for late in [&mut first, &mut second] {
        let answer = late.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (408, "malformed_request"));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(late.is_closed().await);
    }
    // However often it grows.
    let mut third = Wire::with(&rig, LIVE).await;
    assert_eq!(third.answer().await.status, 200);
    let (slow, rest) = LIVE.split_at(4);
    for at in 0..slow.len() {
        third.send(&slow[at..=at]).await;
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    }
    third.send(rest).await;
    assert_eq!(third.answer().await.status, 408);
    // A connection that is idle between requests is none that is late.
    let mut idle = Wire::with(&rig, LIVE).await;
    assert_eq!(idle.answer().await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    idle.send(LIVE).await;
    assert_eq!(idle.answer().await.status, 200);
}
