//! The queue of durable requests, as a client's program sees it.

use std::fmt::Display;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, context::PublishError};
use serde_json::Value;

const SUBJECT: &str = "inferno.v1.jobs.demo";
const QUEUE: &str = "inferno_jobs";
/// Looks at the queue before a wait is given up, and the time between two.
const LOOKS: u32 = 2_500;
const PAUSE: Duration = Duration::from_millis(20);

/// Publishes a durable request: when this returns it is promised.
pub async fn publish(bus: &Client, id: impl Display, body: Value) {
    publish_job(bus, id, body).await.expect("stored");
}

/// The same where NATS may be away.
pub async fn publish_job(
    bus: &Client,
    id: impl Display,
    mut body: Value,
) -> Result<(), PublishError> {
    body["request_id"] = id.to_string().into();
    let sent = jetstream::new(bus.clone()).publish(SUBJECT, body.to_string().into()).await?;
    sent.await.map(drop)
}

/// Waits until durable requests are taken.
pub async fn wait_for_streams(bus: &Client) {
    let jetstream = jetstream::new(bus.clone());
    for _ in 0..LOOKS {
        let queue = jetstream.get_stream(QUEUE).await;
        if queue.is_ok_and(|queue| queue.cached_info().state.consumer_count > 0) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("no node takes durable requests");
}

/// Waits until the queue is empty.
pub async fn wait_for_empty_queue(bus: &Client) {
    let jetstream = jetstream::new(bus.clone());
    let mut left = 0;
    for _ in 0..LOOKS {
        let queue = jetstream.get_stream(QUEUE).await.expect("is there");
        left = queue.cached_info().state.messages;
        if left == 0 {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("{left} jobs are left in the queue");
}
