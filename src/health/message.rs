//! What a node tells of its health, on the bus and over HTTP.

use serde::Serialize;

use super::policy::{Check, Status};
use crate::door::ModelInfo;
use crate::gpu;
use crate::ids::DeviceId;

/// The health message of bus and HTTP.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthMessage {
    /// The node that this is the health of.
    pub node_id: String,
    /// Of the whole node.
    pub status: Status,
    /// RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// Memory, model, latency, batching, progress.
    pub checks: Vec<Check>,
    /// What is loaded.
    pub models: Vec<ModelInfo>,
    /// What it runs on.
    pub devices: Vec<DeviceVitals>,
    /// Sequences on devices.
    pub running: u64,
    /// Sequences in the scheduler's queue.
    pub waiting: u64,
    /// Taking no new requests.
    pub draining: bool,
}

impl HealthMessage {
    /// As the bus has it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields serialise")
    }
}

/// One device in the health message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceVitals {
    /// Such as `cpu:0`.
    pub id: DeviceId,
    /// Takes work.
    pub up: bool,
    /// It will not come back in this process.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Why not, if not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Times its actors were built again.
    pub rebuilds: u32,
    /// Of a GPU: what it is, and what its sensors said a moment ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuVitals>,
}

/// A GPU in the health message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GpuVitals {
    /// What it is; absent where the driver does not see it.
    #[serde(flatten)]
    pub card: Option<gpu::Card>,
    /// Absent while they cannot be read.
    #[serde(flatten)]
    pub readings: Option<gpu::CardReadings>,
}
