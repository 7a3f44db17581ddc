//! Every key with its names in the three layers.

use toml::{Table, Value};

use super::Config;
use crate::settings::{Setting, settings_of};

/// One key; see [`Setting`].
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigKey(pub Setting);

/// What the command line calls them; more than one flag may be about one key.
pub const FLAGS: [(&str, &str); 13] = [
    ("MODEL", "models.model_path"),
    ("--name", "models.name"),
    ("--max-seq-len", "models.max_seq_len"),
    ("--quantization", "models.quantization"),
    ("--quantization-head", "models.quantization_head"),
    ("--kv-dtype", "executor.kv_dtype"),
    ("--device", "executor.devices"),
    ("--node-id", "node.id"),
    ("--host", "http.bind"),
    ("--port", "http.bind"),
    ("--api-key-file", "http.api_key_file"),
    ("--bus-mode", "bus.mode"),
    ("--bus-url", "bus.url"),
];

/// Variables that begin like configuration and are none: the command line's own, and what clients and tests are told by. Where one
/// is exported for them, a node must still start. Any other that names no key is refused, as a mistyped one would be.
pub(super) const NOT_CONFIGURATION: [&str; 8] = [
    "INFERNO_CONFIG",
    "INFERNO_API_KEY",
    "INFERNO_HTTP_URL",
    "INFERNO_NATS_URL",
    "INFERNO_BIN",
    "INFERNO_SERVE_ARGS",
    "INFERNO_SIM_RUNS",
    "INFERNO_SIM_SEED",
];

/// Every key: models first, then by name.
pub fn keys() -> Vec<ConfigKey> {
    let mut keys: Vec<ConfigKey> = settings_of::<Config>("").into_iter().map(ConfigKey).collect();
    keys.sort_by_key(|key| (key.section() != "models", key.0.path.clone()));
    keys
}

impl ConfigKey {
    /// Its section: `http`, and `bus` of `bus.tls.ca`.
    pub fn section(&self) -> &str {
        self.0.path.split('.').next().unwrap_or_default()
    }

    /// Its variable: `INFERNO_HTTP_BIND`.
    pub fn variable(&self) -> String {
        variable(&self.0.path)
    }

    /// The variables of its name and of its other names.
    pub(super) fn variables(&self) -> impl Iterator<Item = String> {
        let table = self.0.path.rsplit_once('.').map_or("", |(table, _)| table);
        let others = self.0.aliases.iter().map(move |alias| variable(&format!("{table}.{alias}")));
        std::iter::once(self.variable()).chain(others)
    }

    /// Its flags.
    pub fn flags(&self) -> impl Iterator<Item = &'static str> {
        FLAGS.iter().filter(|(_, key)| *key == self.0.path).map(|(flag, _)| *flag)
    }
}

fn variable(path: &str) -> String {
    let (section, key) = path.split_once('.').unwrap_or((path, ""));
    let (section, key) = match (section, key) {
        ("models", "model_path") => ("model", "path"),
        ("models", key) => ("model", key),
        other => other,
    };
    format!("INFERNO_{section}_{}", key.replace('.', "__")).to_uppercase()
}

/// The name that a mistyped one is most like, if it is like any.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LIKE: f64 = 0.6;
    // What all have in common makes none alike.
    let own = |name: &'_ str| name.trim_start_matches("INFERNO_").to_owned();
    let name = own(name);
    let like = |known: &str| strsim::normalized_damerau_levenshtein(&name, &own(known));
    let scored = known.map(|known| (like(known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score >= LIKE).map(|(_, known)| known)
}

/// Adds a line for each value that is not the default.
pub(super) fn compare(prefix: &str, values: &Table, defaults: &Table, changes: &mut Vec<String>) {
    let none = Table::new();
    for (name, value) in values.iter().filter(|(name, _)| *name != "models") {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (value, defaults.get(name)) {
            (Value::Table(inner), default) => {
                let default = default.and_then(Value::as_table).unwrap_or(&none);
                compare(&path, inner, default, changes);
            }
            (value, default) if default == Some(value) => {}
            (value, _) => changes.push(format!("{path} = {value}")),
        }
    }
}
