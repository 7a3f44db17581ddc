//! How the node is, for a door that shows it.

use bytes::Bytes;

use super::policy::Status;
use super::vitals::Vitals;
use crate::clock::Timestamp;

/// How the node is, as a door shows it. Asked on a worker's thread: answers from what is known.
pub trait HealthSource: Send + Sync {
    /// The health message as JSON, and its status.
    fn health(&self) -> (Bytes, Status);
    /// Whether the node takes requests.
    fn ready(&self) -> bool;
}

impl HealthSource for Vitals {
    fn health(&self) -> (Bytes, Status) {
        let message = self.message(Timestamp::now());
        (message.to_json().into(), message.status)
    }

    fn ready(&self) -> bool {
        self.is_ready()
    }
}
