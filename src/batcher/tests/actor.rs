//! The batcher's shell against probes in the place of its neighbours.

use actix::Handler;
use tokio::sync::oneshot;

use super::super::actor::RETRY_AFTER;
use super::super::probe::Got;
use super::super::*;
use super::rig::Rig;
use crate::bridge::{DeviceError, DeviceErrorCode};
use crate::clock::Timestamp;
use crate::error::Kind;
use crate::executor::{StepDone, StepFailure};
use crate::reply::Deliver;
use crate::request::FinishReason;
use crate::sequence::testing::sequence;

fn device_error(code: DeviceErrorCode) -> StepFailure {
    StepFailure::Device(DeviceError { code, message: "boom".into() })
}

/// What the reply actor does.
fn hand_on(deliver: Deliver) {
    for one in deliver.deliveries {
        let mut stream = one.stream.lock().expect("no test panics in it");
        stream.push(one.attempt, one.token.as_slice(), one.finish, deliver.at);
    }
}

#[actix::test]
async fn a_sequence_runs_to_its_end_and_its_credit_comes_back() {
    let mut rig = Rig::start();
    let empty = rig.credit.next().await;
    assert_eq!((empty.seats, empty.free_blocks, empty.assigned, empty.generation), (4, 8, 0, 5));
    let client = rig.assign(sequence(1, 5, 2));
    let first = rig.steps.next().await;
    let second = rig.steps.next().await;
    assert!(second.batch.feed_sampled[0], "formed before the first is done");
    assert_eq!(rig.progress.pending(), 1);
    rig.done(first, Ok(65));
    hand_on(rig.reply.next().await);
    rig.done(second, Ok(66));
    hand_on(rig.reply.next().await);
    assert_eq!(client.token_ids(), [65, 66]);
    let last = client.last().expect("an event");
    assert_eq!(last.finish_reason, Some(FinishReason::Length));
    assert_eq!(last.receipt.expect("in the last event").device, "sim:0");
    let mut credit = rig.credit.next().await;
    while credit.seats < 4 {
        credit = rig.credit.next().await;
    }
    assert_eq!(Credit { assigned: 0, ..credit }, empty);
    assert_eq!(rig.progress.pending(), 0);
    assert!(rig.steps.now().is_none());
}

#[actix::test]
async fn a_failed_step_gives_everything_back_and_then_tells_the_node_once() {
    let mut rig = Rig::start();
    let (client, _, counts) = rig.assign_observed(sequence(1, 5, 9));
    let first = rig.steps.next().await;
    let second = rig.steps.next().await;
    rig.assign(sequence(2, 5, 9));
    rig.done(first, Ok(65));
    let third = rig.steps.next().await;
    // The reply stage has not seen the token of the first step yet.
    let late = rig.reply.next().await;
    rig.done(second, Err(device_error(DeviceErrorCode::Other)));
    rig.done(third, Err(StepFailure::Skipped));
    let failed = rig.node.next().await;
    assert_eq!((failed.generation, failed.sticky), (5, false));
    assert!(failed.reason.contains("boom"));
    let mut returned = rig.returned.now().expect("before the node is told").sequences;
    returned.sort_by_key(|(sequence, _)| sequence.id);
    let marks = returned.iter().map(|(one, _)| (one.failed_steps, one.attempt, one.len()));
    assert_eq!(marks.collect::<Vec<_>>(), [(1, 2, 5), (0, 2, 5)], "only one was in that step");
    assert_eq!((counts.scheduled(), counts.returned()), (1, 1), "it waits again");
    hand_on(late);
    assert_eq!(client.token_ids(), [] as [u32; 0], "it is sampled again");
    let mut credit = rig.credit.next().await;
    while credit.open {
        credit = rig.credit.next().await;
    }

    let (_, _, counts) = rig.assign_observed(sequence(3, 5, 9));
    let bounced = rig.returned.next().await.sequences;
    assert_eq!((bounced[0].0.id.0, bounced[0].0.attempt), (3, 1), "it never had a seat");
    assert_eq!((counts.scheduled(), counts.returned()), (0, 0), "it waits as before");
    let (done, removed) = oneshot::channel();
    rig.tell(RemoveModel { model: ModelId(0), done });
    removed.await.expect("nothing is left here");
    assert!(rig.node.now().is_none());
}

#[actix::test]
async fn the_second_failed_step_is_the_last_and_a_cancelled_one_ends_as_cancelled() {
    let mut rig = Rig::start();
    let mut unlucky = sequence(1, 5, 9);
    unlucky.failed_steps = 1;
    let failing = rig.assign(unlucky);
    let (leaving, handle, _) = rig.assign_observed(sequence(2, 5, 9));
    let first = rig.steps.next().await;
    rig.steps.next().await;
    rig.done(first, Ok(65));
    rig.steps.next().await;
    hand_on(rig.reply.next().await);
    handle.cancel();
    rig.tell(StepDone {
        step: 2,
        result: Err(device_error(DeviceErrorCode::Sticky)),
        batch: Default::default(),
        ended: Timestamp::default(),
    });
    assert!(rig.node.next().await.sticky);
    let last = failing.last().expect("an event");
    assert_eq!(last.error.map(|error| error.kind), Some(Kind::Internal));
    let last = leaving.last().expect("an event");
    assert_eq!((last.finish_reason, last.error), (Some(FinishReason::Cancelled), None));
    assert!(rig.returned.now().is_none());
}

#[actix::test]
async fn what_is_to_end_gives_everything_back_and_answers_when_all_has_left() {
    let (reply, let_reply_go) = Got::start_held();
    let mut rig = Rig::start_with(reply, Got::start());
    rig.assign(sequence(1, 5, 9));
    let mut step = rig.steps.next().await;
    // Until the reply actor's mailbox is full and no further step is formed.
    loop {
        let next = rig.steps.now();
        rig.done(step, Ok(60));
        tokio::time::sleep(RETRY_AFTER * 3).await;
        match next.or_else(|| rig.steps.now()) {
            Some(next) => step = next,
            None => break,
        }
    }
    rig.assign(sequence(2, 5, 9));
    let (done, mut departed) = oneshot::channel();
    rig.tell(Depart { reason: "for a test", done });
    assert_eq!(rig.returned.next().await.sequences.len(), 2);
    assert!(departed.try_recv().is_err(), "tokens wait for room");
    drop(let_reply_go);
    departed.await.expect("all has left");
    assert!(rig.node.now().is_some());
    rig.assign(sequence(3, 5, 9));
    assert_eq!(rig.returned.next().await.sequences.len(), 1, "it comes back");
    let (done, departed) = oneshot::channel();
    rig.tell(Depart { reason: "for a test", done });
    departed.await.expect("there is nothing more");
}

#[actix::test]
async fn full_mailboxes_delay_and_lose_nothing() {
    let (reply, let_reply_go) = Got::start_held();
    let (credit, let_credit_go) = Got::start_held();
    let mut rig = Rig::start_with(reply, credit);
    let client = rig.assign(sequence(1, 5, 9));
    let mut step = rig.steps.next().await;
    let mut tokens = 0;
    // The reply actor takes nothing: after a few messages no further step is formed.
    loop {
        let next = rig.steps.now();
        rig.done(step, Ok(60 + tokens));
        tokens += 1;
        tokio::time::sleep(RETRY_AFTER * 3).await;
        match next.or_else(|| rig.steps.now()) {
            Some(next) => step = next,
            None => break,
        }
    }
    assert!(tokens < 9, "it went on without its reader");
    drop((let_reply_go, let_credit_go));
    for _ in 0..tokens {
        hand_on(rig.reply.next().await);
    }
    while tokens < 9 {
        let step = rig.steps.next().await;
        rig.done(step, Ok(60 + tokens));
        tokens += 1;
        hand_on(rig.reply.next().await);
    }
    assert_eq!(client.token_ids(), (60..69).collect::<Vec<_>>());
    let mut credit = rig.credit.next().await;
    while (credit.assigned, credit.seats) != (1, 4) {
        credit = rig.credit.next().await;
    }
}

#[actix::test]
async fn a_model_is_gone_when_its_last_sequence_is() {
    let mut rig = Rig::start();
    let client = rig.assign(sequence(1, 5, 1));
    let only = rig.steps.next().await;
    let (done, mut removed) = oneshot::channel();
    rig.tell(RemoveModel { model: ModelId(0), done });
    let mut credit = rig.credit.next().await;
    while credit.open {
        credit = rig.credit.next().await;
    }
    assert!(removed.try_recv().is_err(), "one runs");
    rig.done(only, Ok(65));
    removed.await.expect("the last has left");
    hand_on(rig.reply.next().await);
    assert_eq!(client.token_ids(), [65]);
    rig.assign(sequence(2, 5, 1));
    assert_eq!(rig.returned.next().await.sequences.len(), 1, "the model is not here");
}

#[actix::test]
async fn what_can_never_fit_fails() {
    let rig = Rig::start();
    let client = rig.assign(sequence(1, 30, 9));
    while client.last().is_none() {
        tokio::task::yield_now().await;
    }
    let error = client.last().and_then(|event| event.error).expect("failed");
    assert_eq!(error.kind, Kind::ContextLength);
}

#[actix::test]
async fn without_an_executor_the_device_has_failed() {
    let mut rig = Rig::start();
    rig.steps.stop().await;
    rig.assign(sequence(1, 5, 9));
    assert_eq!(rig.returned.next().await.sequences.len(), 1);
    assert!(rig.node.next().await.reason.contains("executor"));
}

#[actix::test]
async fn an_answer_to_no_step_fails_the_device() {
    let mut rig = Rig::start();
    rig.assign(sequence(1, 5, 9));
    let mut first = rig.steps.next().await;
    first.step = 99;
    rig.done(first, Ok(65));
    assert!(rig.node.next().await.reason.contains("99"));
    let returned = rig.returned.next().await.sequences;
    assert_eq!(returned[0].0.failed_steps, 0);
}

/// Makes the actor panic.
#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Handler<Panic> for Batcher {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("asked to");
    }
}

#[test]
fn a_panic_gives_everything_back() {
    // On a thread of its own, as in the node; the test's thread lives on.
    actix::System::new().block_on(async {
        let mut rig = Rig::start();
        let client = rig.assign(sequence(1, 5, 9));
        rig.steps.next().await;
        rig.tell(Panic);
        // Kept: a stream whose last owner drops it ends.
        let returned = rig.returned.next().await;
        assert_eq!(returned.sequences.len(), 1);
        assert!(rig.node.next().await.reason.contains("ended"));
        assert!(client.last().is_none());
        assert_eq!(rig.progress.pending(), 0);
    });
}

#[actix::test]
async fn what_steps_cost_is_counted_once_it_is_known() {
    let recorder = crate::telemetry::recorder().expect("no other recorder in this process");
    let mut rig = Rig::start();
    let cost = || {
        let text = recorder.render();
        let is_it = |line: &&str| {
            let parts = ["inferno_step_cost_microseconds{", "node=\"test\"", "key=\"step_us\""];
            parts.iter().all(|part| line.contains(part))
        };
        text.lines().filter(is_it).count()
    };
    assert_eq!(cost(), 0);
    for id in 1..=20 {
        rig.assign(sequence(id, 3, 2));
        for _ in 0..2 {
            let step = rig.steps.next().await;
            rig.done(step, Ok(65));
            rig.reply.next().await;
        }
    }
    assert_eq!(cost(), 1);
}
