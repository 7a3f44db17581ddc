//! The actor between a test and a fake scheduler.

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
use crate::bridge::ffi::SamplerSpec;
use crate::door::RunningObserver;
use crate::ids::{DeviceId, ModelId, RequestId};
use crate::models::ServedModel;
use crate::reply::testing::{Collected, Word};
use crate::request::{ChatMessage, Ended, Event, FinishReason, Params, Sink, SinkClosed};

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

impl Handler<SweepQueue> for FakeScheduler {
    type Result = ();

    fn handle(&mut self, _: SweepQueue, _: &mut Self::Context) {
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
        let start = AdmissionStart {
            config,
            node_id: "node-1".into(),
            expected_models: vec!["later".into()],
            ledger: Arc::clone(&ledger),
            enqueue: address.clone().recipient(),
            sweep: address.recipient(),
            metrics: Arc::new(Metrics::new("test")),
            progress: Progress::new(),
            alive: crate::lifeline::Lifeline::unwatched(),
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
    stream.push(1, &[2.into(), 3.into()], Some(reason), Timestamp::now());
}

mod ends;
mod refusals;
