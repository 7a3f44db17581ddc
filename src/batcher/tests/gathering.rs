//! Those that ended together, and come back.

use std::time::Instant;

use super::super::seated::tests::spec;
use super::super::{Batching, LaneSpec, Output, PlannedStep};
use super::rig::{Rig, STEP_TIME};
use crate::bridge::ffi::StepOutput;
use crate::clock::Timestamp;
use crate::ids::ModelId;
use crate::sequence::Sequence;
use crate::sequence::testing::sequence;

/// Two sequences of one token, each with a step, end together.
async fn after_two_that_ended_together() -> Rig {
    let mut rig = Rig::start();
    rig.assign(sequence(1, 5, 1));
    let first = rig.steps.next().await;
    rig.assign(sequence(2, 5, 1));
    let second = rig.steps.next().await;
    for step in [first, second] {
        rig.done_at(step, Ok(65), Timestamp::now());
    }
    rig
}

#[actix::test]
async fn of_those_that_ended_together_the_next_begin_together() {
    let mut rig = after_two_that_ended_together().await;
    rig.assign(sequence(3, 5, 1));
    rig.assign(sequence(4, 5, 1));
    assert_eq!(rig.steps.next().await.batch.seats.len(), 2);
}

#[actix::test]
async fn who_comes_back_alone_begins_after_a_moment() {
    let mut rig = after_two_that_ended_together().await;
    let came = Instant::now();
    rig.assign(sequence(3, 5, 1));
    assert_eq!(rig.steps.next().await.batch.seats.len(), 1);
    assert!(came.elapsed() >= STEP_TIME / 8, "it has waited for the other");
}

/// Lanes of so many models, with steps of 16 tokens.
fn policy(models: u32) -> Batching<u64> {
    let mut policy = Batching::new();
    for model in 0..models {
        let model = ModelId(model);
        policy.add_model(LaneSpec { model, num_blocks: 64, max_step_tokens: 16, ..spec() });
    }
    policy
}

fn assign(policy: &mut Batching<u64>, sequence: Sequence) {
    let id = sequence.id.0;
    policy.assign(sequence, id).expect("it fits");
}

/// Forms the next step and ends it.
fn run_step(policy: &mut Batching<u64>) {
    let step = policy.next_step(&mut Output::default()).expect("work");
    end_step(policy, step);
}

fn end_step(policy: &mut Batching<u64>, step: PlannedStep) {
    let output = StepOutput::of_tokens(vec![50; step.batch.seats.len()], &step.batch.sample);
    policy.settle(step.step, &output, step.batch, &mut Output::default()).expect("in order");
}

/// How many wait and how many may come back.
fn counts(policy: &Batching<u64>) -> Option<(u32, u32)> {
    policy.newcomers().map(|newcomers| (newcomers.waiting, newcomers.returning))
}

#[test]
fn who_ends_with_a_step_in_flight_and_who_ended_with_the_last_ones_may_come_back() {
    let mut policy = policy(1);
    assign(&mut policy, sequence(1, 4, 1));
    assign(&mut policy, sequence(2, 4, 1));
    let step = policy.next_step(&mut Output::default()).expect("work");
    assert_eq!(counts(&policy), None, "nobody waits");
    assign(&mut policy, sequence(3, 4, 1));
    assert_eq!(counts(&policy), Some((1, 2)), "both end with the step in flight");
    end_step(&mut policy, step);
    assert_eq!(counts(&policy), Some((1, 2)), "both have ended");
    run_step(&mut policy);
    assign(&mut policy, sequence(4, 4, 1));
    assert_eq!(counts(&policy), Some((1, 1)), "since the third got a seat it alone has ended");
}

#[test]
fn ends_of_long_ago_are_forgotten() {
    let mut policy = policy(2);
    assign(&mut policy, sequence(1, 4, 1));
    run_step(&mut policy);
    for id in 2..10 {
        let model = ModelId(1);
        assign(&mut policy, Sequence { model, ..sequence(id, 4, 1) });
        run_step(&mut policy);
    }
    assign(&mut policy, sequence(10, 4, 1));
    assert_eq!(counts(&policy), Some((1, 0)));
}

#[test]
fn newcomers_wait_for_nobody_where_there_is_other_work() {
    let mut decoding = policy(1);
    assign(&mut decoding, sequence(1, 4, 5));
    run_step(&mut decoding);
    assign(&mut decoding, sequence(2, 4, 1));
    assert_eq!(counts(&decoding), None, "one decodes");
    let mut two_models = policy(2);
    assign(&mut two_models, sequence(1, 4, 1));
    assign(&mut two_models, Sequence { model: ModelId(1), ..sequence(2, 4, 1) });
    assert_eq!(counts(&two_models), None, "two models have newcomers");
    let mut suspect = policy(1);
    assign(&mut suspect, Sequence { failed_at: 3, ..sequence(1, 4, 1) });
    assert_eq!(counts(&suspect), None, "a step of it failed before");
}

#[test]
fn who_is_held_is_not_expected() {
    let mut policy = policy(1);
    let held = sequence(1, 4, 5);
    let handle = held.handle.clone();
    assign(&mut policy, held);
    run_step(&mut policy);
    handle.set_held(true);
    assign(&mut policy, sequence(2, 4, 1));
    assert_eq!(counts(&policy), Some((1, 0)));
}

#[test]
fn prompts_that_fill_a_step_are_enough() {
    let mut policy = policy(1);
    assign(&mut policy, sequence(1, 15, 1));
    assert!(policy.newcomers().is_some_and(|newcomers| !newcomers.fill_step));
    assign(&mut policy, sequence(2, 1, 1));
    assert!(policy.newcomers().is_some_and(|newcomers| newcomers.fill_step));
}
