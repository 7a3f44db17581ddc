//! The other side: follows the bucket, and keeps a [`NodeTable`] of what it says.

use std::time::Duration;

use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::AccountErrorKind;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{Context, Message};
use async_nats::{Client, jetstream};
use futures_util::StreamExt;
use time::OffsetDateTime;

use super::bucket::{BucketFault, CALL_LIMIT, OPERATION, STREAM, subject};
use super::entry::NodeEntry;
use super::table::NodeTable;
use super::{BUCKET, HEARTBEAT};
use crate::clock::Timestamp;

/// Where nothing comes for so long, no node lives or the bucket is another one: a reader of one that was lost is not told. It is
/// opened anew, which costs nothing where nobody is.
const QUIET: Duration = Duration::from_secs(2);

/// How long a bucket that is not there is left alone.
const AGAIN: Duration = Duration::from_millis(500);

/// Follows the bucket for as long as it is asked to; a bucket that is lost is found again when it is back.
pub struct NodeReader {
    jetstream: Context,
    table: NodeTable,
    feed: Option<EntryFeed>,
}

/// What comes of the bucket.
struct EntryFeed {
    messages: Ordered,
    /// When it was opened, by NATS's clock, which stamps the entries, too.
    opened_at: OffsetDateTime,
    /// Entries of before that are still to come.
    num_pending: u64,
    heard_at: Timestamp,
}

impl NodeReader {
    /// Knows nothing yet.
    pub fn new(client: Client) -> Self {
        let jetstream = super::bucket::jetstream(client);
        Self { jetstream, table: NodeTable::default(), feed: None }
    }

    /// What was heard so far.
    pub fn table(&self) -> &NodeTable {
        &self.table
    }

    /// Whether there is a bucket, as far as is known.
    pub fn is_open(&self) -> bool {
        self.feed.is_some()
    }

    /// Reads all that the bucket has at the moment; nothing where there is no bucket.
    ///
    /// # Errors
    /// Why NATS does not tell.
    pub async fn read(&mut self) -> Result<(), BucketFault> {
        self.open().await?;
        while self.feed.as_ref().is_some_and(|feed| feed.num_pending > 0) {
            // What was to come may have gone in between.
            if !self.take_next(CALL_LIMIT).await {
                break;
            }
        }
        Ok(())
    }

    /// Waits until something comes, `limit` at most, and takes it.
    ///
    /// # Errors
    /// Why NATS does not tell; asked again, it may.
    pub async fn follow(&mut self, limit: Duration) -> Result<(), BucketFault> {
        let now = Timestamp::now();
        self.table.sweep(now);
        match &self.feed {
            None => {
                tokio::time::sleep(limit.min(AGAIN)).await;
                self.open().await
            }
            Some(feed) if now.since(feed.heard_at) > QUIET => self.open().await,
            Some(_) => {
                self.take_next(limit.min(HEARTBEAT)).await;
                Ok(())
            }
        }
    }

    async fn open(&mut self) -> Result<(), BucketFault> {
        self.feed = None;
        let config = OrderedConfig {
            deliver_subject: self.jetstream.client().new_inbox(),
            description: Some(format!("reader of {BUCKET}")),
            filter_subject: subject(">"),
            replay_policy: ReplayPolicy::Instant,
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let consumer = match self.jetstream.create_consumer_on_stream(config, STREAM).await {
            Ok(consumer) => consumer,
            Err(error) => {
                return match self.fault(error.kind()).await {
                    BucketFault::Lost => Ok(()),
                    fault => Err(fault),
                };
            }
        };
        let (opened_at, num_pending) =
            (consumer.cached_info().created, consumer.cached_info().num_pending);
        let messages = consumer.messages().await;
        let messages = messages.map_err(|error| BucketFault::Refused(error.to_string()))?;
        self.feed =
            Some(EntryFeed { messages, opened_at, num_pending, heard_at: Timestamp::now() });
        Ok(())
    }

    async fn fault(&self, kind: ConsumerErrorKind) -> BucketFault {
        match kind {
            ConsumerErrorKind::JetStream(error) => BucketFault::of(&error),
            ConsumerErrorKind::TimedOut => BucketFault::Silent,
            other => match self.jetstream.query_account().await.map_err(|error| error.kind()) {
                Err(AccountErrorKind::JetStreamUnavailable) => BucketFault::NoJetStream,
                Err(AccountErrorKind::JetStream(error)) => BucketFault::of(&error),
                Err(AccountErrorKind::TimedOut) => BucketFault::Silent,
                Err(AccountErrorKind::Other) | Ok(_) => BucketFault::Refused(other.to_string()),
            },
        }
    }

    /// Takes the next message, if one comes in time.
    async fn take_next(&mut self, limit: Duration) -> bool {
        let Some(feed) = &mut self.feed else { return false };
        match tokio::time::timeout(limit, feed.messages.next()).await {
            Ok(Some(Ok(message))) => {
                self.take(&message);
                true
            }
            // Of a bucket that is gone, or a connection that is.
            Ok(Some(Err(_)) | None) => {
                self.feed = None;
                false
            }
            Err(_) => false,
        }
    }

    fn take(&mut self, message: &jetstream::Message) {
        let (Some(feed), Ok(info)) = (&mut self.feed, Message::info(message)) else { return };
        let now = Timestamp::now();
        feed.heard_at = now;
        feed.num_pending = info.pending;
        // What was there before the feed is as old as NATS says, by the one clock that it has for both; what comes later is new.
        let age = Duration::try_from(feed.opened_at - info.published).unwrap_or_default();
        let has_left =
            message.headers.as_ref().is_some_and(|headers| headers.get(OPERATION).is_some());
        if has_left {
            let key = message.subject.rsplit('.').next().unwrap_or_default();
            return self.table.leave(key);
        }
        // What is no entry of ours says nothing of a node.
        if let Ok(entry) = serde_json::from_slice::<NodeEntry>(&message.payload) {
            self.table.hear(entry, age, now);
        }
    }
}
