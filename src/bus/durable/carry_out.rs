//! How the hub does what policy says: claims, starts, stores, ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use async_nats::header::NATS_MESSAGE_ID;
use sha2::{Digest as _, Sha256};

use super::context::DurableContext;
use super::examine::Examined;
use super::held::HeldRequest;
use super::hub::{Hub, Word};
use super::job::{PulledJob, ReadJob, UnreadableJob};
use super::reader;
use super::requests::owner;
use super::sink::{LogSink, Sayings};
use super::store;
use crate::bus::stored::publish_stored;
use crate::bus::wire::{Encoding, LAYOUT};
use crate::clock::Timestamp;
use crate::door::{Admit, not_admitted};
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::log::{Claim, Decision, History, Holding, LogCommand, decide};
use crate::reader::RenamingSink;
use crate::request::{Caller, Request, SoFar};
use crate::telemetry::LoggedSink;

/// The header that says why a request is a dead letter.
pub(in crate::bus) const REASON: &str = "Inferno-Reason";
/// The header that says that it came from the queue for what is pulled when nothing else waits (`bulk`).
pub(in crate::bus) const CLASS: &str = "Inferno-Class";

impl Hub {
    /// Takes a job that was examined, and does what is to be done with it.
    pub(super) async fn take(&mut self, examined: Examined) {
        if self.is_leaving {
            return examined.job.give_back(&self.shared.client, 0).await;
        }
        let held = examined.id().and_then(|id| self.numbers.get(id));
        if let Some(held) = held.and_then(|number| self.held.get_mut(number)) {
            if held.job.queued == examined.job.queued {
                // The server thought that the node had gone, and now has another place for its answers.
                held.job.reply = examined.job.reply;
                return;
            }
            if examined.history.as_ref().is_some_and(|history| history.first_claim().is_none()) {
                return examined.job.give_back(&self.shared.client, 1_000).await;
            }
        }
        if let Some(waits) = self.suspects.waiting_mut().find(|waits| waits.is_of(&examined)) {
            // It was given out once more, or published again: it waits once.
            waits.job = examined.job;
            return;
        }
        let Examined { job, read, history } = examined;
        match (read, history) {
            (Ok(read), Some(history)) => self.decide(job, read, history).await,
            (Err(unreadable), Some(history)) => self.refuse(job, unreadable, history),
            (read, None) => {
                let name = match read {
                    Ok(read) => (Some(read.id), read.encoding),
                    Err(unreadable) => (unreadable.id, unreadable.encoding),
                };
                self.bury(job, name, "its log is broken", None);
            }
        }
    }

    async fn decide(&mut self, job: PulledJob, read: ReadJob, history: History) {
        let name = (Some(read.id.clone()), read.encoding);
        match decide(&job.queued, &history) {
            Decision::Ended | Decision::Repeated => job.acknowledge(&self.shared.client).await,
            Decision::Other => {
                self.bury(job, name, "another request has this request_id", None);
            }
            Decision::Expired => self.expire(job, (read.id, read.encoding), history),
            Decision::Poison => {
                let text = format!("given up after {} attempts", history.tries());
                let error = Error::internal(text.clone());
                self.bury(job, name, &text, Some((history, error)));
            }
            Decision::Claim => {
                match history.suspicion().filter(|grade| !self.suspects.may_claim(*grade)) {
                    Some(grade) => {
                        let waiting = Examined { job, read: Ok(read), history: Some(history) };
                        self.suspects.wait(grade, waiting);
                    }
                    None => self.claim(job, read, &history).await,
                }
            }
        }
    }

    /// Ends a request that cannot be read, where its id is known and is no other's.
    fn refuse(&self, job: PulledJob, unreadable: UnreadableJob, history: History) {
        let UnreadableJob { id, encoding, error } = unreadable;
        self.metrics.refused(error.kind);
        match id {
            Some(id) if history.last() == 0 => self.end(job, (id, encoding), history, error),
            id => self.bury(job, (id, encoding), &error.to_string(), None),
        }
    }

    /// Ends a request of whose beginning nothing is kept, if nobody runs it any more; else looks again later.
    fn expire(&self, job: PulledJob, (id, encoding): (RequestId, Encoding), history: History) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if owner(&shared, &id).await.is_some() {
                return job.give_back(&shared.client, shared.config.ack_wait_ms).await;
            }
            tracing::warn!(request_id = %id, "it took longer than log.max_age_s, and its node is gone");
            let text = "its node is gone, and what it said first is kept no longer";
            let error = Error::new(Kind::Expired, text);
            if store::close(&shared, (&id, encoding), &history, Some(error)).await {
                job.acknowledge(&shared.client).await;
            }
        });
    }

    async fn claim(&mut self, job: PulledJob, read: ReadJob, history: &History) {
        self.last_number += 1;
        let (number, now) = (self.last_number, Instant::now());
        self.metrics.durable_claims.increment(1);
        let claim = Claim {
            node_id: self.shared.vitals.node_id().to_owned(),
            life: self.shared.vitals.life().to_owned(),
            job: job.queued.sequence,
            body: job.queued.body.clone(),
            exactness: self.digests.get(&job.model).cloned().unwrap_or_default(),
        };
        // What headers take is far below this.
        let most = self.shared.client.server_info().max_payload.saturating_sub(1_024);
        let (holding, commands) = Holding::claim(read.id.clone(), claim, history, most);
        let held = HeldRequest {
            holding,
            id: read.id.clone(),
            encoding: read.encoding,
            job,
            read: Some(read),
            received_at: Timestamp::now(),
            sayings: Arc::new(Sayings::default()),
            handle: None,
            is_stopped: false,
            asked: None,
            progress_at: now,
            ticked_at: now,
            delay_ms: 0,
        };
        self.numbers.insert(held.id.clone(), number);
        self.held.insert(number, held);
        if let Some(suspicion) = history.suspicion() {
            self.suspects.claimed(number, suspicion);
        }
        self.carry_out(number, commands).await;
    }

    /// Claims the next suspects if this one is none any more.
    async fn look_at_suspects(&mut self, number: u64) {
        let held = self.held.get(&number);
        if held.is_some_and(|held| !held.holding.is_fruitful()) {
            return;
        }
        self.suspects.cleared(number);
        while let Some(next) = self.suspects.take_next() {
            // As what comes from the queue: its log may say more by now, which the fence finds out.
            Box::pin(self.take(next)).await;
        }
    }

    /// Does what a holding wants, and what it wants because of that.
    pub(super) async fn carry_out(&mut self, number: u64, commands: Vec<LogCommand>) {
        let mut commands: VecDeque<LogCommand> = commands.into();
        while let Some(command) = commands.pop_front() {
            let Some(held) = self.held.get_mut(&number) else { break };
            match command {
                LogCommand::Store { after, record } => {
                    self.last_asked += 1;
                    held.asked = Some((self.last_asked, Instant::now()));
                    let subject = self.shared.subjects.log(held.id.as_str());
                    let reply = format!("{}.{number}-{}", self.inbox, self.last_asked).into();
                    let how = (held.encoding, after);
                    store::publish(&self.shared.client, (subject, reply), how, &record).await;
                }
                LogCommand::ReadLast => {
                    let subject = self.shared.subjects.log(held.id.as_str());
                    tokio::spawn(read_last(Arc::clone(&self.shared), number, subject));
                }
                LogCommand::Start(so_far) => commands.extend(self.start(number, so_far)),
                LogCommand::Hold(pause) => {
                    if let Some(handle) = &held.handle {
                        handle.set_held(pause);
                    }
                }
                LogCommand::Stop => held.stop(),
                LogCommand::Ack => {
                    // The end of a log that was lost is another than the generation's.
                    held.settle(!held.is_stopped);
                    held.job.acknowledge(&self.shared.client).await;
                }
                LogCommand::GiveBack => {
                    self.metrics.durable_handed_back.increment(1);
                    held.job.give_back(&self.shared.client, held.delay_ms).await;
                }
                LogCommand::Forget => self.forget(number),
            }
        }
        self.look_at_suspects(number).await;
    }

    fn forget(&mut self, number: u64) {
        let Some(mut held) = self.held.remove(&number) else { return };
        self.numbers.remove(&held.id);
        held.settle(false);
        if held.is_stopped && held.holding.is_over() {
            self.metrics.durable_fenced.increment(1);
        }
    }

    /// Hands a request to admission.
    fn start(&mut self, number: u64, so_far: SoFar) -> Vec<LogCommand> {
        let Some(held) = self.held.get_mut(&number) else { return Vec::new() };
        let Some(ReadJob { id, decoded, .. }) = held.read.take() else { return Vec::new() };
        let mut params = decoded.options.params;
        // So that whoever goes on draws what this node would have drawn.
        params.seed = params.seed.or_else(|| Some(seed_of(&id)));
        let sink =
            LogSink { number, sayings: Arc::clone(&held.sayings), words: self.words.clone() };
        let sink = LoggedSink {
            sink,
            log: self.metrics.requests.clone(),
            door: "jobs",
            id: id.clone(),
            model: held.job.model.as_str().into(),
            received_at: held.received_at,
        };
        let request = Request {
            id,
            caller: Caller::default(),
            model: held.job.model.as_str().into(),
            prompt: decoded.prompt,
            so_far,
            is_question: false,
            params,
            stream: true,
            priority: decoded.options.priority,
            default_length: held.job.default_length(),
            received_at: held.received_at,
            sink: Box::new(RenamingSink { layout: LAYOUT, sink }),
        };
        match self.admit.try_send(Admit(request)) {
            Ok(()) => Vec::new(),
            Err(refusal) => held.holding.refused(&not_admitted(&refusal)),
        }
    }

    /// Ends a request that was never run.
    fn end(
        &self,
        job: PulledJob,
        (id, encoding): (RequestId, Encoding),
        history: History,
        error: Error,
    ) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if store::close(&shared, (&id, encoding), &history, Some(error)).await {
                job.acknowledge(&shared.client).await;
            }
        });
    }

    /// Puts a job to the dead letters, then ends its request if it has not ended, then takes it out of the queue.
    fn bury(
        &self,
        job: PulledJob,
        (id, encoding): (Option<RequestId>, Encoding),
        reason: &str,
        end: Option<(History, Error)>,
    ) {
        self.metrics.durable_dead.increment(1);
        tracing::warn!(
            request_id = id.as_ref().map(tracing::field::display),
            reason,
            "dead letter"
        );
        let (shared, reason) = (Arc::clone(&self.shared), reason.replace(['\r', '\n'], " "));
        tokio::spawn(async move {
            let mut headers = job.message.headers.clone().unwrap_or_default();
            headers.insert(REASON, reason);
            if job.message.subject.as_str() == shared.subjects.bulk_jobs(&job.model) {
                headers.insert(CLASS, "bulk");
            }
            headers.insert(NATS_MESSAGE_ID, format!("job-{}", job.queued.sequence));
            let subject = shared.subjects.dead(&job.model);
            let payload = job.message.payload.clone();
            // What is not confirmed is tried again with the job's next delivery.
            if publish_stored(&shared.jetstream, subject, headers, payload).await.is_err() {
                return;
            }
            if let Some((id, (history, error))) = id.zip(end)
                && !store::close(&shared, (&id, encoding), &history, Some(error)).await
            {
                return;
            }
            job.acknowledge(&shared.client).await;
        });
    }
}

async fn read_last(shared: Arc<DurableContext>, number: u64, subject: String) {
    match reader::last(&shared.jetstream, &subject).await {
        Ok(last) => shared.say(Word::LastRead(number, last)),
        Err(fault) => tracing::debug!(subject, %fault, "a log is not read; it is asked again"),
    }
}

fn seed_of(id: &RequestId) -> u64 {
    let digest = Sha256::digest(id.as_str());
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
