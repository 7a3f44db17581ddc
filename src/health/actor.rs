//! The health actor: once a second, the message goes to the bus and the sensors are read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context};

use super::{HealthMessage, Vitals};
use crate::clock::Timestamp;
use crate::gpu;
use crate::ids::DeviceId;
use crate::lifeline::Lifeline;
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
    /// GPUs whose sensors could not be read the last time; that was logged.
    unread: BTreeSet<DeviceId>,
    alive: Lifeline,
}

impl Health {
    /// An actor that publishes what `vitals` says, and holds `alive` for as long as it lives.
    pub fn new(
        vitals: Arc<Vitals>,
        metrics: Arc<Metrics>,
        publish: Publish,
        alive: Lifeline,
    ) -> Self {
        Self { vitals, metrics, publish, unread: BTreeSet::new(), alive }
    }

    /// What stays as it is.
    fn look_at_gpus(&self) {
        let cards = gpu::cards().unwrap_or_default();
        for (id, number) in self.vitals.gpus() {
            if let Some(card) = cards.get(number as usize) {
                let gauges = self.metrics.gpu(id.as_str());
                gauges.info.set(&card.name, card.numa_node, &card.pci_bus_id);
                self.vitals.set_gpu_card(&id, card.clone());
            }
        }
    }

    /// The driver answers from its own memory; the cards are not disturbed.
    fn read_gpus(&mut self) {
        for (id, number) in self.vitals.gpus() {
            match gpu::readings(number) {
                Ok(readings) => self.gpu_was_read(&id, readings),
                Err(reason) => self.gpu_was_not_read(&id, &reason),
            }
        }
    }

    fn gpu_was_read(&mut self, id: &DeviceId, readings: gpu::CardReadings) {
        let gauges = self.metrics.gpu(id.as_str());
        gauges.card_memory_used.set(readings.memory_used_bytes as f64);
        gauges.card_memory_total.set(readings.memory_total_bytes as f64);
        gauges.utilisation.set(readings.utilisation);
        gauges.temperature.set(readings.temperature);
        if let Some(errors) = readings.ecc_uncorrected {
            gauges.ecc_uncorrected.set(errors as f64);
        }
        self.vitals.set_gpu(id, readings);
        if self.unread.remove(id) {
            tracing::info!(device = %id, "a GPU's sensors can be read again");
        }
    }

    /// What was read before says nothing of now, so it goes: from the message, and from the gauges as NaN.
    fn gpu_was_not_read(&mut self, id: &DeviceId, reason: &str) {
        if self.unread.insert(id.clone()) {
            tracing::warn!(device = %id, reason, "a GPU's sensors cannot be read");
        }
        let Some(last) = self.vitals.take_gpu(id) else { return };
        let gauges = self.metrics.gpu(id.as_str());
        gauges.card_memory_used.set(f64::NAN);
        gauges.utilisation.set(f64::NAN);
        gauges.temperature.set(f64::NAN);
        if last.ecc_uncorrected.is_some() {
            gauges.ecc_uncorrected.set(f64::NAN);
        }
    }

    fn tick(&mut self) {
        self.alive.look();
        self.read_gpus();
        self.metrics.requests.tick();
        let message = self.vitals.message(Timestamp::now());
        (self.publish)(&message);
    }
}

impl Actor for Health {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look_at_gpus();
        self.tick();
        ctx.run_interval(INTERVAL, |health, _| health.tick());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn what_cannot_be_read_any_more_is_gone_and_absent_errors_are_no_zero() {
        let handle = crate::telemetry::recorder().expect("no other recorder in this process");
        let metrics = Arc::new(Metrics::new("gpu-test"));
        let limits = Config::default().limits();
        let vitals = Arc::new(Vitals::new("gpu-test", limits, metrics.clone()));
        let id = DeviceId::new("cuda:0");
        vitals.add_device(&id);
        let alive = crate::lifeline::Lifeline::unwatched();
        let mut health = Health::new(vitals.clone(), metrics, Box::new(|_| {}), alive);
        let readings = gpu::CardReadings {
            memory_used_bytes: 5,
            memory_total_bytes: 10,
            utilisation: 7,
            temperature: 40,
            ecc_uncorrected: None,
        };
        let series = |name: &str| {
            let text = handle.render();
            let line = text.lines().find(|l| l.starts_with(name) && l.contains("gpu-test"));
            line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        health.gpu_was_not_read(&id, "no driver");
        assert_eq!(series("inferno_gpu_temperature_celsius"), None);
        health.gpu_was_read(&id, readings);
        assert!(health.unread.is_empty());
        assert_eq!(series("inferno_gpu_temperature_celsius").as_deref(), Some("40"));
        assert_eq!(series("inferno_gpu_ecc_uncorrected"), None);
        for _ in 0..2 {
            health.gpu_was_not_read(&id, "fell off the bus");
            assert!(health.unread.contains(&id));
        }
        assert_eq!(vitals.take_gpu(&id), None);
        assert_eq!(series("inferno_gpu_temperature_celsius").as_deref(), Some("NaN"));
        assert_eq!(series("inferno_gpu_memory_total_bytes").as_deref(), Some("10"));
        assert_eq!(series("inferno_gpu_ecc_uncorrected"), None);
        health.gpu_was_read(&id, gpu::CardReadings { ecc_uncorrected: Some(3), ..readings });
        assert_eq!(series("inferno_gpu_ecc_uncorrected").as_deref(), Some("3"));
    }
}
