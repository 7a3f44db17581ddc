//! Which path is what, and everything that does not generate.

use std::time::Duration;

use actix_web::guard::{Any, Get, Head};
use actix_web::http::header::{ALLOW, CONTENT_TYPE};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Data, Path, ServiceConfig};
use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError as _, Route,
};
use serde::Serialize;
use tokio::sync::oneshot;

use super::api::Api;
use super::door::HttpDoor;
use super::durable::error_of;
use super::events::events;
use super::generate::{chat, completions};
use super::refusal::{ErrorResponse, method_not_allowed};
use super::{json, models};
use crate::bus::client::{CancelAnswer, Client};
use crate::door::{Cancel, not_admitted};
use crate::error::{Error, Kind, Result};
use crate::health::Status;
use crate::ids::RequestId;
use crate::request::Ended;

/// Every path and its methods. They are tried in this order: those come first that are asked for most.
pub(super) fn configure(app: &mut ServiceConfig) {
    app.service(only("POST, OPTIONS", "/v1/completions", web::post().to(completions)))
        .service(only("POST, OPTIONS", "/v1/chat/completions", web::post().to(chat)))
        .service(only("POST, OPTIONS", "/inference", web::post().to(completions)))
        .service(read("/v1/models", models::list))
        .service(read("/v1/models/{model}", models::show))
        .service(read("/v1/health", health))
        .service(read("/health", ready))
        .service(read("/health/live", live))
        .service(read("/health/ready", ready))
        .service(read("/metrics", metrics))
        .service(only("DELETE, OPTIONS", "/v1/requests/{id}", web::delete().to(cancel)))
        .service(read("/v1/requests/{id}/events", events))
        // For clients that cannot send DELETE.
        .service(only("POST, OPTIONS", "/v1/requests/{id}/cancel", web::post().to(cancel)))
        .default_service(web::to(unknown_path));
}

/// What some path has.
const ALL_METHODS: &str = "GET, HEAD, POST, DELETE, OPTIONS";

/// A path to read. HEAD is GET without the body (RFC 9110, 9.3.2), which the server leaves out.
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let reads = Any(Get()).or(Head());
    only("GET, HEAD, OPTIONS", path, web::route().guard(reads).to(handler))
}

/// A path with these methods, the first with a handler; who asks for another is told which.
fn only(allowed: &'static str, path: &str, route: Route) -> Resource {
    let other = move |http: HttpRequest| async move { other_method(allowed, http.method()) };
    web::resource(path).route(route).default_service(web::to(other))
}

fn other_method(allowed: &'static str, method: &Method) -> HttpResponse {
    if *method == Method::OPTIONS {
        return HttpResponse::NoContent().insert_header((ALLOW, allowed)).finish();
    }
    method_not_allowed(allowed, method.as_str())
}

async fn unknown_path(http: HttpRequest) -> HttpResponse {
    // What the server as a whole can (RFC 9110, 9.3.7).
    if http.path() == "*" && *http.method() == Method::OPTIONS {
        return other_method(ALL_METHODS, http.method());
    }
    let error = Error::new(Kind::NotFound, format!("no such path: {}", http.path()));
    ErrorResponse(error).error_response()
}

/// `GET /v1/health`
async fn health(door: Data<HttpDoor>) -> HttpResponse {
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

/// `GET /health/ready`, and `GET /health` as vLLM has it.
async fn ready(door: Data<HttpDoor>) -> HttpResponse {
    #[derive(Serialize)]
    struct Ready {
        ready: bool,
    }
    let ready = door.health.ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json::response(code, &Ready { ready })
}

/// `GET /metrics`
async fn metrics(door: Data<HttpDoor>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(door.prometheus.render())
}

/// `DELETE /v1/requests/{id}`, and the same as a POST.
async fn cancel(
    door: Data<HttpDoor>,
    id: Path<String>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let mut fault = None;
    for request_id in Api::requests_named(&id) {
        match cancel_one(&door, &request_id).await {
            Ok(ended) => {
                let answer = CancelAnswer::of(&request_id, ended);
                return Ok(json::response(StatusCode::OK, &answer));
            }
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    let message = format!("no request {:?} is running here", id.as_str());
    let unknown = || Error::new(Kind::NotFound, message).with_param("request_id");
    Err(fault.unwrap_or_else(unknown).into())
}

/// How long a request may take to end: as long as the step that runs, and, of a durable one, until its end is stored.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

async fn cancel_one(door: &HttpDoor, id: &RequestId) -> Result<Ended> {
    let (done, answer) = oneshot::channel();
    let message = Cancel { id: id.clone(), done };
    door.cancel.try_send(message).map_err(|refusal| not_admitted(&refusal))?;
    let here = tokio::time::timeout(CANCEL_TIMEOUT, answer).await.map_err(|_| {
        let text = "the request is being cancelled, and its end is not there yet";
        Error::new(Kind::Unavailable, text).with_retry_after_ms(1_000)
    })?;
    let here = here.unwrap_or_else(|_| Err(Error::internal("the cancel got lost")));
    match (here, door.bus.get()) {
        (Err(error), Some(bus)) if error.kind == Kind::NotFound => cancel_elsewhere(bus, id).await,
        (here, _) => here,
    }
}

/// It may run on another node, wait for one, or have ended.
async fn cancel_elsewhere(bus: &Client, id: &RequestId) -> Result<Ended> {
    bus.cancel_anywhere(id).await.map(|answer| answer.ended()).map_err(error_of)
}
