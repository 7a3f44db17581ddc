//! Writes records behind their fence, and reads what the server says of them.

use async_nats::{Client, Message, StatusCode, Subject};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use super::context::DurableContext;
use crate::bus::stored::publish_stored;
use crate::bus::wire::{Encoding, encode_event};
use crate::error::Error;
use crate::ids::RequestId;
use crate::log::{History, Record, StoreAnswer};

/// The header that names the record's predecessor.
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";

/// `wrong last sequence`.
const WRONG_LAST_SEQUENCE: u32 = 10_071;
/// `maximum bytes exceeded`, `insufficient resources`, `maximum messages exceeded`.
const NO_ROOM: [u32; 3] = [10_077, 10_023, 10_076];

/// The body of a record.
fn encoded(encoding: Encoding, record: &Record) -> Bytes {
    if record.claim.is_some() || record.handed_back {
        return encoding.write(record);
    }
    let mut out = BytesMut::new();
    encode_event(encoding, &record.event, &mut out);
    out.freeze()
}

/// Publishes a record to be stored behind `after`; the answer goes to `reply`.
pub(super) async fn publish(
    client: &Client,
    (subject, reply): (String, Subject),
    (encoding, after): (Encoding, u64),
    record: &Record,
) {
    let mut headers = encoding.headers().unwrap_or_default();
    headers.insert(EXPECTED, after.to_string());
    let body = encoded(encoding, record);
    // A connection that takes nothing is silent.
    let _ = client.publish_with_reply_and_headers(subject, reply, headers, body).await;
}

#[derive(Deserialize)]
struct Acknowledgement {
    seq: Option<u64>,
    error: Option<ServerError>,
}

#[derive(Deserialize)]
struct ServerError {
    #[serde(default)]
    err_code: u32,
}

/// What the server says of a record.
pub(super) fn answer_of(message: &Message) -> StoreAnswer {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return StoreAnswer::Silent;
    }
    match serde_json::from_slice(&message.payload) {
        Ok(Acknowledgement { seq: Some(sequence), error: None }) if sequence > 0 => {
            StoreAnswer::Stored(sequence)
        }
        Ok(Acknowledgement { error: Some(error), .. }) => match error.err_code {
            WRONG_LAST_SEQUENCE => StoreAnswer::Stale,
            code if NO_ROOM.contains(&code) => StoreAnswer::Full,
            code => {
                tracing::debug!(code, "the log refuses a record");
                StoreAnswer::Silent
            }
        },
        _ => StoreAnswer::Silent,
    }
}

/// Stores the end of a request that nobody runs, behind its history: failed by the error, without one cancelled. False where it is
/// not stored, because something else was meanwhile or JetStream does not answer.
pub(super) async fn close(
    context: &DurableContext,
    (id, encoding): (&RequestId, Encoding),
    history: &History,
    error: Option<Error>,
) -> bool {
    let subject = context.subjects.log(id.as_str());
    let body = encoded(encoding, &history.closing(id, error));
    let mut headers = encoding.headers().unwrap_or_default();
    headers.insert(EXPECTED, history.last().to_string());
    publish_stored(&context.jetstream, subject, headers, body).await.is_ok()
}
