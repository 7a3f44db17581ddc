//! The health actor: once a second, the message goes to the bus and the metrics are set.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context};

use super::{HealthMessage, Status, Vitals};
use crate::clock::Timestamp;
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

    fn tick(&self) {
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
