//! From readings to a status; pure.

use serde::{Deserialize, Serialize};

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Healthy,
    /// It works, but not as it should.
    Degraded,
    /// It does not work.
    Critical,
}

impl Status {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Degraded => "degraded",
            Status::Critical => "critical",
        }
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckName {
    /// Largest share of memory in use, 0 to 1: of the machine, and of each of the node's GPUs by everyone on it.
    Memory,
    /// Share of the devices that are up with every model, 0 to 1.
    Model,
    /// P95 of the time to first token over the last minute, in ms.
    Latency,
    /// Share of the largest batch that steps filled over the last minute, 0 to 1.
    Batching,
    /// Longest time an actor with work to do has finished nothing, in ms.
    Progress,
    /// 1 while NATS is connected and every subscription stands, else 0.
    Bus,
    /// 1 while durable requests can be stored, else 0.
    Log,
}

impl CheckName {
    /// The name on the wire and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckName::Memory => "memory",
            CheckName::Model => "model",
            CheckName::Latency => "latency",
            CheckName::Batching => "batching",
            CheckName::Progress => "progress",
            CheckName::Bus => "bus",
            CheckName::Log => "log",
        }
    }
}

/// One check of the health message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: CheckName,
    /// How it stands.
    pub status: Status,
    /// The reading; null where there is none yet.
    pub value: Option<f64>,
    /// The limit it is held against; null where there is none.
    pub limit: Option<f64>,
    /// For a person, where something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How the bus stands with NATS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BusState {
    /// There is none.
    #[default]
    Off,
    /// Connected, with every subscription.
    Up,
    /// NATS is away, or denies what no request comes by: what works goes on, HTTP with it. Why, for a person.
    Impaired(String),
    /// NATS refuses the login, the certificate, or the subscription by which requests come: that is for someone to mend, and the
    /// node is not ready. Why, for a person.
    Refused(String),
}

/// How the log of durable requests stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogState {
    /// There is none: they are off, or NATS has never had a place for them.
    #[default]
    Off,
    /// They are stored.
    Up,
    /// They were, and cannot be now: those that run wait, new ones are refused. Why, for a person.
    Impaired(String),
}

/// What was read at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// The largest share of memory in use, and whose it is: a GPU's name, or `None` for the machine.
    pub memory: Option<(f64, Option<String>)>,
    /// Devices that are up, of how many, and what is wrong with the others.
    pub devices_up: u32,
    /// Devices configured.
    pub devices: u32,
    /// Why a device is down.
    pub device_fault: Option<String>,
    /// Whether one is lost to this process, which is to end.
    pub device_lost: bool,
    /// Models that take requests.
    pub models_up: u32,
    /// Models configured or loaded since.
    pub models: u32,
    /// P95 time to first token.
    pub latency_ms: Option<f64>,
    /// Mean share of the batch filled.
    pub batching: Option<f64>,
    /// The longest stall, and whose.
    pub stalled_ms: f64,
    /// The actor that stalled.
    pub stalled_actor: Option<&'static str>,
    /// An actor, a door or a thread that has ended and cannot be built again in this process.
    pub ended: Option<&'static str>,
    /// The bus.
    pub bus: BusState,
    /// Durable requests.
    pub log: LogState,
}

/// What readings are held against: (degraded, critical), or one limit for degraded.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Share of memory.
    pub memory: (f64, f64),
    /// Milliseconds without progress.
    pub progress_ms: (f64, f64),
    /// P95 time to first token in ms.
    pub latency_ms: Option<f64>,
    /// Share of the batch.
    pub batching: Option<f64>,
}

/// All checks, in the order of the message.
pub fn evaluate(readings: &Readings, limits: &Limits) -> Vec<Check> {
    vec![
        memory(readings, limits),
        model(readings),
        optional(CheckName::Latency, readings.latency_ms, limits.latency_ms, |v, l| v > l),
        optional(CheckName::Batching, readings.batching, limits.batching, |v, l| v < l),
        progress(readings, limits),
        bus(&readings.bus),
        log(&readings.log),
    ]
}

/// Critical if any check is, Healthy if all are, Degraded otherwise.
pub fn overall(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Healthy)
}

fn graded(value: f64, (degraded, critical): (f64, f64)) -> Status {
    if value > critical {
        Status::Critical
    } else if value > degraded {
        Status::Degraded
    } else {
        Status::Healthy
    }
}

fn memory(readings: &Readings, limits: &Limits) -> Check {
    let value = readings.memory.as_ref().map(|(value, _)| *value);
    let whose = readings.memory.as_ref().and_then(|(_, gpu)| gpu.as_deref());
    let status = value.map_or(Status::Healthy, |value| graded(value, limits.memory));
    let message = format!("memory of {} is short", whose.unwrap_or("the machine"));
    Check {
        name: CheckName::Memory,
        status,
        value,
        limit: Some(limits.memory.0),
        message: (status != Status::Healthy).then_some(message),
    }
}

fn model(readings: &Readings) -> Check {
    let share = |up: u32, of: u32| if of == 0 { 0.0 } else { f64::from(up) / f64::from(of) };
    let value = share(readings.devices_up, readings.devices)
        .min(share(readings.models_up, readings.models));
    let (status, message) = if value >= 1.0 {
        (Status::Healthy, None)
    } else if value == 0.0 || readings.device_lost {
        let text = readings.device_fault.clone().unwrap_or_else(|| "no model is loaded".to_owned());
        (Status::Critical, Some(text))
    } else {
        let text = readings.device_fault.clone().unwrap_or_else(|| {
            format!("{} of {} models are loaded", readings.models_up, readings.models)
        });
        (Status::Degraded, Some(text))
    };
    Check { name: CheckName::Model, status, value: Some(value), limit: Some(1.0), message }
}

fn optional(
    name: CheckName,
    value: Option<f64>,
    limit: Option<f64>,
    beyond: impl Fn(f64, f64) -> bool,
) -> Check {
    let is_beyond = value.zip(limit).is_some_and(|(value, limit)| beyond(value, limit));
    let status = if is_beyond { Status::Degraded } else { Status::Healthy };
    let message = is_beyond.then(|| "beyond its limit over the last minute".to_owned());
    Check { name, status, value, limit, message }
}

fn progress(readings: &Readings, limits: &Limits) -> Check {
    let mut status = graded(readings.stalled_ms, limits.progress_ms);
    let mut message = (status != Status::Healthy).then(|| {
        let actor = readings.stalled_actor.unwrap_or("an actor");
        format!("{actor} has finished nothing for {:.0} ms", readings.stalled_ms)
    });
    if let Some(ended) = readings.ended {
        (status, message) = (Status::Critical, Some(format!("{ended} has ended")));
    }
    Check {
        name: CheckName::Progress,
        status,
        value: Some(readings.stalled_ms),
        limit: Some(limits.progress_ms.0),
        message,
    }
}

fn bus(state: &BusState) -> Check {
    let (status, value, message) = match state {
        BusState::Off => (Status::Healthy, None, None),
        BusState::Up => (Status::Healthy, Some(1.0), None),
        BusState::Impaired(why) | BusState::Refused(why) => {
            (Status::Degraded, Some(0.0), Some(why.clone()))
        }
    };
    Check { name: CheckName::Bus, status, value, limit: value.map(|_| 1.0), message }
}

fn log(state: &LogState) -> Check {
    let (status, value, message) = match state {
        LogState::Off => (Status::Healthy, None, None),
        LogState::Up => (Status::Healthy, Some(1.0), None),
        LogState::Impaired(why) => (Status::Degraded, Some(0.0), Some(why.clone())),
    };
    Check { name: CheckName::Log, status, value, limit: value.map(|_| 1.0), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory: (0.95, 0.98),
            progress_ms: (5_000.0, 30_000.0),
            latency_ms: None,
            batching: None,
        }
    }

    fn well() -> Readings {
        Readings { devices_up: 2, devices: 2, models_up: 1, models: 1, ..Readings::default() }
    }

    fn status_of(readings: &Readings, limits: &Limits, name: CheckName) -> Status {
        let checks = evaluate(readings, limits);
        checks.iter().find(|check| check.name == name).expect("every check is there").status
    }

    #[test]
    fn all_well_is_healthy_and_lists_seven_checks() {
        let checks = evaluate(&well(), &limits());
        assert_eq!(checks.len(), 7);
        assert_eq!(overall(&checks), Status::Healthy);
    }

    #[test]
    fn a_device_down_degrades_and_none_up_is_critical() {
        let fault = Some("cpu:1: other: broke".to_owned());
        let one = Readings { devices_up: 1, device_fault: fault.clone(), ..well() };
        assert_eq!(status_of(&one, &limits(), CheckName::Model), Status::Degraded);
        let lost = Readings { device_lost: true, ..one };
        assert_eq!(status_of(&lost, &limits(), CheckName::Model), Status::Critical);
        let none = Readings { devices_up: 0, device_fault: fault, ..well() };
        let checks = evaluate(&none, &limits());
        assert_eq!(overall(&checks), Status::Critical);
        assert_eq!(checks[1].message.as_deref(), Some("cpu:1: other: broke"));
        let unloaded = Readings { models_up: 0, ..well() };
        assert_eq!(status_of(&unloaded, &limits(), CheckName::Model), Status::Critical);
        let some = Readings { models_up: 1, models: 2, ..well() };
        assert_eq!(status_of(&some, &limits(), CheckName::Model), Status::Degraded);
    }

    #[test]
    fn memory_and_progress_have_two_limits() {
        for (value, status) in
            [(0.9, Status::Healthy), (0.96, Status::Degraded), (0.99, Status::Critical)]
        {
            let readings = Readings { memory: Some((value, None)), ..well() };
            assert_eq!(status_of(&readings, &limits(), CheckName::Memory), status);
        }
        for (value, status) in
            [(10.0, Status::Healthy), (6e3, Status::Degraded), (4e4, Status::Critical)]
        {
            let readings =
                Readings { stalled_ms: value, stalled_actor: Some("executor"), ..well() };
            assert_eq!(status_of(&readings, &limits(), CheckName::Progress), status);
        }
    }

    #[test]
    fn the_memory_check_names_whose_memory_is_short() {
        for (whose, message) in [
            (Some("cuda:1".to_owned()), "memory of cuda:1 is short"),
            (None, "memory of the machine is short"),
        ] {
            let readings = Readings { memory: Some((0.96, whose.clone())), ..well() };
            let checks = evaluate(&readings, &limits());
            assert_eq!(checks[0].message.as_deref(), Some(message));
            let readings = Readings { memory: Some((0.5, whose)), ..well() };
            assert_eq!(evaluate(&readings, &limits())[0].message, None);
        }
    }

    #[test]
    fn a_log_that_was_there_and_is_away_degrades_and_says_why() {
        let status = |log| status_of(&Readings { log, ..well() }, &limits(), CheckName::Log);
        assert_eq!(status(LogState::Off), Status::Healthy);
        assert_eq!(status(LogState::Up), Status::Healthy);
        assert_eq!(status(LogState::Impaired("away".to_owned())), Status::Degraded);
    }

    #[test]
    fn a_bus_that_is_away_or_refused_degrades_and_says_why() {
        for state in [BusState::Impaired("away".to_owned()), BusState::Refused("no".to_owned())] {
            let checks = evaluate(&Readings { bus: state.clone(), ..well() }, &limits());
            assert_eq!(overall(&checks), Status::Degraded);
            let check = checks.iter().find(|check| check.name == CheckName::Bus).expect("there");
            let (BusState::Impaired(why) | BusState::Refused(why)) = &state else { unreachable!() };
            assert_eq!((check.value, check.message.as_ref()), (Some(0.0), Some(why)));
        }
        assert_eq!(status_of(&well(), &limits(), CheckName::Bus), Status::Healthy, "no bus");
    }

    #[test]
    fn a_check_without_a_limit_is_healthy() {
        let slow = Readings { latency_ms: Some(9e9), batching: Some(0.01), ..well() };
        assert_eq!(overall(&evaluate(&slow, &limits())), Status::Healthy);
        let limits = Limits { latency_ms: Some(100.0), batching: Some(0.5), ..limits() };
        assert_eq!(status_of(&slow, &limits, CheckName::Latency), Status::Degraded);
        assert_eq!(status_of(&slow, &limits, CheckName::Batching), Status::Degraded);
        assert_eq!(status_of(&well(), &limits, CheckName::Batching), Status::Healthy);
    }
}
