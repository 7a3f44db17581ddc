//! The configuration: file < environment < flags, composed of the sections that the modules own, checked whole before anything is
//! bound.
//!
//! * file: TOML; `config/node.toml` lists every key with its default, unit and price.
//! * environment: `INFERNO_<SECTION>_<KEY>`, such as `INFERNO_HTTP_BIND`; the value is TOML, or else a string.
//!   `INFERNO_MODEL_PATH` and `INFERNO_MODEL_NAME` stand for one `[[models]]` entry.
//! * flags: see `inferno-node serve --help`; `--set section.key=value` reaches every key.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::models::{LoadFormat, ModelSpec};
use crate::{admission, batcher, bus, executor, health, http, scheduler};

/// The whole configuration, each section owned by its module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node: its id, log, shutdown.
    pub node: NodeConfig,
    /// What to load.
    pub models: Vec<ModelSpec>,
    /// NATS.
    pub bus: bus::Config,
    /// HTTP.
    pub http: http::Config,
    /// Limits at the door.
    pub admission: admission::Config,
    /// The waiting queue.
    pub scheduler: scheduler::Config,
    /// Steps and KV blocks.
    pub batcher: batcher::Config,
    /// Devices and their memory.
    pub executor: executor::Config,
    /// Limits of the health checks.
    pub health: health::Config,
}

/// The section `[node]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// This node's id on bus, metrics and receipts: `[A-Za-z0-9_-]{1,64}`; absent: host name and process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Seconds that SIGTERM gives running requests; what is left then fails as `draining`.
    pub drain_timeout_s: u64,
    /// Log filter, as `RUST_LOG`.
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

/// Where the layers come from; tests bring their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if one is named.
    pub file: Option<PathBuf>,
    /// Environment variables that begin with `INFERNO_`.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`, in order.
    pub flags: Vec<String>,
}

/// Variables that begin like configuration and are not; the client tests and the logs use them.
const NOT_CONFIGURATION: [&str; 1] = ["INFERNO_CONFIG"];

impl Config {
    /// Reads the layers, and checks the result whole.
    ///
    /// # Errors
    /// Every fault found, one line each.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut table = match &sources.file {
            Some(path) => read_file(path)?,
            None => Table::new(),
        };
        for (name, value) in &sources.environment {
            if !NOT_CONFIGURATION.contains(&name.as_str()) {
                apply_variable(&mut table, name, value)?;
            }
        }
        for flag in &sources.flags {
            let (path, value) = flag
                .split_once('=')
                .ok_or_else(|| format!("--set {flag}: expected section.key=value"))?;
            apply(&mut table, path, value).map_err(|fault| format!("--set {flag}: {fault}"))?;
        }
        let config = Config::deserialize(table)
            .map_err(|error| ConfigError::from(error.to_string().trim().to_owned()))?;
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
            self.http.check(),
            self.admission.check(),
            self.scheduler.check(),
            self.batcher.check(),
            self.executor.check(),
            self.health.check(),
        ] {
            faults.extend(section.err().unwrap_or_default());
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
    }

    fn check_node(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(id) = &self.node.id
            && let Err(error) = crate::request::RequestId::parse(id)
        {
            faults.push(format!("node.id: {}", error.message));
        }
        if !(1..=3_600).contains(&self.node.drain_timeout_s) {
            faults.push(format!(
                "node.drain_timeout_s: expected 1 to 3600, got {}",
                self.node.drain_timeout_s
            ));
        }
        faults
    }

    fn check_models(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut names = HashSet::new();
        if self.models.is_empty() {
            faults.push("models: expected at least one [[models]] entry (or --model-path)".into());
        }
        for model in &self.models {
            faults.extend(model.check().err().unwrap_or_default());
            if !names.insert(&model.name) {
                faults.push(format!("models.name: {:?} is given twice", model.name));
            }
        }
        faults
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

    /// How long SIGTERM lets requests run on.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.node.drain_timeout_s)
    }

    /// For programs: one model, no bus, no HTTP.
    pub fn library(name: &str, model_path: impl Into<PathBuf>) -> Self {
        let mut config = Self::default();
        config.models.push(ModelSpec {
            name: name.to_owned(),
            model_path: model_path.into(),
            load_format: LoadFormat::default(),
            max_seq_len: None,
        });
        config.bus.mode = bus::Mode::Off;
        config.http.enabled = false;
        config
    }

    /// The effective configuration as TOML, secrets hidden.
    pub fn to_toml(&self) -> String {
        match Value::try_from(self) {
            Ok(mut value) => {
                hide_secrets(&mut value);
                toml::to_string(&value).unwrap_or_else(|error| format!("# {error}\n"))
            }
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Keys whose values are never printed.
const SECRETS: [&str; 3] = ["api_keys", "password", "token"];

fn hide_secrets(value: &mut Value) {
    match value {
        Value::Table(table) => {
            for (key, value) in table.iter_mut() {
                match value {
                    Value::Array(items) if SECRETS.contains(&key.as_str()) => {
                        items.iter_mut().for_each(|item| *item = Value::String("***".into()));
                    }
                    Value::String(text) if SECRETS.contains(&key.as_str()) => {
                        *text = "***".into();
                    }
                    other => hide_secrets(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    text.parse::<Table>()
        .map_err(|error| format!("{}: {}", path.display(), error.to_string().trim()).into())
}

fn apply_variable(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let fault = |reason: String| ConfigError::from(format!("{name}: {reason}"));
    let rest = name.strip_prefix("INFERNO_").unwrap_or(name).to_lowercase();
    let (section, key) =
        rest.split_once('_').ok_or_else(|| fault("expected INFERNO_<SECTION>_<KEY>".to_owned()))?;
    apply(table, &format!("{section}.{key}"), value).map_err(fault)
}

/// Sets `section.key`; `model.key` is the first `[[models]]` entry, made if there is none.
fn apply(table: &mut Table, path: &str, value: &str) -> Result<(), String> {
    let (section, key) = path.split_once('.').ok_or("expected section.key")?;
    let value = parse_value(value);
    let target = if section == "model" {
        first_model(table)?
    } else {
        table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{section} is no section"))?
    };
    let key = if section == "model" && key == "path" { "model_path" } else { key };
    target.insert(key.to_owned(), value);
    Ok(())
}

fn first_model(table: &mut Table) -> Result<&mut Table, String> {
    let models = table
        .entry("models")
        .or_insert_with(|| Value::Array(Vec::new()))
        .as_array_mut()
        .ok_or("models is no list of tables")?;
    if models.is_empty() {
        models.push(Value::Table(Table::new()));
    }
    models[0].as_table_mut().ok_or_else(|| "models is no list of tables".to_owned())
}

/// TOML if it is (`3`, `true`, `["a"]`), else the text itself.
fn parse_value(text: &str) -> Value {
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}
