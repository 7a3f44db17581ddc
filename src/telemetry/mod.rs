//! Metric names, documented once, and the handles through which every stage counts; the log.
//!
//! `metrics` has one recorder per process, so two nodes in one process are told apart by the label `node`. Handles are
//! made once per node: on the hot path a count is one atomic, not a look-up.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Label};

use crate::error::{Error, Kind};
use crate::request::FinishReason;

mod gauges;
mod log;
mod names;
mod requests;
mod window;

pub use gauges::{InfoGauge, KeyedGauge, LateGauge};
pub use log::{HeldLog, init_tracing, init_tracing_of_start, log_filter};
pub use names::{METRICS, MetricKind};
use names::{STEP_COST, STEP_GAP};
pub use requests::{LoggedSink, RefusedRequest, RequestLog};
pub use window::{BatchWindow, EndedRequests, LatencyWindow, RequestWindow};

/// The node's metrics; cheap to clone through an `Arc`.
pub struct Metrics {
    node: String,
    /// `inferno_requests_running`
    pub requests_running: Gauge,
    /// `inferno_requests_waiting`
    pub requests_waiting: Gauge,
    /// `inferno_requests_accepted_total`
    pub requests_accepted: Counter,
    /// `inferno_requests_dropped_total`
    pub requests_dropped: Counter,
    /// `inferno_prompt_tokens_total`
    pub prompt_tokens: Counter,
    /// `inferno_completion_tokens_total`
    pub completion_tokens: Counter,
    /// `inferno_preemptions_total`
    pub preemptions: Counter,
    /// `inferno_prefix_cache_query_tokens_total`
    pub prefix_query_tokens: Counter,
    /// `inferno_prefix_cache_hit_tokens_total`
    pub prefix_hit_tokens: Counter,
    /// `inferno_queue_time_seconds`
    pub queue_time: Histogram,
    /// `inferno_time_to_first_token_seconds`
    pub time_to_first_token: Histogram,
    /// `inferno_inter_token_latency_seconds`
    pub inter_token_latency: Histogram,
    /// `inferno_request_seconds`
    pub request_time: Histogram,
    /// `inferno_bus_connected`
    pub bus_connected: Gauge,
    /// `inferno_bus_reconnects_total`
    pub bus_reconnects: Counter,
    /// `inferno_bus_messages_lost_total`
    pub bus_messages_lost: Counter,
    /// `inferno_bus_refusals_dropped_total`
    pub bus_refusals_dropped: Counter,
    /// `inferno_bus_publishes_failed_total`
    pub bus_publishes_failed: Counter,
    /// `inferno_durable_claims_total`
    pub durable_claims: Counter,
    /// `inferno_durable_fenced_total`
    pub durable_fenced: Counter,
    /// `inferno_durable_handed_back_total`
    pub durable_handed_back: Counter,
    /// `inferno_durable_replays_total`
    pub durable_replays: Counter,
    /// `inferno_durable_dead_total`
    pub durable_dead: Counter,
    /// `inferno_health_status`
    pub health_status: Gauge,
    /// Times to first token of the last minute, for health.
    pub recent_first_tokens: LatencyWindow,
    /// How full steps were over the last minute, for health.
    pub recent_batches: BatchWindow,
    /// How requests of the last minute ended, for load balancers.
    pub recent_requests: RequestWindow,
    /// A line for each request.
    pub requests: Arc<RequestLog>,
}

impl Metrics {
    /// The handles of one node, labelled with its id. Install the recorder first, or they count into nothing.
    pub fn new(node_id: &str) -> Self {
        let node = || vec![Label::new("node", node_id.to_owned())];
        Self {
            node: node_id.to_owned(),
            requests_running: metrics::gauge!("inferno_requests_running", node()),
            requests_waiting: metrics::gauge!("inferno_requests_waiting", node()),
            requests_accepted: metrics::counter!("inferno_requests_accepted_total", node()),
            requests_dropped: metrics::counter!("inferno_requests_dropped_total", node()),
            prompt_tokens: metrics::counter!("inferno_prompt_tokens_total", node()),
            completion_tokens: metrics::counter!("inferno_completion_tokens_total", node()),
            preemptions: metrics::counter!("inferno_preemptions_total", node()),
            prefix_query_tokens: metrics::counter!(
                "inferno_prefix_cache_query_tokens_total",
                node()
            ),
            prefix_hit_tokens: metrics::counter!("inferno_prefix_cache_hit_tokens_total", node()),
            queue_time: metrics::histogram!("inferno_queue_time_seconds", node()),
            time_to_first_token: metrics::histogram!("inferno_time_to_first_token_seconds", node()),
            inter_token_latency: metrics::histogram!("inferno_inter_token_latency_seconds", node()),
            request_time: metrics::histogram!("inferno_request_seconds", node()),
            bus_connected: metrics::gauge!("inferno_bus_connected", node()),
            bus_reconnects: metrics::counter!("inferno_bus_reconnects_total", node()),
            bus_messages_lost: metrics::counter!("inferno_bus_messages_lost_total", node()),
            bus_refusals_dropped: metrics::counter!("inferno_bus_refusals_dropped_total", node()),
            bus_publishes_failed: metrics::counter!("inferno_bus_publishes_failed_total", node()),
            durable_claims: metrics::counter!("inferno_durable_claims_total", node()),
            durable_fenced: metrics::counter!("inferno_durable_fenced_total", node()),
            durable_handed_back: metrics::counter!("inferno_durable_handed_back_total", node()),
            durable_replays: metrics::counter!("inferno_durable_replays_total", node()),
            durable_dead: metrics::counter!("inferno_durable_dead_total", node()),
            health_status: metrics::gauge!("inferno_health_status", node()),
            recent_first_tokens: LatencyWindow::default(),
            recent_batches: BatchWindow::default(),
            recent_requests: RequestWindow::default(),
            requests: Arc::default(),
        }
    }

    /// Counts an accepted request's end.
    pub fn finished(&self, reason: FinishReason) {
        metrics::counter!("inferno_requests_finished_total", "node" => self.node.clone(),
            "reason" => reason.as_str())
        .increment(1);
    }

    /// Counts a refusal.
    pub fn refused(&self, kind: Kind) {
        metrics::counter!("inferno_requests_refused_total", "node" => self.node.clone(),
            "kind" => kind.as_str())
        .increment(1);
    }

    /// Counts a refusal that a door makes by itself, and says it in the log.
    pub fn refused_at_door(&self, request: RefusedRequest<'_>, error: &Error) {
        self.refused(error.kind);
        self.requests.refused(request, error);
    }

    /// Sets one check of the health message: 0 healthy, 1 degraded, 2 critical; its reading and its limit, where it has them.
    pub fn health_check(
        &self,
        check: &'static str,
        status: f64,
        value: Option<f64>,
        limit: Option<f64>,
    ) {
        let set = |name: &'static str, value: f64| {
            metrics::gauge!(name, "node" => self.node.clone(), "check" => check).set(value);
        };
        set("inferno_health_check_status", status);
        value.into_iter().for_each(|value| set("inferno_health_check_value", value));
        limit.into_iter().for_each(|limit| set("inferno_health_check_limit", limit));
    }

    /// The handles of one GPU.
    pub fn gpu(&self, device: &str) -> GpuMetrics {
        let labels =
            || vec![Label::new("node", self.node.clone()), Label::new("device", device.to_owned())];
        GpuMetrics {
            info: InfoGauge::new(labels()),
            card_memory_used: metrics::gauge!("inferno_gpu_memory_used_bytes", labels()),
            card_memory_total: metrics::gauge!("inferno_gpu_memory_total_bytes", labels()),
            utilisation: metrics::gauge!("inferno_gpu_utilisation_percent", labels()),
            temperature: metrics::gauge!("inferno_gpu_temperature_celsius", labels()),
            ecc_uncorrected: LateGauge::new("inferno_gpu_ecc_uncorrected", labels()),
        }
    }

    /// The handles of one of Inferno's load balancers.
    pub fn load_balancer(&self, address: &str) -> LoadBalancerMetrics {
        let labels = || {
            let address = Label::new("load_balancer", address.to_owned());
            vec![Label::new("node", self.node.clone()), address]
        };
        LoadBalancerMetrics {
            registered: metrics::gauge!("inferno_load_balancer_registered", labels()),
            registrations: metrics::counter!("inferno_load_balancer_registrations_total", labels()),
            failures: metrics::counter!("inferno_load_balancer_failures_total", labels()),
        }
    }

    /// The handles of one model on one device.
    pub fn model(&self, device: &str, model: &str) -> ModelMetrics {
        let labels = vec![
            Label::new("node", self.node.clone()),
            Label::new("device", device.to_owned()),
            Label::new("model", model.to_owned()),
        ];
        ModelMetrics { step_cost: KeyedGauge::new(STEP_COST, labels) }
    }

    /// The handles of one device.
    pub fn device(&self, device: &str) -> DeviceMetrics {
        let labels =
            || vec![Label::new("node", self.node.clone()), Label::new("device", device.to_owned())];
        DeviceMetrics {
            kv_blocks_used: metrics::gauge!("inferno_kv_blocks_used", labels()),
            kv_blocks_total: metrics::gauge!("inferno_kv_blocks_total", labels()),
            step_time: metrics::histogram!("inferno_step_seconds", labels()),
            step_gap: metrics::histogram!(STEP_GAP, labels()),
            step_tokens: metrics::counter!("inferno_step_tokens_total", labels()),
            memory_used: metrics::gauge!("inferno_device_memory_used_bytes", labels()),
            memory_reserved: metrics::gauge!("inferno_device_memory_reserved_bytes", labels()),
            memory_peak: metrics::gauge!("inferno_device_memory_peak_bytes", labels()),
            rebuilds: metrics::counter!("inferno_device_rebuilds_total", labels()),
        }
    }
}

/// One model's metrics on one device.
pub struct ModelMetrics {
    /// `inferno_step_cost_microseconds`
    pub step_cost: KeyedGauge,
}

/// One device's metrics.
pub struct DeviceMetrics {
    /// `inferno_kv_blocks_used`
    pub kv_blocks_used: Gauge,
    /// `inferno_kv_blocks_total`
    pub kv_blocks_total: Gauge,
    /// `inferno_step_seconds`
    pub step_time: Histogram,
    /// `inferno_step_gap_seconds`
    pub step_gap: Histogram,
    /// `inferno_step_tokens_total`
    pub step_tokens: Counter,
    /// `inferno_device_memory_used_bytes`
    pub memory_used: Gauge,
    /// `inferno_device_memory_reserved_bytes`
    pub memory_reserved: Gauge,
    /// `inferno_device_memory_peak_bytes`
    pub memory_peak: Gauge,
    /// `inferno_device_rebuilds_total`
    pub rebuilds: Counter,
}

/// One GPU: what it is, and its sensors.
pub struct GpuMetrics {
    /// `inferno_gpu_info`
    pub info: InfoGauge,
    /// `inferno_gpu_memory_used_bytes`
    pub card_memory_used: Gauge,
    /// `inferno_gpu_memory_total_bytes`
    pub card_memory_total: Gauge,
    /// `inferno_gpu_utilisation_percent`
    pub utilisation: Gauge,
    /// `inferno_gpu_temperature_celsius`
    pub temperature: Gauge,
    /// `inferno_gpu_ecc_uncorrected`
    pub ecc_uncorrected: LateGauge,
}

/// What comes of registering with one of Inferno's load balancers.
pub struct LoadBalancerMetrics {
    /// `inferno_load_balancer_registered`
    pub registered: Gauge,
    /// `inferno_load_balancer_registrations_total`
    pub registrations: Counter,
    /// `inferno_load_balancer_failures_total`
    pub failures: Counter,
}

/// Histogram buckets in seconds: from a step of a small model to a long request.
const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// A GPU waits for microseconds where all is well.
const GAP_BUCKETS: &[f64] =
    &[2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.1, 1.0];

/// The process's metrics recorder, installed by the first caller; every node of the process shares it.
///
/// # Errors
/// When another library has installed a recorder of its own.
pub fn recorder() -> Result<metrics_exporter_prometheus::PrometheusHandle, String> {
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
    static RECORDER: std::sync::OnceLock<Result<PrometheusHandle, String>> =
        std::sync::OnceLock::new();
    let install = || {
        let handle = PrometheusBuilder::new()
            .set_buckets(BUCKETS)
            .and_then(|builder| {
                let gap = Matcher::Full(STEP_GAP.to_owned());
                builder.set_buckets_for_metric(gap, GAP_BUCKETS)
            })
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| format!("metrics recorder: {error}"))?;
        for (name, kind, _, help) in METRICS {
            match kind {
                MetricKind::Counter => metrics::describe_counter!(*name, *help),
                MetricKind::Gauge => metrics::describe_gauge!(*name, *help),
                MetricKind::Histogram => metrics::describe_histogram!(*name, *help),
            }
        }
        Ok(handle)
    };
    RECORDER.get_or_init(install).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_metric_is_rendered_and_nothing_else() {
        let handle = recorder().expect("no other recorder in this process");
        let metrics = Metrics::new("names-test");
        metrics.finished(FinishReason::Stop);
        metrics.refused(Kind::Invalid);
        metrics.health_check("memory", 0.0, Some(0.5), Some(0.9));
        let gpu = metrics.gpu("cuda:0");
        assert!(!handle.render().contains("inferno_gpu_ecc_uncorrected{node=\"names-test\""));
        gpu.ecc_uncorrected.set(0.0);
        gpu.info.set("A card", Some(1), "00000000:1B:00.0");
        metrics.model("cpu:0", "demo").step_cost.set("step_us", 4.0);
        let _ = metrics.load_balancer("10.0.0.1:6100");
        let device = metrics.device("cpu:0");
        device.step_time.record(0.1);
        device.step_gap.record(3e-6);
        for histogram in [
            &metrics.queue_time,
            &metrics.time_to_first_token,
            &metrics.inter_token_latency,
            &metrics.request_time,
        ] {
            histogram.record(0.01);
        }
        let text = handle.render();
        for (name, _, labels, _) in METRICS {
            let line = text
                .lines()
                .find(|line| line.starts_with(name) && line.contains("names-test"))
                .unwrap_or_else(|| panic!("{name} is listed but not rendered"));
            for label in *labels {
                assert!(line.contains(&format!("{label}=")), "{name} lacks the label {label}");
            }
        }
        let gap = |limit: &str| {
            let is_it = |line: &&str| {
                line.starts_with("inferno_step_gap_seconds_bucket")
                    && line.contains("names-test")
                    && line.contains(&format!("le=\"{limit}\""))
            };
            text.lines().find(is_it).and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!((gap("0.000002"), gap("0.000005")), (Some("0"), Some("1")), "{text}");
        for line in text.lines().filter(|line| line.contains("names-test")) {
            assert!(METRICS.iter().any(|(name, ..)| line.starts_with(name)), "unlisted: {line}");
        }
    }
}
