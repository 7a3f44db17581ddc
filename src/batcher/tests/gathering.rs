//! Those that ended together, and come back.

use super::rig::Rig;
use crate::clock::Timestamp;
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
    rig.assign(sequence(3, 5, 1));
    assert_eq!(rig.steps.next().await.batch.seats.len(), 1);
}
