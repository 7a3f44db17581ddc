//! Requests through the admission actor (validation, tokenizing, permit) into a scheduler that only counts: 256 at once, so the
//! hops between threads are shared as they are under load.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use actix::{Actor, Addr, Arbiter, Context, Handler, System};
use criterion::{Criterion, Throughput};
use inferno_node::admission::{Admission, AdmissionStart, Config, Ledger};
use inferno_node::clock::Timestamp;
use inferno_node::door::Admit;
use inferno_node::ids::RequestId;
use inferno_node::models::{ModelUp, ServedModel};
use inferno_node::progress::Progress;
use inferno_node::request::{Caller, DefaultLength, Params, Prompt, Request, SoFar};
use inferno_node::scheduler::{Enqueue, SweepQueue};
use inferno_node::telemetry::{self, Metrics};

use super::{LEN, MODEL, Nowhere, tokenizer};

const AT_ONCE: usize = 256;
/// About 64 tokens of the demo model.
const TEXT: &str =
    "the cat and the little dog was happy with the big tree at home said her mother ";

/// Ends what it gets and says so.
struct Counter(Sender<()>);

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(2 * AT_ONCE);
    }
}

impl Handler<Enqueue> for Counter {
    type Result = ();

    fn handle(&mut self, Enqueue { stream, .. }: Enqueue, _: &mut Self::Context) {
        stream.lock().expect("no thread panics with it").cancel(Timestamp::now());
        // At the end nobody listens any more.
        let _ = self.0.send(());
    }
}

impl Handler<SweepQueue> for Counter {
    type Result = ();

    fn handle(&mut self, _: SweepQueue, _: &mut Self::Context) {}
}

fn model() -> Arc<ServedModel> {
    Arc::new(ServedModel {
        name: "demo".to_owned(),
        id: MODEL,
        tokenizer: tokenizer(),
        chat_template: None,
        max_seq_len: 2_048,
        vocab_size: 3_072,
        end_token_ids: vec![1],
        defaults: Params::default(),
        default_length: None,
        digest: String::new(),
        created: 0,
        in_use: AtomicU64::new(0),
        last_used: AtomicU64::new(0),
    })
}

fn request(prompt: Prompt) -> Request {
    Request {
        id: RequestId::generate(),
        caller: Caller::default(),
        model: "demo".into(),
        prompt,
        so_far: SoFar::default(),
        is_question: false,
        params: Params { max_tokens: Some(LEN), ..Params::default() },
        stream: true,
        priority: 128,
        default_length: DefaultLength::Context,
        received_at: Timestamp::now(),
        sink: Box::new(Nowhere),
    }
}

fn start(arbiters: &[Arbiter; 2], counted: Sender<()>) -> Addr<Admission> {
    let counter = Counter::start_in_arbiter(&arbiters[0].handle(), |_| Counter(counted));
    let start = AdmissionStart {
        config: Config::default(),
        node_id: "bench".to_owned(),
        expected_models: Vec::new(),
        ledger: Ledger::new(Vec::new()),
        enqueue: counter.clone().recipient(),
        sweep: counter.recipient(),
        metrics: Arc::new(Metrics::new("bench")),
        progress: Progress::new(),
        alive: inferno_node::lifeline::Lifeline::unwatched(),
    };
    let admission = Admission::start(&arbiters[1].handle(), start).expect("threads");
    admission.try_send(ModelUp(model())).expect("an empty mailbox");
    admission
}

fn admit_all(admission: &Addr<Admission>, counted: &Receiver<()>, prompt: &Prompt) {
    for _ in 0..AT_ONCE {
        admission.try_send(Admit(request(prompt.clone()))).expect("room for all");
    }
    for _ in 0..AT_ONCE {
        counted.recv_timeout(Duration::from_secs(10)).expect("every request comes through");
    }
}

pub fn bench(criterion: &mut Criterion) {
    telemetry::recorder().expect("no other recorder in this process");
    let _system = System::new();
    let arbiters = [Arbiter::new(), Arbiter::new()];
    let (counts, counted) = channel();
    let admission = start(&arbiters, counts);
    let text: String = TEXT.repeat(4);
    let mut group = criterion.benchmark_group("admission");
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    for (name, prompt) in [
        ("256_prompts_of_ids", Prompt::TokenIds((300..300 + LEN).collect())),
        ("256_prompts_of_text", Prompt::Text(text)),
    ] {
        let run = || admit_all(&admission, &counted, &prompt);
        group.bench_function(name, |b| b.iter(run));
    }
    group.finish();
    drop(admission);
    for arbiter in arbiters {
        arbiter.stop();
        arbiter.join().expect("no panic");
    }
}
