//! One exact subscription of `<prefix>.cancel.<id>` per running request, so that NATS itself tells a caller of an unknown id that
//! nobody has it (503), instead of letting it wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::door::BusDoor;
use crate::bus::wire::OwnerMessage;
use crate::ids::RequestId;
use crate::lifeline::Lifeline;

/// The open subscriptions.
#[derive(Default)]
pub(in crate::bus) struct Cancels {
    open: HashMap<RequestId, OpenSubject>,
}

struct OpenSubject {
    /// Dropped to leave it.
    _close: oneshot::Sender<()>,
    /// The request has ended, though its last event may be on its way.
    has_ended: Arc<AtomicBool>,
}

impl Cancels {
    /// Opens a request's subject: the subscription is on its way before anything written after this. Its task, without which nobody
    /// could cancel the request, holds a lifeline beside `alive`.
    pub async fn open(
        &mut self,
        client: &Client,
        door: &Arc<BusDoor>,
        id: RequestId,
        alive: &Lifeline,
    ) {
        let subject = door.subjects.cancel(&id);
        let subscriber = match client.subscribe(subject.clone()).await {
            Ok(subscriber) => subscriber,
            Err(error) => {
                return tracing::error!(request_id = %id, %error, "no cancel subscription");
            }
        };
        if door.owners.take_claim(&id) {
            let headers = OwnerMessage::Claimed(door.node_id.clone()).headers();
            // What the connection does not take here it will not take as an event, which says so.
            let _ = client.publish_with_headers(subject, headers, Bytes::new()).await;
        }
        let (_close, closing) = oneshot::channel();
        let has_ended = Arc::new(AtomicBool::new(false));
        let watched = CancelSubject {
            door: door.clone(),
            id: id.clone(),
            has_ended: has_ended.clone(),
            alive: alive.beside("bus's cancel subject"),
        };
        tokio::spawn(watched.watch(subscriber, closing));
        self.open.insert(id, OpenSubject { _close, has_ended });
    }

    /// A request has ended: its subject is closed when its last event is written.
    pub fn ended(&self, id: &RequestId) {
        self.open.get(id).iter().for_each(|open| open.has_ended.store(true, Ordering::Release));
    }

    /// Leaves a request's subject.
    pub fn close(&mut self, id: &RequestId) {
        self.open.remove(id);
    }
}

/// What a subject's task knows.
struct CancelSubject {
    door: Arc<BusDoor>,
    id: RequestId,
    has_ended: Arc<AtomicBool>,
    alive: Lifeline,
}

impl CancelSubject {
    async fn watch(self, mut subscriber: Subscriber, mut closing: oneshot::Receiver<()>) {
        let mut closed = false;
        loop {
            tokio::select! {
                message = subscriber.next() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                _ = &mut closing, if !closed => {
                    closed = true;
                    // What has arrived is still answered (`not_found` by now).
                    if subscriber.drain().await.is_err() {
                        break;
                    }
                }
            }
        }
        self.alive.dismiss();
    }

    fn take(&self, message: Message) {
        self.alive.look();
        match OwnerMessage::of(message.headers.as_ref()) {
            // A task of its own: one caller's answer does not wait for another's.
            None => {
                let (door, alive) = (self.door.clone(), self.alive.beside("bus's cancel"));
                tokio::spawn(door.cancel(self.id.clone(), message, alive));
            }
            Some(OwnerMessage::Claimed(node_id)) => self.door.claimed(&self.id, &node_id),
            Some(OwnerMessage::Asked) => {
                let has_ended =
                    self.has_ended.load(Ordering::Acquire) || self.door.outbox.has_ended(&self.id);
                self.door.tell_owner(&self.id, message.reply, !has_ended);
            }
        }
    }
}
