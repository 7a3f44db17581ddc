//! A stand-in for admission and everything behind it: plays the events that a prompt asks for.
//!
//! Prompts: `refuse` is refused as queue_full; `drop` is accepted and forgotten after two tokens; `fail` fails after two tokens;
//! `block` keeps admission's thread busy for 300 ms; `pace N` takes N ms for a token; everything else goes at full speed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, System};
use inferno_node::bus::{self, Bus, BusDeps, Config, NodeFacts};
use inferno_node::door::{Admit, Cancel, RunningObserver};
use inferno_node::error::{Error, Kind};
use inferno_node::health::{self, Vitals};
use inferno_node::ids::{RequestId, SequenceId};
use inferno_node::lifeline::Lifeline;
use inferno_node::registrar::NodeTraits;
use inferno_node::request::{
    Ended, Event, FinishReason, Handle, Prompt, Receipt, Request, TokenLogprob, Usage,
};
use inferno_node::telemetry::Metrics;
use tokio::sync::oneshot;

/// What the fake and the test both see.
#[derive(Default)]
pub struct Seen {
    running: Mutex<HashMap<RequestId, Arc<Handle>>>,
    observer: OnceLock<Arc<dyn RunningObserver>>,
    /// Requests that reached admission.
    pub admitted: AtomicUsize,
    /// How requests ended.
    pub ends: Mutex<Vec<(RequestId, Ended)>>,
    next: AtomicU64,
}

impl Seen {
    /// The end of a request, once there is one.
    pub fn end_of(&self, id: &str) -> Option<Ended> {
        let ends = self.ends.lock().expect("no panic");
        ends.iter().find(|(of, _)| of.as_str() == id).map(|(_, ended)| *ended)
    }

    /// Tells the bus of a request that did not come from it.
    pub fn observer(&self) -> Arc<dyn RunningObserver> {
        self.observer.get().expect("the bus is started").clone()
    }

    fn end(&self, handle: &Handle, ended: Ended) {
        self.running.lock().expect("no panic").remove(handle.request_id());
        self.ends.lock().expect("no panic").push((handle.request_id().clone(), ended));
        if let Some(observer) = self.observer.get() {
            observer.ended(handle.request_id());
        }
        handle.end(ended);
    }
}

/// Of a node without HTTP.
fn facts() -> NodeFacts {
    NodeFacts {
        http: None,
        traits: NodeTraits { max_batch_size: 1, gpu_count: 0, attention_backend: "reference" },
        capabilities: Vec::new(),
        models: vec!["demo".to_owned()],
    }
}

struct Admission(Arc<Seen>);

impl Actor for Admission {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(512);
    }
}

impl Handler<Admit> for Admission {
    type Result = ();

    fn handle(&mut self, Admit(mut request): Admit, _: &mut Self::Context) {
        let seen = self.0.clone();
        seen.admitted.fetch_add(1, Ordering::SeqCst);
        let script = match &request.prompt {
            Prompt::Text(text) => text.clone(),
            _ => String::new(),
        };
        if script == "refuse" {
            let error = Error::new(Kind::QueueFull, "full").with_retry_after_ms(70);
            return request.sink.refused(&error);
        }
        if script == "block" {
            std::thread::sleep(Duration::from_secs(3));
        }
        let sequence = SequenceId(seen.next.fetch_add(1, Ordering::SeqCst));
        let handle = Handle::new(request.id.clone(), sequence);
        {
            let mut running = seen.running.lock().expect("no panic");
            if running.contains_key(&request.id) {
                let error = Error::new(Kind::Conflict, "runs already").with_param("request_id");
                return request.sink.refused(&error);
            }
            running.insert(request.id.clone(), handle.clone());
        }
        seen.observer().started(&request.id);
        request.sink.accepted(&handle);
        std::thread::spawn(move || play(&seen, request, &script, &handle));
    }
}

impl Handler<Cancel> for Admission {
    type Result = ();

    fn handle(&mut self, cancel: Cancel, _: &mut Self::Context) {
        let running = self.0.running.lock().expect("no panic").get(&cancel.id).cloned();
        let Some(handle) = running else {
            let _ = cancel.done.send(Err(Error::new(Kind::NotFound, "no such request")));
            return;
        };
        handle.cancel();
        actix::spawn(async move {
            if let Ok(ended) = handle.wait().await {
                let _ = cancel.done.send(Ok(ended));
            }
        });
    }
}

/// Token `i` is `i`, its text is `<i>`.
pub fn token_text(i: u32) -> String {
    format!("<{i}>")
}

fn play(seen: &Seen, mut request: Request, script: &str, handle: &Arc<Handle>) {
    let pace = script.strip_prefix("pace ").and_then(|ms| ms.parse().ok()).unwrap_or(0);
    let tokens = request.params.max_tokens.unwrap_or(5);
    let mut reason = FinishReason::Length;
    let mut error = None;
    let mut done = 0;
    let mut whole = event(&request.id, 0, vec![]);
    while done < tokens {
        if handle.wants_no_more() {
            reason = FinishReason::Cancelled;
            break;
        }
        if script == "drop" && done == 2 {
            drop(request);
            return seen.end(handle, Ended { reason: FinishReason::Failed, completion_tokens: 2 });
        }
        if script == "fail" && done == 2 {
            reason = FinishReason::Failed;
            error = Some(Box::new(Error::internal("the step failed twice")));
            break;
        }
        if request.stream {
            let mut next = event(&request.id, done, vec![done]);
            next.logprobs = request.params.logprobs.map(|_| vec![token_logprob(done)]);
            // A prompt of as many thousand tokens as alternatives are asked for.
            let prompt = request.params.prompt_logprobs.filter(|_| done == 0);
            next.prompt_logprobs =
                prompt.map(|thousands| (0..thousands * 1_000).map(token_logprob).collect());
            if request.sink.event(next).is_err() {
                handle.cancel();
            }
        } else {
            whole.token_ids.push(done);
            whole.text.push_str(&token_text(done));
        }
        done += 1;
        if pace > 0 {
            std::thread::sleep(Duration::from_millis(pace));
        }
    }
    let mut last = if request.stream { event(&request.id, done, vec![]) } else { whole };
    last.finish_reason = Some(reason);
    last.error = error;
    last.usage = Some(Usage {
        prompt_tokens: 3,
        completion_tokens: done,
        total_tokens: done + 3,
        cached_tokens: 0,
    });
    last.receipt = Some(Box::new(Receipt { attempt: 1, ..Receipt::default() }));
    let _ = request.sink.event(last);
    seen.end(handle, Ended { reason, completion_tokens: done });
}

/// Its log probability is minus its number.
fn token_logprob(i: u32) -> TokenLogprob {
    let (token, logprob) = (token_text(i), Some(-(i as f32)));
    TokenLogprob { token_id: i, token, bytes: None, logprob, text_offset: 3 * i, top: Vec::new() }
}

fn event(id: &RequestId, seq: u32, token_ids: Vec<u32>) -> Event {
    Event {
        seq,
        text: token_ids.iter().map(|i| token_text(*i)).collect(),
        token_ids,
        ..Event::new(id.clone())
    }
}

/// A bus with the fake behind it.
pub struct Node {
    /// The bus.
    pub bus: Bus,
    /// What the fake saw.
    pub seen: Arc<Seen>,
    admission: Addr<Admission>,
    system: System,
}

impl Node {
    /// A node that serves `demo`.
    pub async fn start(config: Config, node_id: &str) -> Self {
        Self::counted_by(Metrics::new(node_id), config, node_id).await
    }

    /// The same, with counters that the test reads.
    pub async fn counted_by(metrics: Metrics, config: Config, node_id: &str) -> Self {
        let seen = Arc::new(Seen::default());
        let (system, addr) = start_admission(seen.clone());
        let metrics = Arc::new(metrics);
        let limits = health::Config::default().limits();
        let vitals = Arc::new(Vitals::new(node_id, limits, metrics.clone()));
        let deps = BusDeps {
            vitals: vitals.clone(),
            admit: addr.clone().recipient(),
            cancel: addr.clone().recipient(),
            log: inferno_node::log::Config::default(),
            facts: facts(),
            room: std::sync::Arc::new(|| 16),
            metrics,
        };
        let alive = Lifeline::unwatched();
        let bus = bus::start(&config, deps, alive).await.expect("the bus starts");
        let _ = seen.observer.set(bus.observer());
        bus.serve_model("demo", "").await;
        Self { bus, seen, admission: addr, system }
    }

    /// Requests that reached admission's mailbox before this call: a cancel that joins the mailbox behind them is answered after
    /// all of them were handled.
    pub async fn admitted(&self) -> usize {
        let (done, answer) = oneshot::channel();
        let nobody = RequestId::parse("nobody").expect("an id");
        self.admission.send(Cancel { id: nobody, done }).await.expect("admission runs");
        answer.await.expect("an answer").expect_err("no such request");
        self.seen.admitted.load(Ordering::SeqCst)
    }

    /// Ends bus and fake.
    pub async fn stop(self) {
        self.bus.stop().await;
        self.system.stop();
    }
}

fn start_admission(seen: Arc<Seen>) -> (System, Addr<Admission>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let system = System::new();
        let addr = system.block_on(async { Admission(seen).start() });
        sender.send((System::current(), addr)).expect("the test waits");
        let _ = system.run();
    });
    receiver.recv().expect("the system starts")
}
