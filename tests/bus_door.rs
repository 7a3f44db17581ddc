//! Goal: the bus contract holds, over a real nats-server. Method: each test has a server, a bus and a fake admission of its own,
//! and talks to them through plain NATS messages.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use inferno_node::bus::client::{Client as Asker, ClientError, Follower, Verdict};
use inferno_node::bus::{Config, Managed, Mode, Secret};
use inferno_node::request::FinishReason;
use serde_json::{Value, json};

#[path = "bus/fake.rs"]
mod fake;
#[path = "bus/nats.rs"]
mod nats;

use fake::{Node, token_text};
use nats::NatsServer;

const SOON: Duration = Duration::from_secs(20);
const GENERATE: &str = "inferno.v1.generate.demo";

fn config(server: &NatsServer) -> Config {
    Config { url: server.url(), ..Config::default() }
}

async fn connect(server: &NatsServer) -> Client {
    async_nats::connect(server.url()).await.expect("connects")
}

/// A server, a node that serves `demo` on it, and a connection; requests reach the node from here on.
async fn setup() -> (NatsServer, Node, Client) {
    let server = NatsServer::start();
    let node = Node::start(config(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    (server, node, client)
}

/// Waits until a node answers for `demo`.
async fn wait_ready(client: &Client) {
    eventually("a node serves demo", || async {
        let info = client.request("$SRV.INFO.inferno", "".into()).await.ok()?;
        let info: Value = serde_json::from_slice(&info.payload).ok()?;
        (!info["endpoints"].as_array()?.is_empty()).then_some(())
    })
    .await;
}

async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn next(subscriber: &mut Subscriber) -> Message {
    tokio::time::timeout(SOON, subscriber.next()).await.expect("in time").expect("open")
}

async fn nothing_more(subscriber: &mut Subscriber) {
    let more = tokio::time::timeout(Duration::from_millis(200), subscriber.next()).await;
    assert!(more.is_err(), "{more:?}");
}

fn parsed(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// Events until the last one, without repetitions; panics where tokens are missing.
async fn whole(events: &mut Subscriber) -> (Vec<u32>, String, Value) {
    let (mut ids, mut text, mut follower) = (Vec::new(), String::new(), Follower::default());
    loop {
        let event = parsed(&next(events).await);
        let tokens = event["token_ids"].as_array().expect("an array").len();
        match follower.judge(event["seq"].as_u64().expect("a number") as u32, tokens) {
            Verdict::Fresh => {}
            Verdict::Repeated => continue,
            Verdict::Gap { expected } => panic!("expected {expected}, got {event}"),
        }
        ids.extend(
            event["token_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|id| id.as_u64().expect("an id") as u32),
        );
        text.push_str(event["text"].as_str().expect("text"));
        if event.get("finish_reason").is_some() {
            return (ids, text, event);
        }
    }
}

fn expect_tokens(n: u32, ids: &[u32], text: &str) {
    assert_eq!(ids, (0..n).collect::<Vec<_>>());
    assert_eq!(text, (0..n).map(token_text).collect::<String>());
}

#[tokio::test]
async fn a_request_with_an_id_is_accepted_and_streamed_on_its_subject() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    let body = json!({"request_id": "r1", "prompt": "Hi", "params": {"max_tokens": 7}});
    let answer = client.request(GENERATE, body.to_string().into()).await.expect("answers");
    let accepted = json!({"request_id": "r1", "status": "accepted", "node_id": "node-a"});
    assert_eq!(parsed(&answer), accepted);
    assert!(answer.headers.is_none());
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(7, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    assert_eq!(last["usage"]["completion_tokens"], 7);
    assert_eq!((&last["request_id"], &last["attempt"]), (&json!("r1"), &json!(1)));
    assert!(last["receipt"].is_object() && last.get("error").is_none());
    nothing_more(&mut events).await;
    node.stop().await;
}

#[tokio::test]
async fn the_first_event_carries_a_reply_subject_of_the_nodes() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    let body = json!({"request_id": "r1", "prompt": "pace 20", "params": {"max_tokens": 75}});
    client.publish(GENERATE, body.to_string().into()).await.expect("publishes");
    let started = Instant::now();
    let mut probes = Vec::new();
    loop {
        let message = next(&mut events).await;
        if message.reply.is_some() {
            probes.push(started.elapsed());
        }
        if parsed(&message).get("finish_reason").is_some() {
            break;
        }
    }
    assert!((2..=3).contains(&probes.len()), "one, and then one every second: {probes:?}");
    assert!(probes[0] < Duration::from_millis(900), "{probes:?}");
    node.stop().await;
}

#[tokio::test]
async fn msgpack_is_answered_in_msgpack() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r2").await.expect("subscribes");
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/msgpack");
    let body = json!({"request_id": "r2", "prompt": "Hi", "params": {"max_tokens": 2}});
    let body = rmp_serde::to_vec_named(&body).expect("packs");
    let answer = client.request_with_headers(GENERATE, headers, body.into()).await;
    let answer = answer.expect("answers");
    assert_eq!(header(&answer, "Content-Type"), Some("application/msgpack"));
    let accepted: Value = rmp_serde::from_slice(&answer.payload).expect("msgpack");
    assert_eq!(accepted["status"], "accepted");
    let mut ids = Vec::new();
    loop {
        let message = next(&mut events).await;
        assert_eq!(header(&message, "Content-Type"), Some("application/msgpack"));
        let event: Value = rmp_serde::from_slice(&message.payload).expect("msgpack");
        ids.extend(event["token_ids"].as_array().expect("an array").clone());
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert_eq!(ids, [0, 1]);
    node.stop().await;
}

#[tokio::test]
async fn without_an_id_events_go_to_the_reply_subject_and_end_with_an_empty_message() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "Hi", "params": {"max_tokens": 3}});
    client.publish_with_reply(GENERATE, inbox, body.to_string().into()).await.expect("publishes");
    let (ids, text, last) = whole(&mut answers).await;
    expect_tokens(3, &ids, &text);
    assert!(last["request_id"].as_str().is_some_and(|id| id.len() == 32), "{last}");
    assert!(next(&mut answers).await.payload.is_empty());
    nothing_more(&mut answers).await;
    node.stop().await;
}

#[tokio::test]
async fn without_streaming_there_is_one_event_with_everything() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "Hi", "params": {"max_tokens": 3, "stream": false}});
    client.publish_with_reply(GENERATE, inbox, body.to_string().into()).await.expect("publishes");
    let event = parsed(&next(&mut answers).await);
    assert_eq!((&event["text"], &event["finish_reason"]), (&json!("<0><1><2>"), &json!("length")));
    assert!(next(&mut answers).await.payload.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_has_a_body_and_service_error_headers() {
    let (_server, node, client) = setup().await;
    let body = json!({"request_id": "r3", "prompt": "refuse"}).to_string();
    let answer = client.request(GENERATE, body.into()).await.expect("answers");
    let expected = json!({
        "request_id": "r3", "error": {"kind": "queue_full", "message": "full", "retry_after_ms": 70}
    });
    assert_eq!(parsed(&answer), expected);
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("429"));
    assert_eq!(header(&answer, "Nats-Service-Error"), Some("queue_full: full"));
    // Without an id an empty message follows.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "refuse"}).to_string();
    client.publish_with_reply(GENERATE, inbox, body.into()).await.expect("publishes");
    let refused = parsed(&next(&mut answers).await);
    assert!(refused.get("request_id").is_none() && refused["error"]["kind"] == "queue_full");
    assert!(next(&mut answers).await.payload.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_failure_after_acceptance_is_the_last_event_with_headers() {
    let (_server, node, client) = setup().await;
    for (script, message) in
        [("fail", "the step failed twice"), ("drop", "the node dropped the request")]
    {
        let mut events =
            client.subscribe(format!("inferno.v1.tokens.{script}")).await.expect("subscribes");
        let body = json!({"request_id": script, "prompt": script}).to_string();
        client.publish(GENERATE, body.into()).await.expect("publishes");
        let mut tokens = 0;
        let last = loop {
            let message = next(&mut events).await;
            tokens += parsed(&message)["token_ids"].as_array().expect("an array").len();
            if parsed(&message).get("finish_reason").is_some() {
                break message;
            }
        };
        assert_eq!(tokens, 2);
        assert_eq!(parsed(&last)["finish_reason"], "failed");
        assert_eq!(parsed(&last)["error"]["message"], message);
        assert_eq!(header(&last, "Nats-Service-Error-Code"), Some("500"));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_conflict_does_not_disturb_the_stream_that_runs() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.same").await.expect("subscribes");
    let body = json!({"request_id": "same", "prompt": "pace 5", "params": {"max_tokens": 40}});
    let body = body.to_string();
    client.request(GENERATE, body.clone().into()).await.expect("accepted");
    let refused = client.request(GENERATE, body.clone().into()).await.expect("answers");
    assert_eq!(parsed(&refused)["error"]["kind"], "conflict");
    assert_eq!(header(&refused, "Nats-Service-Error-Code"), Some("409"));
    // With no reply subject it is only counted.
    client.publish(GENERATE, body.into()).await.expect("publishes");
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(40, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    node.stop().await;
}

#[tokio::test]
async fn a_cancel_is_acknowledged_with_the_tokens_of_the_last_event() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.c1").await.expect("subscribes");
    let body = json!({"request_id": "c1", "prompt": "pace 5", "params": {"max_tokens": 100_000}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    let (first, second) = tokio::join!(
        client.request("inferno.v1.cancel.c1", "".into()),
        client.request("inferno.v1.cancel.c1", "".into())
    );
    let first = parsed(&first.expect("answers"));
    assert_eq!((&first["request_id"], &first["cancelled"]), (&json!("c1"), &json!(true)));
    assert_eq!(parsed(&second.expect("answers")), first, "both callers are answered");
    let last = loop {
        let message = next(&mut events).await;
        if parsed(&message).get("finish_reason").is_some() {
            break message;
        }
    };
    assert!(last.headers.is_none(), "a cancel is no failure");
    assert_eq!(parsed(&last)["finish_reason"], "cancelled");
    assert_eq!(parsed(&last)["usage"]["completion_tokens"], first["tokens"]);
    eventually("the subject is left", || async {
        let error = client.request("inferno.v1.cancel.c1", "".into()).await.err()?;
        (error.kind() == async_nats::client::RequestErrorKind::NoResponders).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_request_from_elsewhere_can_be_cancelled_by_its_id() {
    let (_server, node, client) = setup().await;
    let id = inferno_node::request::RequestId::parse("http-1").expect("an id");
    node.seen.observer().started(&id);
    // The fake does not know it, so the answer is an error; what counts is that somebody answers.
    let answer = eventually("the subject is open", || async {
        client.request("inferno.v1.cancel.http-1", "".into()).await.ok()
    })
    .await;
    assert_eq!(parsed(&answer)["error"]["kind"], "not_found");
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("404"));
    node.seen.observer().ended(&id);
    eventually("the subject is left", || async {
        client.request("inferno.v1.cancel.http-1", "".into()).await.err()
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_goes_away_ends_its_request_unless_it_is_detached() {
    let (_server, node, client) = setup().await;
    let ask = |id: &str, detached: bool| {
        let body = json!({
            "request_id": id, "prompt": "pace 5", "detached": detached, "params": {"max_tokens": 500}
        });
        client.request(GENERATE, body.to_string().into())
    };
    let mut gone = client.subscribe("inferno.v1.tokens.gone").await.expect("subscribes");
    ask("gone", false).await.expect("accepted");
    ask("never", false).await.expect("accepted");
    ask("detached", true).await.expect("accepted");
    next(&mut gone).await;
    gone.unsubscribe().await.expect("unsubscribes");
    for id in ["gone", "never", "detached"] {
        let ended = eventually("it ends", || async { node.seen.end_of(id) }).await;
        match id {
            "detached" => assert_eq!(ended.reason, FinishReason::Length),
            _ => assert_eq!(ended.reason, FinishReason::Cancelled, "{id}"),
        }
    }
    let never = node.seen.end_of("never").expect("ended").completion_tokens;
    assert!(never < 200, "the first event finds that nobody listens: {never}");
    node.stop().await;
}

#[tokio::test]
async fn malformed_requests_of_every_kind_are_answered_and_leave_the_node_healthy() {
    let (_server, node, client) = setup().await;
    let big = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(1 << 20));
    let bodies = [
        "",
        "{",
        "[]",
        "null",
        "\u{0}",
        "{}",
        r#"{"prompt":1}"#,
        r#"{"prompt":"a","x":1}"#,
        r#"{"prompt":"a","prompt":"b"}"#,
        r#"{"prompt":"a","params":{"temperature":NaN}}"#,
        r#"{"prompt":"a","tenant":"t"}"#,
        r#"{"request_id":"a b","prompt":"a"}"#,
        r#"{"prompt":"a","messages":[]}"#,
        &big[..1 << 20],
    ];
    for body in bodies {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
        let sent = client.publish_with_reply(GENERATE, inbox, body.to_owned().into()).await;
        sent.expect("publishes");
        let refused = next(&mut answers).await;
        assert_eq!(header(&refused, "Nats-Service-Error-Code"), Some("400"), "{body:.40}");
        assert!(next(&mut answers).await.payload.is_empty(), "{body:.40}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "text/xml");
    let answer = client.request_with_headers(GENERATE, headers, "<a/>".into()).await;
    assert_eq!(parsed(&answer.expect("answers"))["error"]["kind"], "unsupported");
    // Nowhere to answer: dropped.
    client.publish(GENERATE, r#"{"prompt":"a"}"#.into()).await.expect("publishes");
    client.publish(GENERATE, "{".into()).await.expect("publishes");
    let asker = Asker::over(client, "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
    assert_eq!(node.seen.admitted.load(std::sync::atomic::Ordering::SeqCst), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_too_large() {
    let server = NatsServer::start();
    let node = Node::start(Config { max_request_bytes: 100, ..config(&server) }, "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let body = json!({"prompt": "x".repeat(200)}).to_string();
    let answer = client.request(GENERATE, body.into()).await.expect("answers");
    assert_eq!(parsed(&answer)["error"]["kind"], "too_large");
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("413"));
    node.stop().await;
}

#[tokio::test]
async fn a_full_mailbox_refuses_instead_of_losing() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let send = |id: String, prompt: &str| {
        let body = json!({"request_id": id, "prompt": prompt, "detached": true}).to_string();
        client.publish_with_reply(GENERATE, inbox.clone(), body.into())
    };
    send("block".into(), "block").await.expect("publishes");
    for i in 0..2_000 {
        send(format!("m{i}"), "refuse").await.expect("publishes");
    }
    let (mut accepted, mut busy, mut refused) = (0, 0, 0);
    for _ in 0..2_001 {
        let answer = parsed(&next(&mut answers).await);
        match answer["error"]["message"].as_str() {
            None => accepted += 1,
            Some("full") => refused += 1,
            Some("admission is busy") => {
                assert!(answer["error"]["retry_after_ms"].is_u64());
                busy += 1;
            }
            Some(other) => panic!("{other}"),
        }
    }
    assert_eq!((accepted, busy + refused), (1, 2_000), "every request has one answer");
    assert!(busy > 0, "512 fit into the mailbox");
    node.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_a_message_is_split() {
    let server = NatsServer::with("max_payload: 1024\n");
    let node = Node::start(config(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut events = client.subscribe("inferno.v1.tokens.long").await.expect("subscribes");
    let body = json!({
        "request_id": "long", "prompt": "Hi", "params": {"max_tokens": 2_000, "stream": false}
    });
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(2_000, &ids, &text);
    assert_eq!(last["usage"]["completion_tokens"], 2_000);
    node.stop().await;
}

#[tokio::test]
async fn two_nodes_share_the_requests_of_one_model() {
    let (server, node, client) = setup().await;
    let other = Node::start(config(&server), "node-b").await;
    eventually("both serve", || async { (nodes(&client).await.len() == 2).then_some(()) }).await;
    let asker = Asker::over(client, "inferno.v1");
    let mut answered = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..60 {
        let mut generation =
            asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
        *answered.entry(generation.node_id().to_owned()).or_default() += 1;
        while generation.next().await.expect("streams").is_some() {}
    }
    assert_eq!(answered.len(), 2, "{answered:?}");
    assert_eq!(answered.values().sum::<u32>(), 60, "one node takes each");
    node.stop().await;
    other.stop().await;
}

/// The ids of the nodes that serve something, by the service API.
async fn nodes(client: &Client) -> Vec<String> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    client.publish_with_reply("$SRV.INFO.inferno", inbox, "".into()).await.expect("publishes");
    let mut nodes = Vec::new();
    while let Ok(Some(answer)) =
        tokio::time::timeout(Duration::from_millis(100), answers.next()).await
    {
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            break;
        }
        let info = parsed(&answer);
        if info["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty()) {
            nodes.push(info["id"].as_str().expect("an id").to_owned());
        }
    }
    nodes
}

#[tokio::test]
async fn the_service_api_shows_the_node_and_what_it_did() {
    let (_server, node, client) = setup().await;
    let asker = Asker::over(client.clone(), "inferno.v1");
    for prompt in ["Hi", "Hi", "refuse"] {
        match asker.generate("demo", json!({"prompt": prompt})).await {
            Ok(mut generation) => while generation.next().await.expect("streams").is_some() {},
            Err(error) => assert!(matches!(error, ClientError::Refused(_)), "{error}"),
        }
    }
    for name in ["$SRV.PING", "$SRV.PING.inferno", "$SRV.PING.inferno.node-a"] {
        let ping = parsed(&client.request(name, "".into()).await.expect("answers"));
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!((&ping["name"], &ping["id"]), (&json!("inferno"), &json!("node-a")));
    }
    let stats = client.request("$SRV.STATS.inferno.node-a", "".into()).await.expect("answers");
    let endpoint = parsed(&stats)["endpoints"][0].clone();
    assert_eq!(endpoint["subject"], GENERATE);
    assert_eq!(endpoint["queue_group"], "inferno");
    assert_eq!((&endpoint["num_requests"], &endpoint["num_errors"]), (&json!(3), &json!(1)));
    assert_eq!(endpoint["last_error"], "429:queue_full: full");
    assert!(endpoint["average_processing_time"].as_u64() > Some(0));
    let unknown = client.request("$SRV.PING.inferno.other", "".into()).await;
    assert!(unknown.is_err(), "a name that is not there has no responder");
    node.stop().await;
}

#[tokio::test]
async fn health_messages_are_published_on_the_nodes_subject() {
    let (_server, node, client) = setup().await;
    let mut health = client.subscribe("inferno.v1.node.node-a.health").await.expect("subscribes");
    // A round trip on the same connection: from here on the subscription is known.
    wait_ready(&client).await;
    node.bus.health_publisher()(r#"{"status":"healthy"}"#.into());
    assert_eq!(parsed(&next(&mut health).await)["status"], "healthy");
    node.bus.publish_health(r#"{"status":"critical"}"#);
    assert_eq!(parsed(&next(&mut health).await)["status"], "critical");
    node.stop().await;
}

#[path = "bus/access.rs"]
mod access;
#[path = "bus/outage.rs"]
mod outage;
#[path = "bus/throughput.rs"]
mod throughput;
