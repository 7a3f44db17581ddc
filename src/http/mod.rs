//! HTTP: OpenAI-style endpoints (actix-web); wire ↔ [`Request`](crate::request::Request), nothing else.
//!
//! No actor: a server with workers of its own that [`start`] binds and [`Server::stop`] ends. Sends [`Admit`], [`AdmitAll`] and
//! [`Cancel`] to admission with `try_send`; a full mailbox is answered as `queue_full`. Asks models for their [`List`]. Every
//! request's answer comes back through its sink (`answer/buffer.rs`), which merges what a slow reader leaves lying.
//!
//! ```text
//! body → reader, parse → Admit … outbox → wire → body or SSE
//! ```

use std::sync::{Arc, OnceLock};

use actix::Recipient;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::bus::client::Client;
use crate::door::{Admit, AdmitAll, Cancel, List};
use crate::health::HealthSource;
use crate::telemetry::Metrics;

mod answer;
mod api;
mod auth;
mod config;
mod connections;
mod cors;
mod door;
mod durable;
mod events;
mod generate;
mod guard;
mod inferno;
mod intake;
mod json;
mod malformed;
mod models;
mod refusal;
mod routes;
mod server;

pub use config::{Config, UnknownParameters};
pub use server::{Server, start};

/// What the door needs of the node.
pub struct HttpDeps {
    /// Admission: requests.
    pub admit: Recipient<Admit>,
    /// Admission: requests with several prompts.
    pub admit_all: Recipient<AdmitAll>,
    /// Admission: cancels by id.
    pub cancel: Recipient<Cancel>,
    /// Models: what is loaded.
    pub models: Recipient<List>,
    /// The bus, once it is there: for durable requests, and for those that run elsewhere.
    pub bus: Arc<OnceLock<Client>>,
    /// Health and readiness.
    pub health: Arc<dyn HealthSource>,
    /// What `/metrics` shows.
    pub prometheus: PrometheusHandle,
    /// For the refusals of the door itself; those of admission are counted there.
    pub metrics: Arc<Metrics>,
}
