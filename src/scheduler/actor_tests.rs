//! The scheduler's shell against probes in the place of batchers.

use std::sync::Arc;

use actix::{Addr, Arbiter, Handler, Message};

use super::queue::tests::sequence;
use super::*;
use crate::batcher::probe::Got;
use crate::clock::Timestamp;
use crate::error::Kind;
use crate::ids::ModelId;
use crate::progress::Progress;
use crate::reply::testing::{Collected, Fixture};
use crate::request::{FinishReason, Handle};
use crate::telemetry::Metrics;

struct Rig {
    scheduler: Addr<Scheduler>,
    progress: Progress,
}

fn credit(device: &str, assigned: u64, seats: u32) -> Credit {
    Credit {
        device: DeviceId::new(device),
        generation: 1,
        model: ModelId(0),
        assigned,
        seats,
        free_blocks: 50,
        total_blocks: 50,
        block_size: 16,
        reserve_tokens: 0,
        open: true,
    }
}

fn up(device: &str, batcher: Recipient<Assign>) -> DeviceUp {
    DeviceUp { device: DeviceId::new(device), generation: 1, batcher }
}

impl Rig {
    fn start(config: Config) -> Self {
        let progress = Progress::new();
        let metrics = Arc::new(Metrics::new("test"));
        let alive = crate::lifeline::Lifeline::unwatched();
        let start = SchedulerStart { config, metrics, progress: progress.clone(), alive };
        Self { scheduler: Scheduler::start_on(&Arbiter::current(), start), progress }
    }

    /// Sends a message and waits until it is handled.
    async fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Scheduler: Handler<M>,
    {
        self.scheduler.send(message).await.expect("it runs");
    }

    async fn enqueue(&self, id: u64) -> (Collected, Arc<Handle>) {
        let mut sequence = sequence(id, 128, 16);
        sequence.accepted_at = Timestamp::now();
        let client = Collected::default();
        let fixture = Fixture { prompt: sequence.token_ids.clone(), ..Fixture::default() };
        let started = fixture.start(&client);
        sequence.handle = Arc::clone(&started.handle);
        self.tell(Enqueue { sequence, stream: started.stream }).await;
        (client, started.handle)
    }
}

#[actix::test]
async fn sequences_leave_as_credit_comes() {
    let rig = Rig::start(Config::default());
    let mut batcher = Got::start();
    rig.enqueue(1).await;
    rig.enqueue(2).await;
    rig.tell(up("a", batcher.recipient())).await;
    assert_eq!(rig.progress.pending(), 2);
    rig.tell(credit("a", 0, 1)).await;
    assert_eq!(batcher.next().await.sequence.id.0, 1);
    assert_eq!(rig.progress.pending(), 1);
    rig.tell(credit("a", 1, 1)).await;
    assert_eq!(batcher.next().await.sequence.id.0, 2);
    assert_eq!(rig.progress.pending(), 0);
}

#[actix::test]
async fn a_full_mailbox_delays_and_loses_nothing() {
    let rig = Rig::start(Config::default());
    let (mut batcher, let_go) = Got::start_held();
    rig.tell(up("a", batcher.recipient())).await;
    rig.tell(credit("a", 0, 20)).await;
    for id in 0..20 {
        rig.enqueue(id).await;
    }
    assert!(rig.progress.pending() > 10, "the mailbox takes only a few");
    drop(let_go);
    for id in 0..20 {
        assert_eq!(batcher.next().await.sequence.id.0, id);
        rig.tell(credit("a", id + 1, 20)).await;
    }
}

#[actix::test]
async fn what_was_for_a_batcher_that_is_gone_goes_to_another() {
    let rig = Rig::start(Config::default());
    let (mut gone, mut other) = (Got::start(), Got::start());
    rig.tell(up("a", gone.recipient())).await;
    rig.tell(credit("a", 0, 9)).await;
    gone.stop().await;
    rig.enqueue(1).await;
    assert_eq!(rig.progress.pending(), 1);
    rig.tell(up("b", other.recipient())).await;
    rig.tell(credit("b", 0, 9)).await;
    let assign = other.next().await;
    let returned =
        Returned { device: DeviceId::new("b"), sequences: vec![(assign.sequence, assign.stream)] };
    rig.tell(DeviceDown { device: DeviceId::new("b"), generation: 1, lost: false }).await;
    rig.tell(returned).await;
    assert_eq!(rig.progress.pending(), 1);
    rig.tell(DeviceUp { generation: 2, ..up("b", other.recipient()) }).await;
    // A late word about the first build does not hit the second.
    rig.tell(DeviceDown { device: DeviceId::new("b"), generation: 1, lost: false }).await;
    rig.tell(Credit { generation: 2, ..credit("b", 0, 9) }).await;
    assert_eq!(other.next().await.sequence.id.0, 1);
}

#[actix::test]
async fn the_cancelled_leave_at_a_hint() {
    let rig = Rig::start(Config::default());
    let (client, handle) = rig.enqueue(1).await;
    let ended = handle.wait();
    handle.cancel();
    rig.tell(SweepQueue).await;
    rig.tell(SweepQueue).await;
    assert_eq!(ended.await.expect("it ends").reason, FinishReason::Cancelled);
    assert_eq!(client.events().len(), 1);
}

#[actix::test]
async fn without_a_device_they_fail_in_time() {
    let rig = Rig::start(Config { unavailable_after_s: 0, ..Config::default() });
    let (client, handle) = rig.enqueue(1).await;
    rig.tell(SweepQueue).await;
    assert_eq!(handle.wait().await.expect("it ends").reason, FinishReason::Failed);
    let error = client.last().and_then(|event| event.error).expect("why");
    assert_eq!(error.kind, Kind::Unavailable);
}
