//! One exact subscription of `<prefix>.cancel.<id>` per running request, so that NATS itself tells a caller of an unknown id that
//! nobody has it (503), instead of letting it wait.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::door::Door;
use crate::ids::RequestId;

/// The open subscriptions.
#[derive(Default)]
pub(in crate::bus) struct Cancels {
    open: HashMap<RequestId, oneshot::Sender<()>>,
}

impl Cancels {
    /// Opens a request's subject: the subscription is on its way before anything written after this.
    pub async fn open(&mut self, client: &Client, door: &Arc<Door>, id: RequestId) {
        match client.subscribe(door.subjects.cancel(&id)).await {
            Ok(subscriber) => {
                let (close, closing) = oneshot::channel();
                tokio::spawn(watch(subscriber, door.clone(), id.clone(), closing));
                self.open.insert(id, close);
            }
            Err(error) => tracing::error!(request_id = %id, %error, "no cancel subscription"),
        }
    }

    /// Leaves a request's subject.
    pub fn close(&mut self, id: &RequestId) {
        // Dropping the sender is the signal.
        self.open.remove(id);
    }
}

async fn watch(
    mut subscriber: Subscriber,
    door: Arc<Door>,
    id: RequestId,
    mut closing: oneshot::Receiver<()>,
) {
    let mut closed = false;
    loop {
        tokio::select! {
            message = subscriber.next() => match message {
                // A task of its own: one caller's answer does not wait for another's.
                Some(message) => drop(tokio::spawn(door.clone().cancel(id.clone(), message))),
                None => return,
            },
            _ = &mut closing, if !closed => {
                closed = true;
                // What has arrived is still answered (`not_found` by now).
                if subscriber.drain().await.is_err() {
                    return;
                }
            }
        }
    }
}
