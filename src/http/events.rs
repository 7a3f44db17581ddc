//! `GET /v1/requests/{id}/events`: a durable request's events, stored and live as one stream, from any of its tokens on.

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

/// What a browser's reader sends when it comes back (HTML, server-sent events).
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// From where.
#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    /// The index of the last token that the reader has.
    starting_after: Option<u32>,
}

/// See the module.
pub(super) async fn events(
    door: Data<HttpDoor>,
    http: HttpRequest,
    id: Path<String>,
    query: Query<EventsQuery>,
) -> std::result::Result<HttpResponse, ErrorResponse> {
    let from = match (query.starting_after, last_event_id(http.headers())?) {
        (Some(last), _) | (None, Some(last)) => last.saturating_add(1),
        (None, None) => 0,
    };
    let stream = follow(&client(&door)?, &id, from).await?;
    door.metrics.durable_replays.increment(1);
    let body = unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let event = stream.next().await.map_err(error_of).transpose()?;
        let (written, next) = match event.and_then(|event| sse(&event)) {
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
async fn follow(client: &Client, named: &str, from: u32) -> Result<DurableStream> {
    for id in Api::requests_named(named) {
        match client.status(&id).await.map_err(error_of) {
            // Of a plain request nothing is stored: there is nothing to read again.
            Ok(status) if status.tokens.is_some() || status.status == "waiting" => {
                return client.follow(&id, from).await.map_err(error_of);
            }
            Ok(_) => {}
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let text = format!("no durable request {named:?} is known");
    Err(Error::new(Kind::NotFound, text).with_param("request_id"))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u32>> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        Error::invalid(LAST_EVENT_ID.as_str(), "expected the index of a token, as `id:` says it")
    })
}
