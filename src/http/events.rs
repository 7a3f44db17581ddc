//! `GET /v1/requests/{id}/events`: a durable request's events, stored and live as one stream, from any of its tokens on. Each line's
//! `id:` says how far a reader has come with it ([`Positions`]).

use std::convert::Infallible;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName};
use actix_web::web::{Bytes, Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream::unfold;
use serde::Deserialize;

use super::answer::wire::error_event;
use super::api::Api;
use super::door::HttpDoor;
use super::durable::{client, error_of, sse};
use super::refusal::{self, ErrorResponse};
use crate::bus::client::{Client, DurableStream};
use crate::error::{Error, Kind, Result};
use crate::log::{NoPositions, Positions};

/// What a browser's reader sends when it comes back (HTML, server-sent events).
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// From where.
#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    /// How far the reader has come: the index of the last token that it has, of several choices as `id:` says it.
    starting_after: Option<String>,
}

/// See the module.
pub(super) async fn events(
    door: Data<HttpDoor>,
    http: HttpRequest,
    id: Path<String>,
    query: Query<EventsQuery>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let from = match &query.starting_after {
        Some(after) => positions("starting_after", after)?,
        None => last_event_id(http.headers())?,
    };
    let stream = follow(&client(&door)?, &id, from).await?;
    door.metrics.durable_replays.increment(1);
    let body = unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let event = stream.next().await.map_err(error_of).transpose()?;
        let (written, next) = match event.and_then(|event| sse(&event, stream.given())) {
            Ok(written) => (written, Some(stream)),
            Err(error) => {
                let mut out = Vec::new();
                error_event(&mut out, &refusal::body(&error));
                (out, None)
            }
        };
        Some((Ok::<_, Infallible>(Bytes::from(written)), next))
    });
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .streaming(body))
}

/// The stream of the first of the ids that a path may mean that anybody knows of.
async fn follow(client: &Client, named: &str, from: Positions) -> Result<DurableStream> {
    let mut fault = None;
    for id in Api::requests_named(named) {
        match client.status(&id).await.map_err(error_of) {
            // Of a plain request nothing is stored: there is nothing to read again.
            Ok(status) if status.tokens.is_some() || status.status == "waiting" => {
                let stream = client.follow(&id, from).await.map_err(error_of)?;
                return Ok(stream.promised());
            }
            Ok(_) => {}
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    let text = format!("no durable request {named:?} is known");
    Err(fault.unwrap_or_else(|| Error::new(Kind::NotFound, text).with_param("request_id")))
}

fn last_event_id(headers: &HeaderMap) -> Result<Positions> {
    let value = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or_default());
    value.map_or_else(|| Ok(Positions::default()), |text| positions(LAST_EVENT_ID.as_str(), text))
}

fn positions(param: &str, text: &str) -> Result<Positions> {
    text.parse().map_err(|wrong: NoPositions| Error::invalid(param, wrong.to_string()))
}
