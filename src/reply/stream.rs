//! One request's stream: sampled ids in, events out.
//!
//! However its owners' calls fall, the sink gets exactly one of a refusal or (acceptance, events, one last event), the handle
//! is ended once and the permit goes back once.

mod account;
mod brought;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::prompt::PromptShown;
use super::start::{Permit, StreamStart};
use super::text::Text;
use super::times::Times;
use super::{RowFault, SharedStream};
use crate::clock::Timestamp;
use crate::error::{Error, Kind};
use crate::ids::{DeviceId, RequestId};
use crate::request::{
    Ended, Event, FinishReason, Handle, Scores, Sink, SinkClosed, Token, TokenLogprob,
};
use crate::telemetry::Metrics;

/// When a request that a drain cut may come back: another node takes it at once, this one when it has started again.
const DRAINED_RETRY_MS: u64 = 1_000;

/// See the module.
pub struct Stream {
    handle: Arc<Handle>,
    /// None once the last word is said.
    open: Option<Open>,
    text: Text,
    /// What the next event says: of a request that does not stream, all ids.
    next: Event,
    /// Until the first event, where something of it goes back.
    prompt: Option<Box<PromptShown>>,
    /// Not sent.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// So many of them the client has from before this start.
    prompt_logprobs_told: usize,
    min_tokens: u32,
    streams: bool,
    num_prompt_tokens: u32,
    num_tokens: u32,
    /// Of them those that it came with.
    num_brought: u32,
    attempt: u32,
    cached_tokens: u32,
    device: Option<DeviceId>,
    times: Times,
    node_id: Arc<str>,
    metrics: Arc<Metrics>,
}

/// What a stream lets go of at its end.
struct Open {
    sink: Box<dyn Sink>,
    permit: Box<dyn Permit>,
    accepted: bool,
}

impl Stream {
    /// A stream that nobody was told of yet: [`accept`](Self::accept) or [`refuse`](Self::refuse) comes next.
    pub fn new(start: StreamStart) -> SharedStream {
        let mut stream = Self {
            next: Event::new(start.handle.request_id().clone()),
            handle: start.handle,
            open: Some(Open { sink: start.sink, permit: start.permit, accepted: false }),
            text: Text::new(start.decoder, start.stop, start.include_stop)
                .with_logprobs(start.num_logprobs),
            prompt: start.prompt.map(Box::new),
            prompt_logprobs: None,
            prompt_logprobs_told: start.begun.prompt_logprobs_told,
            min_tokens: start.min_tokens,
            streams: start.stream,
            num_prompt_tokens: start.num_prompt_tokens,
            num_tokens: 0,
            num_brought: 0,
            attempt: start.attempt,
            cached_tokens: 0,
            device: None,
            times: Times::new(start.accepted_at),
            node_id: start.node_id,
            metrics: start.metrics,
        };
        stream.bring(&start.begun);
        Arc::new(Mutex::new(stream))
    }

    /// Tells the client that the request is in. Admission holds the stream's lock from before the scheduler has it until
    /// here, so no event can be earlier.
    pub fn accept(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.accepted) {
            open.accepted = true;
            open.sink.accepted(&self.handle);
        }
    }

    /// Tells the client that the request is not taken; nothing follows. Only before [`accept`](Self::accept).
    pub fn refuse(&mut self, error: &Error) {
        let Some(open) = self.open.take_if(|open| !open.accepted) else { return };
        let reason = match error.kind {
            Kind::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Failed,
        };
        let _ended = AtEnd { handle: &self.handle, ended: self.ended(reason) };
        let mut open = open;
        self.metrics.refused(error.kind);
        open.sink.refused(error);
    }

    /// The request's id, for logs.
    pub fn request_id(&self) -> &RequestId {
        self.handle.request_id()
    }

    /// Completion tokens taken so far.
    pub fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Whether the last event is sent.
    pub fn is_ended(&self) -> bool {
        self.open.is_none()
    }

    /// The sequence is on a device; `cached_tokens` of its prompt were found in the prefix cache. Called again after a
    /// pre-emption or a new start: the first call ends the queue time, and the first of an attempt counts for the cache.
    pub fn scheduled(&mut self, device: &DeviceId, cached_tokens: u32, now: Timestamp) {
        let Some(open) = &mut self.open else { return };
        if self.times.scheduled_at.is_none() {
            self.times.scheduled_at = Some(now);
            let queued = now.since(self.times.accepted_at);
            self.metrics.queue_time.record(queued.as_secs_f64());
        }
        open.permit.scheduled();
        if self.device.as_ref() != Some(device) {
            self.device = Some(device.clone());
        }
        let request_id = self.handle.request_id();
        tracing::debug!(%request_id, %device, attempt = self.attempt, cached_tokens, "scheduled");
        if self.num_tokens == self.num_brought {
            self.cached_tokens = cached_tokens.min(self.num_prompt_tokens);
        }
    }

    /// Takes what a device says of the prompt's tokens from the second on (nothing, where nobody asked), once: before the first
    /// token, or the finish in its place. Ignored like [`push`](Self::push).
    pub fn tell_prompt(&mut self, attempt: u32, scores: Vec<Scores>) {
        if self.open.is_none() || attempt < self.attempt {
            return;
        }
        let Some(prompt) = self.prompt.take_if(|prompt| prompt.fits(&scores)) else {
            if !scores.is_empty() {
                let (request_id, got) = (self.handle.request_id(), scores.len());
                let tokens = self.num_prompt_tokens;
                tracing::warn!(%request_id, got, tokens, "log probabilities that fit no prompt to be told are dropped");
            }
            return;
        };
        let told = prompt.tell(scores);
        self.text.begin_with(&told.text);
        let from = self.prompt_logprobs_told;
        let left = |mut all: Vec<_>| (from < all.len()).then(|| all.split_off(from));
        self.prompt_logprobs = told.logprobs.and_then(left);
    }

    /// Takes what a step gave. `finish` is the batcher's: with [`FinishReason::Stop`] the last token is the end token, which
    /// is counted and mostly not shown. Ignored after the end, and for an attempt that was given up.
    pub fn push(
        &mut self,
        attempt: u32,
        tokens: &[Token],
        finish: Option<FinishReason>,
        now: Timestamp,
    ) {
        if self.open.is_none() || attempt < self.attempt {
            return;
        }
        self.attempt = attempt;
        let hides_last = finish == Some(FinishReason::Stop) && !self.text.shows_end();
        let shown = tokens.len().saturating_sub(usize::from(hides_last));
        let (taken, stopped) = self.take_in(tokens, shown);
        self.count(taken, now);
        if finish == Some(FinishReason::Length) {
            self.count_prompt_alone();
        }
        let finish = if stopped { Some(FinishReason::Stop) } else { finish };
        match finish {
            Some(reason) => self.finish(reason, None, now),
            None if self.handle.is_cancelled() => self.finish(FinishReason::Cancelled, None, now),
            None if taken > 0 => self.deliver(now),
            None => {}
        }
    }

    /// No token could be sampled, which ends the request. Ignored for an attempt that was given up.
    pub fn fault(&mut self, attempt: u32, fault: RowFault, now: Timestamp) {
        if attempt >= self.attempt {
            self.fail(fault.error(self.num_tokens), now);
        }
    }

    /// The request was cancelled and is on no device (or will get nothing more from it): ends it.
    pub fn cancel(&mut self, now: Timestamp) {
        self.handle.cancel();
        self.finish(FinishReason::Cancelled, None, now);
    }

    /// Ends it with an error.
    pub fn fail(&mut self, error: Error, now: Timestamp) {
        self.finish(FinishReason::Failed, Some(error), now);
    }

    /// The sequence waits to start again after a failure, as `attempt`: what comes late from an older one is ignored. Gives the
    /// completion tokens taken so far, which the sequence goes on from; nothing if it has ended.
    pub fn restart(&mut self, attempt: u32) -> Option<u32> {
        self.attempt = self.attempt.max(attempt);
        let open = self.open.as_mut()?;
        open.permit.returned();
        Some(self.num_tokens)
    }

    /// Adds tokens, those from `shown` on without their text; gives how many there are up to the end of a stop string, and
    /// whether one is complete.
    fn take_in(&mut self, tokens: &[Token], shown: usize) -> (usize, bool) {
        for (index, token) in tokens.iter().enumerate() {
            self.next.token_ids.push(token.id);
            if index >= shown {
                self.text.push_unseen(token);
                continue;
            }
            let armed = self.num_tokens as usize + index >= self.min_tokens as usize;
            if self.text.push(token, armed) {
                return (index + 1, true);
            }
        }
        (tokens.len(), false)
    }

    /// A request that wants no token is done with its prompt.
    fn count_prompt_alone(&mut self) {
        let computed = self.prompt_logprobs.is_some() && self.num_tokens == 0;
        if let Some(open) = self.open.as_mut().filter(|_| computed) {
            open.permit.computed(self.num_prompt_tokens);
        }
    }

    fn count(&mut self, tokens: usize, now: Timestamp) {
        let Some(open) = self.open.as_mut().filter(|_| tokens > 0) else { return };
        let count = u32::try_from(tokens).unwrap_or(u32::MAX);
        let mut done = count;
        match self.times.last_token_at {
            Some(last) => {
                let gap = now.since(last).as_secs_f64() / f64::from(count);
                self.metrics.inter_token_latency.record_many(gap, tokens);
            }
            None => {
                let waited = now.since(self.times.accepted_at);
                self.metrics.time_to_first_token.record(waited.as_secs_f64());
                self.metrics.recent_first_tokens.record(waited, now);
                self.times.first_token_at = Some(now);
                done = done.saturating_add(self.num_prompt_tokens);
            }
        }
        self.times.last_token_at = Some(now);
        self.num_tokens = self.num_tokens.saturating_add(count);
        self.metrics.completion_tokens.increment(u64::from(count));
        open.permit.computed(done);
    }

    /// Sends what a step gave, or keeps it for the one event. A sink that has closed ends the request as cancelled.
    fn deliver(&mut self, now: Timestamp) {
        let sent = if self.streams {
            self.text.take_shown(&mut self.next.text);
            self.complete_next(now);
            let lent = Lent(&mut self.next);
            self.open.as_mut().map_or(Ok(()), |open| open.sink.lend(lent.0))
        } else if self.open.as_ref().is_some_and(|open| open.sink.is_closed()) {
            Err(SinkClosed)
        } else {
            Ok(())
        };
        if sent.is_err() {
            self.cancel(now);
        }
    }

    /// The next event has its text and the tokens that no other had: all else of it, too.
    fn complete_next(&mut self, now: Timestamp) {
        let next = &mut self.next;
        next.at = now;
        next.attempt = self.attempt;
        next.seq = self.num_tokens - next.token_ids.len() as u32;
        next.logprobs = self.text.take_logprobs();
        next.prompt_logprobs = self.prompt_logprobs.take();
    }

    /// The last event, once, with what no other had; half a character does not go out.
    fn finish(&mut self, reason: FinishReason, error: Option<Error>, now: Timestamp) {
        let Some(open) = self.open.take() else { return };
        let (reason, error) = self.true_reason(reason, error);
        let ended = self.ended(reason);
        let request_id = self.handle.request_id();
        tracing::debug!(%request_id, ?reason, tokens = self.num_tokens, ?error, "ended");
        self.metrics.finished(reason);
        self.metrics.request_time.record(now.since(self.times.accepted_at).as_secs_f64());
        self.metrics.recent_requests.record(now.since(self.times.accepted_at), reason, now);
        self.text.take_all(&mut self.next.text);
        self.complete_next(now);
        let event = Event {
            finish_reason: Some(reason),
            usage: Some(self.usage()),
            receipt: Some(Box::new(self.receipt(now))),
            error: error.map(Box::new),
            ..self.next.take()
        };
        // The batcher need not wait for the sink.
        self.handle.set_stopped();
        // Dropped in the reverse order, by return or by a sink's panic: the permit goes back, then those who wait are told.
        let _ended = AtEnd { handle: &self.handle, ended };
        let mut open = open;
        // A sink that closes now misses what it did not want.
        let _ = open.sink.event(event);
    }

    /// A cancel of the node's own is a failure to the client, and a failure has an error.
    fn true_reason(
        &self,
        reason: FinishReason,
        error: Option<Error>,
    ) -> (FinishReason, Option<Error>) {
        match reason {
            FinishReason::Cancelled if self.handle.is_cut() => {
                let text = "the node stopped before the completion ended";
                let error = Error::new(Kind::Draining, text).with_retry_after_ms(DRAINED_RETRY_MS);
                (FinishReason::Failed, Some(error))
            }
            FinishReason::Failed => {
                (reason, Some(error.unwrap_or_else(|| Error::internal("the step failed"))))
            }
            _ => (reason, error),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(open) = &self.open else { return };
        let accepted = open.accepted;
        // A panic in a drop under way would end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let error = Error::internal("the request was lost inside the node");
            if accepted {
                self.fail(error, Timestamp::now());
            } else {
                self.refuse(&error);
            }
        }));
    }
}

/// An event that nobody is told again, whether its sink returns or panics.
struct Lent<'a>(&'a mut Event);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Ends the handle when the scope is left, by return or by panic.
struct AtEnd<'a> {
    handle: &'a Handle,
    ended: Ended,
}

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.handle.end(self.ended);
    }
}

#[cfg(test)]
mod tests;
