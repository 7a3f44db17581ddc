//! Durable requests, seen from a client: publish one, follow its stream from any token on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::Value;

use super::{Client, ClientError};
use crate::bus::durable::{LOG, ReadFault, WHOLE_HEADER, digest_of_job, headers_of, read_log};
use crate::bus::stored::publish_stored;
use crate::error::{Error, Kind};
use crate::ids::RequestId;
use crate::log::{Join, Joined, StoredRecord};
use crate::request::{DefaultLength, Event};

/// How long the server may take for the promise; who asks is told within two seconds.
const MAX_PUBLISH: Duration = Duration::from_millis(1_800);

/// How long a stream may say nothing before the log is looked at.
const SILENCE: Duration = Duration::from_secs(2);

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
        self.publish_job(model, body, HeaderMap::new()).await
    }

    /// The same with headers beside it.
    pub(crate) async fn publish_job(
        &self,
        model: &str,
        body: &Value,
        mut headers: HeaderMap,
    ) -> Result<bool, ClientError> {
        if let Some(id) = body.get("request_id").and_then(Value::as_str) {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        }
        let jetstream = jetstream::new(self.nats.clone());
        let subject = self.subjects.jobs(model);
        let published = async {
            has_room(&jetstream).await?;
            let body = Bytes::from(body.to_string());
            let stored = publish_stored(&jetstream, subject, headers, body).await;
            stored.map_err(|error| not_stored(&error))
        };
        match tokio::time::timeout(MAX_PUBLISH, published).await {
            Ok(Ok(acknowledgement)) => Ok(acknowledgement.duplicate),
            Ok(Err(error)) => Err(ClientError::Log(error)),
            Err(_) => Err(ClientError::Log(unavailable("JetStream gives no answer"))),
        }
    }

    /// Follows a durable request from its `from`th token on: what is stored, then what comes.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn follow(&self, id: &RequestId, from: u32) -> Result<DurableStream, ClientError> {
        let live = self.nats.subscribe(self.subjects.tokens(id)).await;
        Ok(DurableStream {
            jetstream: jetstream::new(self.nats.clone()),
            log: self.subjects.log(id.as_str()),
            live: live.map_err(|_| ClientError::Closed)?,
            join: Join::from(from),
            read_after: Some(0),
            fresh: VecDeque::new(),
            body: None,
            wait: self.timeouts.event,
        })
    }
}

/// A durable request as another door publishes it.
pub(crate) struct DurableJob {
    id: RequestId,
    body: Value,
    headers: HeaderMap,
}

impl Client {
    /// Publishes a job and follows it from its beginning.
    ///
    /// # Errors
    /// As [`publish_durable`](Self::publish_durable) and [`follow`](Self::follow).
    pub(crate) async fn start_durable(
        &self,
        model: &str,
        job: &DurableJob,
    ) -> Result<DurableStream, ClientError> {
        let stream = self.follow(&job.id, 0).await?;
        self.publish_job(model, &job.body, job.headers.clone()).await?;
        Ok(stream)
    }
}

impl DurableJob {
    /// Of the contract's object, whose `request_id` is `id`, and what an absent `max_tokens` means in it.
    pub fn new(id: RequestId, body: Value, default_length: DefaultLength) -> Self {
        Self { id, body, headers: headers_of(default_length) }
    }

    /// The same as one of several that are asked for together, of all of which this is a digest.
    #[must_use]
    pub fn part_of(mut self, whole: &str) -> Self {
        self.headers.insert(WHOLE_HEADER, whole);
        self
    }

    /// Of what it asks for, as a claim has it.
    pub fn digest(&self) -> String {
        digest_of_job(Some(&self.headers), self.body.to_string().as_bytes())
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
        (PublishErrorKind::StreamNotFound, _) => unavailable("no node has made its streams"),
        _ => unavailable(&error.to_string()),
    }
}

/// A durable request's stream: each token once and in order, whichever node it comes from.
pub struct DurableStream {
    jetstream: Context,
    log: String,
    live: Subscriber,
    join: Join,
    /// What follows this record is to be read.
    read_after: Option<u64>,
    fresh: VecDeque<Event>,
    /// Digest of the request that runs under the id, as the first claim says it.
    body: Option<String>,
    wait: Duration,
}

impl DurableStream {
    /// The next event; `None` after the last one. One without tokens says that a node has taken the request up.
    ///
    /// # Errors
    /// `Timeout` where nothing comes, `Closed`.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let deadline = Instant::now() + self.wait;
        loop {
            if let Some(event) = self.fresh.pop_front() {
                return Ok(Some(event));
            }
            if self.join.is_over() {
                return Ok(None);
            }
            if let Some(after) = self.read_after {
                self.read(after).await;
                continue;
            }
            let live = tokio::time::timeout(SILENCE, self.live.next()).await;
            match live {
                Ok(Some(message)) => self.hear(&message),
                Ok(None) => return Err(ClientError::Closed),
                Err(_) if Instant::now() >= deadline => {
                    return Err(ClientError::Timeout { what: "event", after: self.wait });
                }
                Err(_) => self.read_after = Some(self.join.last()),
            }
        }
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
        match read_log(&self.jetstream, &self.log, after).await {
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
