//! A request of the simulator: what it asks, what it must get, and what it got.

use std::sync::Arc;

use inferno_node::bridge::ffi::SamplerSpec;
use inferno_node::clock::Timestamp;
use inferno_node::ids::{ModelId, RequestId, SequenceId};
use inferno_node::request::{FinishReason, Handle, Scores};
use inferno_node::sequence::Sequence;

use super::chance::Chance;
use super::device::{END_TOKEN, extend, root, sample, score};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By the batcher's word.
    Finished(FinishReason),
    /// By the reply stage: a stop string.
    Stopped,
    /// Cancelled before it ran.
    Cancelled,
    /// By an error.
    Failed,
    /// Its stream was dropped with a mailbox.
    Dropped,
}

pub struct Request {
    pub sequence: Sequence,
    pub handle: Arc<Handle>,
    /// What it gives alone.
    pub expected: Vec<u32>,
    pub expected_finish: FinishReason,
    /// The reply stage ends it after so many tokens.
    pub stop_after: Option<usize>,
    /// It makes every step fail that computes up to this position or beyond.
    pub poison_at: Option<u32>,
    pub taken: Vec<u32>,
    /// What it was told of its prompt.
    pub told: Vec<Scores>,
    pub attempt: u32,
    /// By what its stream was told: its tokens do not count as waiting.
    pub on_device: bool,
    /// Words of the policies that it has ended.
    pub finishes: u32,
    pub end: Option<End>,
    /// Failed steps that it was in.
    pub failed_steps: u32,
    pub arrived_us: u64,
    pub ended_us: u64,
}

impl Request {
    /// Draws a request; `lead` is what prompts of its kind have in common.
    pub fn draw(id: u64, model: ModelId, lead: &[u32], now: u64, chance: &mut Chance) -> Self {
        let handle = Handle::new(RequestId::generate(), SequenceId(id));
        let own = chance.between(1, 20);
        let shared = chance.between(0, lead.len() as u64) as usize;
        let mut token_ids = lead[..shared].to_vec();
        token_ids.extend((0..own).map(|_| chance.between(0, 3) as u32));
        let num_prompt_tokens = token_ids.len() as u32;
        let scored = chance.percent(20);
        let prompt_alone = scored && chance.percent(40);
        let max_tokens = if prompt_alone { 0 } else { chance.between(1, 24) as u32 };
        let min_tokens =
            if chance.percent(20) && !prompt_alone { chance.between(0, 6) as u32 } else { 0 };
        let sampler = SamplerSpec {
            seed: id,
            end_from: num_prompt_tokens + min_tokens,
            num_logprobs: u32::from(scored),
            ..SamplerSpec::neutral()
        };
        let sequence = Sequence {
            id: SequenceId(id),
            model,
            salt: 0,
            num_prompt_tokens,
            token_ids,
            max_tokens,
            min_tokens,
            ignore_eos: chance.percent(20),
            sampler: Arc::new(sampler),
            prompt_logprobs: scored.then_some(1),
            prompt_scored: false,
            priority: chance.between(0, 255) as u8,
            accepted_at: Timestamp::from_micros(now),
            attempt: 1,
            failed_steps: 0,
            failed_at: 0,
            handle: Arc::clone(&handle),
        };
        let (expected, expected_finish) = alone(&sequence);
        Self {
            stop_after: chance.percent(10).then(|| chance.between(1, 12) as usize),
            poison_at: None,
            sequence,
            handle,
            expected,
            expected_finish,
            taken: Vec::new(),
            told: Vec::new(),
            attempt: 1,
            on_device: false,
            finishes: 0,
            end: None,
            failed_steps: 0,
            arrived_us: now,
            ended_us: 0,
        }
    }

    pub fn end(&mut self, end: End, now: u64) {
        if self.end.is_none() {
            self.end = Some(end);
            self.ended_us = now;
            self.handle.set_stopped();
        }
    }

    /// What must hold once everything has come to rest.
    pub fn verdict(&self) -> Result<(), String> {
        let Some(end) = self.end else { return Err("never ended".into()) };
        if self.finishes > 1 {
            return Err(format!("ended {} times", self.finishes));
        }
        if !self.expected.starts_with(&self.taken) {
            return Err(format!("took {:?}, alone it gives {:?}", self.taken, self.expected));
        }
        let whole = self.taken.len() == self.expected.len();
        let sound = matches!(end, End::Finished(FinishReason::Stop | FinishReason::Length));
        if (sound || !self.told.is_empty()) && self.told != prompt_scores(&self.sequence) {
            return Err(format!(
                "was told {} scores of its prompt, or wrong ones",
                self.told.len()
            ));
        }
        match end {
            End::Finished(FinishReason::Cancelled) | End::Cancelled => {
                self.handle.is_cancelled().then_some(()).ok_or("cancelled unasked".into())
            }
            End::Finished(reason) if reason != self.expected_finish || !whole => {
                Err(format!("{reason:?} after {} of {}", self.taken.len(), self.expected.len()))
            }
            End::Failed if self.failed_steps < 2 => Err("failed after less than two steps".into()),
            End::Finished(_) | End::Stopped | End::Failed | End::Dropped => Ok(()),
        }
    }
}

/// What is to be told of a sequence's prompt.
fn prompt_scores(sequence: &Sequence) -> Vec<Scores> {
    let mut digest = root(sequence.model);
    let mut scores = Vec::new();
    for (at, token) in sequence.token_ids.iter().enumerate() {
        if at > 0 && sequence.prompt_logprobs.is_some() {
            let logprob = score(digest, *token);
            scores.push(Scores { logprob, top: vec![(*token, logprob)] });
        }
        digest = extend(digest, *token);
    }
    scores
}

/// What a sequence gives when it has a device for itself.
fn alone(sequence: &Sequence) -> (Vec<u32>, FinishReason) {
    let mut digest = sequence.token_ids.iter().fold(root(sequence.model), |d, t| extend(d, *t));
    let mut completion = Vec::new();
    if sequence.max_tokens == 0 {
        return (completion, FinishReason::Length);
    }
    loop {
        let count = completion.len() as u32;
        let position = sequence.num_prompt_tokens + count;
        let Some(token) = sample(&sequence.sampler, position, digest) else {
            return (completion, FinishReason::Failed);
        };
        digest = extend(digest, token);
        completion.push(token);
        if token == END_TOKEN && !sequence.ignore_eos {
            return (completion, FinishReason::Stop);
        }
        if count + 1 == sequence.max_tokens {
            return (completion, FinishReason::Length);
        }
    }
}
