//! Not a test but a measurement, for a machine that is otherwise idle (`-- --ignored --nocapture throughput`, with optimisation):
//! the bus, a client and nats-server together, with a stand-in for everything behind the bus that costs nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, System};
use inferno_node::admission::{Admit, Cancel, RunningObserver};
use inferno_node::bus::{self, Config, Deps};
use inferno_node::health::Progress;
use inferno_node::request::{Event, FinishReason, Handle, Request, SequenceId};
use inferno_node::telemetry::Metrics;

use super::*;

type Running = Arc<Mutex<Vec<(Request, u32)>>>;

struct Stepper {
    running: Running,
    observer: Arc<OnceLock<Arc<dyn RunningObserver>>>,
}

impl Actor for Stepper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4_096);
    }
}

impl Handler<Admit> for Stepper {
    type Result = ();

    fn handle(&mut self, Admit(mut request): Admit, _: &mut Self::Context) {
        self.observer.get().expect("started").started(&request.id);
        request.sink.accepted(&Handle::new(request.id.clone(), SequenceId(0)));
        self.running.lock().expect("no panic").push((request, 0));
    }
}

impl Handler<Cancel> for Stepper {
    type Result = ();

    fn handle(&mut self, _: Cancel, _: &mut Self::Context) {}
}

/// Gives every running request one token a step, as the reply stage does.
fn step_for_ever(running: &Running, observer: &dyn RunningObserver) {
    loop {
        let mut all = std::mem::take(&mut *running.lock().expect("no panic"));
        if all.is_empty() {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        all.retain_mut(|(request, seq)| {
            let last = *seq + 1 == 64;
            let event = Event {
                request_id: request.id.clone(),
                attempt: 1,
                seq: *seq,
                token_ids: vec![1000 + *seq],
                text: " token".to_owned(),
                finish_reason: last.then_some(FinishReason::Length),
                usage: None,
                receipt: None,
                error: None,
            };
            let _ = request.sink.event(event);
            *seq += 1;
            if last {
                observer.ended(&request.id);
            }
            !last
        });
        running.lock().expect("no panic").extend(all);
        // A step that costs nothing still gives the other threads their turn.
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    let server = NatsServer::start();
    let running = Running::default();
    let observer = Arc::new(OnceLock::new());
    let (sender, receiver) = std::sync::mpsc::channel();
    let stepper = Stepper { running: running.clone(), observer: observer.clone() };
    std::thread::spawn(move || {
        let system = System::new();
        sender.send(system.block_on(async { stepper.start() })).expect("waits");
        let _ = system.run();
    });
    let addr = receiver.recv().expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runs");
    runtime.block_on(async {
        let deps = Deps {
            node_id: "node-a".to_owned(),
            admit: addr.clone().recipient(),
            cancel: addr.recipient(),
            metrics: Arc::new(Metrics::new("node-a")),
            progress: Progress::new(),
        };
        let bus =
            bus::start(&Config { url: server.url(), ..Config::default() }, deps).await.expect("starts");
        let _ = observer.set(bus.observer());
        bus.serve_model("demo");
        std::thread::spawn(move || step_for_ever(&running, &**observer.get().expect("set")));
        let nats = connect(&server).await;
        wait_ready(&nats).await;
        let asker = Asker::over(nats, "inferno.v1");
        let prompt = "sixty-four tokens of prompt, more or less ".repeat(6);
        let total: usize =
            std::env::var("REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000);
        let left = Arc::new(AtomicUsize::new(total));
        let events = Arc::new(AtomicUsize::new(0));
        let started = Instant::now();
        let clients: Vec<_> = (0..256)
            .map(|_| {
                let (asker, prompt, left, events) =
                    (asker.clone(), prompt.clone(), left.clone(), events.clone());
                tokio::spawn(async move {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                        let body = json!({"prompt": prompt, "params": {"max_tokens": 64}});
                        let mut generation = asker.generate("demo", body).await.expect("accepted");
                        let mut tokens = 0;
                        while let Some(event) = generation.next().await.expect("streams") {
                            tokens += event.token_ids.len();
                            events.fetch_add(1, Ordering::Relaxed);
                        }
                        assert_eq!(tokens, 64);
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.expect("no panic");
        }
        let seconds = started.elapsed().as_secs_f64();
        let rate = total as f64 / seconds;
        println!(
            "{total} requests in {seconds:.2} s: {rate:.0} requests/s, {:.0} tokens/s, {:.1} tokens an event",
            rate * 64.0,
            (total * 64) as f64 / events.load(Ordering::Relaxed) as f64
        );
        bus.stop().await;
    });
}
