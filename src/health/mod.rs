//! Health: Healthy, Degraded or Critical from forward progress, never from "the process answers".
//!
//! [`Vitals`] holds what the stages report (progress cells, devices, models, windows of recent figures) and computes the
//! [`HealthMessage`] whenever it is asked, so no answer is older than the question. The [`Health`] actor asks once a second, publishes
//! the message on the bus and sets the metrics.

mod actor;
mod message;
mod policy;
mod source;
mod vitals;

pub use actor::{Health, Publish};
pub use message::{DeviceVitals, GpuVitals, HealthMessage};
pub use policy::{BusState, Check, CheckName, Limits, LogState, Readings, Status};
pub use source::HealthSource;
pub use vitals::Vitals;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings;

/// The section `[health]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Share of memory in use, of the machine or of the fullest of the node's GPUs, above which the node is degraded.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub memory_limit: f64,
    /// Likewise, above which it is critical; at least `memory_limit`.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub memory_critical: f64,
    /// Milliseconds without a finished unit of work, with work to do, above which the node is degraded.
    #[schemars(range(min = 1))]
    pub progress_limit_ms: u64,
    /// Likewise, above which it is critical; at least `progress_limit_ms`.
    pub progress_critical_ms: u64,
    /// P95 of the time to first token over the last minute, in milliseconds, above which the node is degraded; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub latency_limit_ms: Option<f64>,
    /// Share of `max_batch_size` that steps filled over the last minute, below which the node is degraded; absent: no
    /// limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub batching_limit: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_limit: 0.95,
            memory_critical: 0.98,
            progress_limit_ms: 5_000,
            progress_critical_ms: 30_000,
            latency_limit_ms: None,
            batching_limit: None,
        }
    }
}

impl Config {
    /// Checks every key.
    ///
    /// # Errors
    /// One line for each key at fault: name, expected, got.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = settings::out_of_range("health", self);
        if self.memory_critical < self.memory_limit {
            faults.push("health.memory_critical: expected at least memory_limit".to_owned());
        }
        if self.progress_critical_ms < self.progress_limit_ms {
            faults.push(
                "health.progress_critical_ms: expected at least progress_limit_ms".to_owned(),
            );
        }
        // A NaN is in no range, and JSON has none.
        for (key, value) in [
            ("memory_limit", Some(self.memory_limit)),
            ("memory_critical", Some(self.memory_critical)),
            ("latency_limit_ms", self.latency_limit_ms),
            ("batching_limit", self.batching_limit),
        ] {
            if value.is_some_and(f64::is_nan) {
                faults.push(format!("health.{key}: expected a number, got NaN"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// The limits as the policy takes them.
    pub fn limits(&self) -> Limits {
        Limits {
            memory: (self.memory_limit, self.memory_critical),
            progress_ms: (self.progress_limit_ms as f64, self.progress_critical_ms as f64),
            latency_ms: self.latency_limit_ms,
            batching: self.batching_limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_key_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let bad = Config {
            memory_limit: 1.5,
            memory_critical: 0.5,
            progress_limit_ms: 0,
            latency_limit_ms: Some(f64::NAN),
            batching_limit: Some(-1.0),
            ..Config::default()
        };
        let faults = bad.check().expect_err("five keys are wrong");
        for key in
            ["memory_limit", "memory_critical", "progress_limit_ms", "latency_limit", "batching"]
        {
            assert!(faults.iter().any(|fault| fault.contains(key)), "{key} in {faults:?}");
        }
    }
}
