//! Publishes to a stream of JetStream.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;

/// Publishes a message, and waits until the server says that it is stored, or was before.
///
/// # Errors
/// It is refused, or JetStream does not answer: then it may be stored all the same.
pub(super) async fn publish_stored(
    jetstream: &Context,
    subject: String,
    headers: HeaderMap,
    body: Bytes,
) -> Result<PublishAck, PublishError> {
    jetstream.publish_with_headers(subject, headers, body).await?.await
}
