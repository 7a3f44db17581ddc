//! The bucket in NATS: each call has a time limit, so a JetStream that is mute holds nobody up.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, LastRawMessageErrorKind, StorageType};
use async_nats::jetstream::{Context, ContextBuilder, ErrorCode};
use async_nats::{Client, HeaderMap, header};
use bytes::Bytes;

use super::claim::KeyFound;
use super::entry::NodeEntry;
use super::{BUCKET, GONE_AFTER};
use crate::bus::stored::publish_stored;

/// The stream under it, by the names that all of NATS's clients give it.
pub(super) const STREAM: &str = "KV_inferno_nodes";

/// How long JetStream may take for an answer.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(1);

/// What a KV client finds at a message that is no value.
pub(super) const OPERATION: &str = "KV-Operation";

/// Why the bucket cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketFault {
    /// There is none in this server or for this account.
    #[error("NATS has no JetStream")]
    NoJetStream,
    /// Nothing came in time.
    #[error("JetStream does not answer")]
    Silent,
    /// It was there, and is no more.
    #[error("the bucket {BUCKET} is gone")]
    Lost,
    /// Somebody wrote in between.
    #[error("the key has another revision")]
    Overtaken,
    /// JetStream's own words.
    #[error("JetStream: {0}")]
    Refused(String),
}

impl BucketFault {
    /// By JetStream's code.
    pub(super) fn of(error: &async_nats::jetstream::Error) -> Self {
        match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Self::Lost,
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                Self::NoJetStream
            }
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// JetStream with the time limit.
pub(super) fn jetstream(client: Client) -> Context {
    ContextBuilder::new().timeout(CALL_LIMIT).ack_timeout(CALL_LIMIT).build(client)
}

/// The subject of a key; `>` for all.
pub(super) fn subject(key: &str) -> String {
    format!("$KV.{BUCKET}.{key}")
}

/// A node's way to the bucket.
pub(super) struct NodeBucket {
    jetstream: Context,
    replicas: usize,
    /// It was seen, and is not known to be lost.
    is_there: bool,
}

impl NodeBucket {
    /// Makes the bucket when it is first needed, with so many copies in a cluster of NATS servers.
    pub fn new(client: Client, replicas: u32) -> Self {
        Self { jetstream: jetstream(client), replicas: replicas as usize, is_there: false }
    }

    /// What stands under a key, asked of the server that stores it.
    pub async fn read(&mut self, key: &str) -> Result<KeyFound, BucketFault> {
        self.make().await?;
        let stream = self.jetstream.get_stream_no_info(STREAM).await;
        let stream = stream.map_err(|error| BucketFault::Refused(error.to_string()))?;
        match stream.get_last_raw_message_by_subject(&subject(key)).await {
            Ok(message) => {
                let is_value = message.headers.get(OPERATION).is_none();
                // What is no entry of ours says nothing of a node.
                let entry: Option<NodeEntry> = serde_json::from_slice(&message.payload).ok();
                Ok(KeyFound { revision: message.sequence, entry: entry.filter(|_| is_value) })
            }
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => {
                    Ok(KeyFound { revision: 0, entry: None })
                }
                LastRawMessageErrorKind::JetStream(error) => Err(self.fault(&error)),
                LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => {
                    self.is_there = false;
                    Err(BucketFault::Silent)
                }
            },
        }
    }

    /// Writes a value over a revision; gives its own.
    pub async fn write(&mut self, key: &str, value: Bytes, over: u64) -> Result<u64, BucketFault> {
        self.make().await?;
        self.publish(key, HeaderMap::new(), value, over).await
    }

    /// Takes a value back: readers are told.
    pub async fn delete(&mut self, key: &str, revision: u64) -> Result<u64, BucketFault> {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, "DEL");
        self.publish(key, headers, Bytes::new(), revision).await
    }

    async fn publish(
        &mut self,
        key: &str,
        mut headers: HeaderMap,
        value: Bytes,
        over: u64,
    ) -> Result<u64, BucketFault> {
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, over.to_string());
        let stored = publish_stored(&self.jetstream, subject(key), headers, value).await;
        let error = match stored {
            Ok(stored) => return Ok(stored.sequence),
            Err(error) => error,
        };
        let fault = match error.kind() {
            PublishErrorKind::WrongLastSequence => return Err(BucketFault::Overtaken),
            PublishErrorKind::StreamNotFound => BucketFault::Lost,
            PublishErrorKind::TimedOut => BucketFault::Silent,
            _ => BucketFault::Refused(error.to_string()),
        };
        self.is_there = false;
        Err(fault)
    }

    /// Makes it where it is not there. One that somebody else made as they like it will do.
    async fn make(&mut self) -> Result<(), BucketFault> {
        if self.is_there {
            return Ok(());
        }
        let made = self.jetstream.get_or_create_stream(self.wanted()).await;
        made.map_err(|error| match error.kind() {
            CreateStreamErrorKind::JetStreamUnavailable => BucketFault::NoJetStream,
            CreateStreamErrorKind::TimedOut => BucketFault::Silent,
            CreateStreamErrorKind::JetStream(error) => self.fault(&error),
            _ => BucketFault::Refused(error.to_string()),
        })?;
        self.is_there = true;
        Ok(())
    }

    fn fault(&mut self, error: &async_nats::jetstream::Error) -> BucketFault {
        self.is_there = false;
        BucketFault::of(error)
    }

    /// What a KV client would make of it, so that each of them can read it. In memory: entries are written each second and are worth
    /// nothing after ten, and a bucket that a restart of NATS takes is written anew within a second of it.
    fn wanted(&self) -> stream::Config {
        stream::Config {
            name: STREAM.to_owned(),
            description: Some("Nodes of Inferno's inference tier".to_owned()),
            subjects: vec![subject(">")],
            max_messages_per_subject: 1,
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            // What a crashed node left goes by itself, and so do the marks of those that left.
            max_age: GONE_AFTER,
            duplicate_window: GONE_AFTER,
            storage: StorageType::Memory,
            num_replicas: self.replicas,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..stream::Config::default()
        }
    }
}
