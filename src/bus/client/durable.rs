//! Durable requests, seen from a client: publish one, follow its stream from any token on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::Value;

use super::{Client, ClientError};
use crate::bus::durable::{
    JOBS, LOG, ReadFault, WHOLE_HEADER, digest_of_job, headers_of, read_log,
};
use crate::bus::stored::publish_stored;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::log::{Join, Joined, Positions, StoredRecord};
use crate::request::{DefaultLength, Event};

/// How long the server may take to say what is stored already, and then for the promise: who asks is told within two seconds.
const MAX_FIRST_LOOK: Duration = Duration::from_millis(300);
const MAX_PUBLISH: Duration = Duration::from_millis(1_500);

/// How long a stream may say nothing before the log is looked at.
const SILENCE: Duration = Duration::from_secs(2);

/// After how many of them a request whose job's place is not known is looked for.
const SILENCES_A_LOOK: u32 = 15;

/// Bytes that the log is to have left for a new request.
const MIN_ROOM: u64 = 64 << 10;

/// When a client that found no room may come back, in milliseconds.
const FULL_RETRY_MS: u64 = 5_000;

/// The headers of what NATS publishes again, with a record's place and that of the one before it in the same log.
const SEQUENCE: &str = "Nats-Sequence";
const LAST_SEQUENCE: &str = "Nats-Last-Sequence";

impl Client {
    /// Publishes a durable request (the contract's object, with its `request_id`): when this returns, it will be finished. The same id
    /// twice within two minutes is one request to the server; `true` if it was there already.
    ///
    /// # Errors
    /// `Log`: no JetStream (`log_unavailable`), or no room (`log_full`).
    pub async fn publish_durable(&self, model: &str, body: &Value) -> Result<bool, ClientError> {
        let subject = self.subjects.jobs(model);
        let stored = self.publish_job(subject, body, HeaderMap::new()).await?;
        Ok(stored.duplicate)
    }

    /// The same to a subject of the queue, with headers beside it.
    pub(crate) async fn publish_job(
        &self,
        subject: String,
        body: &Value,
        mut headers: HeaderMap,
    ) -> Result<PublishAck, ClientError> {
        if let Some(id) = body.get("request_id").and_then(Value::as_str) {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        }
        let jetstream = jetstream::new(self.nats.clone());
        let published = async {
            has_room(&jetstream).await?;
            let body = Bytes::from(body.to_string());
            let stored = publish_stored(&jetstream, subject, headers, body).await;
            stored.map_err(|error| not_stored(&error))
        };
        match tokio::time::timeout(MAX_PUBLISH, published).await {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(error)) => Err(ClientError::Log(error)),
            Err(_) => Err(ClientError::Log(unavailable("JetStream gives no answer"))),
        }
    }

    /// Follows a durable request for a reader who has come so far: what is stored, then what comes.
    ///
    /// # Errors
    /// `Closed`; `Log` with `expired` where the next token is kept no longer.
    pub async fn follow(
        &self,
        id: &RequestId,
        from: impl Into<Positions>,
    ) -> Result<DurableStream, ClientError> {
        self.look_and_follow(id, from.into(), SILENCE).await
    }

    /// What is not read within `look` is read by who wants the first event.
    async fn look_and_follow(
        &self,
        id: &RequestId,
        from: Positions,
        look: Duration,
    ) -> Result<DurableStream, ClientError> {
        let live = self.nats.subscribe(self.subjects.tokens(id)).await;
        let mut stream = DurableStream {
            client: self.clone(),
            jetstream: jetstream::new(self.nats.clone()),
            id: id.clone(),
            live: live.map_err(|_| ClientError::Closed)?,
            join: Join::from(from.clone()),
            given: from,
            read_after: Some(0),
            fresh: VecDeque::new(),
            body: None,
            is_promised: false,
            job: None,
            silences: 0,
            missed: 0,
        };
        let _ = tokio::time::timeout(look, stream.read(0)).await;
        match stream.join.is_cut() && stream.fresh.is_empty() {
            true => Err(expired()),
            false => Ok(stream),
        }
    }
}

/// A durable request as another door publishes it.
pub(crate) struct DurableJob {
    id: RequestId,
    model: Arc<str>,
    body: Value,
    headers: HeaderMap,
}

impl Client {
    /// Publishes a job, unless its request is known already, and follows it from its beginning.
    ///
    /// # Errors
    /// As [`publish_durable`](Self::publish_durable) and [`follow`](Self::follow).
    pub(crate) async fn start_durable(
        &self,
        job: &DurableJob,
    ) -> Result<DurableStream, ClientError> {
        let mut stream = self.look_and_follow(&job.id, 0.into(), MAX_FIRST_LOOK).await?;
        if !stream.is_known() {
            let subject = self.subjects.jobs(&job.model);
            let stored = self.publish_job(subject, &job.body, job.headers.clone()).await?;
            stream.job = Some(stored.sequence);
        }
        Ok(stream.promised())
    }
}

impl DurableJob {
    /// Of the contract's object, whose `request_id` is `id`, and what an absent `max_tokens` means in it.
    pub fn new(
        (id, model): (RequestId, Arc<str>),
        body: Value,
        default_length: DefaultLength,
    ) -> Self {
        Self { id, model, body, headers: headers_of(default_length) }
    }

    /// The same as one of several that are asked for together, of all of which this is a digest.
    #[must_use]
    pub fn part_of(mut self, whole: &str) -> Self {
        self.headers.insert(WHOLE_HEADER, whole);
        self
    }

    /// Of what it asks for, as a claim has it.
    pub fn digest(&self) -> String {
        digest_of_job(&self.model, Some(&self.headers), self.body.to_string().as_bytes())
    }

    /// Its id.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// Whether what runs under the id is another request.
    pub fn differs_from(&self, stream: &DurableStream) -> bool {
        stream.body.as_ref().is_some_and(|body| *body != self.digest())
    }
}

fn expired() -> ClientError {
    let text = "what this request said before is kept no longer";
    ClientError::Log(Error::new(Kind::Expired, text).with_param("request_id"))
}

fn unavailable(text: &str) -> Error {
    Error::new(Kind::LogUnavailable, format!("durable requests cannot be stored: {text}"))
        .with_retry_after_ms(1_000)
}

/// Whether what the request will say can be stored, as far as is known now.
async fn has_room(jetstream: &Context) -> Result<(), Error> {
    let log = jetstream.get_stream(LOG).await;
    let log = log.map_err(|error| unavailable(&error.to_string()))?;
    let info = log.cached_info();
    let most = u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX);
    if info.state.bytes.saturating_add(MIN_ROOM) > most {
        return Err(full());
    }
    Ok(())
}

fn full() -> Error {
    Error::new(Kind::LogFull, "there is no room for another durable request")
        .with_retry_after_ms(FULL_RETRY_MS)
}

fn not_stored(error: &PublishError) -> Error {
    let source = std::error::Error::source(error);
    let code = source.and_then(|source| source.downcast_ref::<jetstream::Error>());
    match (error.kind(), code.map(jetstream::Error::error_code)) {
        (_, Some(ErrorCode::STREAM_STORE_FAILED | ErrorCode::INSUFFICIENT_RESOURCES)) => full(),
        (PublishErrorKind::MaxPayloadExceeded, _) => {
            Error::new(Kind::TooLarge, "the request is longer than a message of NATS may be")
        }
        (PublishErrorKind::StreamNotFound, _) => unavailable("no node has made its streams"),
        _ => unavailable(&error.to_string()),
    }
}

fn lost() -> ClientError {
    let text = "this request was lost with the store";
    ClientError::Log(Error::new(Kind::LogUnavailable, text))
}

/// A durable request's stream: each token once and in order, whichever node it comes from.
pub struct DurableStream {
    client: Client,
    jetstream: Context,
    id: RequestId,
    live: Subscriber,
    join: Join,
    /// What of it was given.
    given: Positions,
    /// What follows this record is to be read.
    read_after: Option<u64>,
    fresh: VecDeque<Event>,
    /// Digest of the request that runs under the id, as the first claim says it.
    body: Option<String>,
    /// The request is known to be stored or to wait: where it does neither any more, it is lost.
    is_promised: bool,
    /// Where its job was stored, if that is known.
    job: Option<u64>,
    /// How often nothing was heard for a while.
    silences: u32,
    /// How often in a row neither a record nor a job of it was there.
    missed: u32,
}

impl DurableStream {
    /// The next event; `None` after the last one. One without tokens says that a node has taken the request up.
    ///
    /// # Errors
    /// `Timeout` where nothing comes, `Closed`.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let wait = self.client.timeouts.event;
        let deadline = Instant::now() + wait;
        loop {
            if let Some(event) = self.fresh.pop_front() {
                self.given.pass(&event);
                return Ok(Some(event));
            }
            if self.join.is_over() {
                return Ok(None);
            }
            if self.join.is_cut() {
                return Err(expired());
            }
            if Instant::now() >= deadline {
                return Err(ClientError::Timeout { what: "event", after: wait });
            }
            if let Some(after) = self.read_after {
                self.read(after).await;
                continue;
            }
            let live = tokio::time::timeout(SILENCE, self.live.next()).await;
            match live {
                Ok(Some(message)) => self.hear(&message),
                Ok(None) => return Err(ClientError::Closed),
                Err(_) if self.is_lost().await => return Err(lost()),
                Err(_) => self.read_after = Some(self.join.last()),
            }
        }
    }

    /// How far its reader has come with the events that were given.
    pub fn given(&self) -> &Positions {
        &self.given
    }

    /// The request is known to be stored or to wait, so that its loss is told.
    #[must_use]
    pub(crate) fn promised(mut self) -> Self {
        self.is_promised = true;
        self
    }

    /// Whether the store has lost it: nothing of it is stored, and no job of it waits.
    async fn is_lost(&mut self) -> bool {
        self.silences = self.silences.wrapping_add(1);
        // To look for a job by its id is dear.
        let is_due = self.job.is_some() || self.silences.is_multiple_of(SILENCES_A_LOOK);
        if !self.is_promised || !is_due {
            return false;
        }
        // It may stand elsewhere in the queue by now, or have been taken up just now.
        let is_unknown = self.has_no_job().await
            && matches!(
                self.client.status(&self.id).await,
                Err(ClientError::Refused(Error { kind: Kind::NotFound | Kind::Expired, .. }))
            );
        self.missed = if is_unknown { self.missed + 1 } else { 0 };
        self.missed > 1
    }

    /// Whether its job stands no more where it was stored, as far as is known.
    async fn has_no_job(&self) -> bool {
        let Some(place) = self.job else { return true };
        let Ok(jobs) = self.jetstream.get_stream_no_info(JOBS).await else { return false };
        let job = jobs.direct_get(place).await;
        job.is_err_and(|error| error.kind() == DirectGetErrorKind::NotFound)
    }

    /// Whether the last event was given.
    pub fn is_over(&self) -> bool {
        self.join.is_over() && self.fresh.is_empty()
    }

    /// Whether anything of it is stored, as far as was read.
    pub fn is_known(&self) -> bool {
        self.join.last() > 0
    }

    async fn read(&mut self, after: u64) {
        let log = self.client.subjects.log(self.id.as_str());
        match read_log(&self.jetstream, &log, after).await {
            Ok(records) => {
                self.read_after = None;
                let joined = self.join.stored(after, records);
                self.take(joined);
            }
            Err(ReadFault::Body(sequence, fault)) => {
                tracing::warn!(sequence, fault, "a record that no node wrote");
                self.read_after = None;
            }
            // JetStream is away: it is asked again.
            Err(ReadFault::Unavailable(_)) => tokio::time::sleep(SILENCE / 10).await,
        }
    }

    fn hear(&mut self, message: &Message) {
        let number = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
        // What has no place in the log is no part of it.
        let Some((sequence, previous)) = number(SEQUENCE).zip(number(LAST_SEQUENCE)) else {
            return;
        };
        let headers = message.headers.clone().unwrap_or_default();
        let Ok(stored) = crate::bus::durable::read_record(sequence, &headers, &message.payload)
        else {
            return;
        };
        let joined = self.join.live(stored, previous);
        self.take(joined);
    }

    fn take(&mut self, joined: Joined) {
        self.read_after = joined.read_after.or(self.read_after);
        for StoredRecord { record, .. } in joined.fresh {
            if let Some(claim) = record.claim.filter(|_| self.body.is_none()) {
                self.body = Some(claim.body);
            }
            self.fresh.push_back(record.event);
        }
    }
}
