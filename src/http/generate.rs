//! The two endpoints that generate: body in, requests to admission, answer out.

use std::future::poll_fn;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::http::Version;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use actix_web::web::{self, Data, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};

use super::answer::bill::Bill;
use super::answer::buffer::{BufferEntry, Reader, outbox};
use super::answer::choices::{End, Taken};
use super::answer::sse::EventStream;
use super::answer::wire::{self, Title, Whole};
use super::api::Api;
use super::door::HttpDoor;
use super::durable::{DurableAsk, DurableWish};
use super::guard::IgnoredHeader;
use super::inferno::{self, InfernoCall};
use super::intake::body::{Body, ParsedBody, ReadingRules};
use super::intake::id::RunningId;
use super::intake::parse::{GenerationBody, StreamUsage};
use super::intake::{children, ignored, prompts};
use super::refusal::ErrorResponse;
use crate::clock::Timestamp;
use crate::door::{Admit, AdmitAll, not_admitted};
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::reader::{Layout, RenamingSink, RequestOptions};
use crate::request::{Caller, DefaultLength, Prompt, Request, SoFar};
use crate::telemetry::{LoggedSink, RefusedRequest};

/// Log probabilities that a worker writes by itself; more are written aside, so that nobody waits for them: each takes some 2 µs.
const MAX_ENTRIES_ON_WORKER: usize = 1_024;

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// Asks a proxy before us not to collect events.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

const NO_BUFFERING: HeaderValue = HeaderValue::from_static("no");

/// `POST /v1/completions`, and `POST /inference` as Inferno has it.
pub(super) async fn completions(
    door: Data<HttpDoor>,
    http: HttpRequest,
    payload: Payload,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let answer = generate(&door, &http, payload, Api::Completions).await;
    answer.or_else(|refusal| inferno::refused(&http, refusal))
}

/// `POST /v1/chat/completions`
pub(super) async fn chat(
    door: Data<HttpDoor>,
    http: HttpRequest,
    payload: Payload,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    generate(&door, &http, payload, Api::Chat).await
}

async fn generate(
    door: &HttpDoor,
    http: &HttpRequest,
    payload: Payload,
    api: Api,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let begun = begin(door, http, payload, api).await;
    // Refusals of admission are counted there.
    let begun = begun.inspect_err(|error| {
        let extensions = http.extensions();
        let refused = RefusedRequest { door: "http", id: extensions.get(), model: None };
        door.metrics.refused_at_door(refused, error);
    });
    let Begun { reader, title, stream, usage, inferno, ids } = begun?;

    let first = poll_fn(|cx| reader.poll_take(cx, &mut String::new())).await;
    // Before the first byte, a failure is a status.
    if let Some(End::Failed(error)) = first.end {
        return Err(error.into());
    }
    if !stream {
        return whole(reader, &title, first, inferno).await;
    }
    let mut answer = HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, EVENT_STREAM))
        .insert_header((CACHE_CONTROL, NO_CACHE))
        .insert_header((BUFFERING, NO_BUFFERING))
        .body(EventStream::new(reader, (&title, ids), usage, first));
    // Some proxies still speak HTTP/1.0, which has no chunks: there the end of the connection is the end of the stream.
    answer.head_mut().no_chunking(http.version() < Version::HTTP_11);
    Ok(answer)
}

/// Who asked, and when the door had the whole body.
struct Asked {
    caller: Caller,
    received_at: Timestamp,
    is_durable: bool,
}

/// A request that admission has decided on, and of whose answer there is something.
struct Begun {
    reader: Reader,
    title: Title,
    stream: bool,
    usage: StreamUsage,
    inferno: Option<InfernoCall>,
    /// Lines of the stream's first so many choices say how far its reader has come.
    ids: Option<usize>,
}

async fn begin(door: &HttpDoor, http: &HttpRequest, payload: Payload, api: Api) -> Result<Begun> {
    let mut body = Body::read(door, http.headers(), payload).await?;
    let caller = http.extensions().get::<Caller>().cloned().unwrap_or_default();
    let asked = Asked { caller, received_at: Timestamp::now(), is_durable: false };
    let rules = ReadingRules { api, max_prompts: door.max_prompts, unknown: door.unknown };
    let ParsedBody { mut generation, ignored } = parse(door, http, &mut body, rules).await?;
    let in_body = generation.options.request_id.take();
    let mut name = RunningId::choose(in_body, http.headers(), generation.prompts.len());
    let durable = DurableWish::of(http.headers(), &asked.caller)?;
    if let Some(wish) = &durable {
        // Many requests may have one id in the header.
        let meant = Some(name.id).filter(|_| !name.is_hint);
        let id = wish.id.clone().or(meant).unwrap_or_else(RequestId::generate);
        name = RunningId { id, is_hint: false };
    }
    if let Some((members, header)) = ignored::list(ignored) {
        tracing::info!(request_id = %name.id, members, "ignored unknown members");
        http.extensions_mut().insert(IgnoredHeader(header));
    }
    // A second try takes the body once more.
    let body = Some(body).filter(|_| name.is_hint);
    if durable.is_some() {
        return answered(door, http, name.id, generation, &Asked { is_durable: true, ..asked })
            .await;
    }
    let begun = answered(door, http, name.id, generation, &asked).await?;
    match body {
        Some(mut body) if begun.reader.has_conflict() => {
            let ParsedBody { mut generation, .. } = parse(door, http, &mut body, rules).await?;
            generation.options.request_id = None;
            answered(door, http, RunningId::fresh().id, generation, &asked).await
        }
        _ => Ok(begun),
    }
}

/// What a body asks for, the model named.
async fn parse(
    door: &HttpDoor,
    http: &HttpRequest,
    body: &mut Body,
    rules: ReadingRules,
) -> Result<ParsedBody> {
    let parsed = body.parse(rules).await;
    let mut parsed = parsed.inspect_err(|_| inferno::note_unread(http, body))?;
    if let Some(number) = parsed.generation.inferno {
        inferno::note(http, number);
        parsed.generation.model = inferno::first_model(door).await?;
    }
    Ok(parsed)
}

/// Sends what a body asks for to admission, and waits until the answer can begin.
async fn answered(
    door: &HttpDoor,
    http: &HttpRequest,
    id: RequestId,
    generation: GenerationBody,
    asked: &Asked,
) -> Result<Begun> {
    http.extensions_mut().insert(id.clone());
    let params = &generation.options.params;
    let ids = asked.is_durable.then(|| params.num_choices() as usize);
    let title = Title {
        api: generation.api(),
        request_id: id,
        model: generation.model.as_str().into(),
        created: unix_seconds(),
        echoes: params.echoes(),
        prompt_logprobs: params.prompt_logprobs.is_some(),
    };
    let (stream, usage) = (generation.options.stream, generation.usage);
    let call = |number| InfernoCall { number, received_at: asked.received_at };
    let inferno = generation.inferno.map(call);
    let (reader, ask) = admit(door, &title, generation, asked)?;
    if let Some(ask) = ask {
        ask.start(door, title.model.clone()).await?;
    }
    poll_fn(|cx| reader.poll_begin(cx)).await;
    Ok(Begun { reader, title, stream, usage, inferno, ids })
}

/// Sends a request, or one for each of its prompts.
fn admit(
    door: &HttpDoor,
    title: &Title,
    mut generation: GenerationBody,
    asked: &Asked,
) -> Result<(Reader, Option<DurableAsk>)> {
    let prompts = std::mem::take(&mut generation.prompts);
    let choices = (prompts.len(), generation.options.params.num_choices() as usize);
    let slow_after = Some(door.slow_reader).filter(|_| generation.options.stream);
    let (reader, entries) = outbox(choices, slow_after);
    let ids = if asked.is_durable {
        children::durable_ids(&title.request_id, prompts.len())?
    } else {
        children::ids(&title.request_id, prompts.len())?
    };
    let logged = |id: &RequestId, sink| LoggedSink {
        sink,
        log: door.metrics.requests.clone(),
        door: "http",
        id: id.clone(),
        model: title.model.clone(),
        received_at: asked.received_at,
    };
    let layout_of = |index| {
        let path = prompts::path_of(index, choices.0);
        Layout { prompt: Some(path), ..generation.layout.clone() }
    };
    let each = ids.into_iter().zip(prompts).zip(entries).enumerate();
    let requests = each.map(|(index, ((id, prompt), entry))| {
        let layout = layout_of(index);
        let sink = RenamingSink { layout: layout.clone(), sink: logged(&id, entry) };
        (request(title, &generation.options, (id, prompt), sink, asked), layout)
    });
    if asked.is_durable {
        return Ok((reader, Some(DurableAsk(requests.collect()))));
    }
    let mut requests: Vec<Request> = requests.map(|(request, _)| request).collect();
    match requests.pop() {
        Some(only) if requests.is_empty() => {
            door.admit.try_send(Admit(only)).map_err(|refusal| not_admitted(&refusal))?;
        }
        last => {
            requests.extend(last);
            let all = AdmitAll { id: title.request_id.clone(), requests };
            door.admit_all.try_send(all).map_err(|refusal| not_admitted(&refusal))?;
        }
    }
    Ok((reader, None))
}

fn request(
    title: &Title,
    options: &RequestOptions,
    (id, prompt): (RequestId, Prompt),
    sink: RenamingSink<LoggedSink<BufferEntry>>,
    asked: &Asked,
) -> Request {
    Request {
        id,
        caller: asked.caller.clone(),
        model: title.model.clone(),
        prompt,
        so_far: SoFar::default(),
        is_question: false,
        params: options.params.clone(),
        stream: options.stream,
        priority: options.priority,
        default_length: match title.api {
            Api::Completions => DefaultLength::Completions,
            Api::Chat => DefaultLength::Context,
        },
        received_at: asked.received_at,
        sink: Box::new(sink),
    }
}

/// Waits for every choice and answers with one body.
async fn whole(
    reader: Reader,
    title: &Title,
    first: Taken,
    inferno: Option<InfernoCall>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let mut choices: Vec<Whole> = (0..reader.num_choices()).map(|_| Whole::default()).collect();
    let mut bill = Bill::default();
    let mut next = Some(first);
    while choices.iter().any(|choice| choice.reason.is_none()) {
        let taken = match next.take() {
            Some(taken) => taken,
            None => poll_fn(|cx| reader.poll_take(cx, &mut String::new())).await,
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
    if let (Some(call), [only]) = (inferno, choices.as_slice()) {
        return Ok(inferno::answer(call, only, &bill));
    }
    let entries =
        |whole: &Whole| whole.logprobs.as_ref().map_or(0, Vec::len) + whole.prompt_logprobs.len();
    let body = if choices.iter().map(entries).sum::<usize>() <= MAX_ENTRIES_ON_WORKER {
        wire::body(title, &choices, &bill)
    } else {
        let title = title.clone();
        let written = web::block(move || wire::body(&title, &choices, &bill)).await;
        written.map_err(|_| Error::internal("no thread writes the answer"))?
    };
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(body))
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}
