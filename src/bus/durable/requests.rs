//! Answers about any request, durable or not, for whoever has its id: what is known of it, and its end.
//!
//! One node of the group takes each question. What runs answers at its own subject; what has ended stands in the log; what waits
//! stands in the queue. A durable request that nobody runs is ended in its log, where its next node finds that.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;

use super::context::DurableContext;
use super::examine::history_of;
use super::job::id_in;
use super::reader::{self, ReadFault};
use super::store;
use super::streams::{JOBS, JobClass, consumer_name, next_job};
use crate::bus::wire::{
    CancelAnswer, Encoding, OwnerAnswer, OwnerMessage, RequestStatus, error_headers, refusal,
};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::lifeline::Lifeline;
use crate::log::History;
use crate::request::{Ended, FinishReason};

/// How long who runs a request may take to end it.
const MAX_CANCEL: Duration = Duration::from_secs(5);
/// How long it may take to say that it runs it.
const MAX_PROBE: Duration = Duration::from_millis(500);
/// Jobs of the queue that are looked through for one id: of each model's those that nobody was given yet, and the oldest of all.
const MAX_LOOK: usize = 4_000;
/// How often an end is tried that something else was stored before.
const TRIES: u32 = 5;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestQuestion {
    Status,
    Cancel,
}

impl RequestQuestion {
    /// All of them, with the last word of their subject.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Status, "status"), (Self::Cancel, "cancel")];
}

#[derive(Deserialize)]
struct AskedRequest {
    request_id: RequestId,
}

/// Answers one question.
pub(super) async fn answer(
    context: Arc<DurableContext>,
    question: RequestQuestion,
    message: Message,
    alive: Lifeline,
) {
    alive.look();
    let Some(reply) = message.reply else { return alive.dismiss() };
    let asked = serde_json::from_slice::<AskedRequest>(&message.payload);
    let id = asked.as_ref().ok().map(|asked| asked.request_id.clone());
    let body = match (&id, question) {
        (None, _) => {
            let text = "expected {\"request_id\": \"…\"}";
            Err(Error::invalid("request_id", text))
        }
        (Some(id), RequestQuestion::Status) => {
            status(&context, id).await.map(|status| Encoding::Json.write(&status))
        }
        (Some(id), RequestQuestion::Cancel) => {
            let ended = cancel(&context, id).await;
            ended.map(|ended| Encoding::Json.write(&CancelAnswer::of(id, ended)))
        }
    };
    // Who asked may have left.
    let _ = match body {
        Ok(body) => context.client.publish(reply, body).await,
        Err(error) => {
            let body = refusal(Encoding::Json, id.as_ref(), &error);
            let headers = error_headers(Encoding::Json, &error);
            context.client.publish_with_headers(reply, headers, body).await
        }
    };
    alive.dismiss();
}

async fn status(context: &DurableContext, id: &RequestId) -> Result<RequestStatus> {
    let read = history(context, id).await;
    let history = read.as_ref().cloned().unwrap_or_default();
    let known = RequestStatus {
        request_id: id.to_string(),
        status: "finished".to_owned(),
        node_id: history.latest_claim().map(|claim| claim.node_id.clone()),
        attempt: history.attempt(),
        tokens: (history.last() > 0).then(|| history.positions().total()),
        finish_reason: history.end().and_then(|end| end.finish_reason),
        reason: None,
    };
    if history.end().is_some() {
        return Ok(known);
    }
    if let Some(owner) = owner(context, id).await {
        let (status, node_id) = ("running".to_owned(), Some(owner.node_id));
        return Ok(RequestStatus { status, node_id, attempt: known.attempt.max(1), ..known });
    }
    // What cannot be read hides nothing that runs.
    read?;
    let status = "waiting".to_owned();
    if history.last() > 0 {
        let reason = Some("between two nodes".to_owned());
        return Ok(RequestStatus { status, reason, ..known });
    }
    let waiting = waiting(context, id).await?.ok_or_else(|| unknown(context, id))?;
    Ok(RequestStatus { status, reason: Some(waiting.why().await), ..known })
}

/// Ends a request: by who runs it, else in its log.
async fn cancel(context: &DurableContext, id: &RequestId) -> Result<Ended> {
    for _ in 0..TRIES {
        let history = history(context, id).await;
        if let Some(end) = history.as_ref().ok().and_then(History::end) {
            let reason = end.finish_reason.unwrap_or(FinishReason::Failed);
            let completion_tokens = end.usage.map_or(0, |usage| usage.completion_tokens);
            return Ok(Ended { reason, completion_tokens });
        }
        if let Some(answer) = cancelled_by_owner(context, id).await? {
            return Ok(answer);
        }
        let history = history?;
        let waiting = match history.last() {
            0 => Some(waiting(context, id).await?.ok_or_else(|| unknown(context, id))?),
            _ => None,
        };
        if store::close(context, (id, Encoding::Json), &history, None).await {
            if let Some(waiting) = waiting {
                waiting.remove().await;
            }
            let completion_tokens = history.positions().total();
            return Ok(Ended { reason: FinishReason::Cancelled, completion_tokens });
        }
    }
    Err(Error::new(Kind::Unavailable, "the request moves from node to node")
        .with_retry_after_ms(1_000))
}

/// Of an id that a node made the time is known, and one of a key was somebody's: what they named may be kept no longer.
fn unknown(context: &DurableContext, id: &RequestId) -> Error {
    let age = id.age().unwrap_or_default();
    if id.is_of_key() || age > Duration::from_secs(context.config.max_age_s) {
        let text = "what was stored of this request is kept no longer";
        return Error::new(Kind::Expired, text).with_param("request_id");
    }
    let text = format!("no request with this id runs, waits or is stored: {id}");
    Error::new(Kind::NotFound, text).with_param("request_id")
}

/// What the log has of it; nothing where there is no log.
///
/// # Errors
/// There is one, and it cannot be read.
async fn history(context: &DurableContext, id: &RequestId) -> Result<History> {
    let subject = context.subjects.log(id.as_str());
    match reader::after(&context.jetstream, &subject, 0).await {
        Ok(records) => history_of(records).ok_or_else(|| Error::internal("its log is broken")),
        Err(ReadFault::Body(..)) => Err(Error::internal("its log is broken")),
        Err(ReadFault::Unavailable(_)) if !context.has_log() => Ok(History::default()),
        Err(ReadFault::Unavailable(error)) => Err(unreadable(&error)),
    }
}

/// Who runs it, if somebody does.
pub(super) async fn owner(context: &DurableContext, id: &RequestId) -> Option<OwnerAnswer> {
    let subject = context.subjects.cancel(id);
    let headers = OwnerMessage::Asked.headers();
    let asked = context.client.request_with_headers(subject, headers, Bytes::new());
    let answer = tokio::time::timeout(MAX_PROBE, asked).await.ok()?.ok()?;
    let owner: OwnerAnswer = serde_json::from_slice(&answer.payload).ok()?;
    owner.running.then_some(owner)
}

/// Asks who runs it to end it; none: nobody does.
async fn cancelled_by_owner(context: &DurableContext, id: &RequestId) -> Result<Option<Ended>> {
    let subject = context.subjects.cancel(id);
    let request = async_nats::Request::new().timeout(Some(MAX_CANCEL));
    match context.client.send_request(subject, request).await {
        // One that has just ended says `not_found`; its end is in the log, or nowhere.
        Ok(answer) => {
            let answer = serde_json::from_slice::<CancelAnswer>(&answer.payload);
            Ok(answer.ok().map(|answer| answer.ended()))
        }
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
        Err(error) => {
            let text = format!("who runs the request does not answer: {error}");
            Err(Error::new(Kind::Unavailable, text).with_retry_after_ms(1_000))
        }
    }
}

fn unreadable(error: &str) -> Error {
    let text = format!("what is stored of the request cannot be read: {error}");
    Error::new(Kind::LogUnavailable, text).with_retry_after_ms(1_000)
}

/// A job that no node has taken up.
struct WaitingJob {
    queue: Stream<()>,
    subject: String,
    sequence: u64,
}

impl WaitingJob {
    /// What it waits for.
    async fn why(&self) -> String {
        let words = self.subject.rsplit('.').collect::<Vec<_>>();
        let (model, consumer) = match words.as_slice() {
            ["bulk", model, ..] => (*model, consumer_name(model, JobClass::Bulk)),
            [model, ..] => (*model, consumer_name(model, JobClass::Usual)),
            [] => ("", String::new()),
        };
        match self.queue.consumer_info(&consumer).await {
            Ok(info) if info.num_waiting > 0 => format!("a node of {model} is to take it up"),
            Ok(_) => format!("every node of {model} is busy, or none is there"),
            Err(_) => format!("no node has ever served {model}"),
        }
    }

    /// Takes it out of the queue: its end is stored, and is forgotten sooner than a job.
    async fn remove(&self) {
        if let Err(error) = self.queue.delete_message(self.sequence).await {
            // Who takes it up finds its end.
            tracing::debug!(place = self.sequence, %error, "a cancelled job stays in the queue");
        }
    }
}

/// The job of a request, if it stands in the queue.
///
/// # Errors
/// The queue cannot be read, or is too long.
async fn waiting(context: &DurableContext, id: &RequestId) -> Result<Option<WaitingJob>> {
    if !context.has_log() {
        return Ok(None);
    }
    let queue = context.jetstream.get_stream_no_info(JOBS).await;
    let queue = queue.map_err(|error| unreadable(&error.to_string()))?;
    let mut is_whole = true;
    for (subject, from) in places_to_look(context, &queue).await {
        match look(&queue, (&subject, from), id).await? {
            Look::Found(job) => {
                let (subject, sequence) = (job.subject.to_string(), job.sequence);
                return Ok(Some(WaitingJob { queue, subject, sequence }));
            }
            Look::All => {}
            Look::Part => is_whole = false,
        }
    }
    if is_whole {
        return Ok(None);
    }
    let text = "the queue is too long to be looked through for the request";
    Err(Error::new(Kind::Unavailable, text).with_retry_after_ms(1_000))
}

/// Subjects and places where a waiting job may stand: behind what each queue has given out, and, for those that are out and not taken
/// up, from the beginning.
async fn places_to_look(context: &DurableContext, queue: &Stream<()>) -> Vec<(String, u64)> {
    let mut places = Vec::new();
    let mut consumers = queue.consumers();
    while let Some(Ok(info)) = consumers.next().await {
        places.push((info.config.filter_subject, info.delivered.stream_sequence + 1));
    }
    places.push((context.subjects.any_jobs(), 1));
    places
}

/// What came of looking through a part of the queue.
enum Look {
    Found(Box<StreamMessage>),
    /// It is not there.
    All,
    /// It is not in the part that was looked at.
    Part,
}

async fn look(
    queue: &Stream<()>,
    (subject, mut from): (&str, u64),
    id: &RequestId,
) -> Result<Look> {
    for _ in 0..MAX_LOOK {
        let job = next_job(queue, subject, from).await.map_err(|error| unreadable(&error))?;
        let Some(job) = job else { return Ok(Look::All) };
        if id_in(&job.headers, &job.payload).as_ref() == Some(id) {
            return Ok(Look::Found(Box::new(job)));
        }
        from = job.sequence + 1;
    }
    Ok(Look::Part)
}
