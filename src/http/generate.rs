//! The two endpoints that generate: body in, requests to admission, answer out.

use std::future::poll_fn;
use std::time::{SystemTime, UNIX_EPOCH};

use actix::prelude::SendError;
use actix_web::http::Version;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap,
};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::answer_buffer::{BufferEntry, Reader, outbox};
use super::bill::Bill;
use super::children;
use super::choices::{End, Taken};
use super::parse::{self, GenerationBody};
use super::prompts;
use super::refusal::ErrorResponse;
use super::routes::{Door, REQUEST_ID};
use super::sse::EventStream;
use super::wire::{self, Api, Title, Whole};
use crate::clock::Timestamp;
use crate::door::{Admit, AdmitAll};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::reader::{Layout, RenamingSink};
use crate::request::{Caller, DefaultLength, Prompt, Request, SoFar};

/// What a client is told to wait when admission's mailbox is full: by then it has worked through it.
const MAILBOX_RETRY_MS: u64 = 1_000;

/// `POST /v1/completions`
pub(super) async fn completions(
    door: Data<Door>,
    http: HttpRequest,
    payload: Payload,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    generate(&door, &http, payload, Api::Completions).await
}

/// `POST /v1/chat/completions`
pub(super) async fn chat(
    door: Data<Door>,
    http: HttpRequest,
    payload: Payload,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    generate(&door, &http, payload, Api::Chat).await
}

async fn generate(
    door: &Door,
    http: &HttpRequest,
    payload: Payload,
    api: Api,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let begun = begin(door, http, payload, api).await;
    // Refusals of admission are counted there.
    let begun = begun.inspect_err(|error| door.metrics.refused(error.kind));
    let Begun { running, title, stream, include_usage } = begun?;

    poll_fn(|cx| running.reader.poll_decided(cx)).await;
    let first = poll_fn(|cx| running.reader.poll_take(cx)).await;
    // Before the first byte, a failure is a status.
    if let Some(End::Failed(error)) = first.end {
        return Err(error.into());
    }
    if !stream {
        return whole(running, &title, first).await;
    }
    let mut answer = HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        // Asks a proxy before us not to collect events.
        .insert_header(("x-accel-buffering", "no"))
        .body(EventStream::new(running, &title, include_usage, first));
    // Some proxies still speak HTTP/1.0, which has no chunks: there the end of the connection is the end of the stream.
    answer.head_mut().no_chunking(http.version() < Version::HTTP_11);
    Ok(answer)
}

/// Who asked, and when the door had the whole body.
struct Asked {
    caller: Caller,
    received_at: Timestamp,
}

/// A request whose prompts are with admission.
struct Begun {
    running: PendingAnswer,
    title: Title,
    stream: bool,
    include_usage: bool,
}

/// The reader's end of a running request; dropping it cancels what has not ended.
pub(super) struct PendingAnswer {
    pub(super) reader: Reader,
    choices: usize,
}

impl PendingAnswer {
    pub(super) fn choices(&self) -> usize {
        self.choices
    }
}

async fn begin(door: &Door, http: &HttpRequest, payload: Payload, api: Api) -> Result<Begun> {
    let body = read_body(door, http.headers(), payload).await?;
    let caller = http.extensions().get::<Caller>().cloned().unwrap_or_default();
    let asked = Asked { caller, received_at: Timestamp::now() };
    let mut generation = match api {
        Api::Chat => parse::chat(&body)?,
        Api::Completions => parse::completion(&body, door.max_prompts)?,
    };
    let id = request_id(generation.options.request_id.take(), http.headers())?;
    http.extensions_mut().insert(id.clone());
    let params = &generation.options.params;
    let title = Title {
        api,
        request_id: id,
        model: generation.model.clone(),
        created: unix_seconds(),
        echoes: params.echoes(),
        prompt_logprobs: params.prompt_logprobs.is_some(),
    };
    let (stream, include_usage) = (generation.options.stream, generation.include_usage);
    let running = admit(door, &title, generation, &asked)?;
    Ok(Begun { running, title, stream, include_usage })
}

/// Sends a request, or one for each of its prompts.
fn admit(
    door: &Door,
    title: &Title,
    mut generation: GenerationBody,
    asked: &Asked,
) -> Result<PendingAnswer> {
    let prompts = std::mem::take(&mut generation.prompts);
    let choices = (prompts.len(), generation.options.params.num_choices() as usize);
    let slow_after = Some(door.slow_reader).filter(|_| generation.options.stream);
    let (reader, entries) = outbox(choices, slow_after);
    let id = title.request_id.clone();
    let ids = children::ids(&id, prompts.len())?;
    let sinks = entries.into_iter().enumerate().map(|(prompt, sink)| {
        let path = prompts::path_of(prompt, choices.0);
        RenamingSink { layout: Layout { prompt: Some(path), ..generation.layout.clone() }, sink }
    });
    let requests = ids.into_iter().zip(prompts).zip(sinks);
    let mut requests: Vec<Request> = requests
        .map(|(id_and_prompt, sink)| request(title.api, &generation, id_and_prompt, sink, asked))
        .collect();
    match requests.pop() {
        Some(only) if requests.is_empty() => {
            door.admit.try_send(Admit(only)).map_err(|refusal| not_taken(&refusal))?;
        }
        last => {
            requests.extend(last);
            let all = AdmitAll { id, requests };
            door.admit_all.try_send(all).map_err(|refusal| not_taken(&refusal))?;
        }
    }
    Ok(PendingAnswer { reader, choices: choices.0 * choices.1 })
}

fn request(
    api: Api,
    generation: &GenerationBody,
    (id, prompt): (RequestId, Prompt),
    sink: RenamingSink<BufferEntry>,
    asked: &Asked,
) -> Request {
    Request {
        id,
        caller: asked.caller.clone(),
        model: generation.model.clone(),
        prompt,
        so_far: SoFar::default(),
        params: generation.options.params.clone(),
        stream: generation.options.stream,
        priority: generation.options.priority,
        default_length: match api {
            Api::Completions => DefaultLength::Completions,
            Api::Chat => DefaultLength::Context,
        },
        received_at: asked.received_at,
        sink: Box::new(sink),
    }
}

/// Why a mailbox takes no message, as the client is told.
pub(super) fn not_taken<M>(refusal: &SendError<M>) -> Error {
    match refusal {
        SendError::Full(_) => Error::new(Kind::QueueFull, "the node has too much to admit"),
        SendError::Closed(_) => Error::new(Kind::Unavailable, "the node is stopping"),
    }
    .with_retry_after_ms(MAILBOX_RETRY_MS)
}

/// Waits for every choice and answers with one body.
async fn whole(
    running: PendingAnswer,
    title: &Title,
    first: Taken,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let mut choices: Vec<Whole> = (0..running.choices).map(|_| Whole::default()).collect();
    let mut bill = Bill::default();
    let mut next = Some(first);
    while choices.iter().any(|choice| choice.reason.is_none()) {
        let taken = match next.take() {
            Some(taken) => taken,
            None => poll_fn(|cx| running.reader.poll_take(cx)).await,
        };
        let choice = &mut choices[taken.index];
        choice.text.push_str(&taken.text);
        if let Some(entries) = taken.logprobs {
            choice.logprobs.get_or_insert_default().extend(entries);
        }
        if let Some(entries) = taken.prompt_logprobs {
            choice.prompt_logprobs.extend(entries);
        }
        match taken.end {
            None => {}
            Some(End::Failed(error)) => return Err(error.into()),
            Some(End::Finished(mut finished)) => {
                bill.add(&mut finished);
                choice.reason = Some(finished.reason);
            }
        }
    }
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/json"))
        .body(wire::body(title, &choices, &bill)))
}

/// The client's id from body or header, or a fresh one.
fn request_id(in_body: Option<RequestId>, headers: &HeaderMap) -> Result<RequestId> {
    let in_header = match headers.get(REQUEST_ID) {
        None => None,
        Some(value) => {
            // What is no ASCII is certainly no request id.
            let id = RequestId::parse(value.to_str().unwrap_or_default());
            Some(id.map_err(|error| error.with_param(REQUEST_ID))?)
        }
    };
    match (in_body, in_header) {
        (Some(body), Some(header)) if body != header => Err(Error::invalid(
            "request_id",
            format!("expected the same id as in the header X-Request-Id ({header}), got {body}"),
        )),
        (Some(id), _) | (None, Some(id)) => Ok(id),
        (None, None) => Ok(RequestId::generate()),
    }
}

/// The whole body, if it is JSON by its header and within the limit.
async fn read_body(door: &Door, headers: &HeaderMap, payload: Payload) -> Result<Bytes> {
    check_type(headers)?;
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|len: usize| len > door.max_body_bytes) {
        return Err(too_large(door.max_body_bytes));
    }
    let collect = collect(payload, declared.unwrap_or_default(), door.max_body_bytes);
    tokio::time::timeout(door.read_timeout, collect).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {:?}", door.read_timeout);
        Err(Error::new(Kind::Invalid, message))
    })
}

fn check_type(headers: &HeaderMap) -> Result<()> {
    let text = |value: &actix_web::http::header::HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    };
    if let Some(value) = headers.get(CONTENT_TYPE).map(text) {
        let essence = value.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = format!("expected the Content-Type application/json, got {value:?}");
            return Err(Error::new(Kind::Invalid, message));
        }
    }
    if let Some(value) = headers.get(CONTENT_ENCODING).map(text)
        && !value.eq_ignore_ascii_case("identity")
    {
        let message = format!("expected no Content-Encoding, got {value:?}");
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(())
}

async fn collect(mut payload: Payload, declared: usize, limit: usize) -> Result<Bytes> {
    // A declared length is a promise, not memory that a client may take.
    let mut body = BytesMut::with_capacity(declared.min(64 << 10));
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| {
            Error::new(Kind::Invalid, format!("the body did not arrive whole: {error}"))
        })?;
        if body.len() + piece.len() > limit {
            return Err(too_large(limit));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

fn too_large(limit: usize) -> Error {
    Error::new(
        Kind::TooLarge,
        format!("expected a body of at most {limit} bytes, got a longer one"),
    )
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}
