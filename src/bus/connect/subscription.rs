//! A subscription that lasts: one that NATS denies is asked for again until it is granted.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::SubscribeError;
use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::NatsLink;
use super::link::LinkReport;

/// How often a denied subscription is asked for again. Permissions are changed by people; a node that takes requests five seconds
/// after that is soon enough.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// How long NATS may take to confirm a new subscription before the node goes on without.
const MAX_TAKE: Duration = Duration::from_secs(1);

/// Resolves when NATS has taken what the connection gave it so far, or after a second: it handles a connection's messages in order,
/// so its 503 for a subject that nobody has comes after a subscription before it.
pub(in crate::bus) async fn taken(client: &Client) {
    let nobody = client.new_inbox();
    // Answered or not, the node goes on.
    let _ = tokio::time::timeout(MAX_TAKE, client.request(nobody, Bytes::new())).await;
}

/// See the module.
pub(in crate::bus) struct Subscription {
    client: Client,
    link: Arc<NatsLink>,
    subject: String,
    /// Requests come by it: one node of this group takes each.
    group: Option<&'static str>,
    subscriber: Subscriber,
    look: Interval,
}

impl Subscription {
    /// Asks for everything that comes to `subject`; with a `group`, for what is this node's share of it.
    ///
    /// # Errors
    /// A subject that is none, or a connection that has ended for good. What NATS denies is no error: the link knows it.
    pub async fn open(
        client: &Client,
        link: &Arc<NatsLink>,
        subject: String,
        group: Option<&'static str>,
    ) -> Result<Self, SubscribeError> {
        link.watch(&subject, group.is_some());
        let subscriber = subscribe(client, &subject, group).await?;
        let mut look = interval(ASK_AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { client: client.clone(), link: link.clone(), subject, group, subscriber, look })
    }

    /// The next message; `None` when the connection has ended, or nothing more comes after [`drain`](Self::drain).
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            tokio::select! {
                // What came before it was denied first.
                biased;
                message = futures_util::StreamExt::next(&mut self.subscriber) => return message,
                _ = self.look.tick() => self.ask_again().await,
            }
        }
    }

    /// The messages, one after the other.
    pub fn into_stream(self) -> impl Stream<Item = Message> {
        unfold(self, |mut this| async move { Some((this.next().await?, this)) })
    }

    /// Leaves the subject: what is under way still comes.
    pub async fn drain(&mut self) -> Result<(), async_nats::Error> {
        Ok(self.subscriber.drain().await?)
    }

    async fn ask_again(&mut self) {
        if !self.link.ask_again(&self.subject) {
            return;
        }
        match subscribe(&self.client, &self.subject, self.group).await {
            Ok(subscriber) => self.subscriber = subscriber,
            // The connection has ended, which the writer says.
            Err(_) => return,
        }
        taken(&self.client).await;
        self.link.report(LinkReport::Granted(self.subject.clone()));
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.link.forget(&self.subject);
    }
}

async fn subscribe(
    client: &Client,
    subject: &str,
    group: Option<&'static str>,
) -> Result<Subscriber, SubscribeError> {
    match group {
        Some(group) => client.queue_subscribe(subject.to_owned(), group.to_owned()).await,
        None => client.subscribe(subject.to_owned()).await,
    }
}
