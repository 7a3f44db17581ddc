//! What a load balancer reads of the node: Inferno's vitals, made of the health message; pure.

use serde::Serialize;

use crate::health::{HealthMessage, Status};
use crate::telemetry::EndedRequests;

/// The answer to `GET /metrics` of the metrics port. Percentages are 0 to 100; what is not known is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NodeVitals {
    /// Whether requests are taken.
    ready: bool,
    /// Of the machine's processors, in percent, over the last second.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_usage: Option<f64>,
    /// Of the memory that is fullest, the machine's or a GPU's, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_usage: Option<f64>,
    /// Sequences that run or wait.
    active_requests: u64,
    /// Of requests that ended in the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_response_time_ms: Option<f64>,
    /// Percentage of them that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_rate: Option<f64>,
    /// What is wrong, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    status_message: Option<String>,
}

impl NodeVitals {
    /// Those of a moment. `busy` is the share of processor time that was used, 0 to 1.
    pub(super) fn new(
        message: HealthMessage,
        is_ready: bool,
        ended: Option<EndedRequests>,
        busy: Option<f64>,
    ) -> Self {
        let percent = |share: f64| share * 100.0;
        let is_memory = |check: &&crate::health::Check| check.name.as_str() == "memory";
        let memory = message.checks.iter().find(is_memory).and_then(|check| check.value);
        let mut worst: Vec<_> = message.checks.iter().collect();
        worst.sort_by_key(|check| std::cmp::Reverse(check.status));
        let wrong = worst.into_iter().find(|check| check.status > Status::Healthy);
        let status_message = match wrong.and_then(|check| check.message.clone()) {
            _ if message.draining => Some("draining".to_owned()),
            None if !is_ready => Some("no requests are taken yet".to_owned()),
            text => text,
        };
        Self {
            ready: is_ready,
            cpu_usage: busy.map(percent),
            memory_usage: memory.map(percent),
            active_requests: message.running + message.waiting,
            avg_response_time_ms: ended.map(|ended| ended.mean_ms),
            error_rate: ended.map(|ended| percent(ended.failed)),
            status_message,
        }
    }
}

/// Processor time since the machine was started, in the system's own unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessorTime {
    all: u64,
    idle: u64,
}

impl ProcessorTime {
    /// Reads the first line of Linux's `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, …
    pub(super) fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        // Guests' time is a part of user's.
        let times = line.split_whitespace().take(8).map(|time| time.parse().ok());
        let times: Vec<u64> = times.collect::<Option<_>>()?;
        Some(Self { all: times.iter().sum(), idle: times.get(3)? + times.get(4)? })
    }

    /// The share of the time since `earlier` in which the processors did something.
    pub(super) fn busy_since(self, earlier: Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all).filter(|all| *all > 0)?;
        let idle = self.idle.saturating_sub(earlier.idle);
        Some(1.0 - (idle as f64 / all as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Check, CheckName};
    use serde_json::json;

    fn message(draining: bool, memory: Status) -> HealthMessage {
        let text = (memory > Status::Healthy).then(|| "memory is short".to_owned());
        let check =
            |name, status, value, message| Check { name, status, value, limit: None, message };
        HealthMessage {
            node_id: "n".to_owned(),
            status: memory,
            timestamp: String::new(),
            checks: vec![
                check(CheckName::Model, Status::Healthy, Some(1.0), None),
                check(CheckName::Memory, memory, Some(0.5), text),
            ],
            models: Vec::new(),
            devices: Vec::new(),
            running: 2,
            waiting: 3,
            draining,
        }
    }

    #[test]
    fn vitals_are_infernos_with_percentages() {
        let ended = Some(EndedRequests { mean_ms: 12.5, failed: 0.25 });
        let vitals = NodeVitals::new(message(false, Status::Healthy), true, ended, Some(0.75));
        let expected = json!({
            "ready": true, "cpu_usage": 75.0, "memory_usage": 50.0, "active_requests": 5,
            "avg_response_time_ms": 12.5, "error_rate": 25.0
        });
        assert_eq!(serde_json::to_value(vitals).expect("JSON"), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out_and_what_is_wrong_is_said() {
        let said = |draining, memory, is_ready| {
            let vitals = NodeVitals::new(message(draining, memory), is_ready, None, None);
            let vitals = serde_json::to_value(vitals).expect("JSON");
            assert!(vitals.get("cpu_usage").is_none() && vitals.get("error_rate").is_none());
            assert_eq!(vitals["ready"], is_ready);
            vitals["status_message"].as_str().map(str::to_owned)
        };
        assert_eq!(said(false, Status::Healthy, true), None);
        assert_eq!(said(false, Status::Critical, true).as_deref(), Some("memory is short"));
        assert_eq!(said(true, Status::Degraded, false).as_deref(), Some("draining"));
        assert!(said(false, Status::Healthy, false).is_some());
    }

    #[test]
    fn processor_time_is_busy_where_it_is_not_idle() {
        let read = |text: &str| ProcessorTime::parse(text);
        let before = read("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1 2\n").expect("Linux's");
        let after = read("cpu  40 0 20 120 20 0 0 0 99 99\n").expect("Linux's");
        assert_eq!(after.busy_since(before), Some(0.4));
        assert_eq!(before.busy_since(before), None);
        assert_eq!(before.busy_since(after), None, "time runs forwards only");
        for text in ["", "cpu", "cpu  1 2", "cpu  a b c d e f g h", "intr 1 2 3 4 5 6 7 8"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
