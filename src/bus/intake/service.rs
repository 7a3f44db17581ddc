//! NATS's service API (`$SRV.PING`, `INFO`, `STATS`), so that service tools show the nodes and what they do.
//!
//! By hand: the library's counts one request for every `respond` call, and a stream is many messages. Here `num_requests` is what
//! was received, `num_errors` what was refused, dropped or failed, `processing_time` receipt to last event of what succeeded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bus::QUEUE_GROUP;
use crate::bus::wire::Subjects;
use crate::error::Error;

/// The service's name; nodes are its instances, by their node id.
const SERVICE: &str = "inferno";

/// What one model's subject was asked and how that went.
pub(in crate::bus) struct Endpoint {
    /// The model's alias.
    pub model: Arc<str>,
    subject: String,
    requests: AtomicU64,
    errors: AtomicU64,
    finished: AtomicU64,
    processing_ns: AtomicU64,
    last_error: Mutex<String>,
}

impl Endpoint {
    fn new(model: &str, subjects: &Subjects) -> Self {
        Self {
            model: model.into(),
            subject: subjects.generate(model),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            processing_ns: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// A message came.
    pub fn received(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused, dropped, or failed later.
    pub fn failed(&self, error: &Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        *lock(&self.last_error) = format!("{}:{error}", error.kind.status());
    }

    /// A request ended well, so long after its receipt.
    pub fn finished(&self, took: Duration) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        self.processing_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn info(&self) -> Value {
        json!({
            "name": format!("generate-{}", self.model), "subject": self.subject,
            "queue_group": QUEUE_GROUP, "metadata": {"model": self.model},
        })
    }

    fn stats(&self) -> Value {
        let processing_ns = self.processing_ns.load(Ordering::Relaxed);
        let finished = self.finished.load(Ordering::Relaxed);
        json!({
            "name": format!("generate-{}", self.model), "subject": self.subject,
            "queue_group": QUEUE_GROUP,
            "num_requests": self.requests.load(Ordering::Relaxed),
            "num_errors": self.errors.load(Ordering::Relaxed),
            "last_error": *lock(&self.last_error),
            "processing_time": processing_ns,
            "average_processing_time": processing_ns.checked_div(finished).unwrap_or(0),
        })
    }
}

/// This node as an instance of the service.
pub(in crate::bus) struct Service {
    node_id: String,
    /// Of the requests that it answers; those of the service itself are `$SRV`'s.
    subjects: Subjects,
    started: String,
    endpoints: Mutex<BTreeMap<String, Arc<Endpoint>>>,
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus) enum Verb {
    Ping,
    Info,
    Stats,
}

impl Service {
    /// A node that serves nothing yet.
    pub fn new(node_id: &str, subjects: Subjects) -> Self {
        Self {
            node_id: node_id.to_owned(),
            subjects,
            started: now_rfc3339(),
            endpoints: Mutex::default(),
        }
    }

    /// The endpoint of a model that is served from here on.
    pub fn serve(&self, model: &str) -> Arc<Endpoint> {
        let mut endpoints = lock(&self.endpoints);
        let new = || Arc::new(Endpoint::new(model, &self.subjects));
        endpoints.entry(model.to_owned()).or_insert_with(new).clone()
    }

    /// A model is served no more.
    pub fn unserve(&self, model: &str) {
        lock(&self.endpoints).remove(model);
    }

    /// The subjects on which a verb is asked: of all services, of ours, of this node.
    pub fn subjects(&self) -> Vec<(Verb, String)> {
        let mut subjects = Vec::new();
        for (verb, name) in [(Verb::Ping, "PING"), (Verb::Info, "INFO"), (Verb::Stats, "STATS")] {
            subjects.push((verb, format!("$SRV.{name}")));
            subjects.push((verb, format!("$SRV.{name}.{SERVICE}")));
            subjects.push((verb, format!("$SRV.{name}.{SERVICE}.{}", self.node_id)));
        }
        subjects
    }

    /// The answer to a verb.
    pub fn answer(&self, verb: Verb) -> Value {
        let endpoints = lock(&self.endpoints);
        let mut answer = json!({
            "name": SERVICE, "id": self.node_id, "version": env!("CARGO_PKG_VERSION"),
            "metadata": {"node_id": self.node_id},
        });
        match verb {
            Verb::Ping => answer["type"] = "io.nats.micro.v1.ping_response".into(),
            Verb::Info => {
                answer["type"] = "io.nats.micro.v1.info_response".into();
                answer["description"] = "LLM inference nodes: requests in, tokens out".into();
                answer["endpoints"] = endpoints.values().map(|e| e.info()).collect();
            }
            Verb::Stats => {
                answer["type"] = "io.nats.micro.v1.stats_response".into();
                answer["started"] = self.started.clone().into();
                answer["endpoints"] = endpoints.values().map(|e| e.stats()).collect();
            }
        }
        answer
    }
}

fn now_rfc3339() -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time::OffsetDateTime::now_utc().format(&format).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only whole values are written under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn counters_say_what_happened() {
        let service = Service::new("node-a", Subjects::new("inferno.v1"));
        let endpoint = service.serve("demo");
        for _ in 0..3 {
            endpoint.received();
        }
        endpoint.failed(&Error::new(Kind::QueueFull, "full"));
        endpoint.finished(Duration::from_nanos(10));
        endpoint.finished(Duration::from_nanos(20));
        let stats = service.answer(Verb::Stats);
        let of = &stats["endpoints"][0];
        assert_eq!((&of["num_requests"], &of["num_errors"]), (&json!(3), &json!(1)));
        assert_eq!(of["last_error"], "429:queue_full: full");
        assert_eq!(of["average_processing_time"], 15);
        assert_eq!(of["subject"], "inferno.v1.generate.demo");
        assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
        assert!(stats["started"].as_str().is_some_and(|at| at.ends_with('Z')));
        service.unserve("demo");
        assert_eq!(service.answer(Verb::Info)["endpoints"], json!([]));
    }

    #[test]
    fn answers_on_the_three_subjects_of_each_verb() {
        let service = Service::new("node-a", Subjects::new("p"));
        let subjects = service.subjects();
        assert_eq!(subjects.len(), 9);
        assert!(subjects.contains(&(Verb::Stats, "$SRV.STATS.inferno.node-a".to_owned())));
        assert_eq!(service.answer(Verb::Ping)["id"], "node-a");
    }
}
