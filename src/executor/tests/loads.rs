//! Loads between steps, and loads that fail.

use super::*;

/// A device whose load has many parts; what it does is told to the test.
struct Slow {
    parts: u32,
    done: u32,
    fails_at: Option<(u32, FaultKind)>,
    unloads: Arc<AtomicU32>,
    log: Arc<Mutex<Vec<&'static str>>>,
    hold: Arc<AtomicBool>,
}

impl Device for Slow {
    fn begin_load(&mut self, _: DeviceLoad) -> Result<(), DeviceError> {
        self.done = 0;
        Ok(())
    }

    fn load_next(&mut self, _: ModelId) -> Result<LoadState, DeviceError> {
        // The test lets the load go on when it has sent its steps.
        while self.hold.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.done += 1;
        self.log.lock().expect("no panic").push("load");
        match self.fails_at {
            Some((at, FaultKind::Exception)) if at == self.done => {
                return Err(DeviceError::other("tensor x: bad"));
            }
            Some((at, FaultKind::Panic)) if at == self.done => panic!("bad tensor"),
            _ => {}
        }
        if self.done < self.parts {
            let (done_bytes, total_bytes) = (self.done.into(), self.parts.into());
            return Ok(LoadState::More(LoadStage::Weights { done_bytes, total_bytes }));
        }
        Ok(LoadState::Done(LoadedModel {
            num_blocks: 1,
            weight_bytes: 1,
            kv_bytes: 1,
            memory: MemoryStats::default(),
        }))
    }

    fn unload(&mut self, _: ModelId) -> Result<(), DeviceError> {
        self.unloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn bind(&mut self, _: ModelId, _: &SeatBinding) -> Result<(), DeviceError> {
        Ok(())
    }

    fn run(
        &mut self,
        model: ModelId,
        _: &mut StepBatch,
        _: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        if model == ModelId(99) {
            return Err(DeviceError::other("no such model"));
        }
        self.log.lock().expect("no panic").push("step");
        Ok(())
    }

    fn memory(&self) -> Result<MemoryStats, DeviceError> {
        Ok(MemoryStats::default())
    }
}

struct SlowBench {
    bench: Bench,
    unloads: Arc<AtomicU32>,
    log: Arc<Mutex<Vec<&'static str>>>,
    hold: Arc<AtomicBool>,
}

fn slow(fails_at: Option<(u32, FaultKind)>) -> SlowBench {
    let (unloads, log, hold) = <(Arc<AtomicU32>, Arc<Mutex<Vec<_>>>, Arc<AtomicBool>)>::default();
    let (u, l, h) = (Arc::clone(&unloads), Arc::clone(&log), Arc::clone(&hold));
    let maker = Maker::from_fn(move || {
        let (unloads, log, hold) = (Arc::clone(&u), Arc::clone(&l), Arc::clone(&h));
        Ok(Box::new(Slow { parts: 20, done: 0, fails_at, unloads, log, hold }))
    });
    SlowBench { bench: Bench::of(maker, false), unloads, log, hold }
}

#[actix::test]
async fn steps_go_on_while_a_model_loads() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, log, hold, .. } = slow(None);
    bench.ready().await.expect("a device");
    hold.store(true, Ordering::Release);
    let (done, answer) = oneshot::channel();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let message = LoadModel {
        model: MODEL,
        checkpoint,
        limits: budget(),
        progress: Some(Arc::new(move |stage| tell.lock().expect("no panic").push(stage))),
        done,
    };
    bench.running.addr.send(message).await.expect("it lives");
    for step in 0..3 {
        let message = RunStep { model: ModelId(1), ..run_step(step, StepBatch::default()) };
        bench.running.addr.try_send(message).expect("there is room");
    }
    hold.store(false, Ordering::Release);
    answer.await.expect("it answers").expect("loads");
    for step in 0..3 {
        assert_eq!(bench.done.recv().await.expect("answered").step, step);
    }
    let log = log.lock().expect("no panic").clone();
    let last_step = log.iter().rposition(|what| *what == "step").expect("steps ran");
    assert!(last_step < log.len() - 10, "steps waited for the load: {log:?}");
    let told = told.lock().expect("no panic").clone();
    let stage = |done_bytes| LoadStage::Weights { done_bytes, total_bytes: 20 };
    assert_eq!(told, (1..20).map(stage).collect::<Vec<_>>());
    bench.stop();
}

#[actix::test]
async fn a_load_that_fails_gives_its_memory_back_and_steps_go_on() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, unloads, .. } = slow(Some((3, FaultKind::Exception)));
    let error = bench.load(&checkpoint).await.expect_err("a bad tensor");
    assert_eq!(error, DeviceError::other("tensor x: bad"));
    assert_eq!(unloads.load(Ordering::Relaxed), 1);
    assert!(bench.step(1, StepBatch::default()).await.result.is_ok());
    bench.stop();
}

#[actix::test]
async fn a_panic_in_a_load_is_an_error_and_ends_the_device() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, .. } = slow(Some((3, FaultKind::Panic)));
    let error = bench.load(&checkpoint).await.expect_err("a panic");
    assert!(error.message.contains("bad tensor"), "{error}");
    let done = bench.step(1, StepBatch::default()).await;
    assert_eq!(done.result.map(|_| ()), Err(StepFailure::Skipped));
    bench.stop();
}

#[actix::test]
async fn a_step_that_fails_during_a_load_leaves_the_load_to_the_next_build() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { mut bench, hold, .. } = slow(None);
    hold.store(true, Ordering::Release);
    let (done, answer) = oneshot::channel();
    let load = LoadModel { model: MODEL, checkpoint, limits: budget(), progress: None, done };
    bench.running.addr.try_send(load).expect("there is room");
    // No model 99: the fake fails such a step.
    let step = RunStep { model: ModelId(99), ..run_step(1, StepBatch::default()) };
    bench.running.addr.try_send(step).expect("there is room");
    hold.store(false, Ordering::Release);
    assert!(bench.done.recv().await.expect("answered").result.is_err());
    assert!(answer.await.is_err(), "unanswered");
    bench.stop();
}

#[actix::test]
async fn one_load_at_a_time() {
    let (_dir, checkpoint) = testing::dummy();
    let SlowBench { bench, hold, .. } = slow(None);
    hold.store(true, Ordering::Release);
    let load = |done| LoadModel {
        model: MODEL,
        checkpoint: Arc::clone(&checkpoint),
        limits: budget(),
        progress: None,
        done,
    };
    let (first, first_answer) = oneshot::channel();
    let (second, second_answer) = oneshot::channel();
    bench.running.addr.try_send(load(first)).expect("there is room");
    bench.running.addr.try_send(load(second)).expect("there is room");
    hold.store(false, Ordering::Release);
    assert!(second_answer.await.expect("it answers").is_err());
    assert!(first_answer.await.expect("it answers").is_ok());
    bench.stop();
}
