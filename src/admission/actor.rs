//! The admission actor: takes requests up, and hands those that may come in to the scheduler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use actix::prelude::SendError;
use actix::{Actor, Addr, ArbiterHandle, AsyncContext, Context, Handler, Recipient, StreamHandler};
use futures_util::future::try_join_all;
use tokio::sync::mpsc::unbounded_channel;

use super::gate::Gate;
use super::ledger::{Group, Ledger};
use super::pool::{Job, Pool, Tokenized};
use super::reserved::{Hold, Reserved};
use super::shed::Shed;
use super::validate;
use super::{Config, DevicesUp, Drain};
use crate::clock::Timestamp;
use crate::door::{Admit, AdmitAll, Cancel};
use crate::error::{Error, Kind, Result};
use crate::ids::{RequestId, SequenceId};
use crate::lifeline::Lifeline;
use crate::models::{ModelDown, ModelUp};
use crate::progress::Progress;
use crate::reply::{self, SharedStream, Stream};
use crate::request::{Ended, Handle, Prompt, Request};
use crate::scheduler::{Enqueue, SweepQueue};
use crate::sequence::Sequence;
use crate::telemetry::Metrics;

/// Requests that wait to be looked at. A look takes tens of microseconds, so this is a few milliseconds of burst; beyond it
/// the doors refuse. What is in the node is bounded by the permits, not here.
pub const MAILBOX_CAPACITY: usize = 512;

/// Sequence ids are unique in the process, so that logs of two nodes in one process can be told apart.
static NEXT_SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// What admission is started with.
pub struct AdmissionStart {
    /// The limits.
    pub config: Config,
    /// For receipts.
    pub node_id: String,
    /// Aliases of models that are to come up: until then their requests are refused as `unavailable`, others as `not_found`.
    pub expected_models: Vec<String>,
    /// Shared with the node and health, who look at its counts. Its observers were given to it.
    pub ledger: Arc<Ledger>,
    /// The scheduler.
    pub enqueue: Recipient<Enqueue>,
    /// The scheduler.
    pub sweep: Recipient<SweepQueue>,
    /// Where refusals and acceptances are counted.
    pub metrics: Arc<Metrics>,
    /// Prompts that are being tokenized.
    pub progress: Progress,
    /// Held for as long as it lives, and beside it by each tokenizer thread.
    pub alive: Lifeline,
}

/// The actor; see the module above.
pub struct Admission {
    gate: Gate,
    node_id: Arc<str>,
    ledger: Arc<Ledger>,
    enqueue: Recipient<Enqueue>,
    sweep: Recipient<SweepQueue>,
    metrics: Arc<Metrics>,
    progress: Progress,
    shed: Shed,
    pool: Pool,
    tokenizing: u64,
    alive: Lifeline,
}

impl Admission {
    /// Starts it on an arbiter of its own, and its tokenizer threads.
    ///
    /// # Errors
    /// The system's reason, if it gives no thread.
    pub fn start(arbiter: &ArbiterHandle, start: AdmissionStart) -> std::io::Result<Addr<Self>> {
        let (results, mut tokenized) = unbounded_channel();
        let pool = Pool::start(start.config.num_tokenizer_threads(), &results, &start.alive)?;
        let shed = Shed::new(Arc::clone(&start.ledger), start.config.retry_after_ms);
        let admission = Self {
            gate: Gate::new(start.config, start.expected_models),
            node_id: start.node_id.into(),
            ledger: start.ledger,
            enqueue: start.enqueue,
            sweep: start.sweep,
            metrics: start.metrics,
            progress: start.progress,
            shed,
            pool,
            tokenizing: 0,
            alive: start.alive,
        };
        Ok(Self::start_in_arbiter(arbiter, move |context| {
            context.set_mailbox_capacity(MAILBOX_CAPACITY);
            // A stream of its own, because the mailbox may be full and no result may be lost.
            context.add_stream(futures_util::stream::poll_fn(move |cx| tokenized.poll_recv(cx)));
            admission
        }))
    }

    /// Takes a request up, alone or as one prompt of a larger one. A panic in its sink must not end the actor.
    fn take(&mut self, request: Request, group: Option<&Arc<Group>>) {
        let admit = AssertUnwindSafe(|| self.admit(request, group, Timestamp::now()));
        if catch_unwind(admit).is_err() {
            tracing::error!("a request's admission panicked");
        }
    }

    fn take_all(&mut self, id: &RequestId, requests: Vec<Request>) {
        let denied = match self.ledger.reserve_group(id) {
            Ok(group) => {
                return requests.into_iter().for_each(|request| self.take(request, Some(&group)));
            }
            Err(denied) => self.shed.denied(denied, requests.len(), Timestamp::now()),
        };
        tracing::debug!(request_id = %id, error = %denied, "refused");
        self.metrics.refused(denied.kind);
        for mut request in requests {
            request.sink.refused(&denied);
        }
    }

    /// Refuses what can be judged without the request's tokens; the rest goes to the tokenizer threads, or on where it came as tokens.
    fn admit(&mut self, request: Request, group: Option<&Arc<Group>>, now: Timestamp) {
        let (prompt, reserved, bytes) = match self.reserve(request, group, now) {
            Ok(reserved) => reserved,
            Err((mut request, error)) => {
                let error = self.shed.apart(error);
                tracing::debug!(request_id = %request.id, %error, "refused");
                self.metrics.refused(error.kind);
                request.sink.refused(&error);
                return;
            }
        };
        let prompt = match prompt {
            Prompt::TokenIds(token_ids) if reserved.params.bad_words.is_empty() => {
                return self.complete(reserved, Ok(token_ids), now);
            }
            prompt => prompt,
        };
        match self.pool.submit(Job { reserved, prompt, bytes }) {
            Ok(()) => {
                self.tokenizing += 1;
                self.progress.set_pending(self.tokenizing, now);
            }
            Err(job) => {
                let text = "too many bytes of prompts are waiting to be tokenized";
                job.reserved.refuse(&self.shed.crowded(text));
            }
        }
    }

    /// Checks a request and takes its id and a place for it. Gives the prompt, the rest and the prompt's size in bytes.
    #[allow(clippy::result_large_err, reason = "the request goes back to who asked, once")]
    fn reserve(
        &mut self,
        mut request: Request,
        group: Option<&Arc<Group>>,
        now: Timestamp,
    ) -> std::result::Result<(Prompt, Reserved, usize), (Request, Error)> {
        let (model, params, bytes) = match self.gate.check(&mut request) {
            Ok(checked) => checked,
            Err(error) => return Err((request, error)),
        };
        let handle = Handle::new(request.id.clone(), next_sequence());
        let places = (params.num_samples() as usize, self.gate.config.max_requests);
        let mut permit = match self.ledger.reserve(&handle, &model, places, now) {
            Ok(permit) => permit,
            Err(denied) => return Err((request, self.shed.denied(denied, places.0, now))),
        };
        if let Some(group) = group {
            permit.join(group);
        }
        let echo = match &request.prompt {
            Prompt::Text(text) if params.echoes() => Some(text.clone()),
            _ => None,
        };
        let reserved = Reserved {
            handle,
            caller: request.caller,
            model,
            params,
            bad_words: Vec::new(),
            echo,
            so_far: request.so_far,
            is_question: request.is_question,
            prompt_field: validate::prompt_field(&request.prompt),
            stream: request.stream,
            priority: request.priority,
            default_length: request.default_length,
            received_at: request.received_at,
            metrics: Arc::clone(&self.metrics),
            hold: Some(Hold { sink: request.sink, permit }),
        };
        Ok((request.prompt, reserved, bytes))
    }

    /// Goes on with a request whose tokens are known.
    fn complete(&mut self, reserved: Reserved, token_ids: Result<Vec<u32>>, now: Timestamp) {
        match self.gate.decide(&reserved, token_ids) {
            Ok((token_ids, max_tokens)) => self.hand_on(reserved, token_ids, max_tokens, now),
            Err(error) => {
                let error = self.shed.apart(error);
                tracing::debug!(request_id = %reserved.handle.request_id(), %error, "refused");
                reserved.refuse(&error);
            }
        }
    }

    /// Hands a request to the scheduler. Accepted means accepted: the scheduler has it when the client hears of it, and the
    /// stream's lock keeps any event behind that word.
    fn hand_on(
        &mut self,
        mut reserved: Reserved,
        token_ids: Vec<u32>,
        max_tokens: u32,
        now: Timestamp,
    ) {
        if reserved.is_question {
            return reserved.accept_as_question();
        }
        let num_prompt_tokens = token_ids.len() as u32;
        reserved.handle.set_num_prompt_tokens(num_prompt_tokens);
        let completions = u64::from(max_tokens) * u64::from(reserved.params.num_samples());
        let tokens = u64::from(num_prompt_tokens) + completions;
        let limit = self.gate.config.max_waiting_tokens;
        let waits = reserved.hold.as_mut().map(|hold| hold.permit.wait_with(tokens, limit));
        if let Some(Err(excess)) = waits {
            let text = format!(
                "this request's {tokens} tokens would put more than {limit} tokens in the queue"
            );
            return reserved.refuse(&self.shed.no_room(text, (tokens, excess), now));
        }
        let Some(mut hold) = reserved.hold.take() else { return };
        hold.permit.announce();
        let (request_id, tenant) = (reserved.handle.request_id(), reserved.caller.tenant.as_ref());
        tracing::debug!(%request_id, tenant = tenant.map(display), num_prompt_tokens, "taken");
        let samples = reserved.samples(hold, next_sequence);
        let (mut sequences, mut streams) = (Vec::new(), Vec::new());
        let prompts = std::iter::repeat_n(token_ids, samples.len()); // moved to the last, mostly only, one
        for ((sample, index), token_ids) in samples.into_iter().zip(0..).zip(prompts) {
            let sequence = reserved.sequence((index, &sample.handle), token_ids, max_tokens);
            let stream = reserved.stream((index, sample), &sequence, &self.node_id);
            // One that has ended is told to nobody again, but is a part of the bill.
            let ended = reserved.begun(index).and_then(|begun| begun.finish_reason);
            match ended {
                Some(reason) => reply::lock(&stream).end_as_brought(reason, now),
                None => {
                    streams.push(stream);
                    sequences.push(sequence);
                }
            }
        }
        self.enqueue(sequences, &streams, (num_prompt_tokens, tokens), now);
    }

    /// Sends a request's sequences to the scheduler, all or none: a request that is refused halfway has ended for those that it has.
    fn enqueue(
        &mut self,
        sequences: Vec<Sequence>,
        streams: &[SharedStream],
        (num_prompt_tokens, tokens): (u32, u64),
        now: Timestamp,
    ) {
        let mut told: Vec<MutexGuard<'_, Stream>> = streams.iter().map(reply::lock).collect();
        for (sequence, stream) in sequences.into_iter().zip(streams) {
            let Err(refused) = self.enqueue.try_send(Enqueue { sequence, stream: stream.clone() })
            else {
                continue;
            };
            let error = match &refused {
                SendError::Full(_) => {
                    self.shed.no_room("the scheduler's mailbox is full".into(), (tokens, 0), now)
                }
                SendError::Closed(_) => {
                    self.gate.later(Kind::Unavailable, "the scheduler is not running")
                }
            };
            told.iter_mut().for_each(|stream| stream.refuse(&error));
            return;
        }
        told.iter_mut().for_each(|stream| stream.accept());
        if let Some(first) = told.first() {
            tracing::debug!(request_id = %first.request_id(), num_prompt_tokens, "accepted");
        }
        self.metrics.requests_accepted.increment(told.len() as u64);
        self.metrics.prompt_tokens.increment(u64::from(num_prompt_tokens));
    }
}

fn next_sequence() -> SequenceId {
    SequenceId(NEXT_SEQUENCE.fetch_add(1, Ordering::Relaxed))
}

impl Actor for Admission {
    type Context = Context<Self>;
}

impl Handler<Admit> for Admission {
    type Result = ();

    fn handle(&mut self, Admit(request): Admit, _: &mut Self::Context) {
        self.alive.look();
        self.take(request, None);
    }
}

impl Handler<AdmitAll> for Admission {
    type Result = ();

    fn handle(&mut self, AdmitAll { id, requests }: AdmitAll, _: &mut Self::Context) {
        self.take_all(&id, requests);
    }
}

impl StreamHandler<Tokenized> for Admission {
    fn handle(&mut self, tokenized: Tokenized, _: &mut Self::Context) {
        let now = Timestamp::now();
        self.tokenizing = self.tokenizing.saturating_sub(1);
        self.progress.stamp(now);
        self.progress.set_pending(self.tokenizing, now);
        let Tokenized { reserved, token_ids } = tokenized;
        let completed = catch_unwind(AssertUnwindSafe(|| self.complete(reserved, token_ids, now)));
        if completed.is_err() {
            tracing::error!("a request's admission panicked");
        }
    }
}

fn not_here() -> Error {
    Error::new(Kind::NotFound, "no request with this id runs here").with_param("request_id")
}

impl Handler<Cancel> for Admission {
    type Result = ();

    fn handle(&mut self, Cancel { id, done }: Cancel, _: &mut Self::Context) {
        let handles = self.ledger.get(&id);
        if handles.is_empty() {
            // Who asked may have left; so in the other answers.
            let _ = done.send(Err(not_here()));
            return;
        }
        handles.iter().for_each(|handle| handle.cancel());
        let ends = try_join_all(handles.iter().map(|handle| handle.wait()));
        // A hint; the scheduler looks from time to time anyway.
        let _ = self.sweep.try_send(SweepQueue);
        actix::spawn(async move {
            let _ = done.send(ends.await.map(Ended::together).map_err(|_| not_here()));
        });
    }
}

impl Handler<ModelUp> for Admission {
    type Result = ();

    fn handle(&mut self, ModelUp(model): ModelUp, _: &mut Self::Context) {
        self.gate.model_up(model);
    }
}

impl Handler<ModelDown> for Admission {
    type Result = ();

    fn handle(&mut self, ModelDown { name }: ModelDown, _: &mut Self::Context) {
        self.gate.model_down(&name);
    }
}

impl Handler<DevicesUp> for Admission {
    type Result = ();

    fn handle(&mut self, DevicesUp(count): DevicesUp, _: &mut Self::Context) {
        self.gate.devices_up(count);
    }
}

impl Handler<Drain> for Admission {
    type Result = ();

    fn handle(&mut self, Drain: Drain, _: &mut Self::Context) {
        self.gate.drain();
    }
}

#[cfg(test)]
pub(super) mod testing;

#[cfg(test)]
mod tests;
