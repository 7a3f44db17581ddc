//! Cancels, changes while a prompt is tokenized, panics, and the books at the end.

use super::*;

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

fn several(id: &str, sinks: &[Collected]) -> AdmitAll {
    let one = |(i, sink): (usize, &Collected)| request(&format!("{id}-{i}"), ids(1), sink.clone());
    let requests = sinks.iter().enumerate().map(one).collect();
    AdmitAll { id: RequestId::parse(id).expect("an id"), requests }
}

#[test]
fn several_prompts_run_under_one_id_as_well() {
    with_bench(|bench| async move {
        let sinks = [Collected::default(), Collected::default()];
        bench.tell(several("p", &sinks)).await;
        until(|| bench.scheduler.enqueued.lock().expect("whole").len() == 2).await;
        let prompts = bench.enqueued();
        assert!(bench.observed.words().contains(&"started p".to_owned()));

        let (twin, again) = (Collected::default(), [Collected::default(), Collected::default()]);
        bench.admit(request("p", ids(1), twin.clone())).await;
        bench.tell(several("p", &again)).await;
        for refused in [&twin, &again[0], &again[1]] {
            assert_eq!(refused.refusal().map(|e| e.kind), Some(Kind::Conflict));
        }

        // The first prompt ends by itself, then the whole is cancelled.
        let answer = bench.cancel("p").await;
        finish(&prompts[0], FinishReason::Stop);
        prompts[1].stream.lock().expect("whole").cancel(Timestamp::now());
        let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 2 };
        assert_eq!(answer.await, Ok(Ok(ended)));
        bench.assert_empty();
        assert!(bench.ledger.get(&RequestId::parse("p").expect("an id")).is_empty());
        assert_eq!(bench.observed.words().last().map(String::as_str), Some("ended p"));
    });
}

#[test]
fn an_id_whose_prompts_are_all_refused_is_free_again() {
    with_bench(|bench| async move {
        let sinks = [Collected::default(), Collected::default()];
        sinks.iter().for_each(Collected::close);
        bench.tell(several("p", &sinks)).await;
        let sink = Collected::default();
        bench.admit(request("p", ids(1), sink.clone())).await;
        assert_eq!(sink.refusal(), None);
        assert!(!bench.observed.words().contains(&"ended p".to_owned()));
        drop(bench.next_enqueued().await);
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

    fn lend(&mut self, event: &mut Event) -> std::result::Result<(), SinkClosed> {
        self.0.get_mut().expect("no test panics in it").inner.lend(event)
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

    fn lend(&mut self, _: &mut Event) -> std::result::Result<(), SinkClosed> {
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
        let defaults = Params { top_p: Some(0.9), ..Params::default() };
        Arc::get_mut(&mut other).expect("new").defaults = defaults;
        bench.tell(ModelUp(other)).await;
        let asked = Request { model: "other".into(), ..request("a", ids(1), Collected::default()) };
        bench.admit(asked).await;
        assert_eq!(bench.next_enqueued().await.sequence.sampler.top_p, 0.9);
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
