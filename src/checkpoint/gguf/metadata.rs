//! The metadata of a GGUF file, read key by key, so that every complaint names file and key.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::fault::{CheckpointError, CheckpointFault};
use super::header::MetadataValue;

/// The entries, and which of them somebody asked for.
pub struct GgufMetadata<'a> {
    path: &'a Path,
    entries: BTreeMap<&'a str, MetadataValue<'a>>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> GgufMetadata<'a> {
    pub fn new(path: &'a Path, entries: BTreeMap<&'a str, MetadataValue<'a>>) -> Self {
        Self { path, entries, read: RefCell::default() }
    }

    /// An error about a key.
    pub fn fault(
        &self,
        fault: CheckpointFault,
        key: &str,
        reason: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::new(fault, self.path, reason).at(key)
    }

    /// `malformed` with what was expected and what stands there.
    pub fn expected(&self, key: &str, what: &str) -> CheckpointError {
        let got = match self.entries.get(key) {
            None => "nothing".to_owned(),
            Some(MetadataValue::Texts(texts)) => format!("{} texts", texts.len()),
            Some(MetadataValue::Numbers(numbers)) => format!("{} numbers", numbers.len()),
            Some(MetadataValue::Text(text)) => {
                format!("{:?}", text.chars().take(60).collect::<String>())
            }
            Some(scalar) => format!("{scalar:?}"),
        };
        self.fault(CheckpointFault::Malformed, key, format!("expected {what}, got {got}"))
    }

    fn get(&self, key: &str) -> Option<&MetadataValue<'a>> {
        let value = self.entries.get(key)?;
        self.read.borrow_mut().insert(key.to_owned());
        Some(value)
    }

    /// What a value is, if it is of this type; `what` it must be.
    fn read<'m, T>(
        &'m self,
        key: &str,
        what: &str,
        as_type: impl Fn(&'m MetadataValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        as_type(value).map(Some).ok_or_else(|| self.expected(key, what))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.read(key, "a text", |value| match value {
            MetadataValue::Text(text) => Some(*text),
            _ => None,
        })
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.read(key, "true or false", |value| match value {
            MetadataValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A whole number from 0.
    pub fn count(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.read(key, "a whole number of 32 bits", |value| match value {
            MetadataValue::Unsigned(number) => u32::try_from(*number).ok(),
            MetadataValue::Signed(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    /// The same, and it must be there.
    pub fn required_count(&self, key: &str) -> Result<u32, CheckpointError> {
        self.count(key)?.ok_or_else(|| self.expected(key, "a whole number of 32 bits"))
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.read(key, "a number", |value| match value {
            MetadataValue::Float(number) => Some(*number).filter(|number| number.is_finite()),
            MetadataValue::Unsigned(number) => Some(*number as f64),
            MetadataValue::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[&'a str]>, CheckpointError> {
        self.read(key, "a list of texts", |value| match value {
            MetadataValue::Texts(texts) => Some(&texts[..]),
            // Of an empty list the type of its items says nothing.
            MetadataValue::Numbers(numbers) if numbers.is_empty() => Some(&[][..]),
            _ => None,
        })
    }

    pub fn numbers(&self, key: &str) -> Result<Option<&[f64]>, CheckpointError> {
        self.read(key, "a list of numbers", |value| match value {
            MetadataValue::Numbers(numbers) => Some(&numbers[..]),
            _ => None,
        })
    }

    /// Refuses the first key of this beginning that nobody asked for: it may change what is to be computed.
    pub fn refuse_unread(&self, beginning: &str) -> Result<(), CheckpointError> {
        let read = self.read.borrow();
        let mut unread = self.entries.keys().filter(|key| key.starts_with(beginning));
        match unread.find(|key| !read.contains(**key)) {
            None => Ok(()),
            Some(key) => {
                let error = self.expected(key, "no such key of this architecture");
                Err(CheckpointError { fault: CheckpointFault::Unsupported, ..error })
            }
        }
    }
}
