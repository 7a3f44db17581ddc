//! Durable requests over HTTP: judged here, published, and answered from what is stored, whichever node runs them.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::door::HttpDoor;
use crate::bus::client::{Client, ClientError, DurableJob, DurableStream, Timeouts};
use crate::digest::{digest_of, hex};
use crate::door::{Admit, not_admitted};
use crate::error::{Error, Kind, Result};
use crate::ids::{RequestId, SequenceId};
use crate::log::Positions;
use crate::reader::Layout;
use crate::request::{
    Caller, Event, FinishReason, Handle, Prompt, Request, Sink, SinkClosed, Usage,
};

/// Asks for a request that is finished whatever node dies.
const DURABLE: HeaderName = HeaderName::from_static("inferno-durable");

/// The same, and the same key again is the same request (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// How long a stream may say nothing before its reader is told: longer than any queue.
const MAX_SILENCE: Duration = Duration::from_secs(24 * 3_600);

/// How often a reader is looked at to whom nothing is said.
const LOOK: Duration = Duration::from_secs(3);

/// That a request is to be durable, and under which id.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DurableWish {
    /// Made of the key, where there is one.
    pub id: Option<RequestId>,
}

impl DurableWish {
    /// What the headers say.
    ///
    /// # Errors
    /// `invalid`, naming the header.
    pub fn of(headers: &HeaderMap, caller: &Caller) -> Result<Option<Self>> {
        let text = |name: &HeaderName| {
            let value = headers.get(name).map(|value| value.to_str().map(str::trim));
            value.transpose().map_err(|_| Error::invalid(name.as_str(), "expected ASCII"))
        };
        let is_durable = match text(&DURABLE)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                let text = format!("expected true or false, got {other:?}");
                return Err(Error::invalid(DURABLE.as_str(), text));
            }
        };
        let Some(key) = text(&IDEMPOTENCY_KEY)? else {
            return Ok(is_durable.then_some(Self { id: None }));
        };
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            let text = format!("expected 1 to {MAX_KEY_BYTES} bytes, got {}", key.len());
            return Err(Error::invalid(IDEMPOTENCY_KEY.as_str(), text));
        }
        Ok(Some(Self { id: Some(id_of(key, caller)?) }))
    }
}

/// One for each key of each caller: nobody meets another's.
fn id_of(key: &str, caller: &Caller) -> Result<RequestId> {
    let tenant = caller.tenant.as_ref().map(ToString::to_string).unwrap_or_default();
    let digest = Sha256::new().chain_update(tenant).chain_update([0]).chain_update(key).finalize();
    RequestId::of_key(&hex(&digest[..20]))
}

/// Durable requests that are to be published: one for each prompt of a body, each with the names that its client has for what is in it.
pub(super) struct DurableAsk(pub Vec<(Request, Layout)>);

/// What is published, and where its answer goes.
type AskedJob = (DurableJob, Box<dyn Sink>);

impl DurableAsk {
    /// Has them judged, publishes them, and answers from what is stored, in tasks of their own.
    ///
    /// # Errors
    /// What stands against one: none was published then.
    pub async fn start(self, door: &HttpDoor, model: Arc<str>) -> Result<()> {
        let client = client(door)?;
        let mut parts: Vec<AskedJob> = Vec::new();
        // Then its node judges, and an error is the request's end.
        let mut is_elsewhere = false;
        for (mut request, layout) in self.0 {
            let sink = std::mem::replace(&mut request.sink, Box::new(JudgeSink(Arc::default())));
            parts.push((job_of(&request, &model)?, sink));
            if is_elsewhere {
                continue;
            }
            if let Err(error) = judge(door, request).await {
                is_elsewhere =
                    is_unknown_model(&error) && client.is_served(&model).await.map_err(error_of)?;
                if !is_elsewhere {
                    return Err(layout.rename(error));
                }
            }
        }
        let mut parts = as_one(parts).into_iter();
        let Some((job, sink)) = parts.next() else { return Ok(()) };
        let stream = client.start_durable(&job).await.map_err(error_of)?;
        let rest: Vec<AskedJob> = parts.collect();
        if rest.is_empty() {
            actix_web::rt::spawn(relay(stream, job, sink, None));
            return Ok(());
        }
        let (known, first) = oneshot::channel();
        actix_web::rt::spawn(relay(stream, job, sink, Some(known)));
        actix_web::rt::spawn(start_rest(client, rest, first));
        Ok(())
    }
}

/// Several are known as parts of a whole: the same prompt beside others is another request.
fn as_one(parts: Vec<AskedJob>) -> Vec<AskedJob> {
    if parts.len() < 2 {
        return parts;
    }
    let all: Vec<String> = parts.iter().map(|(job, _)| job.digest()).collect();
    let whole = digest_of(all.concat().as_bytes());
    parts.into_iter().map(|(job, sink)| (job.part_of(&whole), sink)).collect()
}

/// Publishes the others when the first is known to run as it was asked for: where its id is another request's, nothing else is made.
async fn start_rest(client: Client, rest: Vec<AskedJob>, first: oneshot::Receiver<Result<()>>) {
    let first = first.await.unwrap_or_else(|_| Err(crate::door::stopping()));
    for (job, mut sink) in rest {
        let started = match &first {
            Ok(()) => client.start_durable(&job).await.map_err(error_of),
            Err(error) => Err(error.clone()),
        };
        match started {
            Ok(stream) => {
                actix_web::rt::spawn(relay(stream, job, sink, None));
            }
            Err(error) => sink.refused(&error),
        }
    }
}

/// The bus.
///
/// # Errors
/// `log_unavailable` where there is none.
pub(super) fn client(door: &HttpDoor) -> Result<Client> {
    let client = door.bus.get().cloned().ok_or_else(|| {
        Error::new(Kind::LogUnavailable, "this node has no bus, which durable requests need")
    })?;
    Ok(client.with_timeouts(Timeouts { event: MAX_SILENCE, ..Timeouts::default() }))
}

/// What a client's error is to the client of HTTP.
pub(super) fn error_of(error: ClientError) -> Error {
    match error {
        ClientError::Log(error) | ClientError::Refused(error) => error,
        ClientError::NoResponders(_) => {
            Error::new(Kind::NotFound, "no node knows of it").with_param("request_id")
        }
        error => Error::new(Kind::LogUnavailable, error.to_string()).with_retry_after_ms(1_000),
    }
}

/// Whether this node has no such model.
fn is_unknown_model(error: &Error) -> bool {
    error.kind == Kind::NotFound && error.param.as_deref() == Some("model")
}

/// Asks admission whether it would take the request.
async fn judge(door: &HttpDoor, request: Request) -> Result<()> {
    let (verdict, told) = oneshot::channel();
    let verdict = Arc::new(Mutex::new(Some(verdict)));
    // Under an id of its own: the real one may run already, for the same key.
    let question = Request {
        id: RequestId::generate(),
        is_question: true,
        sink: Box::new(JudgeSink(verdict)),
        ..request
    };
    door.admit.try_send(Admit(question)).map_err(|refusal| not_admitted(&refusal))?;
    told.await.unwrap_or_else(|_| Err(crate::door::stopping()))
}

/// Takes admission's word.
struct JudgeSink(Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>);

impl JudgeSink {
    fn say(&self, word: Result<()>) {
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Who asked may have left.
        verdict.into_iter().for_each(|verdict| drop(verdict.send(word.clone())));
    }
}

impl Sink for JudgeSink {
    fn accepted(&mut self, _: &Arc<Handle>) {
        self.say(Ok(()));
    }

    fn refused(&mut self, error: &Error) {
        self.say(Err(error.clone()));
    }

    fn lend(&mut self, _: &mut Event) -> std::result::Result<(), SinkClosed> {
        Err(SinkClosed)
    }
}

/// The bus's object for a request.
fn job_of(request: &Request, model: &Arc<str>) -> Result<DurableJob> {
    if request.params.ranks_samples() {
        let text =
            "above n it is not supported for a durable request: the best are known only at the end";
        return Err(Error::unsupported("best_of", text));
    }
    let params = serde_json::to_value(request.params.write());
    let params = params.map_err(|error| Error::internal(error.to_string()))?;
    let mut body =
        json!({"request_id": request.id, "params": params, "priority": request.priority});
    match &request.prompt {
        Prompt::Text(text) => body["prompt"] = text.as_str().into(),
        Prompt::TokenIds(ids) => body["prompt_token_ids"] = ids.as_slice().into(),
        Prompt::Messages(messages) => {
            let messages = serde_json::to_value(messages);
            body["messages"] = messages.map_err(|error| Error::internal(error.to_string()))?;
        }
    }
    Ok(DurableJob::new((request.id.clone(), Arc::clone(model)), body, request.default_length))
}

/// Gives what is stored to a sink, until the request ends or its reader leaves, which ends nothing but this. Whoever waits for it is
/// told once whether the request runs as it was asked for.
async fn relay(
    mut stream: DurableStream,
    job: DurableJob,
    mut sink: Box<dyn Sink>,
    mut known: Option<oneshot::Sender<Result<()>>>,
) {
    let handle = Handle::new(job.id().clone(), SequenceId(0));
    // Who waited for it may have left.
    let tell = |known: &mut Option<oneshot::Sender<_>>, word| {
        if let Some(known) = known.take() {
            drop(known.send(word));
        }
    };
    let mut is_accepted = false;
    loop {
        let next = match known {
            None => next_unless_closed(&mut stream, sink.as_ref()).await,
            // What others wait for is waited for without a reader, too.
            Some(_) => Some(stream.next().await),
        };
        let Some(next) = next else { return };
        let event = match next {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                let error = error_of(error);
                tell(&mut known, Err(error.clone()));
                return fail(sink, job.id(), is_accepted, error);
            }
        };
        if !is_accepted && job.differs_from(&stream) {
            let text = "another request was made with this key, or under this id";
            let error = Error::new(Kind::Conflict, text).with_param("idempotency-key");
            tell(&mut known, Err(error.clone()));
            return sink.refused(&error);
        }
        tell(&mut known, Ok(()));
        if !std::mem::replace(&mut is_accepted, true) {
            sink.accepted(&handle);
        }
        if event.is_empty() {
            continue;
        }
        if handle.is_cancelled() || sink.event(event).is_err() {
            return;
        }
    }
}

/// The next event; none where nobody waits for it any more.
async fn next_unless_closed(
    stream: &mut DurableStream,
    sink: &dyn Sink,
) -> Option<std::result::Result<Option<Event>, ClientError>> {
    let mut next = pin!(stream.next());
    loop {
        tokio::select! {
            next = &mut next => return Some(next),
            () = tokio::time::sleep(LOOK) => if sink.is_closed() { return None },
        }
    }
}

fn fail(mut sink: Box<dyn Sink>, id: &RequestId, is_accepted: bool, error: Error) {
    if !is_accepted {
        return sink.refused(&error);
    }
    let event = Event {
        finish_reason: Some(FinishReason::Failed),
        usage: Some(Usage::default()),
        error: Some(Box::new(error)),
        ..Event::new(id.clone())
    };
    // A reader that has left misses nothing.
    let _ = sink.event(event);
}

/// The object of an event, as a reader of `/v1/requests/<id>/events` gets it, with how far it has come as its id.
pub(super) fn sse(event: &Event, given: &Positions) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if !given.is_start() {
        out.extend_from_slice(format!("id: {given}\n").as_bytes());
    }
    out.extend_from_slice(b"data: ");
    let json = serde_json::to_vec(event).map_err(|error| Error::internal(error.to_string()))?;
    out.extend_from_slice(&json);
    out.extend_from_slice(b"\n\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;
    use crate::request::Tenant;

    fn wish(headers: &[(HeaderName, &str)], caller: &Caller) -> Result<Option<DurableWish>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.clone(), HeaderValue::from_str(value).expect("a value"));
        }
        DurableWish::of(&map, caller)
    }

    #[test]
    fn a_header_or_a_key_makes_a_request_durable() {
        let caller = Caller::default();
        assert_eq!(wish(&[], &caller), Ok(None));
        assert_eq!(wish(&[(DURABLE, "false")], &caller), Ok(None));
        assert_eq!(wish(&[(DURABLE, "true")], &caller), Ok(Some(DurableWish { id: None })));
        let param = |headers: &[_]| wish(headers, &caller).map_err(|error| error.param);
        assert_eq!(param(&[(DURABLE, "1")]), Err(Some("inferno-durable".to_owned())));
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        for key in ["", long.as_str()] {
            let wrong = param(&[(IDEMPOTENCY_KEY, key)]);
            assert_eq!(wrong, Err(Some("idempotency-key".to_owned())));
        }
    }

    #[test]
    fn a_key_is_one_id_for_one_caller() {
        let id = |key: &str, tenant: Option<&str>| {
            let caller = Caller { tenant: tenant.map(Tenant::new), ..Caller::default() };
            wish(&[(IDEMPOTENCY_KEY, key)], &caller).expect("valid").expect("durable").id
        };
        assert_eq!(id("a", None), id("a", None));
        let all = [id("a", None), id("b", None), id("a", Some("t")), id("a", Some("u"))];
        let distinct: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(distinct.len(), 4);
    }
}
