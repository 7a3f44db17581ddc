//! Types to bytes: subjects, the two encodings, and what a node says on them.

use async_nats::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::RequestId;
use crate::request::{Ended, Event, FinishReason};

/// The header that names a body's encoding; without it a body is JSON.
const CONTENT_TYPE: &str = "Content-Type";
/// The header with an error's text.
const ERROR_HEADER: &str = "Nats-Service-Error";
/// The header with an error's status.
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// The header of an empty message that asks: whether its subject is heard (clients may pass over it), or who runs a request.
const PROBE_HEADER: &str = "Inferno-Probe";
/// The header of an empty message by which a node, which it names, claims a request's id.
const CLAIM_HEADER: &str = "Inferno-Claim";

/// The registered name of msgpack, and what came before it; answers have the second.
const MSGPACK_TYPES: [&str; 3] =
    ["application/vnd.msgpack", "application/msgpack", "application/x-msgpack"];

/// The most of an error's text that goes into a header, in bytes; the body has all of it.
const MAX_HEADER_TEXT: usize = 200;

/// How a body is written. A node answers in the encoding it was asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// `application/json`, the default without a header.
    #[default]
    Json,
    /// `application/msgpack`, or one of its other names: maps with names.
    Msgpack,
}

impl Encoding {
    /// The encoding that a message's headers name. Header names are compared without regard to case.
    ///
    /// # Errors
    /// `unsupported` for another content type.
    pub fn of(headers: Option<&HeaderMap>) -> Result<Self> {
        let values = headers.into_iter().flat_map(HeaderMap::iter).find_map(|(name, values)| {
            AsRef::<str>::as_ref(name).eq_ignore_ascii_case(CONTENT_TYPE).then_some(values)
        });
        let Some(value) = values.and_then(|values| values.first()) else {
            return Ok(Encoding::Json);
        };
        let mime = value.as_str().split(';').next().unwrap_or_default().trim();
        if mime.eq_ignore_ascii_case("application/json") {
            Ok(Encoding::Json)
        } else if MSGPACK_TYPES.iter().any(|name| mime.eq_ignore_ascii_case(name)) {
            Ok(Encoding::Msgpack)
        } else {
            let shown: String = mime.chars().take(64).collect();
            let message =
                format!("expected application/json or application/msgpack, got {shown:?}");
            Err(Error::new(Kind::Unsupported, message).with_param(CONTENT_TYPE))
        }
    }

    /// The headers that a body in this encoding carries.
    pub(in crate::bus) fn headers(self) -> Option<HeaderMap> {
        match self {
            Encoding::Json => None,
            Encoding::Msgpack => {
                let mut headers = HeaderMap::new();
                headers.insert(CONTENT_TYPE, "application/msgpack");
                Some(headers)
            }
        }
    }

    /// Writes a value.
    pub(in crate::bus) fn write<T: Serialize>(self, value: &T) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        self.write_to(&mut out, value);
        out.freeze()
    }

    fn write_to<T: Serialize>(self, out: &mut BytesMut, value: &T) {
        let writer = out.writer();
        let written = match self {
            Encoding::Json => serde_json::to_writer(writer, value).map_err(|e| e.to_string()),
            Encoding::Msgpack => {
                let mut writer = writer;
                rmp_serde::encode::write_named(&mut writer, value).map_err(|e| e.to_string())
            }
        };
        // Maps with text keys and memory as the only writer: neither encoding has a reason to fail.
        if let Err(error) = written {
            tracing::error!(%error, "a body could not be encoded");
        }
    }
}

/// The headers of an error, beside those of the encoding.
pub(in crate::bus) fn error_headers(encoding: Encoding, error: &Error) -> HeaderMap {
    let mut headers = encoding.headers().unwrap_or_default();
    let mut text = error.to_string().replace(['\r', '\n'], " ");
    if text.len() > MAX_HEADER_TEXT {
        text.truncate(text.floor_char_boundary(MAX_HEADER_TEXT));
    }
    headers.insert(ERROR_HEADER, text);
    headers.insert(ERROR_CODE_HEADER, error.kind.status().to_string());
    headers
}

/// The headers of a message that says nothing and asks NATS whether it is heard.
pub(in crate::bus) fn probe_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(PROBE_HEADER, "caller");
    headers
}

/// What a message on a request's cancel subject is about, where it is no cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) enum OwnerMessage {
    /// Who runs it?
    Asked,
    /// This node does.
    Claimed(String),
}

impl OwnerMessage {
    /// By a message's headers.
    pub fn of(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers?;
        if let Some(node_id) = headers.get(CLAIM_HEADER) {
            return Some(Self::Claimed(node_id.as_str().to_owned()));
        }
        headers.get(PROBE_HEADER).map(|_| Self::Asked)
    }

    /// Its headers.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Self::Asked => headers.insert(PROBE_HEADER, "owner"),
            Self::Claimed(node_id) => headers.insert(CLAIM_HEADER, node_id.as_str()),
        }
        headers
    }
}

/// The answer to who runs a request.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bus) struct OwnerAnswer {
    pub request_id: String,
    pub node_id: String,
    /// False if it has just ended.
    pub running: bool,
}

/// The subjects under one prefix.
#[derive(Debug, Clone)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// The subjects under `prefix`, such as `inferno.v1`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Where requests for a model go.
    pub fn generate(&self, model: &str) -> String {
        format!("{}.generate.{model}", self.prefix)
    }

    /// Where a request's events go.
    pub fn tokens(&self, id: &RequestId) -> String {
        format!("{}.tokens.{id}", self.prefix)
    }

    /// Where a request is cancelled.
    pub fn cancel(&self, id: &RequestId) -> String {
        format!("{}.cancel.{id}", self.prefix)
    }

    /// Where durable requests for a model go.
    pub fn jobs(&self, model: &str) -> String {
        format!("{}.jobs.{model}", self.prefix)
    }

    /// The same for those that are pulled when nothing else waits.
    pub fn bulk_jobs(&self, model: &str) -> String {
        format!("{}.jobs.{model}.bulk", self.prefix)
    }

    /// All of both.
    pub fn any_jobs(&self) -> String {
        format!("{}.jobs.>", self.prefix)
    }

    /// Where what a durable request says is stored; `id` may be `*`.
    pub fn log(&self, id: &str) -> String {
        format!("{}.log.{id}", self.prefix)
    }

    /// Where the server publishes again what is stored: a destination of JetStream's.
    pub fn tokens_of_log(&self) -> String {
        format!("{}.tokens.{{{{wildcard(1)}}}}", self.prefix)
    }

    /// Where a durable request goes that cannot be finished.
    pub fn dead(&self, model: &str) -> String {
        format!("{}.dead.{model}", self.prefix)
    }

    /// Where any node is asked about a request: `status` or `cancel`.
    pub fn requests(&self, verb: &str) -> String {
        format!("{}.requests.{verb}", self.prefix)
    }

    /// Where a node tells its health.
    pub fn health(&self, node_id: &str) -> String {
        format!("{}.node.{node_id}.health", self.prefix)
    }
}

#[derive(Serialize)]
struct Accepted<'a> {
    request_id: &'a RequestId,
    status: &'static str,
    node_id: &'a str,
}

/// The message that a request is in.
pub(in crate::bus) fn accepted(encoding: Encoding, id: &RequestId, node_id: &str) -> Bytes {
    encoding.write(&Accepted { request_id: id, status: "accepted", node_id })
}

#[derive(Serialize)]
struct RefusalBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a RequestId>,
    error: &'a Error,
}

/// The message that a request is not taken.
pub(in crate::bus) fn refusal(encoding: Encoding, id: Option<&RequestId>, error: &Error) -> Bytes {
    encoding.write(&RefusalBody { request_id: id, error })
}

/// The answer to a cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAnswer {
    /// The request that was to be cancelled.
    pub request_id: String,
    /// False if it ended in another way first.
    pub cancelled: bool,
    /// The completion's tokens.
    pub tokens: u32,
}

impl CancelAnswer {
    /// Of a request that has ended.
    pub fn of(id: &RequestId, ended: Ended) -> Self {
        Self {
            request_id: id.to_string(),
            cancelled: ended.reason == FinishReason::Cancelled,
            tokens: ended.completion_tokens,
        }
    }

    /// How the request ended, as far as the answer tells.
    pub fn ended(&self) -> Ended {
        let reason = if self.cancelled { FinishReason::Cancelled } else { FinishReason::Stop };
        Ended { reason, completion_tokens: self.tokens }
    }
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStatus {
    /// The request.
    pub request_id: String,
    /// `waiting`, `running` or `finished`.
    pub status: String,
    /// Who has it, or has had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Starts counted from 1; 0 while none was made.
    pub attempt: u32,
    /// Tokens that are stored of a durable one, of all its choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Appends an event's bytes to `out`. The common event (tokens and text) is written by hand, which is what most of the bus's
/// time would otherwise go to; the result is the same as serde's.
pub fn encode_event(encoding: Encoding, event: &Event, out: &mut BytesMut) {
    let more = event.index > 0
        || event.logprobs.is_some()
        || event.prompt_logprobs.is_some()
        || event.finish_reason.is_some()
        || event.usage.is_some()
        || event.receipt.is_some()
        || event.error.is_some();
    if more || encoding == Encoding::Msgpack {
        return encoding.write_to(out, event);
    }
    out.reserve(96 + 11 * event.token_ids.len() + event.text.len());
    out.put_slice(b"{\"request_id\":\"");
    // An id has no letter that JSON would escape.
    out.put_slice(event.request_id.as_str().as_bytes());
    out.put_slice(b"\",\"attempt\":");
    put_number(out, event.attempt);
    out.put_slice(b",\"seq\":");
    put_number(out, event.seq);
    out.put_slice(b",\"token_ids\":[");
    for (i, id) in event.token_ids.iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        put_number(out, *id);
    }
    out.put_slice(b"],\"text\":");
    Encoding::Json.write_to(out, &event.text);
    out.put_u8(b'}');
}

fn put_number(out: &mut BytesMut, mut number: u32) {
    let mut digits = [0_u8; 10];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Usage;

    fn event(token_ids: Vec<u32>, text: &str) -> Event {
        Event {
            seq: 40,
            token_ids,
            text: text.to_owned(),
            ..Event::new(RequestId::parse("r-1").expect("an id"))
        }
    }

    fn encoded(encoding: Encoding, event: &Event) -> Bytes {
        let mut out = BytesMut::new();
        encode_event(encoding, event, &mut out);
        out.freeze()
    }

    #[test]
    fn an_event_by_hand_is_what_serde_writes() {
        let ids = vec![0, 7, 10, 99, 100, 4_294_967_295];
        for text in ["", "plain", "quotes \" \\ / and\nlines\t\u{0} \u{7f}", "ä → 🦀"] {
            for ids in [vec![], vec![5], ids.clone()] {
                let event = event(ids, text);
                let json = serde_json::to_vec(&event).expect("encodes");
                assert_eq!(encoded(Encoding::Json, &event), json);
                let packed = rmp_serde::to_vec_named(&event).expect("encodes");
                assert_eq!(encoded(Encoding::Msgpack, &event), packed);
            }
        }
    }

    #[test]
    fn the_last_event_has_all_its_members() {
        let mut last = event(vec![1], "x");
        last.finish_reason = Some(FinishReason::Stop);
        last.usage = Some(Usage::default());
        last.receipt = Some(Box::default());
        last.error = Some(Box::new(Error::internal("boom")));
        let value: serde_json::Value =
            serde_json::from_slice(&encoded(Encoding::Json, &last)).expect("JSON");
        assert_eq!(value["finish_reason"], "stop");
        assert!(value["usage"]["total_tokens"].is_u64() && value["receipt"]["device"].is_string());
        assert_eq!(value["error"]["kind"], "internal");
    }

    #[test]
    fn the_content_type_names_the_encoding() {
        let of = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value);
            Encoding::of(Some(&headers))
        };
        assert_eq!(Encoding::of(None), Ok(Encoding::Json));
        assert_eq!(Encoding::of(Some(&HeaderMap::new())), Ok(Encoding::Json));
        assert_eq!(of("X-Other", "application/msgpack"), Ok(Encoding::Json));
        assert_eq!(of("Content-Type", "application/msgpack"), Ok(Encoding::Msgpack));
        assert_eq!(of("content-type", "Application/JSON; charset=utf-8"), Ok(Encoding::Json));
        for name in ["application/vnd.msgpack", "Application/X-Msgpack"] {
            assert_eq!(of("Content-Type", name), Ok(Encoding::Msgpack));
        }
        for other in ["text/plain", "", "application/x-json"] {
            assert_eq!(of("Content-Type", other).map_err(|e| e.kind), Err(Kind::Unsupported));
        }
    }

    #[test]
    fn an_errors_text_fits_into_a_header() {
        let error = Error::internal(format!("line\r\nbreak {}", "ä".repeat(300)));
        let headers = error_headers(Encoding::Msgpack, &error);
        let text = headers.get(ERROR_HEADER).expect("is there").as_str();
        assert!(text.starts_with("internal: line  break ä") && text.len() <= MAX_HEADER_TEXT);
        assert_eq!(headers.get(ERROR_CODE_HEADER).map(|v| v.as_str()), Some("500"));
        assert_eq!(headers.get(CONTENT_TYPE).map(|v| v.as_str()), Some("application/msgpack"));
    }

    #[test]
    fn answers_are_what_the_contract_says() {
        let id = RequestId::parse("r-1").expect("an id");
        let json = |bytes: Bytes| String::from_utf8(bytes.to_vec()).expect("text");
        assert_eq!(
            json(accepted(Encoding::Json, &id, "n1")),
            r#"{"request_id":"r-1","status":"accepted","node_id":"n1"}"#
        );
        let error = Error::new(Kind::QueueFull, "full").with_retry_after_ms(20);
        assert_eq!(
            json(refusal(Encoding::Json, None, &error)),
            r#"{"error":{"kind":"queue_full","message":"full","retry_after_ms":20}}"#
        );
        assert!(json(refusal(Encoding::Json, Some(&id), &error)).starts_with(r#"{"request_id":"#));
        let ended = Ended { reason: FinishReason::Cancelled, completion_tokens: 3 };
        assert_eq!(
            json(Encoding::Json.write(&CancelAnswer::of(&id, ended))),
            r#"{"request_id":"r-1","cancelled":true,"tokens":3}"#
        );
    }
}
