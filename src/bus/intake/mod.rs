//! What NATS sends: a message becomes a request, a cancel, an answer to a question of the node's, or a question about it.
//!
//! `tasks` one for each subscription · `door` admission's door · `cancels` one subscription for each running request · `owners` which
//! node runs an id · `service` `$SRV`

mod cancels;
mod door;
mod owners;
mod service;
mod tasks;

pub(super) use cancels::Cancels;
pub(super) use door::BusDoor;
pub(super) use service::{Endpoint, Service};
pub(super) use tasks::{Intake, answer_service, hold_subject, take_answers, watch_neighbours};
