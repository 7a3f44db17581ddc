//! What the handlers share.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::Recipient;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

use super::config::UnknownParameters;
use super::cors::AllowedOrigins;
use super::{Config, HttpDeps};
use crate::bus::client::Client;
use crate::door::{Admit, AdmitAll, Cancel, List};
use crate::error::{Error, Result};
use crate::health::HealthSource;
use crate::secret::Secret;
use crate::telemetry::Metrics;

/// How long another actor may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How many of the longest bodies are in memory at once; a JSON value takes several times its text while it is parsed.
const MAX_LONGEST_BODIES: usize = 16;

/// What every handler may use; one per server.
pub(super) struct HttpDoor {
    pub(super) admit: Recipient<Admit>,
    pub(super) admit_all: Recipient<AdmitAll>,
    pub(super) cancel: Recipient<Cancel>,
    pub(super) models: Recipient<List>,
    pub(super) bus: Arc<OnceLock<Client>>,
    pub(super) health: Arc<dyn HealthSource>,
    pub(super) prometheus: PrometheusHandle,
    pub(super) metrics: Arc<Metrics>,
    pub(super) api_keys: Vec<Secret>,
    pub(super) allowed_origins: AllowedOrigins,
    pub(super) unknown: UnknownParameters,
    pub(super) max_body_bytes: usize,
    /// What large bodies may still take.
    pub(super) large_body_bytes: Arc<Semaphore>,
    pub(super) max_prompts: usize,
    pub(super) read_timeout: Duration,
    pub(super) slow_reader: Duration,
}

impl HttpDoor {
    pub(super) fn new(config: &Config, deps: HttpDeps) -> Self {
        let HttpDeps { admit, admit_all, cancel, models, bus, health, prometheus, metrics } = deps;
        Self {
            admit,
            admit_all,
            cancel,
            models,
            bus,
            health,
            prometheus,
            metrics,
            api_keys: config.api_keys.clone(),
            allowed_origins: AllowedOrigins::new(&config.allowed_origins),
            unknown: config.unknown_parameters,
            max_body_bytes: config.max_body_bytes,
            large_body_bytes: large_body_bytes(config.max_body_bytes),
            max_prompts: config.max_prompts,
            read_timeout: config.read_timeout(),
            slow_reader: config.slow_reader(),
        }
    }
}

/// The bytes that all large bodies of a server may take, from their first to the end of their parsing.
fn large_body_bytes(max_body_bytes: usize) -> Arc<Semaphore> {
    let bytes = max_body_bytes.saturating_mul(MAX_LONGEST_BODIES).min(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(bytes))
}

/// The answer of another actor.
///
/// # Errors
/// `internal`: it does not come in time.
pub(super) async fn within<F: Future>(answer: F) -> Result<F::Output> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| {
        Error::internal(format!("the node did not answer within {} s", ANSWER_TIMEOUT.as_secs()))
    })
}
