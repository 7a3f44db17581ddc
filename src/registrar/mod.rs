//! Registrar: makes the node known to Inferno's load balancers, and tells them how it is.
//!
//! ```text
//! Vitals → [`Registrar`] ─── POST /registration, for ever ──▶ load balancers
//! Vitals → [`MetricsPort`] ◀── GET /metrics, /telemetry, /health, /peers ── load balancers
//! ```
//!
//! `policy.rs` says when a registration is due and what an outcome means for the next, `wire.rs` what is said and what an answer
//! means; both are pure. `exchange.rs` is the network. Whether the node takes requests comes from [`Vitals`](crate::health::Vitals)
//! alone: one that takes none does not register, and says `ready: false` at its port, which closes last. docs/registrar.md shows it.

mod actor;
mod capabilities;
mod config;
mod exchange;
mod host_port;
mod policy;
mod port;
mod vitals;
mod wire;

pub use actor::{Registrar, RegistrarStart};
pub use capabilities::{Capabilities, NodeTraits};
pub use config::Config;
pub use port::{MetricsPort, PortDeps};
