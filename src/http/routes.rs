//! Which path is what; who may come in; and everything that does not generate.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::{self, Data, Path, ServiceConfig};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, Resource, ResponseError as _, Route};
use futures_util::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use super::answer::wire::Api;
use super::body::large_body_bytes;
use super::connections::{BusyConnection, Connection, HeldBody};
use super::generate::{chat, completions, not_taken};
use super::refusal::{ErrorResponse, method_not_allowed};
use super::{Config, Deps, HealthSource, auth};
use crate::door::{Admit, AdmitAll, Cancel};
use crate::door::{List, ModelInfo};
use crate::error::{Error, Kind, Result};
use crate::health::Status;
use crate::ids::RequestId;
#[cfg(test)]
use crate::lifeline::Lifeline;
use crate::request::{Caller, Ended, FinishReason};
use crate::secret::Secret;
use crate::telemetry::{Metrics, RefusedRequest};

/// Carries the request's id in both directions.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// What a client is told to wait where all connections are busy: some answer has ended by then.
const BUSY_RETRY_MS: u64 = 1_000;

/// How long another actor may take to answer: a cancel ends with the step that runs, a list at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What every handler may use; one per server.
pub(super) struct Door {
    pub(super) admit: Recipient<Admit>,
    pub(super) admit_all: Recipient<AdmitAll>,
    cancel: Recipient<Cancel>,
    models: Recipient<List>,
    health: Arc<dyn HealthSource>,
    prometheus: PrometheusHandle,
    pub(super) metrics: Arc<Metrics>,
    api_keys: Vec<Secret>,
    pub(super) max_body_bytes: usize,
    /// What large bodies may still take.
    pub(super) large_body_bytes: Arc<Semaphore>,
    pub(super) max_prompts: usize,
    pub(super) read_timeout: Duration,
    pub(super) slow_reader: Duration,
}

impl Door {
    pub(super) fn new(config: &Config, deps: Deps) -> Self {
        let Deps { admit, admit_all, cancel, models, health, prometheus, metrics } = deps;
        Self {
            admit,
            admit_all,
            cancel,
            models,
            health,
            prometheus,
            metrics,
            api_keys: config.api_keys.clone(),
            max_body_bytes: config.max_body_bytes,
            large_body_bytes: large_body_bytes(config.max_body_bytes),
            max_prompts: config.max_prompts,
            read_timeout: config.read_timeout(),
            slow_reader: config.slow_reader(),
        }
    }
}

/// Every path and its method.
pub(super) fn configure(app: &mut ServiceConfig) {
    app.service(only("GET", "/v1/models", web::get().to(list_models)))
        .service(only("GET", "/v1/models/{model}", web::get().to(show_model)))
        .service(only("GET", "/v1/health", web::get().to(health)))
        .service(only("GET", "/health/live", web::get().to(live)))
        .service(only("GET", "/health/ready", web::get().to(ready)))
        .service(only("GET", "/metrics", web::get().to(metrics)))
        .service(only("POST", "/v1/completions", web::post().to(completions)))
        .service(only("POST", "/v1/chat/completions", web::post().to(chat)))
        .service(only("DELETE", "/v1/requests/{id}", web::delete().to(cancel)))
        .default_service(web::to(unknown_path));
}

/// A path with one method; the others are told which.
fn only(method: &'static str, path: &str, route: Route) -> Resource {
    let refuse =
        move |http: HttpRequest| async move { method_not_allowed(method, http.method().as_str()) };
    web::resource(path).route(route).default_service(web::to(refuse))
}

/// Says no where the key or a place is wanting, tells the handler who has come, gives every answer the request's id, and makes a
/// handler's panic an answer, too.
pub(super) async fn guard(
    door: Data<Door>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> std::result::Result<ServiceResponse<HeldBody>, actix_web::Error> {
    #[cfg(test)]
    end_worker(&request);
    let is_open =
        matches!(request.path(), "/v1/health" | "/health/live" | "/health/ready" | "/metrics");
    let busy = request.conn_data::<Rc<Connection>>().map(Connection::begin);
    let may_ask = match is_open {
        true => Ok(Caller::default()),
        false => authorize(&door, &request)
            .and_then(|caller| check_place(busy.as_ref()).map(|()| caller)),
    };
    let busy = busy.filter(|_| !is_open && may_ask.is_ok());
    let id = shown_id(request.headers());
    let mut response = match may_ask {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            match AssertUnwindSafe(next.call(request)).catch_unwind().await {
                Ok(response) => response?.map_into_boxed_body(),
                Err(_) => return Err(panicked(&door, &id)),
            }
        }
        Err(error) => {
            door.metrics.refused(error.kind);
            let asked = RefusedRequest { door: "http", id: Some(&id), model: None };
            door.metrics.requests.refused(asked, &error);
            let refusal = ErrorResponse(error).error_response();
            request.into_response(refusal).map_into_boxed_body()
        }
    };
    let ran_under = response.request().extensions().get::<RequestId>().cloned();
    show_id(&ran_under.unwrap_or(id), response.headers_mut());
    Ok(response.map_body(|_, body| HeldBody { body, _busy: busy }))
}

/// Ends the worker's thread, where a test asks for it: nothing that a handler does can.
#[cfg(test)]
fn end_worker(request: &ServiceRequest) {
    if request.app_data::<Lifeline>().is_some_and(Lifeline::take_armed) {
        actix::Arbiter::current().stop();
    }
}

fn authorize(door: &Door, request: &ServiceRequest) -> Result<Caller> {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    auth::check(&door.api_keys, shown)
}

fn check_place(busy: Option<&BusyConnection>) -> Result<()> {
    if busy.is_none_or(BusyConnection::has_place) {
        return Ok(());
    }
    let error = Error::new(Kind::QueueFull, "the node has as many connections as it serves");
    Err(error.with_retry_after_ms(BUSY_RETRY_MS))
}

/// The answer to a request whose handler panicked; what it asked for is cancelled, the worker goes on.
fn panicked(door: &Door, id: &RequestId) -> actix_web::Error {
    let error = Error::internal("a defect of the node: the handler of this request panicked");
    door.metrics.refused(error.kind);
    door.metrics
        .requests
        .refused(RefusedRequest { door: "http", id: Some(id), model: None }, &error);
    let mut response = ErrorResponse(error.clone()).error_response();
    show_id(id, response.headers_mut());
    InternalError::from_response(error, response).into()
}

fn show_id(id: &RequestId, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert(HeaderName::from_static(REQUEST_ID), value);
    }
}

/// The id of a request that never ran: the client's, or a fresh one.
fn shown_id(headers: &HeaderMap) -> RequestId {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    given.and_then(|id| RequestId::parse(id).ok()).unwrap_or_else(RequestId::generate)
}

async fn unknown_path(http: HttpRequest) -> HttpResponse {
    let error = Error::new(Kind::NotFound, format!("no such path: {}", http.path()));
    ErrorResponse(error).error_response()
}

fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    let body = serde_json::to_vec(body).expect("plain fields serialise");
    HttpResponse::build(status).insert_header((CONTENT_TYPE, "application/json")).body(body)
}

/// One entry of the list of models.
#[derive(Serialize)]
struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Not OpenAI's: longest prompt and completion together.
    max_seq_len: u32,
}

impl From<ModelInfo> for ModelObject {
    fn from(info: ModelInfo) -> Self {
        Self {
            id: info.name,
            object: "model",
            created: info.created,
            owned_by: "inferno",
            max_seq_len: info.max_seq_len,
        }
    }
}

async fn loaded(door: &Door) -> Result<Vec<ModelInfo>> {
    within(door.models.send(List)).await?.map_err(|_| {
        let error = Error::new(Kind::Unavailable, "the node does not say what is loaded");
        error.with_retry_after_ms(1_000)
    })
}

/// `GET /v1/models`
async fn list_models(door: Data<Door>) -> std::result::Result<HttpResponse, ErrorResponse> {
    #[derive(Serialize)]
    struct Models {
        object: &'static str,
        data: Vec<ModelObject>,
    }
    let data = loaded(&door).await?.into_iter().map(ModelObject::from).collect();
    Ok(json(StatusCode::OK, &Models { object: "list", data }))
}

/// `GET /v1/models/{model}`
async fn show_model(
    door: Data<Door>,
    name: Path<String>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let name = name.into_inner();
    match loaded(&door).await?.into_iter().find(|info| info.name == name) {
        Some(info) => Ok(json(StatusCode::OK, &ModelObject::from(info))),
        None => {
            let message = format!("the model {name:?} is not loaded here");
            Err(Error::new(Kind::NotFound, message).with_param("model").into())
        }
    }
}

/// `GET /v1/health`
async fn health(door: Data<Door>) -> HttpResponse {
    let (message, status) = door.health.health();
    let code = match status {
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Critical => StatusCode::SERVICE_UNAVAILABLE,
    };
    HttpResponse::build(code).insert_header((CONTENT_TYPE, "application/json")).body(message)
}

/// `GET /health/live`
async fn live() -> HttpResponse {
    HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(r#"{"live":true}"#)
}

/// `GET /health/ready`
async fn ready(door: Data<Door>) -> HttpResponse {
    #[derive(Serialize)]
    struct Ready {
        ready: bool,
    }
    let ready = door.health.ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &Ready { ready })
}

/// `GET /metrics`
async fn metrics(door: Data<Door>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(door.prometheus.render())
}

/// What a cancel is answered with, as on the bus.
#[derive(Serialize)]
struct CancelledObject {
    request_id: RequestId,
    cancelled: bool,
    tokens: u32,
}

/// `DELETE /v1/requests/{id}`
async fn cancel(
    door: Data<Door>,
    id: Path<String>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    // As it stands first: a client's own id may begin like the prefix of a reply.
    let stripped = [Api::Chat, Api::Completions].map(|api| id.strip_prefix(api.id_prefix()));
    let candidates = std::iter::once(id.as_str()).chain(stripped.into_iter().flatten());
    for candidate in candidates {
        let Ok(request_id) = RequestId::parse(candidate) else { continue };
        match cancel_one(&door, &request_id).await {
            Ok(Ended { reason, completion_tokens: tokens }) => {
                let cancelled = reason == FinishReason::Cancelled;
                return Ok(json(
                    StatusCode::OK,
                    &CancelledObject { request_id, cancelled, tokens },
                ));
            }
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    let message = format!("no request {:?} is running here", id.as_str());
    Err(Error::new(Kind::NotFound, message).with_param("request_id").into())
}

async fn cancel_one(door: &Door, id: &RequestId) -> Result<Ended> {
    let (done, answer) = oneshot::channel();
    let message = Cancel { id: id.clone(), done };
    door.cancel.try_send(message).map_err(|refusal| not_taken(&refusal))?;
    within(answer).await?.unwrap_or_else(|_| Err(Error::internal("the cancel got lost")))
}

async fn within<F: Future>(answer: F) -> Result<F::Output> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| {
        Error::internal(format!("no answer inside the node within {ANSWER_TIMEOUT:?}"))
    })
}
