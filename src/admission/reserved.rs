//! A request between its reservation and the scheduler. Dropped anywhere on that way, it is refused, not lost.

use std::sync::Arc;

use super::ledger::RequestPermit;
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::ids::SequenceId;
use crate::models::ServedModel;
use crate::reply::{Best, PromptShown, Sample, SamplesStart, SharedStream, Stream, StreamStart};
use crate::request::{
    Caller, DefaultLength, Ended, FinishReason, Handle, Params, SampleSoFar, Sink, SoFar,
};
use crate::sequence::Sequence;
use crate::telemetry::Metrics;
use crate::tokenizer::IncrementalDecoder;

/// What admission knows of a request beside its prompt.
pub(super) struct Reserved {
    pub(super) handle: Arc<Handle>,
    pub(super) caller: Caller,
    pub(super) model: Arc<ServedModel>,
    /// In range, with all defaults.
    pub(super) params: Params,
    /// The token ids of `params.bad_words`, once they are known.
    pub(super) bad_words: Vec<Vec<u32>>,
    /// The prompt's text, where it goes back as it was written.
    pub(super) echo: Option<String>,
    pub(super) so_far: SoFar,
    pub(super) is_question: bool,
    /// The field that the prompt came in.
    pub(super) prompt_field: &'static str,
    pub(super) stream: bool,
    pub(super) priority: u8,
    pub(super) default_length: DefaultLength,
    pub(super) received_at: Timestamp,
    pub(super) metrics: Arc<Metrics>,
    /// None once it has gone on, or was refused.
    pub(super) hold: Option<Hold>,
}

/// What goes on with the request: the answer's way and the right to be here.
pub(super) struct Hold {
    pub(super) sink: Box<dyn Sink>,
    pub(super) permit: RequestPermit,
}

impl Reserved {
    /// Whether nobody wants the answer any more.
    pub(super) fn is_unwanted(&self) -> bool {
        self.handle.is_cancelled() || self.hold.as_ref().is_none_or(|hold| hold.sink.is_closed())
    }

    /// What each sample's stream is made with. `hold` is this request's; `next_id` gives ids to the samples where there are several.
    pub(super) fn samples(&self, hold: Hold, next_id: impl Fn() -> SequenceId) -> Vec<Sample> {
        let (sink, permit) = (hold.sink, Box::new(hold.permit));
        let handle = Arc::clone(&self.handle);
        if self.params.num_samples() == 1 {
            return vec![Sample { handle, sink, permit }];
        }
        let best = self.params.ranks_samples().then(|| Best {
            num_choices: self.params.num_choices() as usize,
            tell_logprobs: self.params.logprobs.is_some(),
        });
        let sequence_ids = (0..self.params.num_samples()).map(|_| next_id()).collect();
        let is_ended =
            |index: &u32| self.begun(*index).is_some_and(|begun| begun.finish_reason.is_some());
        let told_ends = (0..self.params.num_samples()).filter(is_ended).collect();
        Sample::of(SamplesStart { sink, permit, handle, sequence_ids, told_ends, best })
    }

    /// What is to be computed for one sample; `token_ids` are the prompt's.
    pub(super) fn sequence(
        &self,
        (sample, handle): (u32, &Arc<Handle>),
        mut token_ids: Vec<u32>,
        max_tokens: u32,
    ) -> Sequence {
        let num_prompt_tokens = token_ids.len() as u32;
        let begun = self.begun(sample);
        token_ids.extend(begun.iter().flat_map(|begun| &begun.tokens).map(|token| token.id));
        // As if the step that was to give its next token had failed.
        let failed_at = if self.so_far.is_suspect { token_ids.len() as u32 } else { 0 };
        let mut sampler = self.params.sampler(num_prompt_tokens, &self.bad_words);
        sampler.seed = self.params.seed_of(sample);
        Sequence {
            id: handle.sequence_id(),
            model: self.model.id,
            salt: 0,
            num_prompt_tokens,
            max_tokens,
            min_tokens: self.params.min_tokens.unwrap_or(0),
            ignore_eos: self.params.ignore_eos.unwrap_or(false),
            sampler: Arc::new(sampler),
            prompt_logprobs: if self.has_told_prompt(sample) {
                None
            } else {
                self.params.num_prompt_logprobs()
            },
            prompt_scored: false,
            priority: self.priority,
            accepted_at: self.received_at,
            attempt: self.so_far.attempt,
            failed_steps: 0,
            failed_at,
            handle: Arc::clone(handle),
            token_ids,
        }
    }

    /// What there is of a sample.
    pub(super) fn begun(&self, sample: u32) -> Option<&SampleSoFar> {
        self.so_far.samples.get(sample as usize)
    }

    /// Where a sample's tokens go.
    pub(super) fn stream(
        &self,
        (index, sample): (u32, Sample),
        sequence: &Sequence,
        node_id: &Arc<str>,
    ) -> SharedStream {
        let prompt = &sequence.token_ids[..sequence.num_prompt_tokens as usize];
        Stream::new(StreamStart {
            sink: sample.sink,
            decoder: self.decoder(prompt),
            stop: self.params.stop.clone(),
            include_stop: self.params.include_stop_str_in_output.unwrap_or(false),
            num_logprobs: self.num_logprobs(),
            prompt: self.shown(prompt, index),
            begun: self.begun(index).cloned().unwrap_or_default(),
            attempt: self.so_far.attempt,
            min_tokens: sequence.min_tokens,
            stream: self.stream,
            num_prompt_tokens: sequence.num_prompt_tokens,
            accepted_at: self.received_at,
            node_id: Arc::clone(node_id),
            metrics: Arc::clone(&self.metrics),
            permit: sample.permit,
            handle: sample.handle,
        })
    }

    /// What makes text of the tokens that follow `prompt`.
    fn decoder(&self, prompt: &[u32]) -> IncrementalDecoder {
        IncrementalDecoder::new(Arc::clone(&self.model.tokenizer), prompt)
            .with_special_tokens(self.params.skip_special_tokens == Some(false))
    }

    /// How many log probabilities a sample's stream is to tell beside each token; none: not even the token's own.
    fn num_logprobs(&self) -> Option<u32> {
        // What ranks samples is read off their events.
        self.params.num_logprobs().or(self.params.ranks_samples().then_some(0))
    }

    /// The first event had what goes back of the prompt.
    fn has_told_prompt(&self, sample: u32) -> bool {
        self.stream && self.begun(sample).is_some_and(|begun| !begun.tokens.is_empty())
    }

    /// What goes back of the prompt, if anything does.
    fn shown(&self, prompt: &[u32], sample: u32) -> Option<PromptShown> {
        if self.has_told_prompt(sample) {
            return None;
        }
        let (echo, num_logprobs) = (self.params.echoes(), self.params.num_prompt_logprobs());
        // Of a prompt in text, those marks are shown that the client wrote.
        let marks = self.echo.is_none() && self.params.skip_special_tokens == Some(false);
        (echo || num_logprobs.is_some()).then(|| PromptShown {
            token_ids: prompt.to_vec(),
            decoder: self.decoder(&[]).with_special_tokens(marks),
            echo,
            text: self.echo.clone(),
            num_logprobs,
        })
    }

    /// Says yes to what was only a question; its place is free again.
    pub(super) fn accept_as_question(mut self) {
        let Some(mut hold) = self.hold.take() else { return };
        hold.sink.accepted(&self.handle);
        drop(hold);
        self.handle.end(Ended { reason: FinishReason::Stop, completion_tokens: 0 });
    }

    /// Says no; the permit goes back before those who wait for the end are told.
    pub(super) fn refuse(mut self, error: &Error) {
        self.end(error);
    }

    fn end(&mut self, error: &Error) {
        let Some(mut hold) = self.hold.take() else { return };
        self.metrics.refused(error.kind);
        hold.sink.refused(error);
        drop(hold);
        let reason = match error.kind {
            Kind::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Failed,
        };
        self.handle.end(Ended { reason, completion_tokens: 0 });
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let error = match std::thread::panicking() {
            true => Error::internal("admission panicked on this request"),
            false => {
                Error::new(Kind::Unavailable, "the node is stopping").with_retry_after_ms(1_000)
            }
        };
        self.end(&error);
    }
}

/// What a cancelled request is told that was not accepted yet.
pub(super) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "cancelled before it was accepted")
}
