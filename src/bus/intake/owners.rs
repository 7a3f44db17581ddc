//! Whose a client's `request_id` is, among the nodes of a cluster: one id runs on one node, because its events have one subject.
//!
//! A node that has neighbours asks at `<prefix>.cancel.<id>` before it lets such a request in: NATS says that nobody is there, or
//! who runs it answers. Two nodes that ask at the same time are both told that nobody is; so each *claims* the id at that subject
//! when it has subscribed to it, which at least one of them hears, and the node with the greater name withdraws.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Subject};
use tokio::sync::Notify;

use super::door::Door;
use crate::bus::connect::{NatsLink, Subscription};
use crate::ids::RequestId;
use crate::lifeline::Lifeline;
use crate::request::Request;

/// How long an answer may take before the request goes on without: NATS answers in a fraction of a millisecond, but not where
/// somebody watches all subjects and says nothing.
pub(super) const MAX_ASK: Duration = Duration::from_millis(100);

/// Requests that wait for such an answer, at most: 100 ms of what a node takes in.
const MAX_ASKING: usize = 2_048;

/// Without a neighbour's health for so long a node is alone; it comes every second.
const SILENCE: Duration = Duration::from_secs(3);

/// How long one that was heard counts before it is listened to again.
const REST: Duration = Duration::from_secs(5);

/// See the module.
pub(in crate::bus) struct Owners {
    /// Under it answers come in.
    inbox: String,
    /// Until silence says otherwise.
    has_neighbours: AtomicBool,
    last_number: AtomicU64,
    asking: Mutex<HashMap<u64, Request>>,
    /// Notified when no question is open any more.
    settled: Notify,
    /// Free ids whose subject is yet to be opened.
    claims: Mutex<HashSet<RequestId>>,
}

impl Owners {
    /// Nobody has asked anything.
    pub fn new(inbox: &str) -> Self {
        Self {
            inbox: inbox.to_owned(),
            has_neighbours: AtomicBool::new(true),
            last_number: AtomicU64::new(0),
            asking: Mutex::default(),
            settled: Notify::new(),
            claims: Mutex::default(),
        }
    }

    /// Whether another node may run an id.
    pub fn has_neighbours(&self) -> bool {
        self.has_neighbours.load(Ordering::Relaxed)
    }

    /// Keeps a request while its id is asked for; gives the question's number. Too many give it back.
    #[allow(clippy::result_large_err, reason = "the request goes back to who asked, once")]
    pub fn keep(&self, request: Request) -> Result<u64, Request> {
        let mut asking = lock(&self.asking);
        if asking.len() >= MAX_ASKING {
            return Err(request);
        }
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        asking.insert(number, request);
        Ok(number)
    }

    /// The request of a question, once.
    pub fn take(&self, number: u64) -> Option<Request> {
        let mut asking = lock(&self.asking);
        let request = asking.remove(&number);
        if asking.is_empty() {
            self.settled.notify_waiters();
        }
        request
    }

    /// Waits until no request is kept: each goes on within [`MAX_ASK`]. Who takes the last one hands it on before this resolves, for
    /// both are on the bus's thread.
    pub async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if lock(&self.asking).is_empty() {
                return;
            }
            settled.await;
        }
    }

    /// Where the answer to a question is to go.
    pub fn reply(&self, number: u64) -> Subject {
        format!("{}.o{number}", self.inbox).into()
    }

    /// The number of the question that the last token of such a subject names.
    pub fn parse(token: &str) -> Option<u64> {
        token.strip_prefix('o')?.parse().ok()
    }

    /// The id is to be claimed when its subject is open.
    pub fn claim(&self, id: &RequestId) {
        lock(&self.claims).insert(id.clone());
    }

    /// Whether the id is to be claimed; once.
    pub fn take_claim(&self, id: &RequestId) -> bool {
        lock(&self.claims).remove(id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only whole values are written under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds out whether there are other nodes, by their health: only until one is heard, and again a while later, so that it costs the
/// same in a large cluster.
pub(in crate::bus) async fn watch_neighbours(
    client: Client,
    link: Arc<NatsLink>,
    door: Arc<Door>,
    alive: Lifeline,
) {
    let (all, own) = (door.subjects.health("*"), door.subjects.health(&door.node_id));
    let neighbours = &door.owners.has_neighbours;
    loop {
        let health = Subscription::open(&client, &link, all.clone(), None).await;
        let Ok(mut health) = health else { return };
        loop {
            alive.look();
            match tokio::time::timeout(SILENCE, another(&mut health, &own)).await {
                Ok(true) => break,
                Ok(false) => return,
                // What nobody hears says nothing.
                Err(_) => {
                    let is_deaf =
                        client.connection_state() != State::Connected || link.denies(&all);
                    neighbours.store(is_deaf, Ordering::Relaxed);
                }
            }
        }
        neighbours.store(true, Ordering::Relaxed);
        drop(health);
        tokio::time::sleep(REST).await;
    }
}

/// Resolves when another node's health comes; false if the connection ends.
async fn another(health: &mut Subscription, own: &str) -> bool {
    while let Some(message) = health.next().await {
        if message.subject.as_str() != own {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_question() {
        let owners = Owners::new("_INBOX.node");
        let reply = owners.reply(42);
        let token = reply.strip_prefix("_INBOX.node.").expect("under the inbox");
        assert_eq!(Owners::parse(token), Some(42));
        for token in ["", "o", "m", "e42", "oo1", "ü"] {
            assert_eq!(Owners::parse(token), None, "{token:?}");
        }
    }

    #[test]
    fn an_id_is_claimed_once() {
        let owners = Owners::new("_INBOX.node");
        let id = RequestId::parse("a").expect("an id");
        assert!(!owners.take_claim(&id));
        owners.claim(&id);
        assert!(owners.take_claim(&id) && !owners.take_claim(&id));
    }
}
