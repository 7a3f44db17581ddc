//! The section `[log]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::ByteSize;
use crate::settings;

/// Durable requests and their streams: see `docs/durability.md`. They need a NATS server with JetStream; without one they are
/// refused by name, and all else works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Takes durable requests, where NATS has JetStream.
    pub enabled: bool,
    /// Seconds that tokens of a durable request are kept. All nodes of a cluster have the same.
    #[schemars(range(min = 60, max = 2_592_000))]
    pub max_age_s: u64,
    /// Room for the tokens of durable requests, and as much for requests that wait; what is beyond it is refused as `log_full`. All
    /// nodes of a cluster have the same.
    #[schemars(with = "ByteSize")]
    pub max_bytes: ByteSize,
    /// Copies of each stream in a cluster of NATS servers; more than one needs nats-server 2.9.21.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u32,
    /// Milliseconds without a sign of a node after which its durable requests are another's. All nodes of a cluster have the same.
    #[schemars(range(min = 1_000, max = 600_000))]
    pub ack_wait_ms: u64,
    /// Durable requests that a node takes beyond those that it can run at once, so that none of its places is empty.
    #[schemars(range(min = 0, max = 1_000))]
    pub look_ahead: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            max_age_s: 3_600,
            max_bytes: ByteSize(1 << 30),
            replicas: 1,
            ack_wait_ms: 6_000,
            look_ahead: 2,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    /// One line for each key at fault: what was expected and what came.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = settings::out_of_range("log", self);
        if self.max_bytes < ByteSize(1 << 20) {
            faults.push(format!("log.max_bytes: expected at least 1MiB, got {}", self.max_bytes));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}
