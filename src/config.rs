//! The configuration: file < environment < flags, composed of the sections that the modules own, checked whole before anything is
//! bound.
//!
//! * file: TOML; `config/node.toml` lists every key with its default, unit and price.
//! * environment: `INFERNO_<SECTION>_<KEY>`, such as `INFERNO_HTTP_BIND` (`INFERNO_BUS_TLS__CA` for `bus.tls.ca`); the value is
//!   TOML, or else a string.
//!   `INFERNO_MODEL_PATH` and `INFERNO_MODEL_NAME` stand for one `[[models]]` entry.
//! * flags: see `inferno-node serve --help`; `--set section.key=value` reaches every key.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::bridge::ffi::Backend;
use crate::checkpoint::LoadFormat;
use crate::models::ModelSpec;
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

/// Variables that begin like configuration and are none: the command line's own, and what clients and tests are told by. Where one
/// is exported for them, a node must still start. Any other that names no key is refused, as a mistyped one would be.
const NOT_CONFIGURATION: [&str; 8] = [
    "INFERNO_CONFIG",
    "INFERNO_API_KEY",
    "INFERNO_HTTP_URL",
    "INFERNO_NATS_URL",
    "INFERNO_BIN",
    "INFERNO_SERVE_ARGS",
    "INFERNO_SIM_RUNS",
    "INFERNO_SIM_SEED",
];

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
        let config = read_table(table)?;
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
            self.batcher.check(self.executor.backend() == Backend::Cuda),
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
            && let Err(error) = crate::ids::RequestId::parse(id)
        {
            faults.push(format!("node.id: {}", error.message));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.node.log) {
            faults.push(format!("node.log: {error}, got {:?}", self.node.log));
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

    /// The effective configuration as TOML. Secrets have types of their own, which show nothing.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    text.parse::<Table>()
        .map_err(|error| format!("{}: {}", path.display(), error.to_string().trim()).into())
}

/// Reads the joined layers. What is at fault is taken out and the rest read again, so that every fault is named.
fn read_table(table: Table) -> Result<Config, ConfigError> {
    let mut rest = Value::Table(table);
    let mut faults = Vec::new();
    loop {
        let error = match Config::deserialize(rest.clone()) {
            Ok(config) if faults.is_empty() => return Ok(config),
            Ok(_) => return Err(ConfigError(faults)),
            Err(error) => error,
        };
        let key = key_at_fault(&error);
        let message = error.message();
        faults.push(if key.is_empty() { message.to_owned() } else { format!("{key}: {message}") });
        let path: Vec<&str> = key.split('.').collect();
        if !take_out(&mut rest, &path) {
            return Err(ConfigError(faults));
        }
    }
}

/// Where an error lies, as `section.key`: the text says the table, and first of all the name of a key that is not known.
fn key_at_fault(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let table =
        text.rsplit_once("\nin `").map_or("", |(_, rest)| rest.trim_end().trim_end_matches('`'));
    let unknown =
        error.message().strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let parts = [Some(table), unknown.map(|(key, _)| key)];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

/// Removes a key; in a list of tables, from each of them. Tells whether there was one.
fn take_out(value: &mut Value, path: &[&str]) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    match value {
        Value::Array(list) => list.iter_mut().fold(false, |any, one| take_out(one, path) | any),
        Value::Table(table) if rest.is_empty() => table.remove(*key).is_some(),
        Value::Table(table) => table.get_mut(*key).is_some_and(|inner| take_out(inner, rest)),
        _ => false,
    }
}

fn apply_variable(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let fault = |reason: String| ConfigError::from(format!("{name}: {reason}"));
    let rest = name.strip_prefix("INFERNO_").unwrap_or(name).to_lowercase();
    let (section, key) =
        rest.split_once('_').ok_or_else(|| fault("expected INFERNO_<SECTION>_<KEY>".to_owned()))?;
    apply(table, &format!("{section}.{}", key.replace("__", ".")), value).map_err(fault)
}

/// Sets `section.key` or `section.table.key`; `model.key` is the first `[[models]]` entry, made if there is none.
fn apply(table: &mut Table, path: &str, value: &str) -> Result<(), String> {
    let (section, key) = path.split_once('.').ok_or("expected section.key")?;
    let is_model = section == "model";
    let mut target = if is_model { first_model(table)? } else { sub_table(table, section)? };
    let (tables, key) = key.rsplit_once('.').map_or((None, key), |(t, key)| (Some(t), key));
    for name in tables.into_iter().flat_map(|tables| tables.split('.')) {
        target = sub_table(target, name)?;
    }
    let key = if is_model && key == "path" { "model_path" } else { key };
    target.insert(key.to_owned(), parse_value(value));
    Ok(())
}

fn sub_table<'a>(table: &'a mut Table, name: &str) -> Result<&'a mut Table, String> {
    table
        .entry(name)
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .ok_or_else(|| format!("{name} is no section"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[&str],
    ) -> Result<Config, ConfigError> {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), file).expect("writes");
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Config::load(&Sources {
            file: Some(path.path().to_owned()),
            environment: environment.iter().map(pair).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        })
    }

    const MODEL: &str = "[[models]]\nname = \"demo\"\nmodel_path = \"models/demo\"\n";

    #[test]
    fn flags_go_over_environment_over_file() {
        let file =
            format!("{MODEL}[http]\nbind = \"127.0.0.1:1\"\nworkers = 2\n[node]\nid = \"a\"\n");
        let environment = [("INFERNO_HTTP_BIND", "127.0.0.1:2"), ("INFERNO_NODE_ID", "b")];
        let config = load(&file, &environment, &["http.bind=127.0.0.1:3"]).expect("valid");
        assert_eq!(config.http.bind, "127.0.0.1:3");
        assert_eq!((config.node_id().as_str(), config.http.workers), ("b", 2));
        assert_eq!(config.drain_timeout(), Duration::from_secs(30));
    }

    #[test]
    fn the_environment_reaches_models_and_inner_tables() {
        let environment = [
            ("INFERNO_MODEL_PATH", "models/demo"),
            ("INFERNO_MODEL_NAME", "tiny"),
            ("INFERNO_BUS_MANAGED__PORT", "4300"),
            ("INFERNO_HTTP_API_KEYS", "[\"secret\"]"),
            ("INFERNO_CONFIG", "read by the command line"),
            ("INFERNO_API_KEY", "a client's"),
        ];
        let config = load("", &environment, &["bus.tls.required=true"]).expect("valid");
        assert_eq!(config.models[0].name, "tiny");
        assert_eq!((config.bus.managed.port, config.bus.tls.required), (4300, true));
        assert!(!config.to_toml().contains("secret"), "{}", config.to_toml());
        assert!(config.to_toml().contains("name = \"tiny\""));
    }

    #[test]
    fn faults_name_their_keys_all_at_once() {
        let file = format!(
            "{MODEL}{MODEL}[http]\nworkers = 0\n[node]\nid = \"a b\"\ndrain_timeout_s = 0\n[scheduler]\nageing_s = -1\n"
        );
        let error = load(&file, &[], &[]).expect_err("five faults");
        for key in
            ["models.name", "http.workers", "node.id", "node.drain_timeout_s", "scheduler.ageing_s"]
        {
            assert!(error.0.iter().any(|line| line.starts_with(key)), "{key} in {error}");
        }
        let none = load("", &[], &[]).expect_err("no model");
        assert!(none.to_string().contains("[[models]]"), "{none}");
    }

    #[test]
    fn a_block_size_is_one_that_the_kernels_of_the_devices_have() {
        for (block_size, on_gpus) in [(8, false), (16, true), (128, true), (256, false)] {
            let size = format!("batcher.block_size={block_size}");
            // In a build without CUDA, GPUs are a fault of their own.
            let is_taken = |devices| {
                let error = load(MODEL, &[], &[&size, devices]).err();
                error.is_none_or(|error| !error.to_string().contains("batcher.block_size"))
            };
            assert_eq!(is_taken("executor.gpu_devices=[0]"), on_gpus, "{block_size}");
            assert!(is_taken("executor.gpu_devices=[]"), "{block_size}");
        }
    }

    #[test]
    fn unknown_keys_and_broken_layers_are_refused() {
        for (file, environment, flags, part) in [
            ("[http]\nport = 1\n", None, None, "port"),
            ("[what]\nis = 1\n", None, None, "what"),
            ("[http\n", None, None, "http"),
            ("models = 3\n", None, Some("model.name=x"), "models"),
            ("http = 3\n", None, Some("http.bind=x"), "http"),
            ("", Some(("INFERNO_HTTP", "1")), None, "INFERNO_HTTP"),
            ("", Some(("INFERNO_HTTP_PORT", "1")), None, "port"),
            ("", None, Some("http.bind"), "http.bind"),
            ("", None, Some("bind=1"), "bind=1"),
        ] {
            let environment: Vec<_> = environment.into_iter().collect();
            let flags: Vec<_> = flags.into_iter().collect();
            let error = load(file, &environment, &flags).expect_err(part);
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        let sources = Sources { file: Some("/does/not/exist.toml".into()), ..Sources::default() };
        assert!(Config::load(&sources).is_err());
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named_with_their_section_all_at_once() {
        let file = "[[models]]\nname = \"a\"\nmodel_path = \"b\"\ncolour = 1\n\
            [http]\nport = 1\nhost = 1\nworkers = \"two\"\n[bus.tls]\ncrt = \"x\"\n[hppt]\nbind = \"y\"\n\
            [executor]\nisa = \"sse\"\nfaults = [{ kind = \"panic\", steps = 1 }]\n";
        let error = load(file, &[("INFERNO_NODE_NAME", "c")], &[]).expect_err("nine faults");
        let keys = [
            "models.colour",
            "http.port",
            "http.host",
            "http.workers",
            "bus.tls.crt",
            "hppt",
            "executor.isa",
            "executor.faults.steps",
            "node.name",
        ];
        for key in keys {
            let named = |line: &&String| line.starts_with(&format!("{key}: "));
            assert_eq!(error.0.iter().filter(named).count(), 1, "{key} in {error}");
        }
        assert_eq!(error.0.len(), keys.len(), "{error}");
        let missing = load("[[models]]\nname = \"a\"\n", &[], &[]).expect_err("no path");
        assert!(missing.to_string().contains("model_path"), "{missing}");
    }

    #[test]
    fn a_library_configuration_opens_no_door() {
        let config = Config::library("demo", "models/demo");
        assert_eq!(config.check(), Ok(()));
        assert!(!config.http.enabled && config.bus.mode == bus::Mode::Off);
        assert!(!config.node_id().is_empty());
    }
}
