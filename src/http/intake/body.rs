//! A request's body: read within its limits, and parsed where that does not keep others waiting.

use std::sync::Arc;

use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName,
};
use actix_web::web::{self, Payload};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::api::Api;
use super::super::config::UnknownParameters;
use super::super::door::HttpDoor;
use super::parse::{self, GenerationBody};
use crate::door::body_too_large;
use crate::error::{Error, Kind, Result};
use crate::request::IgnoredMembers;

/// A body up to here is parsed on the worker: in less than a millisecond, and without a place among the large ones.
const SMALL_BYTES: usize = 64 << 10;

/// What a client is told to wait whose large body has no place: by then some of the others are parsed.
const LARGE_BODY_RETRY_MS: u64 = 1_000;

/// A whole body.
pub(in crate::http) struct Body {
    bytes: Bytes,
    /// Its place among the large ones, if it is one and not parsed yet.
    place: Option<OwnedSemaphorePermit>,
}

impl Body {
    /// Reads it, if it is JSON by its header.
    ///
    /// # Errors
    /// `too_large` beyond `http.max_body_bytes`, `queue_full` where large bodies have no place left, `invalid` or `unsupported` for
    /// what is no plain JSON by its header or does not arrive within `http.read_timeout_s`.
    pub(in crate::http) async fn read(
        door: &HttpDoor,
        headers: &HeaderMap,
        payload: Payload,
    ) -> Result<Self> {
        check_type(headers)?;
        let length =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > door.max_body_bytes) {
            return Err(body_too_large(door.max_body_bytes, length));
        }
        let collect = collect(door, payload, length.unwrap_or_default());
        tokio::time::timeout(door.read_timeout, collect).await.unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {:?}", door.read_timeout);
            Err(Error::new(Kind::Invalid, message))
        })
    }

    /// As it came.
    pub(in crate::http) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it asks for, and which of its members are ignored. A large one is parsed on the worker's other thread, one at a time.
    ///
    /// # Errors
    /// `invalid` or `unsupported`, naming the member.
    pub(in crate::http) async fn parse(&mut self, rules: ReadingRules) -> Result<ParsedBody> {
        if self.bytes.len() <= SMALL_BYTES {
            return parse(&self.bytes, rules);
        }
        let (bytes, place) = (self.bytes.clone(), self.place.take());
        let parsed = web::block(move || {
            let _until_it_is_parsed = place;
            parse(&bytes, rules)
        });
        let panicked = |_| Err(Error::internal("the parser panicked on this body"));
        parsed.await.unwrap_or_else(panicked)
    }
}

/// How a body is read.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct ReadingRules {
    /// Whose members it has.
    pub(in crate::http) api: Api,
    /// Most prompts of a completion.
    pub(in crate::http) max_prompts: usize,
    /// What becomes of members that nobody knows.
    pub(in crate::http) unknown: UnknownParameters,
}

/// What a body asks for, and what of it is ignored.
pub(in crate::http) struct ParsedBody {
    pub(in crate::http) generation: GenerationBody,
    pub(in crate::http) ignored: IgnoredMembers,
}

fn parse(bytes: &[u8], rules: ReadingRules) -> Result<ParsedBody> {
    let ignored = IgnoredMembers::default();
    let noted = Some(&ignored).filter(|_| rules.unknown == UnknownParameters::Ignore);
    let generation = match rules.api {
        Api::Chat => parse::chat(bytes, noted)?,
        Api::Completions => parse::completion(bytes, rules.max_prompts, noted)?,
    };
    Ok(ParsedBody { generation, ignored })
}

async fn collect(door: &HttpDoor, mut payload: Payload, length: usize) -> Result<Body> {
    // A length in a header is a promise, not memory that a client may take.
    let mut bytes = BytesMut::with_capacity(length.min(SMALL_BYTES));
    let mut place: Option<OwnedSemaphorePermit> = None;
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| {
            Error::new(Kind::Invalid, format!("the body did not arrive whole: {error}"))
        })?;
        let len = bytes.len() + piece.len();
        if len > door.max_body_bytes {
            return Err(body_too_large(door.max_body_bytes, None));
        }
        if len > SMALL_BYTES {
            let held = place.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = larger(&door.large_body_bytes, len - held)?;
            match &mut place {
                Some(place) => place.merge(more),
                None => place = Some(more),
            }
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Body { bytes: bytes.freeze(), place })
}

fn larger(all: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    all.clone().try_acquire_many_owned(bytes).map_err(|_| {
        let text = "the node is already reading as many large bodies as it can hold";
        Error::new(Kind::QueueFull, text).with_retry_after_ms(LARGE_BODY_RETRY_MS)
    })
}

fn check_type(headers: &HeaderMap) -> Result<()> {
    let text =
        |name: HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if let Some(value) = text(CONTENT_TYPE) {
        let essence = value.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = format!("expected the Content-Type application/json, got {value:?}");
            return Err(Error::new(Kind::Invalid, message));
        }
    }
    if let Some(value) = text(CONTENT_ENCODING)
        && !["", "identity"].contains(&value.trim().to_ascii_lowercase().as_str())
    {
        let message = format!("expected no Content-Encoding, got {value:?}");
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(())
}
