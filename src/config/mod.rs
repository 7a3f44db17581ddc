//! The configuration: file < environment < flags, composed of the sections that the modules own, checked whole before anything is
//! bound. `docs/configuration.md` lists every key; [`page()`] writes it.
//!
//! * file: TOML.
//! * environment: `INFERNO_<SECTION>_<KEY>`, such as `INFERNO_HTTP_BIND` (`INFERNO_BUS_TLS__CA` for `bus.tls.ca`).
//! * flags: see `inferno-node serve --help`; `--set section.key=value` reaches every key.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bridge::ffi::Backend;
use crate::models::ModelSpec;
use crate::{
    admission, batcher, bus, executor, health, http, log, registrar, scheduler, settings, telemetry,
};

mod keys;
mod layers;
mod page;

pub use keys::{ConfigKey, FLAGS, keys};
pub use layers::{Set, Sources};
pub use page::page;

/// The whole configuration, each section owned by its module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node: its id, log, shutdown.
    pub node: NodeConfig,
    /// What to load: one `[[models]]` entry for each model, each loaded on every device of the node. Flags, and variables that
    /// begin with `INFERNO_MODEL_`, are about the only model, and make it where the file has none.
    pub models: Vec<ModelSpec>,
    /// The door for NATS.
    pub bus: bus::Config,
    /// Durable requests and their streams.
    pub log: log::Config,
    /// The door for HTTP.
    pub http: http::Config,
    /// Limits at the doors, and what a request gets that does not say.
    pub admission: admission::Config,
    /// The waiting queue.
    pub scheduler: scheduler::Config,
    /// Steps and KV blocks.
    pub batcher: batcher::Config,
    /// Devices and their memory.
    pub executor: executor::Config,
    /// Limits of the health checks.
    pub health: health::Config,
    /// Inferno's load balancers, which send the node requests once it is registered with them (docs/registrar.md).
    pub registrar: registrar::Config,
}

/// The section `[node]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// This node's id on bus, metrics and receipts: 1 to 64 of A-Z a-z 0-9 _ -. Absent: host name and process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Seconds that SIGTERM gives running requests; what is left then fails as `draining`.
    #[schemars(range(min = 1, max = 3_600))]
    pub drain_timeout_s: u64,
    /// What is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`, or a filter as `RUST_LOG` has it, such as
    /// `info,inferno_node::request=off`. Other crates are logged where a filter names them, or at `debug` and `trace`. Text on a
    /// terminal, JSON lines otherwise.
    pub log: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { id: None, drain_timeout_s: 30, log: "info".to_owned() }
    }
}

/// Why a configuration is not taken: one line for each fault, naming the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl From<String> for ConfigError {
    fn from(fault: String) -> Self {
        Self(vec![fault])
    }
}

impl Config {
    /// Reads the layers, and checks the result whole.
    ///
    /// # Errors
    /// Every fault found, one line each; none shows a secret.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = layers::read(sources)?;
        config.http.read_key_file()?;
        config.registrar.read_secret_file()?;
        config.check()?;
        Ok(config)
    }

    /// Checks every section.
    ///
    /// # Errors
    /// Every fault found, one line each.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = self.check_node();
        faults.extend(self.check_models());
        for section in [
            self.bus.check(),
            self.log.check(),
            self.http.check(),
            self.admission.check(),
            self.scheduler.check(),
            self.batcher.check(self.executor.backend() == Backend::Cuda),
            self.executor.check(),
            self.health.check(),
            self.registrar.check(self.http.address().ok().filter(|_| self.http.enabled)),
        ] {
            faults.extend(section.err().unwrap_or_default());
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
    }

    fn check_node(&self) -> Vec<String> {
        let mut faults = settings::out_of_range("node", &self.node);
        if let Some(id) = &self.node.id
            && let Err(error) = crate::ids::RequestId::parse(id)
        {
            faults.push(format!("node.id: {}", error.message));
        }
        if let Err(fault) = telemetry::log_filter(&self.node.log) {
            faults.push(format!("node.log: {fault}"));
        }
        faults
    }

    fn check_models(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut names = HashSet::new();
        if self.models.is_empty() {
            faults.push(
                "models: expected a model: `serve MODEL`, or a [[models]] entry in the file".into(),
            );
        }
        for model in &self.models {
            faults.extend(model.check().err().unwrap_or_default());
            if !names.insert(&model.name) {
                faults.push(format!("models.name: {:?} is given twice", model.name));
            }
        }
        faults
    }

    /// Whether requests can come from anywhere but this process.
    ///
    /// # Errors
    /// That they cannot, and which keys say so.
    pub fn check_doors(&self) -> Result<(), ConfigError> {
        if self.http.enabled || !self.bus.is_off() {
            return Ok(());
        }
        let mode = match self.bus.mode {
            bus::Mode::Auto => "there is no bus (bus.mode = \"auto\" finds no nats-server here)",
            _ => "bus.mode is \"off\"",
        };
        Err(format!("http.enabled is false and {mode}: nobody could ask this node anything").into())
    }

    /// `node.id`, or one made of host name and process id.
    pub fn node_id(&self) -> String {
        if let Some(id) = &self.node.id {
            return id.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host
            .trim()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(48)
            .collect();
        let host = if host.is_empty() { "node".to_owned() } else { host };
        format!("{host}-{}", std::process::id())
    }

    /// What the node's tokens depend on beside the model: its devices, and what a request gets that does not say.
    pub fn exactness(&self) -> String {
        format!("{} {}", self.executor.exactness(), self.admission.exactness())
    }

    /// How long SIGTERM lets requests run on.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.node.drain_timeout_s)
    }

    /// For programs: one model, no bus, no HTTP.
    pub fn library(name: &str, model_path: impl Into<PathBuf>) -> Self {
        let mut config = Self::default();
        config.models.push(ModelSpec::new(name, model_path));
        config.bus.mode = bus::Mode::Off;
        config.http.enabled = false;
        config
    }

    /// The effective configuration as TOML. Secrets have types of their own, which show nothing.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// What differs from the defaults, models left out: `executor.threads = 1`, one line each.
    pub fn changes(&self) -> Vec<String> {
        let table = |config: &Self| toml::Table::try_from(config).unwrap_or_default();
        let mut changes = Vec::new();
        keys::compare("", &table(self), &table(&Self::default()), &mut changes);
        changes
    }
}

#[cfg(test)]
mod tests;
