//! Every metric: its name, kind, further labels and meaning.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Seconds, in buckets.
    Histogram,
}

pub(super) const STEP_GAP: &str = "inferno_step_gap_seconds";
pub(super) const STEP_COST: &str = "inferno_step_cost_microseconds";

/// Name, kind, further labels and meaning of every metric; docs/metrics.md is held to this one by a test.
pub const METRICS: &[(&str, MetricKind, &[&str], &str)] = {
    use MetricKind::{Counter, Gauge, Histogram};
    &[
        ("inferno_requests_running", Gauge, &[], "sequences on a device"),
        ("inferno_requests_waiting", Gauge, &[], "sequences in the scheduler's queue"),
        ("inferno_requests_accepted_total", Counter, &[], "requests that admission let in"),
        ("inferno_requests_finished_total", Counter, &["reason"], "accepted requests by their end"),
        ("inferno_requests_refused_total", Counter, &["kind"], "requests refused, by error kind"),
        ("inferno_requests_dropped_total", Counter, &[], "bus requests with nowhere to answer"),
        ("inferno_prompt_tokens_total", Counter, &[], "prompt tokens of accepted requests"),
        ("inferno_completion_tokens_total", Counter, &[], "tokens sampled and sent"),
        ("inferno_preemptions_total", Counter, &[], "sequences that gave their blocks back"),
        ("inferno_kv_blocks_used", Gauge, &["device"], "KV blocks held by sequences"),
        ("inferno_kv_blocks_total", Gauge, &["device"], "KV blocks of the device"),
        ("inferno_prefix_cache_query_tokens_total", Counter, &[], "prompt tokens looked up"),
        ("inferno_prefix_cache_hit_tokens_total", Counter, &[], "prompt tokens found"),
        ("inferno_queue_time_seconds", Histogram, &[], "accept to first scheduled"),
        ("inferno_time_to_first_token_seconds", Histogram, &[], "accept to first token written"),
        (
            "inferno_inter_token_latency_seconds",
            Histogram,
            &[],
            "gap between two tokens of a sequence",
        ),
        ("inferno_request_seconds", Histogram, &[], "accept to last event"),
        ("inferno_step_seconds", Histogram, &["device"], "one step on the device"),
        (
            STEP_GAP,
            Histogram,
            &["device"],
            "between two steps, while sequences ran: the device had nothing to do",
        ),
        (
            STEP_COST,
            Gauge,
            &["device", "key", "model"],
            "what a step costs, fitted while the device runs, by the keys of `config/sim`; absent before it is known",
        ),
        ("inferno_step_tokens_total", Counter, &["device"], "tokens computed in steps"),
        ("inferno_device_memory_used_bytes", Gauge, &["device"], "memory pool in use"),
        ("inferno_device_memory_reserved_bytes", Gauge, &["device"], "memory pool reserved"),
        (
            "inferno_device_memory_peak_bytes",
            Gauge,
            &["device"],
            "most of the memory pool in use at once since the device was made",
        ),
        (
            "inferno_device_rebuilds_total",
            Counter,
            &["device"],
            "times a device's actors were rebuilt",
        ),
        (
            "inferno_gpu_info",
            Gauge,
            &["device", "name", "numa_node", "pci_bus_id"],
            "1; the labels say what the card is, empty where the system does not know",
        ),
        (
            "inferno_gpu_memory_used_bytes",
            Gauge,
            &["device"],
            "of the card, by everyone on it; this and what sensors say is NaN while it cannot be read",
        ),
        ("inferno_gpu_memory_total_bytes", Gauge, &["device"], "of the card"),
        ("inferno_gpu_utilisation_percent", Gauge, &["device"], "time in which a kernel ran"),
        ("inferno_gpu_temperature_celsius", Gauge, &["device"], "of the card"),
        (
            "inferno_gpu_ecc_uncorrected",
            Gauge,
            &["device"],
            "memory errors since the driver was loaded that ECC could not correct; absent where ECC is off",
        ),
        ("inferno_bus_connected", Gauge, &[], "1 while the bus is connected"),
        ("inferno_bus_reconnects_total", Counter, &[], "connections after the first"),
        (
            "inferno_bus_messages_lost_total",
            Counter,
            &[],
            "messages from NATS that came faster than they were taken",
        ),
        (
            "inferno_bus_refusals_dropped_total",
            Counter,
            &[],
            "refusals, and answers to questions, that were not sent: too many waited for a slow link",
        ),
        (
            "inferno_bus_publishes_failed_total",
            Counter,
            &[],
            "messages that cannot be published: to a subject that is none, or above NATS's `max_payload`",
        ),
        (
            "inferno_load_balancer_registered",
            Gauge,
            &["load_balancer"],
            "1 while this load balancer of Inferno has the node, by its last answer",
        ),
        (
            "inferno_load_balancer_registrations_total",
            Counter,
            &["load_balancer"],
            "times it took the node up: at first, and whenever it had forgotten it",
        ),
        (
            "inferno_load_balancer_failures_total",
            Counter,
            &["load_balancer"],
            "registrations without an answer, or with one that is no success",
        ),
        ("inferno_durable_claims_total", Counter, &[], "durable requests that the node took up"),
        (
            "inferno_durable_fenced_total",
            Counter,
            &[],
            "durable requests that went on elsewhere while the node had them",
        ),
        (
            "inferno_durable_handed_back_total",
            Counter,
            &[],
            "durable requests that the node gave to others",
        ),
        (
            "inferno_durable_replays_total",
            Counter,
            &[],
            "streams of durable requests that were read again over HTTP",
        ),
        ("inferno_durable_dead_total", Counter, &[], "jobs put to the dead letters"),
        ("inferno_health_status", Gauge, &[], "0 healthy, 1 degraded, 2 critical"),
        ("inferno_health_check_status", Gauge, &["check"], "the same for each check"),
        (
            "inferno_health_check_value",
            Gauge,
            &["check"],
            "the check's reading; absent where there is none yet",
        ),
        (
            "inferno_health_check_limit",
            Gauge,
            &["check"],
            "what the reading is held against; absent where there is none",
        ),
    ]
};
