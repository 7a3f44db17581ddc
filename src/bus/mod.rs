//! Bus: the NATS door. One thread of its own, with everything that touches the connection.
//!
//! Takes requests from `<prefix>.generate.<model>` (queue group `inferno`) as [`Admit`], cancels from `<prefix>.cancel.<id>` as
//! [`Cancel`], and publishes what comes back: acceptance or refusal, token events, health, `$SRV` answers. Stages call only the
//! sinks and the [`RunningObserver`](crate::door::RunningObserver), which queue and never block; a writer takes from there
//! while NATS is connected.
//!
//! * `config` settings · `actor` the thread and its handle [`Bus`] · `session` what it runs
//! * `connect` the connection: its options, how it stands, subscriptions that last, a nats-server of our own
//! * `intake` what NATS sends: requests, cancels, `$SRV`, answers to the node's own messages
//! * `durable` requests that outlive their node: pulled from JetStream, and all that they say stored
//! * `discovery` which nodes there are: the node's entry in a bucket of NATS, and what readers make of it
//! * `publish` a request's way back: its sink, what waits, what sends it, what NATS has not confirmed
//! * `stored` what waits until JetStream has stored it
//! * `wire` bytes ↔ types
//! * `client` the other side, for `generate` and benchmarks
//!
//! While NATS is away, generation goes on and events wait, joined to one per request, so what waits is bounded by the `max_tokens`
//! of what runs. After a reconnect the streams from before are held back until clients had time to return.

use std::sync::Arc;

use actix::Recipient;

use crate::door::{Admit, Cancel};
use crate::health::Vitals;
use crate::telemetry::Metrics;

mod actor;
pub mod client;
mod config;
mod connect;
pub mod discovery;
mod durable;
mod intake;
mod publish;
mod session;
mod stored;
mod wire;

pub use actor::{Bus, StartError, start};
pub use config::{Config, Managed, Mode, Tls};
pub use connect::{Auth, ManagedError, ManagedServer};
pub use discovery::NodeFacts;
pub use wire::{Decoded, Encoding, Subjects, Undecodable, decode, encode_event};

/// The queue group of all nodes: one of them takes each request.
pub const QUEUE_GROUP: &str = "inferno";

/// What the bus needs of the node.
pub struct BusDeps {
    /// What the bus tells of itself, and the node's name: in acceptances, health subjects and `$SRV`. `[A-Za-z0-9_-]+`.
    pub vitals: Arc<Vitals>,
    /// Admission, for requests.
    pub admit: Recipient<Admit>,
    /// Admission, for cancels.
    pub cancel: Recipient<Cancel>,
    /// Durable requests.
    pub log: crate::log::Config,
    /// What the node says of itself in discovery, beside its vitals.
    pub facts: NodeFacts,
    /// How many further requests the node may take, so that none of its places is empty and few wait.
    pub room: Arc<dyn Fn() -> usize + Send + Sync>,
    /// Counters of the connection and of dropped requests.
    pub metrics: Arc<Metrics>,
}
