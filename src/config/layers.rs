//! File, environment and flags, joined to one table and read. What is wrong is said by the key's name; a value is quoted only where
//! the key is no secret.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::keys::{ConfigKey, NOT_CONFIGURATION, keys, nearest};
use super::{Config, ConfigError};
use crate::settings::Form;

/// Where the layers come from; tests bring their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if one is named.
    pub file: Option<PathBuf>,
    /// Environment variables that begin with `INFERNO_`.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags, in order.
    pub flags: Vec<Set>,
}

/// What a flag sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Set {
    /// A key; `flag` is what it is called on the command line.
    Key {
        /// The flag's name, for errors.
        flag: &'static str,
        /// The key's path.
        key: &'static str,
        /// As it was given.
        text: String,
    },
    /// The host of `http.bind`.
    Host(String),
    /// The port of `http.bind`.
    Port(u16),
    /// `--set`'s `section.key=value`.
    Any(String),
}

/// Joins the layers.
pub(super) fn read(sources: &Sources) -> Result<Config, ConfigError> {
    let table = match &sources.file {
        Some(path) => read_file(path)?,
        None => Table::new(),
    };
    let mut layers = Layers::over(table);
    let mut faults = Vec::new();
    for (name, value) in &sources.environment {
        faults.extend(layers.set_variable(name, value).err());
    }
    for flag in &sources.flags {
        faults.extend(layers.set_flag(flag).err());
    }
    if !faults.is_empty() {
        return Err(ConfigError(faults));
    }
    layers.name_models();
    read_table(layers.table)
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let file = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{file}: cannot be read: {error}"))?;
    text.parse::<Table>().map_err(|error| {
        // The library would print the line, and a key may stand on it.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{file}:{line}:{column}: {}", error.message().replace('\n', "; ")).into()
    })
}

struct Layers {
    table: Table,
    keys: Vec<ConfigKey>,
    /// The aliases of the models that the file names.
    models_of_file: Vec<String>,
}

impl Layers {
    fn over(table: Table) -> Self {
        let models = table.get("models").and_then(Value::as_array).into_iter().flatten();
        let name = |model: &Value| {
            let text = model.get("name").or(model.get("model_path")).and_then(Value::as_str);
            text.unwrap_or("one without a name").to_owned()
        };
        Self { models_of_file: models.map(name).collect(), keys: keys(), table }
    }

    fn set_variable(&mut self, name: &OsStr, value: &OsStr) -> Result<(), String> {
        let Some(name) = name.to_str() else { return Ok(()) };
        if NOT_CONFIGURATION.contains(&name) {
            return Ok(());
        }
        let found = self.keys.iter().find(|key| key.variables().any(|variable| variable == name));
        let Some(key) = found.cloned() else {
            let known: Vec<String> = self.keys.iter().map(ConfigKey::variable).collect();
            return Err(match nearest(name, known.iter().map(String::as_str)) {
                Some(nearest) => format!("{name}: no such variable; the nearest is {nearest}"),
                None => format!("{name}: no such variable; docs/configuration.md lists them"),
            });
        };
        let Some(value) = value.to_str() else { return Err(format!("{name}: expected UTF-8")) };
        self.set(&key, value).map_err(|fault| format!("{name}: {fault}"))
    }

    fn set_flag(&mut self, flag: &Set) -> Result<(), String> {
        match flag {
            Set::Any(text) => self.set_any(text),
            Set::Host(host) => self.set_bind(|_, port| format!("{host}:{port}")),
            Set::Port(number) => self.set_bind(|host, _| format!("{host}:{number}")),
            Set::Key { flag, key, text } => match self.key(key).cloned() {
                Some(key) => self.set(&key, text).map_err(|fault| format!("{flag}: {fault}")),
                None => Err(format!("{flag}: {key} is no key")),
            },
        }
    }

    /// `section.key=value`. No more of it is quoted than can be a key's name.
    fn set_any(&mut self, text: &str) -> Result<(), String> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c);
        let name: String = text.chars().take_while(|c| is_name(*c)).collect();
        let Some(value) = text.strip_prefix(&name).and_then(|rest| rest.strip_prefix('=')) else {
            return Err(format!("--set {name}: expected section.key=value"));
        };
        let Some(key) = self.key(&name).cloned() else {
            let known: Vec<&str> = self.keys.iter().map(|key| key.0.path.as_str()).collect();
            return Err(match nearest(&name, known.into_iter()) {
                Some(nearest) => format!("--set {name}: no such key; the nearest is {nearest}"),
                None => format!("--set {name}: no such key; docs/configuration.md lists them"),
            });
        };
        self.set(&key, value).map_err(|fault| format!("--set {name}: {fault}"))
    }

    /// By its path, with one of its other names as the last part, or as `model.…`.
    fn key(&self, path: &str) -> Option<&ConfigKey> {
        let path = match path.strip_prefix("model.") {
            Some("path") => "models.model_path".to_owned(),
            Some(key) => format!("models.{key}"),
            None => path.to_owned(),
        };
        let (table, name) = path.rsplit_once('.')?;
        let is_it = |key: &&ConfigKey| {
            let aliases = &key.0.aliases;
            key.0.path == path
                || key.0.path.rsplit_once('.').is_some_and(|(of, _)| of == table)
                    && aliases.iter().any(|alias| alias == name)
        };
        self.keys.iter().find(is_it)
    }

    fn set_bind(&mut self, change: impl Fn(&str, &str) -> String) -> Result<(), String> {
        let http = sub_table(&mut self.table, "http")?;
        let default = super::http::Config::default().bind;
        let bind = http.get("bind").and_then(Value::as_str).unwrap_or(&default).to_owned();
        let (host, port) = bind.rsplit_once(':').unwrap_or((&bind, "8000"));
        http.insert("bind".to_owned(), Value::String(change(host, port)));
        Ok(())
    }

    fn set(&mut self, key: &ConfigKey, text: &str) -> Result<(), String> {
        let value = value_of(key, text)?;
        let (tables, name) = key.0.path.rsplit_once('.').unwrap_or(("", &key.0.path));
        let target = match tables {
            "models" => self.only_model(name)?,
            tables => {
                let mut target = &mut self.table;
                for table in tables.split('.') {
                    target = sub_table(target, table)?;
                }
                target
            }
        };
        for alias in &key.0.aliases {
            target.remove(alias);
        }
        target.insert(name.to_owned(), value);
        Ok(())
    }

    /// The model that a flag or variable is about.
    fn only_model(&mut self, name: &str) -> Result<&mut Table, String> {
        let of_file = &self.models_of_file;
        if name == "model_path" && !of_file.is_empty() {
            let names = of_file.join(", ");
            return Err(format!(
                "the file has [[models]] of its own ({names}); name the model here or there"
            ));
        }
        if of_file.len() > 1 {
            let names = of_file.join(", ");
            return Err(format!(
                "the file has several models ({names}); set it there, in the model's [[models]] entry"
            ));
        }
        let entry = self.table.entry("models").or_insert_with(|| Value::Array(Vec::new()));
        let models = entry.as_array_mut().ok_or("models is no list of tables")?;
        if models.is_empty() {
            models.push(Value::Table(Table::new()));
        }
        models[0].as_table_mut().ok_or_else(|| "models is no list of tables".to_owned())
    }

    /// A model without a name is called by the last part of its path.
    fn name_models(&mut self) {
        let models = self.table.get_mut("models").and_then(Value::as_array_mut);
        for model in models.into_iter().flatten().filter_map(Value::as_table_mut) {
            if let (None, Some(path)) = (model.get("name"), model.get("model_path"))
                && let Some(name) = path.as_str().and_then(name_of)
            {
                model.insert("name".to_owned(), Value::String(name));
            }
        }
    }
}

/// `my-model-1` of `models/My_Model.1/`, and of `My_Model.1.gguf`.
fn name_of(path: &str) -> Option<String> {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let last = whole.file_name()?.to_str()?.to_lowercase();
    let last = last.strip_suffix(".gguf").unwrap_or(&last);
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = last.chars().map(letter).take(64).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

fn sub_table<'a>(table: &'a mut Table, name: &str) -> Result<&'a mut Table, String> {
    table
        .entry(name)
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .ok_or_else(|| format!("{name} is no section"))
}

/// A text from outside a file, as the key's type reads it.
fn value_of(key: &ConfigKey, text: &str) -> Result<Value, String> {
    let is_list = text.trim_start().starts_with('[');
    let texts = || {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
    };
    let own = Value::String(text.to_owned());
    match key.0.form {
        Form::Text => Ok(own),
        Form::Texts if !is_list => Ok(texts()),
        Form::Texts => toml_of(text)
            .ok_or_else(|| "expected [\"a\", \"b\"], or texts with commas between them".to_owned()),
        Form::Toml => Ok(toml_of(text).unwrap_or(own)),
        Form::Any => {
            let listed = || toml_of(&format!("[{text}]")).filter(|_| text.contains(','));
            Ok(toml_of(text).or_else(listed).unwrap_or(own))
        }
    }
}

fn toml_of(text: &str) -> Option<Value> {
    format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"))
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
        let message = unquoted(error.message());
        faults.push(if key.is_empty() { message } else { format!("{key}: {message}") });
        let path: Vec<&str> = key.split('.').collect();
        if !take_out(&mut rest, &path) {
            return Err(ConfigError(faults));
        }
    }
}

/// serde's words without a text that stands where none belongs, and without the login of a URL: either may be a secret that was put
/// into the wrong place.
fn unquoted(message: &str) -> String {
    let mut message = message.to_owned();
    if let Some((before, rest)) = message.split_once("invalid type: string \"")
        && let Some((_, after)) = rest.rsplit_once("\", expected")
    {
        message = format!("{before}invalid type: string, expected{after}");
    }
    let login = message.split_once("://").and_then(|(scheme, rest)| {
        let (_, host) = rest.rsplit_once('@')?;
        Some(format!("{scheme}://***@{host}"))
    });
    login.unwrap_or(message)
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
