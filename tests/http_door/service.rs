//! Everything beside generation: models, health, metrics, and a node that is full or gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use actix::{Actor, Arbiter, AsyncContext as _, Context, Handler};
use inferno_node::door::{Admit, AdmitAll, Cancel};
use inferno_node::http::{Config, start};
use inferno_node::lifeline::Lifeline;
use inferno_node::secret::Secret;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use crate::rig::{Health, Rig, chat, completion, config, deps, fault};

const CHAT: &str = "/v1/chat/completions";

#[actix_web::test]
async fn models_are_listed_as_openai_lists_them() {
    let rig = Rig::new();
    let model = json!({"id": "demo", "object": "model", "created": 1_700_000_000,
                       "owned_by": "inferno", "max_seq_len": 2048, "max_model_len": 2048});
    let list: Value = rig.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list, json!({"object": "list", "data": [model]}));
    let one: Value = rig.get("/v1/models/demo").await.json().await.unwrap();
    assert_eq!(one, model);
    let other = rig.get("/v1/models/other").await;
    let (status, _, code, param) = fault(other).await;
    assert_eq!((status, code.as_str(), param.as_deref()), (404, "model_not_found", Some("model")));
    let other: Value = rig.get("/v1/models/other").await.json().await.unwrap();
    assert_eq!(other["error"]["message"], "model: expected demo, got \"other\"");
}

#[actix_web::test]
async fn health_is_the_message_and_its_status() {
    let rig = Rig::new();
    let answer = rig.get("/v1/health").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], "degraded");
    rig.health.critical.store(true, Ordering::Relaxed);
    let answer = rig.get("/v1/health").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], "critical");
    assert_eq!(rig.get("/health/live").await.status(), 200);
    assert_eq!(rig.get("/health/ready").await.status(), 503);
    assert_eq!(rig.get("/health").await.status(), 503);
    rig.health.ready.store(true, Ordering::Relaxed);
    let answer = rig.get("/health/ready").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"ready": true}));
    assert_eq!(rig.get("/health").await.status(), 200, "vLLM's name of it");
    assert!(answer_has_id(&rig).await);
}

async fn answer_has_id(rig: &Rig) -> bool {
    rig.get("/health/live").await.headers().contains_key("x-request-id")
}

#[actix_web::test]
async fn what_can_be_read_can_be_asked_for_without_its_body() {
    let rig = Rig::new();
    rig.health.ready.store(true, Ordering::Relaxed);
    let paths = [
        "/v1/models",
        "/v1/models/demo",
        "/v1/models/other",
        "/v1/health",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    ];
    for path in paths {
        let whole = rig.get(path).await;
        let head = rig.client.head(rig.url(path)).send().await.unwrap();
        assert_eq!(head.status(), whole.status(), "{path}");
        for name in ["content-type", "content-length"] {
            // The metrics go on counting.
            if (path, name) != ("/metrics", "content-length") {
                assert_eq!(head.headers()[name], whole.headers()[name], "{path} {name}");
            }
        }
        assert_eq!(head.bytes().await.unwrap().len(), 0, "{path}");
    }
}

#[actix_web::test]
async fn a_browsers_page_may_use_the_door_where_the_configuration_says_so() {
    let keys = vec![Secret::new("k")];
    let origins = vec!["https://a.example".to_owned()];
    let mut rig = Rig::with(&Config { api_keys: keys, allowed_origins: origins, ..config() });
    let ask = |method: reqwest::Method, path: &str| {
        rig.client.request(method, rig.url(path)).header("origin", "https://a.example")
    };
    // The preflight comes without the key.
    let preflight = ask(reqwest::Method::OPTIONS, CHAT)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization, x-stainless-os");
    let answer = preflight.send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(answer.headers()["access-control-allow-headers"], "authorization, x-stainless-os");
    assert!(answer.headers()["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    // A refusal can be read, too.
    let answer = ask(reqwest::Method::POST, CHAT).json(&chat(json!({}))).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(answer.headers()["vary"], "origin");
    assert_eq!(answer.status(), 401);
    let answer =
        ask(reqwest::Method::POST, CHAT).bearer_auth("k").json(&chat(json!({"stream": true})));
    let answer = tokio::spawn(answer.send());
    rig.next().await.play(&["x"]);
    let answer = answer.await.unwrap().unwrap();
    assert!(
        answer.headers()["access-control-expose-headers"]
            .to_str()
            .unwrap()
            .contains("x-request-id")
    );
    let other = rig.client.get(rig.url("/health/live")).header("origin", "https://b.example");
    let answer = other.send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    assert_eq!(answer.headers()["vary"], "origin");
}

#[actix_web::test]
async fn without_allowed_origins_nothing_is_said_of_them() {
    let rig = Rig::new();
    let preflight = rig.client.request(reqwest::Method::OPTIONS, rig.url(CHAT));
    let preflight =
        preflight.header("origin", "http://a").header("access-control-request-method", "POST");
    let answer = preflight.send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["allow"]),
        (204, &HeaderValue::from_static("POST, OPTIONS"))
    );
    let names: Vec<_> = answer.headers().keys().map(|name| name.as_str().to_owned()).collect();
    assert!(
        !names.iter().any(|name| name.starts_with("access-control") || name == "vary"),
        "{names:?}"
    );
}

#[actix_web::test]
async fn metrics_are_prometheus_text() {
    let rig = Rig::new();
    let answer = rig.get("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert!(answer.text().await.unwrap().contains("inferno_requests_running"));
}

#[actix_web::test]
async fn one_connection_serves_many_requests_also_after_refusals() {
    let mut rig = Rig::with(&Config { max_connections: 1, ..config() });
    for round in 0..3 {
        assert_eq!(rig.post(CHAT, chat(json!({"n": "2"}))).await.unwrap().status(), 400, "{round}");
        let answer = rig.post(CHAT, chat(json!({"stream": true})));
        rig.next().await.play(&["x"]);
        assert!(answer.await.unwrap().text().await.unwrap().ends_with("[DONE]\n\n"), "{round}");
    }
}

#[actix_web::test]
async fn without_keep_alive_connections_close() {
    let rig = Rig::with(&Config { keep_alive_s: 0, ..config() });
    let answer = rig.get("/health/live").await;
    assert_eq!(answer.headers()["connection"], "close");
}

/// Admission that stands still until it is let go.
struct Stuck(mpsc::Receiver<()>);

impl Actor for Stuck {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1);
        // The capacity counts from the next message on.
        ctx.notify(Wait);
    }
}

struct Wait;

impl actix::Message for Wait {
    type Result = ();
}

impl Handler<Wait> for Stuck {
    type Result = ();
    fn handle(&mut self, _: Wait, _: &mut Self::Context) {
        let _ = self.0.recv();
    }
}

impl Handler<Admit> for Stuck {
    type Result = ();
    fn handle(&mut self, _: Admit, _: &mut Self::Context) {}
}

impl Handler<AdmitAll> for Stuck {
    type Result = ();
    fn handle(&mut self, _: AdmitAll, _: &mut Self::Context) {
        let _ = self.0.recv();
    }
}

impl Handler<Cancel> for Stuck {
    type Result = ();
    fn handle(&mut self, _: Cancel, _: &mut Self::Context) {}
}

#[actix_web::test]
async fn a_full_mailbox_is_429_and_a_closed_one_503() {
    let (release, released) = mpsc::channel();
    let arbiter = Arbiter::new();
    let stuck = Stuck::start_in_arbiter(&arbiter.handle(), move |_| Stuck(released));
    let deps = deps(stuck, Arc::new(Health::default()));
    let running = start(&config(), deps, Lifeline::unwatched()).unwrap();
    let url = |path: &str| format!("http://{}{path}", running.address());
    let client = reqwest::Client::new();
    let mut answers = Vec::new();
    let full = loop {
        let body = completion(json!({"prompt": ["a", "b"]}));
        let send = client.post(url("/v1/completions")).json(&body).send();
        let mut answer = tokio::spawn(send);
        // Those that fit into the mailbox wait; the first that does not is answered.
        let patience = std::time::Duration::from_millis(200);
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(answer) => break answer.unwrap().unwrap(),
            Err(_) => answers.push(answer),
        }
        assert!(answers.len() < 50, "a mailbox without bound");
    };
    assert_eq!(full.headers()["retry-after"], "1");
    assert_eq!(fault(full).await.2, "rate_limit_exceeded");
    // Each way into a mailbox has room for one message more, so one of two is refused at once.
    let refused = tokio::select! {
        answer = client.delete(url("/v1/requests/r1")).send() => answer.unwrap(),
        answer = client.delete(url("/v1/requests/r2")).send() => answer.unwrap(),
    };
    assert_eq!(fault(refused).await.0, 429);
    arbiter.stop();
    drop(release);
    arbiter.join().unwrap();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().status(), 500, "lost with the mailbox");
    }
    let gone = client.post(url(CHAT)).json(&chat(json!({}))).send().await.unwrap();
    assert_eq!(fault(gone).await.0, 503);
}

#[actix_web::test]
async fn a_bad_configuration_or_a_taken_port_opens_no_door() {
    let rig = Rig::new();
    let taken = Config { bind: rig.running.address().to_string(), ..config() };
    let open = Config { bind: "0.0.0.0:0".to_owned(), ..config() };
    for (config, kind) in
        [(taken, std::io::ErrorKind::AddrInUse), (open, std::io::ErrorKind::InvalidInput)]
    {
        // Nobody holds the other end, so this one does not stand still.
        let admission = Stuck(mpsc::channel().1).start();
        let deps = deps(admission, Arc::new(Health::default()));
        let refused = start(&config, deps, Lifeline::unwatched()).map(|running| running.address());
        assert_eq!(refused.map_err(|error| error.kind()), Err(kind));
    }
}
