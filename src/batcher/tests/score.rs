//! Goal: the log probabilities of a prompt reach their stream whole and once, whatever the batcher does to its sequence. Method: the
//! policy with a device whose log probability of a token is minus its id.

use std::sync::Arc;

use super::super::Started;
use super::super::lane::LaneSpec;
use super::super::policy::{Batching, PlannedStep};
use super::super::seated::Output;
use crate::bridge::NO_TOKEN;
use crate::bridge::ffi::{StepBatch, StepOutput};
use crate::ids::ModelId;
use crate::reply::RowFault;
use crate::request::{FinishReason, Scores};
use crate::sequence::Sequence;
use crate::sequence::testing::sequence;

const SAMPLED: u32 = 50;

fn spec(num_blocks: u32) -> LaneSpec {
    LaneSpec {
        model: ModelId(0),
        num_blocks,
        block_size: 4,
        max_batch_size: 4,
        max_step_tokens: 8,
        step_time_target: None,
        max_seq_len: 32,
        end_token_ids: Vec::new(),
        window: None,
        enable_prefix_cache: true,
        reserve_tokens: 0,
    }
}

/// Wants its prompt's log probabilities with one alternative, of two that its seat has.
fn scored(id: u64, prompt: u32, max_tokens: u32) -> Sequence {
    let mut wants = Sequence { prompt_logprobs: Some(1), ..sequence(id, prompt, max_tokens) };
    Arc::make_mut(&mut wants.sampler).num_logprobs = 2;
    wants
}

/// What is to be told of a prompt; the alternative is the next id.
fn scores_of(sequence: &Sequence) -> Vec<Scores> {
    let score = |id: &u32| Scores { logprob: -(*id as f32), top: vec![(id + 1, -(*id as f32))] };
    sequence.token_ids[1..sequence.num_prompt_tokens as usize].iter().map(score).collect()
}

/// The device's answer; its model has one token beside each.
fn answer(batch: &StepBatch) -> StepOutput {
    let mut answer = StepOutput::of_tokens(vec![SAMPLED; batch.seats.len()], &batch.sample);
    let mut first = 0;
    for (row, len) in batch.query_lens.iter().enumerate() {
        let own = &batch.token_ids[first..first + *len as usize];
        first += *len as usize;
        let next = Some(batch.next_token_ids[row]).filter(|id| *id != NO_TOKEN);
        let targets = own.iter().skip(1).copied().chain(next).filter(|_| batch.score[row]);
        for id in targets {
            answer.score_logprobs.push(-(id as f32));
            answer.score_top_ids.extend([id + 1, NO_TOKEN]);
            answer.score_top_logprobs.extend([-(id as f32), f32::NEG_INFINITY]);
        }
        answer.score_starts[row + 1] = answer.score_logprobs.len() as u32;
    }
    answer
}

fn settle(policy: &mut Batching<u64>, step: PlannedStep, out: &mut Output<u64>) {
    policy.settle(step.step, &answer(&step.batch), step.batch, out).expect("in order");
    assert_eq!(policy.audit(), Ok(()));
}

/// A policy with these sequences, their ids as streams.
fn policy(spec: LaneSpec, of: &[&Sequence]) -> (Batching<u64>, Output<u64>) {
    let mut policy = Batching::default();
    policy.add_model(spec);
    for &sequence in of {
        policy.assign(sequence.clone(), sequence.id.0).expect("the model is here");
    }
    (policy, Output::default())
}

/// Runs to the end, one step at a time.
fn run(policy: &mut Batching<u64>, out: &mut Output<u64>) {
    for _ in 0..200 {
        let Some(step) = policy.next_step(out) else { return };
        settle(policy, step, out);
    }
    panic!("it does not end");
}

/// What a stream was told of its prompt, and with how many tokens and which end.
fn told(out: &Output<u64>, stream: u64) -> (Vec<Scores>, usize, Option<FinishReason>) {
    let own: Vec<_> = out.produced.iter().filter(|one| one.stream == stream).collect();
    assert!(own[1..].iter().all(|one| one.prompt_scores.is_empty()), "told twice");
    let tokens = own.iter().filter(|one| one.token.is_some()).count();
    (own[0].prompt_scores.clone(), tokens, own.last().and_then(|one| one.finish))
}

#[test]
fn a_scored_prompt_is_computed_in_chunks_and_told_with_the_first_token() {
    let wants = scored(2, 10, 3);
    let twin = Sequence { token_ids: wants.token_ids.clone(), ..sequence(1, 10, 2) };
    let (mut policy, mut out) = policy(spec(32), &[&twin]);
    run(&mut policy, &mut out);
    policy.assign(wants.clone(), 2).expect("the model is here");
    policy.assign(sequence(3, 3, 2), 3).expect("the model is here");

    let first = policy.next_step(&mut out).expect("work");
    let cached: Vec<u32> =
        out.started.drain(..).map(|Started { cached_tokens, .. }| cached_tokens).collect();
    assert_eq!(cached, [0, 0], "what others have computed does not serve");
    assert_eq!(first.batch.query_lens, [8]);
    assert_eq!((first.batch.score[0], first.batch.next_token_ids[0]), (true, wants.token_ids[8]));
    let second = policy.next_step(&mut out).expect("the rest of the prompt");
    assert_eq!(
        (&second.batch.query_lens[..], &second.batch.score[..]),
        (&[2, 3][..], &[true, false][..])
    );
    assert_eq!(second.batch.next_token_ids, [NO_TOKEN; 2]);
    settle(&mut policy, first, &mut out);
    settle(&mut policy, second, &mut out);
    run(&mut policy, &mut out);
    assert_eq!(told(&out, 2), (scores_of(&wants), 3, Some(FinishReason::Length)));
    assert_eq!(told(&out, 3), (Vec::new(), 2, Some(FinishReason::Length)));
}

#[test]
fn who_wants_no_token_ends_with_the_prompt_and_samples_nothing() {
    for prompt in [1, 4, 10] {
        let wants = scored(1, prompt, 0);
        let (mut policy, mut out) = policy(spec(8), &[&wants]);
        let mut steps = 0;
        while let Some(step) = policy.next_step(&mut out) {
            assert_eq!(step.batch.sample, [false]);
            steps += 1;
            settle(&mut policy, step, &mut out);
        }
        assert_eq!(steps, prompt.div_ceil(8));
        assert_eq!(told(&out, 1), (scores_of(&wants), 0, Some(FinishReason::Length)));
        assert_eq!((policy.load().running, policy.load().used_blocks), (0, 0));
    }
}

#[test]
fn a_preemption_in_the_prompt_begins_it_anew_and_one_after_it_does_not() {
    // Eight blocks of four. The older one decodes past what is left beside the younger one's prompt.
    for younger in [scored(2, 14, 6), scored(2, 8, 12)] {
        let older = scored(1, 12, 16);
        let (mut policy, mut out) = policy(spec(7), &[&older, &younger]);
        run(&mut policy, &mut out);
        assert!(out.preemptions > 0);
        for wants in [older, younger] {
            let tokens = wants.max_tokens as usize;
            let expected = (scores_of(&wants), tokens, Some(FinishReason::Length));
            assert_eq!(told(&out, wants.id.0), expected);
        }
    }
}

#[test]
fn after_a_failure_the_prompt_is_scored_again_unless_its_stream_has_it() {
    let wants = scored(1, 10, 3);
    let (mut policy, mut out) = policy(spec(8), &[&wants]);
    let first = policy.next_step(&mut out).expect("half of the prompt");
    settle(&mut policy, first, &mut out);
    let second = policy.next_step(&mut out).expect("the other half");
    let gone = policy.depart(Some(second.step));
    assert!(gone[0].sequence.needs_scores());
    policy.add_model(spec(8));
    policy.assign(gone[0].sequence.clone(), 1).expect("the model is here");
    let again = policy.next_step(&mut out).expect("from the beginning");
    assert_eq!((again.batch.query_lens[0], again.batch.score[0]), (8, true));
    settle(&mut policy, again, &mut out);
    let rest = policy.next_step(&mut out).expect("the other half");
    settle(&mut policy, rest, &mut out);
    assert_eq!(told(&out, 1).0, scores_of(&wants));
    let gone = policy.depart(None);
    assert!(!gone[0].sequence.needs_scores(), "its token has come with them");
}

#[test]
fn a_prompt_without_numbers_ends_its_own_sequence() {
    let (mut policy, mut out) = policy(spec(16), &[&scored(1, 4, 0), &scored(2, 4, 0)]);
    let step = policy.next_step(&mut out).expect("work");
    let mut broken = answer(&step.batch);
    broken.score_logprobs[1] = f32::NAN;
    policy.settle(step.step, &broken, step.batch, &mut out).expect("a sound step");
    let ends: Vec<_> = out.produced.iter().map(|one| (one.fault, one.finish)).collect();
    let failed = (Some(RowFault::PromptNotANumber), Some(FinishReason::Failed));
    assert_eq!(ends, [failed, (None, Some(FinishReason::Length))]);
    let twin = Sequence { token_ids: scored(1, 4, 0).token_ids, ..sequence(3, 5, 1) };
    policy.assign(twin, 3).expect("the model is here");
    policy.next_step(&mut out).expect("work");
    assert_eq!(out.started.last().map(|one| one.cached_tokens), Some(0), "nobody uses its blocks");
}

#[test]
fn an_answer_without_the_scores_that_were_asked_for_is_a_defect() {
    let (mut policy, mut out) = policy(spec(8), &[&scored(1, 4, 1)]);
    let step = policy.next_step(&mut out).expect("work");
    let good = answer(&step.batch);
    type Break = fn(&mut StepOutput);
    let breaks: [Break; 5] = [
        |output| output.score_starts.clear(),
        |output| output.score_starts[0] = 1,
        |output| output.score_starts[1] = 2,
        |output| output.score_logprobs.truncate(2),
        |output| output.score_top_ids.truncate(5),
    ];
    for break_it in breaks {
        let mut bad = good.clone();
        break_it(&mut bad);
        assert!(policy.settle(step.step, &bad, Box::default(), &mut out).is_err());
    }
    assert_eq!(policy.settle(step.step, &good, step.batch, &mut out), Ok(4));
}
