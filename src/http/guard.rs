//! What every request passes: who may come in, what HTTP itself wants, and what every answer says.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, HOST, HeaderMap,
    HeaderValue, ORIGIN,
};
use actix_web::http::uri::Authority;
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{HttpMessage as _, HttpResponse, ResponseError as _};
use futures_util::FutureExt as _;

use super::auth;
use super::connections::{BusyConnection, Connection, HeldBody};
use super::door::HttpDoor;
use super::intake::id;
use super::intake::ignored::IGNORED;
use super::refusal::{ErrorResponse, of_protocol};
use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
#[cfg(test)]
use crate::lifeline::Lifeline;
use crate::request::Caller;
use crate::telemetry::RefusedRequest;

/// What a client is told to wait where all connections are busy: some answer has ended by then.
const BUSY_RETRY_MS: u64 = 1_000;

/// Paths for which neither a key nor a place is wanted.
const OPEN: [&str; 5] = ["/v1/health", "/health", "/health/live", "/health/ready", "/metrics"];

/// Names what was ignored of a request, for its answer.
#[derive(Clone)]
pub(super) struct IgnoredHeader(pub(super) HeaderValue);

/// Says no where the request is none, or a key or a place is wanting; tells the handler who has come, makes a handler's panic an
/// answer, too, and writes what every answer has.
pub(super) async fn guard(
    door: Data<HttpDoor>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> std::result::Result<ServiceResponse<HeldBody>, actix_web::Error> {
    #[cfg(test)]
    end_worker(&request);
    // A preflight comes without the key.
    let is_open = OPEN.contains(&request.path()) || *request.method() == Method::OPTIONS;
    let busy = request.conn_data::<Rc<Connection>>().map(Connection::begin);
    let may_ask = if let Some(refusal) = no_request(&request) {
        door.metrics.refused(Kind::Invalid);
        Err(refusal)
    } else if is_open {
        Ok(Caller::default())
    } else {
        let caller = authorize(&door, &request);
        let caller = caller.and_then(|caller| check_place(busy.as_ref()).map(|()| caller));
        caller.map_err(|error| {
            refused(&door, &error);
            ErrorResponse(error).error_response()
        })
    };
    let busy = busy.filter(|_| !is_open && may_ask.is_ok());
    let asked = AskedAbout::of(&request);
    let mut response = match may_ask {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            match AssertUnwindSafe(next.call(request)).catch_unwind().await {
                Ok(response) => response?.map_into_boxed_body(),
                Err(_) => return Err(panicked(&door, &asked)),
            }
        }
        Err(refusal) => request.into_response(refusal).map_into_boxed_body(),
    };
    let (ran, ignored) = {
        let notes = response.request().extensions();
        (notes.get::<RequestId>().cloned(), notes.get::<IgnoredHeader>().cloned())
    };
    let headers = response.headers_mut();
    asked.answer(&door, ran, headers);
    if let Some(IgnoredHeader(members)) = ignored {
        headers.insert(IGNORED, members);
    }
    Ok(response.map_body(|_, body| HeldBody { body, _busy: busy }))
}

/// What is wrong with the request as HTTP, where the parser lets it pass.
fn no_request(request: &ServiceRequest) -> Option<HttpResponse> {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
        Method::TRACE,
    ];
    let host = request.headers().get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    // An empty one is right where the target has no authority (RFC 9112, 3.2).
    if !host.is_empty() && !is_host(host) {
        let text = "expected host[:port] in the header Host";
        return Some(of_protocol(StatusCode::BAD_REQUEST, "malformed_request", text));
    }
    if !KNOWN.contains(request.method()) {
        let text = format!("the method {} is not known", request.method());
        return Some(of_protocol(StatusCode::NOT_IMPLEMENTED, "method_not_implemented", &text));
    }
    None
}

fn is_host(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok_and(|authority| !authority.as_str().contains('@'))
}

/// Ends the worker's thread, where a test asks for it: nothing that a handler does can.
#[cfg(test)]
fn end_worker(request: &ServiceRequest) {
    if request.app_data::<Lifeline>().is_some_and(Lifeline::take_armed) {
        actix::Arbiter::current().stop();
    }
}

fn authorize(door: &HttpDoor, request: &ServiceRequest) -> Result<Caller> {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    auth::check(&door.api_keys, shown)
}

fn refused(door: &HttpDoor, error: &Error) {
    let asked = RefusedRequest { door: "http", id: None, model: None };
    door.metrics.refused_at_door(asked, error);
}

fn check_place(busy: Option<&BusyConnection>) -> Result<()> {
    if busy.is_none_or(BusyConnection::has_place) {
        return Ok(());
    }
    let error = Error::new(Kind::QueueFull, "all connections of this node are busy");
    Err(error.with_retry_after_ms(BUSY_RETRY_MS))
}

/// The answer to a request whose handler panicked; what it asked for is cancelled, the worker goes on.
fn panicked(door: &HttpDoor, asked: &AskedAbout) -> actix_web::Error {
    let error = Error::internal("a defect of the node: the handler of this request panicked");
    refused(door, &error);
    let mut response = ErrorResponse(error.clone()).error_response();
    asked.answer(door, None, response.headers_mut());
    InternalError::from_response(error, response).into()
}

/// What of a request its answer depends on, whatever becomes of it.
struct AskedAbout {
    method: Method,
    /// Those of the request that are looked at.
    headers: HeaderMap,
}

impl AskedAbout {
    fn of(request: &ServiceRequest) -> Self {
        let mut headers = HeaderMap::new();
        let looked_at =
            [id::REQUEST_ID, ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS];
        for name in looked_at {
            if let Some(value) = request.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Self { method: request.method().clone(), headers }
    }

    /// Writes which request the answer is for, and which pages may read it.
    fn answer(&self, door: &HttpDoor, ran: Option<RequestId>, headers: &mut HeaderMap) {
        id::show(&self.headers, ran, headers);
        door.allowed_origins.write(&self.method, &self.headers, headers);
    }
}
