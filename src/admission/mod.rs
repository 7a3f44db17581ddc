//! Admission: one, on its own arbiter; the only door, and the only place that says no.
//!
//! Accepts [`Admit`] and [`Cancel`] from the doors, [`ModelUp`] and [`ModelDown`] from models, [`Drain`] from the node. A request is
//! validated, templated and tokenized on a bounded pool, held against the limits, given a permit that returns itself on `Drop`,
//! and sent to the scheduler. A refusal goes to the request's sink.

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Result;
use crate::models::ServedModel;
use crate::request::{Ended, Request, RequestId};

/// A request from a door. If the mailbox is full, the door refuses with `queue_full` itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Admit(pub Request);

/// Cancels by the request's id.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel {
    /// Which.
    pub id: RequestId,
    /// Answered when the request has ended; `not_found` if none of that id runs here.
    pub done: oneshot::Sender<Result<Ended>>,
}

/// A model takes requests under its alias.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ModelUp(pub Arc<ServedModel>);

/// A model takes no more requests.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ModelDown {
    /// Its alias.
    pub name: String,
}

/// From here on every request is refused as `draining`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Told of every request that starts and ends running on this node; the bus opens and closes `P.cancel.<id>` so. Never blocks.
pub trait RunningObserver: Send + Sync {
    /// Before the request is accepted.
    fn started(&self, id: &RequestId);
    /// After its last event.
    fn ended(&self, id: &RequestId);
}
