//! The contract of a door (bus, HTTP, library) with what stands behind it: it hands requests in, cancels them, is told which of
//! them run, and asks which models are served.

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Result;
use crate::ids::{DeviceId, RequestId};
use crate::request::{Ended, Request};

/// A request from a door. If the mailbox is full, the door refuses with `queue_full` itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Admit(pub Request);

/// A request with several prompts: each is one of `requests`, with an id of its own, and `id` is what the client knows. As long as
/// any of them is in the node, `id` runs: it is taken, and a cancel of it cancels them all.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AdmitAll {
    /// The client's id, or one the door gave.
    pub id: RequestId,
    /// One for each prompt.
    pub requests: Vec<Request>,
}

/// Cancels by the request's id; works from the moment that admission has taken the request up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel {
    /// The request to cancel.
    pub id: RequestId,
    /// Answered when the request has ended, with the tokens of all its prompts; `not_found` if none of that id runs here.
    pub done: oneshot::Sender<Result<Ended>>,
}

/// Told of every request that starts and ends running on this node; the bus opens and closes `P.cancel.<id>` so. Never blocks.
pub trait RunningObserver: Send + Sync {
    /// Before the request is accepted.
    fn started(&self, id: &RequestId);
    /// After its last event.
    fn ended(&self, id: &RequestId);
}

/// What is loaded.
#[derive(Message)]
#[rtype(result = "Vec<ModelInfo>")]
pub struct List;

/// A loaded model, for lists and health.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelInfo {
    /// The alias.
    pub name: String,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Longest prompt and completion together.
    pub max_seq_len: u32,
    /// Where it is.
    pub devices: Vec<DeviceId>,
    /// Bytes of weights on each device.
    pub weight_bytes: u64,
    /// Bytes of KV blocks on each device.
    pub kv_bytes: u64,
}
