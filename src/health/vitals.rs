//! What the node knows of itself, shared by everyone who reports or asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use super::message::{DeviceVitals, HealthMessage};
use super::policy::{self, BusState, Limits, LogState, Readings, Status};
use crate::clock::Timestamp;
use crate::door::ModelInfo;
use crate::gpu;
use crate::ids::{DeviceId, DeviceKind};
use crate::progress::{FreeBlocks, Progress};
use crate::telemetry::Metrics;

#[derive(Default)]
struct VitalsState {
    devices: BTreeMap<DeviceId, DeviceVitals>,
    models: Vec<ModelInfo>,
    progress: Vec<(&'static str, Progress)>,
    running: Vec<Progress>,
    waiting: Vec<Progress>,
    blocks: BTreeMap<DeviceId, FreeBlocks>,
    bus: BusState,
    log: LogState,
}

/// See the module.
pub struct Vitals {
    node_id: String,
    life: String,
    limits: Limits,
    state: Mutex<VitalsState>,
    models_wanted: AtomicU32,
    draining: AtomicBool,
    ended: OnceLock<&'static str>,
    news: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

impl Vitals {
    /// Of a node that has nothing yet.
    pub fn new(node_id: &str, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            node_id: node_id.to_owned(),
            life: uuid::Uuid::now_v7().simple().to_string(),
            limits,
            state: Mutex::default(),
            models_wanted: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            ended: OnceLock::new(),
            news: watch::Sender::new(()),
            metrics,
        }
    }

    /// The node's id.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Another after each start of the node, so that it is not taken for the one that it was before.
    pub fn life(&self) -> &str {
        &self.life
    }

    /// A device that is to be watched; down until [`Vitals::device_up`].
    pub fn add_device(&self, id: &DeviceId) {
        let device = DeviceVitals {
            id: id.clone(),
            up: false,
            lost: false,
            fault: None,
            rebuilds: 0,
            gpu: None,
        };
        self.lock().devices.insert(id.clone(), device);
    }

    /// The device takes work.
    pub fn device_up(&self, id: &DeviceId) {
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.up = true;
            device.fault = None;
        }
        self.changed();
    }

    /// The device's actors were built again, and it takes work.
    pub fn device_rebuilt(&self, id: &DeviceId) {
        self.device_up(id);
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.rebuilds += 1;
        }
    }

    /// The device takes no work.
    pub fn device_down(&self, id: &DeviceId, fault: &str) {
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.up = false;
            device.fault = Some(fault.to_owned());
        }
        self.changed();
    }

    /// Only a new process can have the device again.
    pub fn device_lost(&self, id: &DeviceId, fault: &str) {
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.up = false;
            device.lost = true;
            device.fault = Some(fault.to_owned());
        }
        self.changed();
    }

    /// The GPUs among the devices, by number.
    pub fn gpus(&self) -> Vec<(DeviceId, u32)> {
        let number = |id: &DeviceId| match DeviceKind::parse(id.as_str()) {
            Ok((DeviceKind::Cuda, number)) => Some((id.clone(), number)),
            _ => None,
        };
        self.lock().devices.keys().filter_map(number).collect()
    }

    /// What a GPU is.
    pub fn set_gpu_card(&self, id: &DeviceId, card: gpu::Card) {
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.gpu.get_or_insert_default().card = Some(card);
        }
    }

    /// What a GPU's sensors say.
    pub fn set_gpu(&self, id: &DeviceId, readings: gpu::CardReadings) {
        if let Some(device) = self.lock().devices.get_mut(id) {
            device.gpu.get_or_insert_default().readings = Some(readings);
        }
    }

    /// A GPU's sensors cannot be read any more; gives what they said last.
    pub fn take_gpu(&self, id: &DeviceId) -> Option<gpu::CardReadings> {
        self.lock().devices.get_mut(id)?.gpu.as_mut()?.readings.take()
    }

    /// How many models the node is meant to have.
    pub fn set_models_wanted(&self, wanted: u32) {
        self.models_wanted.store(wanted, Ordering::Relaxed);
    }

    /// From here on these models take requests.
    pub fn set_models(&self, models: Vec<ModelInfo>) {
        self.lock().models = models;
        self.changed();
    }

    /// What takes requests now.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.lock().models.clone()
    }

    /// A cell whose stall counts against the node.
    pub fn watch(&self, actor: &'static str) -> Progress {
        let progress = Progress::new();
        self.lock().progress.push((actor, progress.clone()));
        progress
    }

    /// The cell whose pending units are the running sequences of one batcher.
    pub fn watch_running(&self, actor: &'static str) -> Progress {
        let progress = self.watch(actor);
        self.lock().running.push(progress.clone());
        progress
    }

    /// The cell whose pending units are the waiting sequences. A full queue is no stall: the scheduler stamps it as long as
    /// everything that could leave has left.
    pub fn watch_waiting(&self) -> Progress {
        let progress = self.watch("scheduler");
        self.lock().waiting.push(progress.clone());
        progress
    }

    /// The cell of a device's KV blocks.
    pub fn watch_blocks(&self, device: &DeviceId) -> FreeBlocks {
        self.lock().blocks.entry(device.clone()).or_default().clone()
    }

    /// KV blocks of each device: free, and all.
    pub fn blocks(&self) -> BTreeMap<DeviceId, (u32, u32)> {
        let state = self.lock();
        state.blocks.iter().map(|(id, blocks)| (id.clone(), blocks.get())).collect()
    }

    /// How the bus stands with NATS from here on.
    pub fn set_bus(&self, state: BusState) {
        let is_news = std::mem::replace(&mut self.lock().bus, state.clone()) != state;
        if is_news {
            self.changed();
        }
    }

    /// How the bus stands with NATS.
    pub fn bus(&self) -> BusState {
        self.lock().bus.clone()
    }

    /// How the log of durable requests stands from here on.
    pub fn set_log(&self, state: LogState) {
        self.lock().log = state;
        self.changed();
    }

    /// Resolves when devices, models, the bus, or whether the node drains or ends may have changed.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Whether requests are taken has changed, perhaps: the metrics are to say so at once.
    fn changed(&self) {
        self.message(Timestamp::now());
        self.news.send_replace(());
    }

    /// No new requests from here on.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.news.send_replace(());
    }

    /// An actor, a door or a thread has ended that cannot be built again: this process is to end.
    pub fn set_ended(&self, name: &'static str) {
        // The first is the cause; others follow from it.
        let _ = self.ended.set(name);
        self.changed();
    }

    /// Whether requests are taken: everything lives, a model is up, a device is up, NATS does not refuse the node, no drain.
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        self.ended.get().is_none()
            && !self.draining.load(Ordering::Relaxed)
            && !state.models.is_empty()
            && !matches!(state.bus, BusState::Refused(_))
            && state.devices.values().any(|device| device.up)
    }

    /// The message of this moment; the metrics say the same from then on.
    pub fn message(&self, now: Timestamp) -> HealthMessage {
        let checks = policy::evaluate(&self.readings(now), &self.limits);
        let status = policy::overall(&checks);
        self.metrics.health_status.set(level(status));
        for check in &checks {
            let level = level(check.status);
            self.metrics.health_check(check.name.as_str(), level, check.value, check.limit);
        }
        let state = self.lock();
        HealthMessage {
            node_id: self.node_id.clone(),
            status,
            timestamp: timestamp(),
            checks,
            models: state.models.clone(),
            devices: state.devices.values().cloned().collect(),
            running: state.running.iter().map(Progress::pending).sum(),
            waiting: state.waiting.iter().map(Progress::pending).sum(),
            draining: self.draining.load(Ordering::Relaxed),
        }
    }

    fn readings(&self, now: Timestamp) -> Readings {
        let state = self.lock();
        let stalled = state
            .progress
            .iter()
            .map(|(actor, progress)| (progress.stalled_for(now), *actor))
            .max_by_key(|(stalled, _)| *stalled);
        Readings {
            memory: fullest(memory_share(), &state.devices),
            devices_up: state.devices.values().filter(|device| device.up).count() as u32,
            devices: state.devices.len() as u32,
            device_lost: state.devices.values().any(|device| device.lost),
            device_fault: state
                .devices
                .values()
                .find_map(|d| d.fault.as_ref().map(|fault| format!("{}: {fault}", d.id))),
            models_up: state.models.len() as u32,
            models: self.models_wanted.load(Ordering::Relaxed).max(state.models.len() as u32),
            latency_ms: self.metrics.recent_first_tokens.p95_ms(now),
            batching: self.metrics.recent_batches.mean(now),
            stalled_ms: stalled.map_or(0.0, |(stalled, _)| stalled.as_secs_f64() * 1e3),
            stalled_actor: stalled.map(|(_, actor)| actor),
            ended: self.ended.get().copied(),
            bus: state.bus.clone(),
            log: state.log.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VitalsState> {
        // Only whole values are written under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn level(status: Status) -> f64 {
    match status {
        Status::Healthy => 0.0,
        Status::Degraded => 1.0,
        Status::Critical => 2.0,
    }
}

/// The largest share of memory in use, of the machine and of each GPU, and which GPU that is.
fn fullest(
    machine: Option<f64>,
    devices: &BTreeMap<DeviceId, DeviceVitals>,
) -> Option<(f64, Option<String>)> {
    let share = |device: &DeviceVitals| {
        let gpu = device.gpu.as_ref()?.readings?;
        let share = gpu.memory_used_bytes as f64 / gpu.memory_total_bytes as f64;
        // Of a card that says it has no memory there is none.
        share.is_finite().then(|| (share, Some(device.id.as_str().to_owned())))
    };
    let gpus = devices.values().filter_map(share);
    gpus.chain(machine.map(|share| (share, None))).max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Now, as RFC 3339 in UTC with milliseconds.
fn timestamp() -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time::OffsetDateTime::now_utc().format(&format).unwrap_or_default()
}

/// Memory in use over memory there is, from `/proc/meminfo`; `None` where that cannot be read.
fn memory_share() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<f64> {
        text.lines()
            .find_map(|line| line.strip_prefix(key))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let total = kib("MemTotal:")?;
    Some(1.0 - kib("MemAvailable:")? / total)
}

#[cfg(test)]
mod tests {
    use super::super::{CheckName, Config};
    use super::*;
    use std::time::Duration;

    fn vitals() -> Vitals {
        Vitals::new("node-a", Config::default().limits(), Arc::new(Metrics::new("node-a")))
    }

    fn model() -> ModelInfo {
        ModelInfo {
            name: "demo".to_owned(),
            model_type: "llama",
            created: 0,
            max_seq_len: 8,
            devices: vec![DeviceId::new("cpu:0")],
            weight_bytes: 1,
            kv_bytes: 1,
            digest: String::new(),
        }
    }

    #[test]
    fn ready_needs_a_model_a_device_and_no_drain() {
        let vitals = vitals();
        let device = DeviceId::new("cpu:0");
        vitals.add_device(&device);
        vitals.set_models_wanted(1);
        assert!(!vitals.is_ready());
        assert_eq!(vitals.message(Timestamp::now()).status, Status::Critical);
        vitals.device_up(&device);
        vitals.set_models(vec![model()]);
        assert!(vitals.is_ready());
        assert_eq!(vitals.message(Timestamp::now()).status, Status::Healthy);
        vitals.device_down(&device, "broke");
        let message = vitals.message(Timestamp::now());
        assert_eq!((message.status, message.devices[0].rebuilds), (Status::Critical, 0));
        vitals.device_down(&device, "a try failed, too");
        vitals.device_rebuilt(&device);
        assert_eq!(vitals.message(Timestamp::now()).devices[0].rebuilds, 1, "not its failures");
        vitals.set_draining();
        assert!(!vitals.is_ready());
        assert!(vitals.message(Timestamp::now()).draining);
    }

    #[test]
    fn a_node_that_nats_refuses_is_not_ready_and_one_whose_nats_is_away_is() {
        let vitals = vitals();
        vitals.add_device(&DeviceId::new("cpu:0"));
        vitals.device_up(&DeviceId::new("cpu:0"));
        vitals.set_models(vec![model()]);
        vitals.set_bus(BusState::Refused("wrong password".to_owned()));
        assert!(!vitals.is_ready());
        assert_eq!(vitals.message(Timestamp::now()).status, Status::Degraded);
        vitals.set_bus(BusState::Impaired("away".to_owned()));
        assert!(vitals.is_ready());
        assert_eq!(vitals.message(Timestamp::now()).status, Status::Degraded);
        vitals.set_bus(BusState::Up);
        assert!(vitals.is_ready());
        assert_eq!(vitals.message(Timestamp::now()).status, Status::Healthy);
    }

    #[test]
    fn what_has_ended_makes_the_node_critical_and_names_the_cause() {
        let vitals = vitals();
        vitals.add_device(&DeviceId::new("cpu:0"));
        vitals.device_up(&DeviceId::new("cpu:0"));
        vitals.set_models(vec![model()]);
        vitals.set_ended("scheduler actor");
        vitals.set_ended("bus");
        assert!(!vitals.is_ready());
        let message = vitals.message(Timestamp::now());
        let progress = message.checks.iter().find(|check| check.name == CheckName::Progress);
        let text = progress.and_then(|check| check.message.as_deref());
        assert_eq!((message.status, text), (Status::Critical, Some("scheduler actor has ended")));
    }

    #[test]
    fn an_actor_that_stalls_with_work_to_do_is_critical() {
        let vitals = vitals();
        vitals.add_device(&DeviceId::new("cpu:0"));
        vitals.device_up(&DeviceId::new("cpu:0"));
        vitals.set_models(vec![model()]);
        let running = vitals.watch_running("batcher");
        let waiting = vitals.watch_waiting();
        let start = Timestamp::now();
        running.set_pending(3, start);
        waiting.set_pending(2, start);
        waiting.stamp(start.after(Duration::from_secs(31)));
        let message = vitals.message(start.after(Duration::from_secs(31)));
        assert_eq!((message.running, message.waiting), (3, 2));
        assert_eq!(message.status, Status::Critical);
        assert!(message.checks[4].message.as_deref().is_some_and(|m| m.starts_with("batcher")));
    }

    #[test]
    fn a_scheduler_that_keeps_what_could_leave_is_degraded_and_then_critical() {
        let vitals = vitals();
        vitals.add_device(&DeviceId::new("cpu:0"));
        vitals.device_up(&DeviceId::new("cpu:0"));
        vitals.set_models(vec![model()]);
        let waiting = vitals.watch_waiting();
        let start = Timestamp::now();
        waiting.set_pending(1, start);
        for (seconds, status) in
            [(4, Status::Healthy), (6, Status::Degraded), (31, Status::Critical)]
        {
            let message = vitals.message(start.after(Duration::from_secs(seconds)));
            assert_eq!((message.checks[4].status, message.waiting), (status, 1));
        }
        // A queue behind a busy device: looked at a moment ago, nothing could leave.
        waiting.stamp(start.after(Duration::from_secs(31)));
        let message = vitals.message(start.after(Duration::from_secs(32)));
        assert_eq!(message.status, Status::Healthy);
    }

    #[test]
    fn a_full_gpu_is_a_full_memory() {
        let vitals = vitals();
        let id = DeviceId::new("cuda:3");
        vitals.add_device(&id);
        vitals.add_device(&DeviceId::new("cpu:0"));
        assert_eq!(vitals.gpus(), [(id.clone(), 3)]);
        let readings = gpu::CardReadings {
            memory_used_bytes: 99,
            memory_total_bytes: 100,
            utilisation: 50,
            temperature: 40,
            ecc_uncorrected: None,
        };
        vitals.set_gpu(&id, readings);
        let message = vitals.message(Timestamp::now());
        assert_eq!(message.checks[0].value, Some(0.99));
        assert_ne!(message.checks[0].status, Status::Healthy);
        assert_eq!(message.checks[0].message.as_deref(), Some("memory of cuda:3 is short"));
        assert_eq!(message.devices[1].gpu.as_ref().and_then(|gpu| gpu.readings), Some(readings));
    }

    #[test]
    fn a_gpu_keeps_its_name_when_its_readings_go() {
        let vitals = vitals();
        let id = DeviceId::new("cuda:0");
        vitals.add_device(&id);
        let card = gpu::Card {
            name: "A card".to_owned(),
            pci_bus_id: "00000000:1B:00.0".to_owned(),
            numa_node: Some(1),
            capability: (9, 0),
        };
        vitals.set_gpu_card(&id, card);
        let readings = gpu::CardReadings {
            memory_used_bytes: 0,
            memory_total_bytes: 0,
            utilisation: 0,
            temperature: 40,
            ecc_uncorrected: Some(2),
        };
        vitals.set_gpu(&id, readings);
        let gpu = || {
            let message = vitals.message(Timestamp::now());
            serde_json::to_value(&message.devices[0].gpu).expect("plain fields")
        };
        let known = serde_json::json!({
            "name": "A card", "pci_bus_id": "00000000:1B:00.0", "numa_node": 1
        });
        assert_eq!((gpu()["temperature"].as_u64(), &gpu()["name"]), (Some(40), &known["name"]));
        assert_eq!(vitals.take_gpu(&id), Some(readings));
        assert_eq!((gpu(), vitals.take_gpu(&id)), (known, None));
    }

    #[test]
    fn the_timestamp_is_rfc_3339_with_milliseconds() {
        let text = timestamp();
        assert_eq!(text.len(), "2026-01-01T00:00:00.000Z".len(), "{text}");
        assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T');
    }
}
