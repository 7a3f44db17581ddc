use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use actix::Arbiter;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use super::testing::{Observed, model, request};
use super::*;
use crate::admission::RunningObserver;
use crate::batcher::Sampling;
use crate::executor::{DeviceId, ModelId};
use crate::models::GenerationDefaults;
use crate::reply::testing::{Collected, Word};
use crate::request::{
    ChatMessage, Ended, Event, FinishReason, Params, RequestId, Sink, SinkClosed,
};

/// Takes everything, keeps it for the test.
#[derive(Clone, Default)]
struct FakeScheduler {
    enqueued: Arc<Mutex<Vec<Enqueue>>>,
    sweeps: Arc<AtomicUsize>,
    /// Takes nothing: its mailbox fills.
    stuck: bool,
}

impl Actor for FakeScheduler {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        if self.stuck {
            context.set_mailbox_capacity(1);
            context.wait(actix::fut::wrap_future(std::future::pending()));
        }
    }
}

impl Handler<Enqueue> for FakeScheduler {
    type Result = ();

    fn handle(&mut self, enqueue: Enqueue, _: &mut Self::Context) {
        self.enqueued.lock().expect("no test panics in it").push(enqueue);
    }
}

impl Handler<Sweep> for FakeScheduler {
    type Result = ();

    fn handle(&mut self, _: Sweep, _: &mut Self::Context) {
        self.sweeps.fetch_add(1, Ordering::SeqCst);
    }
}

/// Admission between a test and a fake scheduler, each on an arbiter of its own.
struct Bench {
    admission: Addr<Admission>,
    scheduler: FakeScheduler,
    ledger: Arc<Ledger>,
    observed: Arc<Observed>,
    model: Arc<ServedModel>,
    arbiters: [Arbiter; 2],
}

impl Bench {
    fn start(config: Config, scheduler: FakeScheduler) -> Self {
        let arbiters = [Arbiter::new(), Arbiter::new()];
        let observed = Arc::new(Observed::default());
        let ledger = Ledger::new(vec![Arc::clone(&observed) as Arc<dyn RunningObserver>]);
        let fake = scheduler.clone();
        let address = FakeScheduler::start_in_arbiter(&arbiters[0].handle(), |_| fake);
        let start = Start {
            config,
            node_id: "node-1".into(),
            expected_models: vec!["later".into()],
            ledger: Arc::clone(&ledger),
            enqueue: address.clone().recipient(),
            sweep: address.recipient(),
            metrics: Arc::new(Metrics::new("test")),
            progress: Progress::new(),
        };
        let admission = Admission::start(&arbiters[1].handle(), start).expect("threads");
        Self { admission, scheduler, ledger, observed, model: model("m"), arbiters }
    }

    async fn tell<M>(&self, message: M)
    where
        M: actix::Message<Result = ()> + Send + 'static,
        Admission: Handler<M>,
    {
        self.admission.send(message).await.expect("the door is open");
    }

    async fn admit(&self, request: Request) {
        self.tell(Admit(request)).await;
    }

    fn enqueued(&self) -> Vec<Enqueue> {
        std::mem::take(&mut *self.scheduler.enqueued.lock().expect("no test panics in it"))
    }

    async fn next_enqueued(&self) -> Enqueue {
        let mut taken = Vec::new();
        until(|| {
            taken.extend(self.enqueued());
            !taken.is_empty()
        })
        .await;
        assert_eq!(taken.len(), 1);
        taken.remove(0)
    }

    async fn cancel(&self, id: &str) -> oneshot::Receiver<Result<Ended>> {
        let (done, answer) = oneshot::channel();
        self.tell(Cancel { id: RequestId::parse(id).expect("an id"), done }).await;
        answer
    }

    fn assert_empty(&self) {
        assert_eq!((self.ledger.num_requests(), self.ledger.waiting_tokens()), (0, 0));
        assert_eq!(self.model.in_use.load(Ordering::Relaxed), 0);
    }
}

/// Runs a test against a bench on which the model `m` is up, and ends the bench's threads.
fn on_bench<F, T>(config: Config, scheduler: FakeScheduler, test: F)
where
    F: FnOnce(Arc<Bench>) -> T,
    T: Future<Output = ()>,
{
    actix::System::new().block_on(async {
        let bench = Arc::new(Bench::start(config, scheduler));
        bench.tell(ModelUp(Arc::clone(&bench.model))).await;
        test(Arc::clone(&bench)).await;
        if let Ok(bench) = Arc::try_unwrap(bench) {
            for arbiter in bench.arbiters {
                arbiter.stop();
                arbiter.join().expect("an arbiter ends");
            }
        }
    });
}

fn with_bench<F, T>(test: F)
where
    F: FnOnce(Arc<Bench>) -> T,
    T: Future<Output = ()>,
{
    on_bench(Config::default(), FakeScheduler::default(), test);
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it comes about");
}

fn ids(count: usize) -> Prompt {
    Prompt::TokenIds(vec![1; count])
}

fn finish(enqueue: &Enqueue, reason: FinishReason) {
    let mut stream = enqueue.stream.lock().expect("no test panics in it");
    stream.push(1, &[2, 3], Some(reason), Timestamp::now());
}

#[test]
fn a_request_goes_all_the_way_and_gives_everything_back() {
    with_bench(|bench| async move {
        let sink = Collected::default();
        let params = Params {
            max_tokens: Some(9),
            min_tokens: Some(2),
            temperature: Some(0.5),
            top_k: Some(4),
            seed: Some(11),
            ignore_eos: Some(true),
            ..Params::default()
        };
        let asked = Request { params, priority: 200, ..request("a", ids(5), sink.clone()) };
        bench.admit(asked).await;
        let enqueue = bench.next_enqueued().await;
        let sequence = &enqueue.sequence;
        assert_eq!((sequence.num_prompt_tokens, sequence.token_ids.len()), (5, 5));
        assert_eq!((sequence.max_tokens, sequence.min_tokens), (9, 2));
        assert_eq!((sequence.attempt, sequence.failed_steps, sequence.priority), (1, 0, 200));
        assert_eq!((sequence.model, sequence.ignore_eos), (ModelId(5), true));
        let sampling = Sampling { temperature: 0.5, top_k: 4, top_p: 1.0, min_p: 0.0, seed: 11 };
        assert_eq!(sequence.sampling, sampling);
        assert!(matches!(sink.words().as_slice(), [Word::Accepted(id)] if id.as_str() == "a"));
        assert_eq!((bench.ledger.num_requests(), bench.ledger.waiting_tokens()), (1, 14));
        assert_eq!(bench.model.in_use.load(Ordering::Relaxed), 1);
        let scheduled = |s: &mut Stream| s.scheduled(&DeviceId::new("cpu:0"), 0, Timestamp::now());
        scheduled(&mut enqueue.stream.lock().expect("no test panics in it"));
        assert_eq!(bench.ledger.waiting_tokens(), 0);
        assert_eq!(bench.observed.words(), ["started a"]);
        finish(&enqueue, FinishReason::Length);
        bench.assert_empty();
        assert_eq!(bench.ledger.computed_tokens(), 7);
        assert_eq!(bench.observed.words(), ["started a", "ended a"]);
        let receipt = sink.last().and_then(|e| e.receipt).expect("in the last event");
        assert_eq!(receipt.node_id, "node-1");
    });
}

#[test]
fn text_and_messages_are_tokenized_and_defaults_filled_in() {
    with_bench(|bench| async move {
        let sink = Collected::default();
        bench.admit(request("t", Prompt::Text("hi".into()), sink.clone())).await;
        let text = bench.next_enqueued().await;
        assert_eq!((text.sequence.num_prompt_tokens, text.sequence.max_tokens), (3, 61));
        let chat = vec![ChatMessage { role: "user".into(), content: "hi".into() }];
        bench.admit(request("c", Prompt::Messages(chat), sink.clone())).await;
        let chat = bench.next_enqueued().await;
        assert_eq!((chat.sequence.num_prompt_tokens, chat.sequence.max_tokens), (19, 45));
        assert_ne!(text.sequence.sampling.seed, chat.sequence.sampling.seed);
        assert_ne!(text.sequence.id, chat.sequence.id);
        let short = Request {
            default_length: crate::request::DefaultLength::Completions,
            ..request("s", ids(1), sink)
        };
        bench.admit(short).await;
        assert_eq!(bench.next_enqueued().await.sequence.max_tokens, 16);
    });
}

#[test]
fn every_refusal_names_its_kind_and_gives_everything_back() {
    with_bench(|bench| async move {
        let text = |text: &str| Prompt::Text(text.into());
        let wizard = vec![ChatMessage { role: "wizard".into(), content: "hi".into() }];
        let top_p = Params { top_p: Some(2.0), ..Params::default() };
        let long = Params { max_tokens: Some(60), ..Params::default() };
        let sink = Collected::default;
        let ask = |prompt, sink: &Collected| request("r", prompt, sink.clone());
        let to = |model: &str, sink: &Collected| Request {
            model: model.into(),
            ..request("r", ids(1), sink.clone())
        };
        let with = |params, sink: &Collected| Request {
            params,
            ..request("r", text("12345"), sink.clone())
        };
        type Make<'a> = Box<dyn Fn(&Collected) -> Request + 'a>;
        let cases: Vec<(Kind, &str, Make<'_>)> = vec![
            (Kind::NotFound, "model", Box::new(|s| to("other", s))),
            (Kind::Unavailable, "", Box::new(|s| to("later", s))),
            (Kind::Invalid, "top_p", Box::new(|s| with(top_p.clone(), s))),
            (Kind::ContextLength, "max_tokens", Box::new(|s| with(long.clone(), s))),
            (Kind::Invalid, "prompt", Box::new(|s| ask(text(""), s))),
            (Kind::TooLarge, "prompt", Box::new(|s| ask(text(&"x".repeat(2_000_000)), s))),
            (Kind::ContextLength, "prompt", Box::new(|s| ask(text(&"x".repeat(64)), s))),
            (Kind::Invalid, "messages", Box::new(|s| ask(Prompt::Messages(wizard.clone()), s))),
            (Kind::Invalid, "prompt_token_ids", Box::new(|s| ask(Prompt::TokenIds(vec![300]), s))),
            (Kind::ContextLength, "prompt_token_ids", Box::new(|s| ask(ids(64), s))),
        ];
        for (kind, param, make) in cases {
            let sink = sink();
            bench.admit(make(&sink)).await;
            until(|| sink.refusal().is_some()).await;
            let error = sink.refusal().expect("refused");
            assert_eq!(
                (error.kind, error.param.as_deref().unwrap_or("")),
                (kind, param),
                "{error}"
            );
            let wants_retry = matches!(kind, Kind::Unavailable);
            assert_eq!(error.retry_after_ms.is_some(), wants_retry, "{error}");
            assert_eq!(sink.words().len(), 1);
            until(|| bench.ledger.num_requests() == 0).await;
            bench.assert_empty();
        }
        assert_eq!(bench.observed.words(), [""; 0]);
        assert!(bench.enqueued().is_empty());
    });
}

#[test]
fn refuses_when_it_holds_as_many_as_it_may() {
    let config = Config { max_requests: 2, retry_after_ms: 1_234, ..Config::default() };
    on_bench(config, FakeScheduler::default(), |bench| async move {
        let (first, sink) = (Collected::default(), Collected::default());
        bench.admit(request("a", ids(1), first.clone())).await;
        bench.admit(request("b", ids(1), first.clone())).await;
        bench.admit(request("c", ids(1), sink.clone())).await;
        let error = sink.refusal().expect("refused");
        // Nothing is done yet, so no rate is known.
        assert_eq!((error.kind, error.retry_after_ms), (Kind::QueueFull, Some(1_234)));
        until(|| bench.scheduler.enqueued.lock().is_ok_and(|e| e.len() == 2)).await;
        let held = bench.enqueued();
        finish(&held[0], FinishReason::Stop);
        bench.admit(request("c", ids(1), Collected::default())).await;
        assert_eq!(bench.ledger.num_requests(), 2);
    });
}

#[test]
fn refuses_when_too_many_tokens_wait() {
    let config = Config { max_waiting_tokens: 50, ..Config::default() };
    on_bench(config, FakeScheduler::default(), |bench| async move {
        let ask = |id: &str, sink: &Collected| Request {
            params: Params { max_tokens: Some(30), ..Params::default() },
            ..request(id, ids(10), sink.clone())
        };
        let (first, second) = (Collected::default(), Collected::default());
        bench.admit(ask("a", &first)).await;
        bench.admit(ask("b", &second)).await;
        assert_eq!(second.refusal().map(|e| e.kind), Some(Kind::QueueFull));
        assert!(second.refusal().is_some_and(|e| e.retry_after_ms.is_some()));
        let enqueue = bench.next_enqueued().await;
        let device = DeviceId::new("cpu:0");
        let mut stream = enqueue.stream.lock().expect("no test panics in it");
        stream.scheduled(&device, 0, Timestamp::now());
        drop(stream);
        let third = Collected::default();
        bench.admit(ask("b", &third)).await;
        assert_eq!(third.refusal(), None);
    });
}

#[test]
fn an_id_that_runs_is_a_conflict_until_its_end() {
    with_bench(|bench| async move {
        let (first, second, third) =
            (Collected::default(), Collected::default(), Collected::default());
        bench.admit(request("a", ids(1), first)).await;
        bench.admit(request("a", ids(1), second.clone())).await;
        assert_eq!(second.refusal().map(|e| e.kind), Some(Kind::Conflict));
        finish(&bench.next_enqueued().await, FinishReason::Stop);
        bench.admit(request("a", ids(1), third.clone())).await;
        assert_eq!(third.refusal(), None);
    });
}

#[test]
fn drain_and_lost_devices_refuse_with_a_time() {
    with_bench(|bench| async move {
        let kind_now = async || {
            let sink = Collected::default();
            bench.admit(request("a", ids(1), sink.clone())).await;
            bench.enqueued();
            sink.refusal().map(|e| (e.kind, e.retry_after_ms))
        };
        bench.tell(DevicesUp(0)).await;
        assert_eq!(kind_now().await, Some((Kind::Unavailable, Some(1_000))));
        bench.tell(DevicesUp(1)).await;
        assert_eq!(kind_now().await, None);
        until(|| {
            bench.enqueued();
            bench.ledger.num_requests() == 0
        })
        .await;
        bench.tell(Drain).await;
        assert_eq!(kind_now().await, Some((Kind::Draining, Some(1_000))));
        bench.assert_empty();
    });
}

#[test]
fn models_come_and_go() {
    with_bench(|bench| async move {
        let kind_of = async |name: &str| {
            let sink = Collected::default();
            let asked = Request { model: name.into(), ..request("a", ids(1), sink.clone()) };
            bench.admit(asked).await;
            sink.refusal().map(|e| e.kind)
        };
        assert_eq!(kind_of("later").await, Some(Kind::Unavailable));
        bench.tell(ModelDown { name: "later".into() }).await;
        assert_eq!(kind_of("later").await, Some(Kind::NotFound));
        bench.tell(ModelUp(model("later"))).await;
        assert_eq!(kind_of("later").await, None);
        bench.tell(ModelDown { name: "m".into() }).await;
        assert_eq!(kind_of("m").await, Some(Kind::NotFound));
    });
}

#[test]
fn a_scheduler_that_is_full_or_gone_means_refused_not_accepted() {
    let stuck = FakeScheduler { stuck: true, ..FakeScheduler::default() };
    on_bench(Config::default(), stuck, |bench| async move {
        let mut accepted = Vec::new();
        let refused = loop {
            let sink = Collected::default();
            let id = format!("r{}", accepted.len());
            bench.admit(request(&id, ids(1), sink.clone())).await;
            if let Some(error) = sink.refusal() {
                assert_eq!(sink.words().len(), 1);
                break error;
            }
            accepted.push(sink);
            assert!(accepted.len() < 10, "the mailbox has a bound");
        };
        assert_eq!(refused.kind, Kind::QueueFull);
        assert_eq!(bench.ledger.num_requests(), accepted.len());
        // The observers heard of its end, too.
        assert_eq!(bench.observed.words().len(), accepted.len() + 2);

        // The scheduler goes, and with it what waited in its mailbox: each gets its last event.
        bench.arbiters[0].stop();
        until(|| bench.ledger.num_requests() == 0).await;
        let failed = |s: &Collected| s.last().and_then(|e| e.finish_reason);
        assert!(accepted.iter().all(|s| failed(s) == Some(FinishReason::Failed)));
        let sink = Collected::default();
        bench.admit(request("late", ids(1), sink.clone())).await;
        assert_eq!(sink.refusal().map(|e| e.kind), Some(Kind::Unavailable));
        bench.assert_empty();
    });
}

#[test]
fn cancel_answers_when_the_request_has_ended() {
    with_bench(|bench| async move {
        let unknown = bench.cancel("nobody").await.await.expect("an answer");
        assert_eq!(unknown.map_err(|e| e.kind), Err(Kind::NotFound));
        let sink = Collected::default();
        bench.admit(request("a", ids(1), sink.clone())).await;
        let enqueue = bench.next_enqueued().await;
        let mut answer = bench.cancel("a").await;
        until(|| bench.scheduler.sweeps.load(Ordering::SeqCst) == 1).await;
        assert!(enqueue.sequence.handle.is_cancelled());
        assert!(answer.try_recv().is_err(), "it has not ended yet");
        enqueue.stream.lock().expect("no test panics in it").cancel(Timestamp::now());
        let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 0 };
        assert_eq!(answer.await, Ok(Ok(ended)));
        bench.assert_empty();
        let gone = bench.cancel("a").await.await.expect("an answer");
        assert_eq!(gone.map_err(|e| e.kind), Err(Kind::NotFound));
    });
}

/// Holds the one tokenizer thread at its first look at the request, until the test lets go.
struct Gate {
    inner: Collected,
    looks: AtomicUsize,
    open: std::sync::mpsc::Receiver<()>,
}

// The receiver is only used by whoever has the sink.
struct GateSink(Mutex<Gate>);

impl Sink for GateSink {
    fn accepted(&mut self, handle: &Arc<Handle>) {
        self.0.get_mut().expect("no test panics in it").inner.accepted(handle);
    }

    fn refused(&mut self, error: &Error) {
        self.0.get_mut().expect("no test panics in it").inner.refused(error);
    }

    fn event(&mut self, event: Event) -> std::result::Result<(), SinkClosed> {
        self.0.get_mut().expect("no test panics in it").inner.event(event)
    }

    fn is_closed(&self) -> bool {
        let gate = self.0.lock().expect("no test panics in it");
        // The first look is admission's own, the second the tokenizer thread's.
        if gate.looks.fetch_add(1, Ordering::SeqCst) == 1 {
            let _ = gate.open.recv();
        }
        false
    }
}

fn one_thread() -> Config {
    Config { tokenizer_threads: std::num::NonZeroUsize::new(1), ..Config::default() }
}

fn gated(id: &str, sink: &Collected) -> (Request, std::sync::mpsc::Sender<()>) {
    let (open_gate, open) = std::sync::mpsc::channel();
    let gate = Gate { inner: sink.clone(), looks: AtomicUsize::new(0), open };
    let sink = GateSink(Mutex::new(gate));
    (request(id, Prompt::Text("hi".into()), sink), open_gate)
}

#[test]
fn a_request_cancelled_while_it_is_tokenized_is_refused_as_cancelled() {
    on_bench(one_thread(), FakeScheduler::default(), |bench| async move {
        let (first, second, twin) =
            (Collected::default(), Collected::default(), Collected::default());
        let (held, open_gate) = gated("held", &first);
        bench.admit(held).await;
        bench.admit(request("b", Prompt::Text("hi".into()), second.clone())).await;
        bench.admit(request("b", ids(1), twin.clone())).await;
        assert_eq!(twin.refusal().map(|e| e.kind), Some(Kind::Conflict));
        let answer = bench.cancel("b").await;
        let gone = Collected::default();
        bench.admit(request("c", Prompt::Text("hi".into()), gone.clone())).await;
        gone.close();
        open_gate.send(()).expect("the thread waits");
        let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 0 };
        assert_eq!(answer.await, Ok(Ok(ended)));
        until(|| gone.refusal().is_some()).await;
        for sink in [second, gone] {
            assert_eq!(sink.words().len(), 1);
            assert_eq!(sink.refusal().map(|e| e.kind), Some(Kind::Cancelled));
        }
        // The one before them was not touched by it.
        assert_eq!(bench.next_enqueued().await.sequence.handle.request_id().as_str(), "held");
        until(|| bench.ledger.num_requests() == 0).await;
        bench.assert_empty();
    });
}

#[test]
fn what_changed_while_a_prompt_was_tokenized_counts() {
    on_bench(one_thread(), FakeScheduler::default(), |bench| async move {
        let (reloaded, open_gate) = (Collected::default(), gated("a", &Collected::default()));
        let (held, open_gate) = (open_gate.0, open_gate.1);
        bench.admit(held).await;
        bench.admit(request("b", Prompt::Text("hi".into()), reloaded.clone())).await;
        bench.tell(ModelUp(model("m"))).await;
        open_gate.send(()).expect("the thread waits");
        until(|| reloaded.refusal().is_some()).await;
        assert_eq!(reloaded.refusal().map(|e| e.kind), Some(Kind::Unavailable));

        let drained = Collected::default();
        let (held, open_gate) = gated("c", &drained);
        bench.admit(held).await;
        bench.tell(Drain).await;
        open_gate.send(()).expect("the thread waits");
        until(|| drained.refusal().is_some()).await;
        assert_eq!(drained.refusal().map(|e| e.kind), Some(Kind::Draining));
        until(|| bench.ledger.num_requests() == 0).await;
    });
}

#[test]
fn a_closed_sink_is_not_even_reserved_for() {
    with_bench(|bench| async move {
        let sink = Collected::default();
        sink.close();
        bench.admit(request("a", ids(1), sink.clone())).await;
        assert_eq!(sink.refusal().map(|e| e.kind), Some(Kind::Cancelled));
        bench.assert_empty();
    });
}

struct Panics;

impl Sink for Panics {
    fn accepted(&mut self, _: &Arc<Handle>) {
        panic!("a defect in a sink")
    }

    fn refused(&mut self, _: &Error) {
        panic!("a defect in a sink")
    }

    fn event(&mut self, _: Event) -> std::result::Result<(), SinkClosed> {
        panic!("a defect in a sink")
    }
}

#[test]
fn a_sink_that_panics_does_not_close_the_door() {
    with_bench(|bench| async move {
        bench.admit(request("a", ids(1), Panics)).await;
        bench.admit(request("b", ids(0), Panics)).await;
        bench.admit(request("c", Prompt::Text("x".repeat(99)), Panics)).await;
        drop(bench.next_enqueued().await);
        until(|| bench.ledger.num_requests() == 0).await;
        let sink = Collected::default();
        bench.admit(request("d", ids(1), sink.clone())).await;
        assert_eq!(sink.refusal(), None);
    });
}

#[test]
fn the_checkpoints_defaults_come_before_the_nodes() {
    with_bench(|bench| async move {
        let mut other = model("other");
        let defaults = GenerationDefaults { top_p: Some(0.9), ..GenerationDefaults::default() };
        Arc::get_mut(&mut other).expect("new").defaults = defaults;
        bench.tell(ModelUp(other)).await;
        let asked = Request { model: "other".into(), ..request("a", ids(1), Collected::default()) };
        bench.admit(asked).await;
        assert_eq!(bench.next_enqueued().await.sequence.sampling.top_p, 0.9);
    });
}

/// Hundreds of requests that end in every way: each sink hears of exactly one end, and nothing is left in the books.
#[test]
fn nothing_leaks_however_requests_end() {
    let config = Config { max_requests: 40, max_waiting_tokens: 900, ..Config::default() };
    on_bench(config, FakeScheduler::default(), |bench| async move {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut sinks, mut held, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..600 {
            let sink = Collected::default();
            let prompt = match rng.random_range(0..3) {
                0 => Prompt::Text("y".repeat(rng.random_range(0..70))),
                _ => ids(rng.random_range(0..70)),
            };
            let id = format!("id-{}", rng.random_range(0..200));
            bench.admit(request(&id, prompt, sink.clone())).await;
            sinks.push(sink);
            held.extend(bench.enqueued());
            if round % 7 == 0 {
                answers.push(bench.cancel(&id).await);
            }
            if held.len() > 8 {
                let enqueue = held.swap_remove(rng.random_range(0..held.len()));
                match rng.random_range(0..4) {
                    0 => finish(&enqueue, FinishReason::Stop),
                    1 => finish(&enqueue, FinishReason::Failed),
                    2 => enqueue.stream.lock().expect("whole").cancel(Timestamp::now()),
                    _ => drop(enqueue),
                }
            }
        }
        held.clear();
        until(|| {
            bench.enqueued();
            bench.ledger.num_requests() == 0
        })
        .await;
        bench.assert_empty();
        for answer in answers {
            assert!(answer.await.is_ok(), "every cancel is answered");
        }
        for sink in sinks {
            let ends = |word: &Word| match word {
                Word::Refused(_) => true,
                Word::Event(event) => event.finish_reason.is_some(),
                Word::Accepted(_) => false,
            };
            assert_eq!(sink.words().iter().filter(|word| ends(word)).count(), 1);
        }
        let words = bench.observed.words();
        let (started, ended): (Vec<_>, Vec<_>) =
            words.iter().partition(|word| word.starts_with("started"));
        assert_eq!(started.len(), ended.len());
        assert!(started.len() > 50);
    });
}
