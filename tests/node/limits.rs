//! More than the node takes, clients that leave, and bodies of every bad kind.

use std::time::{Duration, Instant};

use inferno_node::bus::client::{Client, ClientError, Generation};
use inferno_node::error::Kind;
use serde_json::{Value, json};

use super::harness::{NodeProcess, client, request};

const MANAGED: &str = "[bus]\nmode = \"managed\"\n";

#[tokio::test]
async fn beyond_its_places_the_node_refuses_with_a_time_to_come_back() {
    let sections = format!("{MANAGED}[admission]\nmax_requests = 2\n");
    let node = NodeProcess::start_sim(5_000, &sections);
    let bus = client(&node.nats()).await;
    let _first = bus.generate("demo", request(1500, 1)).await.expect("accepted");
    let _second = bus.generate("demo", request(1500, 2)).await.expect("accepted");
    match bus.generate("demo", request(8, 3)).await.map(|generation| generation.id().clone()) {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.kind, Kind::QueueFull);
            assert!(error.retry_after_ms.is_some_and(|ms| ms > 0), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 8});
    let reply = node.post("/v1/completions", &body).await;
    assert_eq!(reply.status().as_u16(), 429);
    let after = reply.headers().get("retry-after").expect("says when").to_str().expect("text");
    assert!(after.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{after}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let sections = format!("{MANAGED}[admission]\nmax_requests = 1\n");
    let node = NodeProcess::start_sim(5_000, &sections);
    // Over HTTP: the connection is closed in mid-stream.
    let body = json!({"model": "demo", "prompt": "Hello", "max_tokens": 1500, "stream": true});
    let mut reply = node.post("/v1/completions", &body).await;
    reply.chunk().await.expect("streams").expect("a first chunk");
    drop(reply);
    // Over the bus: nobody subscribes to the tokens any more, which the node learns from its next question.
    let bus = client(&node.nats()).await;
    let mut generation = when_free(&bus, request(1500, 1)).await;
    generation.next().await.expect("streams").expect("a first event");
    drop(generation);
    when_free(&bus, request(8, 1)).await;
}

/// Asks until the place is free; the completion before is far from its end.
async fn when_free(bus: &Client, body: Value) -> Generation {
    let deadline = Instant::now() + Duration::from_secs(6);
    loop {
        match bus.generate("demo", body.clone()).await {
            Ok(generation) => return generation,
            Err(ClientError::Refused(error)) if error.kind == Kind::QueueFull => {
                assert!(Instant::now() < deadline, "the place is not freed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn bodies_of_every_bad_kind_leave_the_node_healthy() {
    let node = NodeProcess::start_sim(0, MANAGED);
    let http = reqwest::Client::new();
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        br#"{"model": "demo"}"#,
        br#"{"model": "demo", "prompt": 3}"#,
        br#"{"model": "demo", "prompt": "x", "temperature": 1e999}"#,
        br#"{"model": "demo", "prompt": "x", "top_p": -1}"#,
        br#"{"model": "demo", "prompt": "x", "prompt": "y"}"#,
        br#"{"model": "demo", "prompt": "x", "no_such_parameter": 1}"#,
    ];
    let raw = async_nats::connect(node.nats()).await.expect("NATS is there");
    for body in bodies {
        let sent = http
            .post(format!("{}/v1/completions", node.http()))
            .header("content-type", "application/json")
            .body(body.to_vec());
        let reply = sent.send().await.expect("answers");
        assert_eq!(reply.status().as_u16(), 400, "{:?}", String::from_utf8_lossy(body));
        let error: Value = reply.json().await.expect("OpenAI's error body");
        assert!(error["error"]["message"].is_string(), "{error}");

        let answer = raw.request("inferno.v1.generate.demo", body.to_vec().into());
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        let answer = answer.expect("in time").expect("a refusal is an answer");
        let refusal: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert!(refusal["error"]["kind"].is_string(), "{refusal}");
    }
    assert_eq!(node.get("/v1/health").await.1["status"], "healthy");
    let good = json!({"model": "demo", "prompt": "Hello", "max_tokens": 8});
    assert_eq!(node.post("/v1/completions", &good).await.status().as_u16(), 200);
}

/// The same request for both doors: path and body over HTTP, body on the bus.
struct Twins(&'static str, Value, Value);

/// A completion with these parameters.
fn completion(over_http: Value, on_bus: Value) -> Twins {
    let mut body = json!({"model": "demo", "prompt": "x"});
    let members = body.as_object_mut().expect("an object");
    members.extend(over_http.as_object().expect("an object").clone());
    Twins("/v1/completions", body, json!({"prompt": "x", "params": on_bus}))
}

#[tokio::test]
async fn both_doors_name_a_bad_member_by_the_path_that_the_client_wrote() {
    let node = NodeProcess::start_sim(0, MANAGED);
    let raw = async_nats::connect(node.nats()).await.expect("NATS is there");
    let same = |params: Value| completion(params.clone(), params);
    let messages = json!([{"role": "user", "content": "x"}, {"role": "user"}]);
    let chat = json!({"model": "demo", "messages": messages});
    let chat = Twins("/v1/chat/completions", chat, json!({"messages": messages}));
    let (newer, older) = (json!({"max_completion_tokens": 0}), json!({"max_tokens": 0}));
    let several = json!({"model": "demo", "prompt": [[1], [9_999_999]]});
    let several = Twins("/v1/completions", several, json!({"prompt_token_ids": [9_999_999]}));
    let single = json!({"model": "demo", "prompt": [3_072]});
    let single = Twins("/v1/completions", single, json!({"prompt_token_ids": [3_072]}));
    let cases = [
        // Found by the reader.
        (same(json!({"max_tokens": "5"})), "max_tokens", "params.max_tokens"),
        (same(json!({"top_q": 1})), "top_q", "params.top_q"),
        (same(json!({"tools": [1]})), "tools", "params.tools"),
        (chat, "messages[1].content", "messages[1].content"),
        // Found by admission.
        (same(json!({"top_p": 3})), "top_p", "params.top_p"),
        (same(json!({"max_tokens": 10_000_000})), "max_tokens", "params.max_tokens"),
        (completion(newer, older), "max_completion_tokens", "params.max_tokens"),
        (several, "prompt[1]", "prompt_token_ids"),
        // The first id that the demo model does not have.
        (single, "prompt", "prompt_token_ids"),
    ];
    for (Twins(url, over_http, on_bus), http_path, bus_path) in cases {
        let said = |answer: &Value, path: &str| {
            assert_eq!(answer["error"]["param"], path, "{answer}");
            let text = answer["error"]["message"].as_str().expect("a text");
            text.strip_prefix(&format!("{path}: ")).expect("begins with the path").to_owned()
        };
        let reply: Value = node.post(url, &over_http).await.json().await.expect("JSON");
        let text = said(&reply, http_path);
        let answer = raw.request("inferno.v1.generate.demo", on_bus.to_string().into());
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        let answer = answer.expect("in time").expect("a refusal is an answer");
        let refusal: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(said(&refusal, bus_path), text);
        let headers = answer.headers.expect("of an error");
        let header = headers.get("Nats-Service-Error").expect("its text").as_str();
        assert!(header.ends_with(&format!("{bus_path}: {text}")), "{header}");
    }
}
