//! The health actor: once a second, the message goes to the bus and the metrics are set.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context};

use super::{HealthMessage, Status, Vitals};
use crate::clock::Timestamp;
use crate::executor::gpu;
use crate::telemetry::Metrics;

/// How often; the contract promises health fresher than 5 s.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the message goes; must not block.
pub type Publish = Box<dyn Fn(&HealthMessage)>;

/// See the module. Accepts nothing, so its mailbox keeps the default capacity.
pub struct Health {
    vitals: Arc<Vitals>,
    metrics: Arc<Metrics>,
    publish: Publish,
}

impl Health {
    /// An actor that publishes what `vitals` says.
    pub fn new(vitals: Arc<Vitals>, metrics: Arc<Metrics>, publish: Publish) -> Self {
        Self { vitals, metrics, publish }
    }

    /// The driver answers from its own memory; the cards are not disturbed.
    fn read_gpus(&self) {
        for (id, number) in self.vitals.gpus() {
            match gpu::readings(number) {
                Ok(readings) => {
                    let gauges = self.metrics.gpu(id.as_str());
                    gauges.card_memory_used.set(readings.memory_used_bytes as f64);
                    gauges.card_memory_total.set(readings.memory_total_bytes as f64);
                    gauges.utilisation.set(readings.utilisation);
                    gauges.temperature.set(readings.temperature);
                    gauges.ecc_uncorrected.set(readings.ecc_uncorrected.unwrap_or(0) as f64);
                    self.vitals.set_gpu(&id, readings);
                }
                Err(reason) => tracing::debug!(reason, "a GPU's sensors cannot be read"),
            }
        }
    }

    fn tick(&self) {
        self.read_gpus();
        let message = self.vitals.message(Timestamp::now());
        self.metrics.health_status.set(level(message.status));
        for check in &message.checks {
            let level = level(check.status);
            self.metrics.health_check(check.name.as_str(), level, check.value, check.limit);
        }
        (self.publish)(&message);
    }
}

fn level(status: Status) -> f64 {
    match status {
        Status::Healthy => 0.0,
        Status::Degraded => 1.0,
        Status::Critical => 2.0,
    }
}

impl Actor for Health {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.tick();
        ctx.run_interval(INTERVAL, |health, _| health.tick());
    }
}
