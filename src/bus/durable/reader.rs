//! Reads a request's log.

use std::cmp::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use futures_util::StreamExt;

use super::streams::LOG;
use crate::bus::wire::Encoding;
use crate::log::{Record, StoredRecord};

/// How long the server keeps what a reader needed that has gone.
const READER_AGE: Duration = Duration::from_secs(5);
/// How long the server may take for one step of it.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// Records of one fetch.
const FETCH: usize = 256;

/// Why a log is not read.
#[derive(Debug, thiserror::Error)]
pub(in crate::bus) enum ReadFault {
    /// JetStream does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// What stands there is no record.
    #[error("record {0} of the log cannot be read: {1}")]
    Body(u64, String),
}

fn unavailable(error: impl std::fmt::Display) -> ReadFault {
    ReadFault::Unavailable(error.to_string())
}

/// The last record of a log, if there is one.
pub(super) async fn last(
    jetstream: &Context,
    subject: &str,
) -> Result<Option<StoredRecord>, ReadFault> {
    let stream = jetstream.get_stream_no_info(LOG).await.map_err(unavailable)?;
    last_in(&stream, subject).await
}

async fn last_in(stream: &Stream<()>, subject: &str) -> Result<Option<StoredRecord>, ReadFault> {
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => read(message.sequence, &message.headers, &message.payload).map(Some),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// All records of a log behind `after`, in their order; all that there are of a log that ends before it, because it is not the one in
/// which that place was.
pub(in crate::bus) async fn after(
    jetstream: &Context,
    subject: &str,
    after: u64,
) -> Result<Vec<StoredRecord>, ReadFault> {
    let stream = jetstream.get_stream_no_info(LOG).await.map_err(unavailable)?;
    let Some(last) = last_in(&stream, subject).await? else { return Ok(Vec::new()) };
    let after = match last.sequence.cmp(&after) {
        Ordering::Less => 0,
        Ordering::Equal => return Ok(Vec::new()),
        Ordering::Greater => after,
    };
    let wanted = consumer::pull::Config {
        filter_subject: subject.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        inactive_threshold: READER_AGE,
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(wanted).await.map_err(unavailable)?;
    let mut records: Vec<StoredRecord> = Vec::new();
    while records.last().is_none_or(|record| record.sequence < last.sequence) {
        let before = records.len();
        let fetched = consumer.fetch().max_messages(FETCH).expires(MAX_WAIT).messages().await;
        let mut fetched = fetched.map_err(unavailable)?;
        while let Some(message) = fetched.next().await {
            let message = message.map_err(unavailable)?;
            let sequence = message.info().map_err(unavailable)?.stream_sequence;
            let headers = message.headers.clone().unwrap_or_default();
            records.push(read(sequence, &headers, &message.payload)?);
        }
        if records.len() == before {
            return Err(unavailable("the log's records do not come"));
        }
    }
    let name = consumer.cached_info().name.clone();
    tokio::spawn(async move {
        // Or the server does it by itself.
        let _ = stream.delete_consumer(&name).await;
    });
    Ok(records)
}

/// A record from its message.
///
/// # Errors
/// `Body`.
pub(in crate::bus) fn read(
    sequence: u64,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<StoredRecord, ReadFault> {
    let fault = |text: String| ReadFault::Body(sequence, text);
    let encoding = Encoding::of(Some(headers)).map_err(|error| fault(error.to_string()))?;
    let record: Result<Record, String> = match encoding {
        Encoding::Json => serde_json::from_slice(body).map_err(|error| error.to_string()),
        Encoding::Msgpack => rmp_serde::from_slice(body).map_err(|error| error.to_string()),
    };
    Ok(StoredRecord { sequence, record: record.map_err(fault)? })
}
