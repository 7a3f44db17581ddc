//! Bus: the NATS door. One thread of its own, with everything that touches the connection.
//!
//! Takes requests from `<prefix>.generate.<model>` (queue group `inferno`) as [`Admit`], cancels from `<prefix>.cancel.<id>` as
//! [`Cancel`], and publishes what comes back: acceptance or refusal, token events, health, `$SRV` answers. Stages call only the
//! sinks and the [`RunningObserver`](crate::door::RunningObserver), which queue and never block; a writer takes from there
//! while NATS is connected.
//!
//! * `config` settings · `actor` the thread and its handle [`Bus`] · `managed` our own child
//! * `connect` the connection: its options, how it stands, subscriptions that last
//! * pure: `decode`, `encode` bytes ↔ types · `merge` joining and splitting events · `window` what NATS has not confirmed
//! * `intake` what NATS sends · `door` a message becomes a request · `stream` a request's way back, its sink
//! * `outbox` what waits · `writer` what sends it · `cancels` one subscription per running request · `service` `$SRV`
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
mod cancels;
pub mod client;
mod config;
mod connect;
mod decode;
mod door;
mod encode;
mod intake;
mod managed;
mod merge;
mod outbox;
mod service;
mod stream;
mod window;
mod writer;

pub use actor::{Bus, StartError, start};
pub use config::{Config, Managed, Mode, Secret, Tls};
pub use connect::Auth;
pub use decode::{Decoded, Undecodable, decode};
pub use encode::{Encoding, Subjects, encode_event};
pub use managed::{ManagedError, ManagedServer};
pub use merge::{merge, split};

/// The queue group of all nodes: one of them takes each request.
pub const QUEUE_GROUP: &str = "inferno";

/// What the bus needs of the node.
pub struct Deps {
    /// What the bus tells of itself, and the node's name: in acceptances, health subjects and `$SRV`. `[A-Za-z0-9_-]+`.
    pub vitals: Arc<Vitals>,
    /// Admission, for requests.
    pub admit: Recipient<Admit>,
    /// Admission, for cancels.
    pub cancel: Recipient<Cancel>,
    /// Counters of the connection and of dropped requests.
    pub metrics: Arc<Metrics>,
}
