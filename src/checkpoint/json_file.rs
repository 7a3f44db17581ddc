//! A JSON object of a checkpoint, read key by key, so that every complaint names file and key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::fault::{CheckpointError, CheckpointFault};
use super::missing_or_io;
use crate::files;

/// The largest JSON file that is read (an index of a million tensors is about 100 MB).
const MAX_JSON_BYTES: u64 = 256 << 20;

/// An object with the file it came from and, for a nested one, the key.
pub(super) struct JsonFile {
    path: PathBuf,
    prefix: String,
    object: Map<String, Value>,
    /// Keys that somebody asked for.
    read: RefCell<BTreeSet<String>>,
}

impl JsonFile {
    /// Reads the file; `None` if it does not exist.
    pub(super) fn read_if_there(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) =
            files::read(path, MAX_JSON_BYTES).map_err(|error| missing_or_io(path, &error))?
        else {
            return Ok(None);
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            CheckpointError::new(CheckpointFault::Malformed, path, format!("no JSON: {error}"))
        })?;
        Self::of(path, value).map(Some)
    }

    /// What a file of this path would hold.
    pub(super) fn of(path: &Path, value: Value) -> Result<Self, CheckpointError> {
        match value {
            Value::Object(object) => Ok(Self::new(path.to_owned(), String::new(), object)),
            other => Err(CheckpointError::new(
                CheckpointFault::Malformed,
                path,
                format!("expected an object, got {}", kind_of(&other)),
            )),
        }
    }

    fn new(path: PathBuf, prefix: String, object: Map<String, Value>) -> Self {
        Self { path, prefix, object, read: RefCell::default() }
    }

    /// Refuses the first key that nobody asked for: it may change what is to be computed. Those without effect, null, and names
    /// that begin with `_` may stand there.
    pub(super) fn refuse_unread(&self, without_effect: &[&str]) -> Result<(), CheckpointError> {
        let read = self.read.borrow();
        let is_fine =
            |key: &str| read.contains(key) || without_effect.contains(&key) || key.starts_with('_');
        match self.object.iter().find(|(key, value)| !value.is_null() && !is_fine(key)) {
            None => Ok(()),
            Some((key, value)) => {
                let reason =
                    format!("this key is not known for the family; got {}", abbreviate(value));
                Err(self.fault(CheckpointFault::Unsupported, key, reason))
            }
        }
    }

    /// A value; null is absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        if self.object.contains_key(key) {
            self.read.borrow_mut().insert(key.to_owned());
        }
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Every key with its value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.object.iter()
    }

    /// An error about a key.
    pub(super) fn fault(
        &self,
        fault: CheckpointFault,
        key: &str,
        reason: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::new(fault, &self.path, reason).at(format!("{}{key}", self.prefix))
    }

    /// `malformed` with what was expected and what stands there.
    pub(super) fn expected(&self, key: &str, what: &str) -> CheckpointError {
        let got = self.get(key).map_or_else(|| "nothing".to_owned(), abbreviate);
        self.fault(CheckpointFault::Malformed, key, format!("expected {what}, got {got}"))
    }

    /// A nested object.
    pub(super) fn object(&self, key: &str) -> Result<Option<JsonFile>, CheckpointError> {
        self.get(key);
        self.peek_object(key)
    }

    /// The same by a look that does not count as reading it.
    pub(super) fn peek_object(&self, key: &str) -> Result<Option<JsonFile>, CheckpointError> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Self::new(self.path.clone(), prefix, object.clone())))
            }
            Some(_) => Err(self.expected(key, "an object")),
        }
    }

    /// A whole number of `1..=max`.
    pub(super) fn size(&self, key: &str, max: u32) -> Result<Option<u32>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| (1..=max).contains(number))
            .map(Some)
            .ok_or_else(|| self.expected(key, &format!("a whole number of 1 to {max}")))
    }

    /// A whole number of `0..=max`.
    pub(super) fn count(&self, key: &str, max: u32) -> Result<Option<u32>, CheckpointError> {
        match self.get(key).and_then(Value::as_u64) {
            Some(0) => Ok(Some(0)),
            _ => self.size(key, max),
        }
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().map(|list| list.iter().map(Value::as_f64).collect());
        numbers.flatten().map(Some).ok_or_else(|| self.expected(key, "a list of numbers"))
    }

    /// The same, and it must be there.
    pub(super) fn required_size(&self, key: &str, max: u32) -> Result<u32, CheckpointError> {
        self.size(key, max)?
            .ok_or_else(|| self.expected(key, &format!("a whole number of 1 to {max}")))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.expected(key, "a number"))
    }

    /// A number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        // As f32, because that is what the engine computes with: 1e-50 would be 0 there.
        let number = number as f32;
        if number > 0.0 && number.is_finite() {
            Ok(Some(number))
        } else {
            Err(self.expected(key, "a number above 0"))
        }
    }

    /// True or false.
    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.expected(key, "true or false"))
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.expected(key, "a string"))
    }

    /// One token id or a list of them, each below `vocab_size`; `None` if the key is absent.
    pub(super) fn token_ids(
        &self,
        key: &str,
        vocab_size: u32,
    ) -> Result<Option<Vec<u32>>, CheckpointError> {
        let wrong = || self.expected(key, &format!("token ids of 0 to {}", vocab_size - 1));
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id < vocab_size)
                .ok_or_else(wrong)
        };
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => values.iter().map(id).collect::<Result<_, _>>().map(Some),
            Some(value) => Ok(Some(vec![id(value)?])),
        }
    }
}

/// A value for an error's text, cut so that a whole table does not land in the log.
fn abbreviate(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
