//! The door between a client and a played node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use inferno_node::clock::Timestamp;
use inferno_node::door::{Admit, AdmitAll, Cancel, List, ModelInfo};
use inferno_node::error::Error;
use inferno_node::health::{HealthSource, Status};
use inferno_node::http::{Config, HttpDeps, Server, start};
use inferno_node::ids::SequenceId;
use inferno_node::lifeline::Lifeline;
use inferno_node::request::{
    Event, FinishReason, Handle, Receipt, Request, SinkClosed, TokenLogprob, TopLogprob, Usage,
};
use inferno_node::telemetry::Metrics;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Admission {
    admits: UnboundedSender<Request>,
    cancels: UnboundedSender<Cancel>,
}

impl Actor for Admission {
    type Context = Context<Self>;
}

impl Handler<Admit> for Admission {
    type Result = ();
    fn handle(&mut self, Admit(request): Admit, _: &mut Self::Context) {
        let _ = self.admits.send(request);
    }
}

impl Handler<AdmitAll> for Admission {
    type Result = ();
    fn handle(&mut self, all: AdmitAll, _: &mut Self::Context) {
        for request in all.requests {
            let _ = self.admits.send(request);
        }
    }
}

impl Handler<Cancel> for Admission {
    type Result = ();
    fn handle(&mut self, cancel: Cancel, _: &mut Self::Context) {
        let _ = self.cancels.send(cancel);
    }
}

impl Admission {
    /// One of whose requests nobody hears.
    pub fn deaf() -> Addr<Self> {
        Self { admits: unbounded_channel().0, cancels: unbounded_channel().0 }.start()
    }
}

struct Models;

impl Actor for Models {
    type Context = Context<Self>;
}

impl Handler<List> for Models {
    type Result = Vec<ModelInfo>;
    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        vec![ModelInfo {
            name: "demo".to_owned(),
            model_type: "llama",
            created: 1_700_000_000,
            max_seq_len: 2_048,
            devices: Vec::new(),
            weight_bytes: 1,
            kv_bytes: 1,
            digest: String::new(),
        }]
    }
}

/// A health that the test sets.
#[derive(Default)]
pub struct Health {
    pub critical: AtomicBool,
    pub ready: AtomicBool,
}

impl HealthSource for Health {
    fn health(&self) -> (Bytes, Status) {
        let status =
            if self.critical.load(Ordering::Relaxed) { Status::Critical } else { Status::Degraded };
        (Bytes::from(json!({"status": status}).to_string()), status)
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// An open door with the node's side in the test's hands.
pub struct Rig {
    pub running: Server,
    pub health: Arc<Health>,
    pub admits: UnboundedReceiver<Request>,
    pub cancels: UnboundedReceiver<Cancel>,
    pub client: reqwest::Client,
}

/// A configuration on a free port.
pub fn config() -> Config {
    Config { bind: "127.0.0.1:0".to_owned(), ..Config::default() }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(&config())
    }

    pub fn with(config: &Config) -> Self {
        let (admits_in, admits) = unbounded_channel();
        let (cancels_in, cancels) = unbounded_channel();
        let admission = Admission { admits: admits_in, cancels: cancels_in }.start();
        let health = Arc::new(Health::default());
        let deps = deps(admission, health.clone());
        let running = start(config, deps, Lifeline::unwatched()).expect("a free port");
        Self { running, health, admits, cancels, client: reqwest::Client::new() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.address())
    }

    /// Sends a body in a task of its own, so that the test can play the node meanwhile.
    pub fn post(&self, path: &str, body: Value) -> tokio::task::JoinHandle<reqwest::Response> {
        let request = self.client.post(self.url(path)).json(&body);
        tokio::spawn(async move { request.send().await.expect("an answer") })
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.expect("an answer")
    }

    /// The next request at admission.
    pub async fn next(&mut self) -> Played {
        let request = tokio::time::timeout(PATIENCE, self.admits.recv()).await;
        Played::new(request.expect("in time").expect("admission lives"))
    }

    pub async fn next_cancel(&mut self) -> Cancel {
        let cancel = tokio::time::timeout(PATIENCE, self.cancels.recv()).await;
        cancel.expect("in time").expect("admission lives")
    }
}

pub fn deps<A>(admission: Addr<A>, health: Arc<dyn HealthSource>) -> HttpDeps
where
    A: Actor<Context = Context<A>> + Handler<Admit> + Handler<AdmitAll> + Handler<Cancel>,
{
    let recorder = PrometheusBuilder::new().build_recorder();
    let prometheus = recorder.handle();
    let metrics = metrics::with_local_recorder(&recorder, || Arc::new(Metrics::new("n1")));
    HttpDeps {
        bus: Default::default(),
        admit: admission.clone().recipient(),
        admit_all: admission.clone().recipient(),
        cancel: admission.recipient(),
        models: Models.start().recipient(),
        health,
        prometheus,
        metrics,
    }
}

/// One request, played.
pub struct Played {
    pub request: Request,
    pub handle: Arc<Handle>,
    seq: u32,
}

impl Played {
    fn new(request: Request) -> Self {
        let handle = Handle::new(request.id.clone(), SequenceId(1));
        handle.set_num_prompt_tokens(3);
        Self { request, handle, seq: 0 }
    }

    pub fn accept(&mut self) {
        self.request.sink.accepted(&self.handle);
    }

    pub fn refuse(mut self, error: &Error) {
        self.request.sink.refused(error);
    }

    pub fn text(&mut self, text: &str) -> Result<(), SinkClosed> {
        let event = self.event(text);
        self.request.sink.event(event)
    }

    /// The first text, with a prompt of two tokens before it: what the reply stage sends where its echo is wanted.
    pub fn prompt_and_text(&mut self, prompt: [&str; 2], text: &str) -> Result<(), SinkClosed> {
        let mut event = self.event(text);
        let chars = |text: &str| text.chars().count() as u32;
        let entry = |token_id, token: &str, logprob, text_offset| TokenLogprob {
            token_id,
            token: token.to_owned(),
            bytes: None,
            logprob,
            text_offset,
            top: Vec::new(),
        };
        let first = entry(4, prompt[0], None, 0);
        event.prompt_logprobs =
            Some(vec![first, entry(5, prompt[1], Some(-3.0), chars(prompt[0]))]);
        if self.request.params.echoes() {
            event.text.insert_str(0, &prompt.concat());
            let shift = chars(&prompt.concat());
            event.logprobs.iter_mut().flatten().for_each(|entry| entry.text_offset += shift);
        }
        self.request.sink.event(event)
    }

    /// The last event, without a token of its own.
    pub fn finish(&mut self, reason: FinishReason) -> Result<(), SinkClosed> {
        let tokens = self.seq;
        let mut event = self.event("");
        event.token_ids.clear();
        event.logprobs = event.logprobs.map(|_| Vec::new());
        event.finish_reason = Some(reason);
        event.usage = Some(Usage {
            prompt_tokens: 3,
            completion_tokens: tokens,
            total_tokens: 3 + tokens,
            cached_tokens: 2,
        });
        event.receipt = Some(Box::new(Receipt {
            node_id: "n1".to_owned(),
            device: "cpu:0".to_owned(),
            attempt: 1,
            ..Receipt::default()
        }));
        self.request.sink.event(event)
    }

    pub fn fail(&mut self, error: Option<Error>) {
        let mut event = self.event("");
        event.finish_reason = Some(FinishReason::Failed);
        event.error = error.map(Box::new);
        let _ = self.request.sink.event(event);
    }

    /// Accepts, sends `pieces`, and stops.
    pub fn play(mut self, pieces: &[&str]) {
        self.accept();
        for piece in pieces {
            self.text(piece).expect("the reader is there");
        }
        self.finish(FinishReason::Stop).expect("the reader is there");
    }

    fn event(&mut self, text: &str) -> Event {
        let seq = self.seq;
        self.seq += 1;
        // The token itself is the likeliest; each further one is its number.
        let logprobs = self.request.params.num_logprobs().map(|count| {
            let likely = |token: &str, at: u32| TopLogprob {
                token_id: at,
                token: token.to_owned(),
                bytes: None,
                logprob: -0.5 * (at + 1) as f32,
            };
            let others = (1..count).map(|at| likely(&at.to_string(), at));
            vec![TokenLogprob {
                token_id: 0,
                token: text.to_owned(),
                bytes: None,
                logprob: Some(-0.5),
                text_offset: seq,
                top: (0..count.min(1)).map(|at| likely(text, at)).chain(others).collect(),
            }]
        });
        Event {
            at: Timestamp::now(),
            seq,
            token_ids: vec![7],
            text: text.to_owned(),
            logprobs,
            ..Event::new(self.request.id.clone())
        }
    }

    /// Waits until somebody has cancelled it.
    pub async fn cancelled(&self) {
        let cancelled = async {
            while !self.handle.is_cancelled() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, cancelled).await.expect("cancelled in time");
    }
}

/// A chat body with further members.
pub fn chat(more: Value) -> Value {
    merged(json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}), more)
}

/// A completion body with further members.
pub fn completion(more: Value) -> Value {
    merged(json!({"model": "demo", "prompt": "once"}), more)
}

fn merged(mut body: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// The events of a whole SSE body, each checked for its frame; `[DONE]` as a string.
pub fn events(body: &str) -> Vec<Value> {
    assert!(body.ends_with("\n\n"), "{body:?}");
    body.split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").expect("one data line"))
        .map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
        .collect()
}

/// The texts of chat or completion chunks, put together.
pub fn text_of(events: &[Value]) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices
        .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}

/// The error of an answer: status, `type`, `code`, `param`.
pub async fn fault(response: reqwest::Response) -> (u16, String, String, Option<String>) {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().await.expect("JSON");
    let error = &body["error"];
    assert!(!error["message"].as_str().expect("a message").is_empty());
    let text = |key: &str| error[key].as_str().map(str::to_owned);
    (status, text("type").expect("a type"), text("code").expect("a code"), text("param"))
}
