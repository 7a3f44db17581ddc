//! Dicts, and what can be a key of one.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::budget::{Evaluated, RenderError};
use super::value::{PyValue, deeper_than, depth_of};

/// A dict: its pairs in the order of their keys' first appearance.
#[derive(Debug, Default)]
pub struct Dict {
    pairs: Vec<(PyValue, PyValue)>,
    places: HashMap<DictKey, usize>,
    depth: u16,
}

/// What two equal keys have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
enum DictKey {
    None,
    /// Of `True`, `1` and `1.0`.
    Int(i128),
    Float(u64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    Tuple(Vec<DictKey>),
    Undefined,
}

impl Dict {
    /// Of keys that appear again the last value counts, in the first one's place.
    pub(super) fn of(pairs: Vec<(PyValue, PyValue)>) -> Evaluated<Self> {
        let depth =
            deeper_than(pairs.iter().map(|(key, value)| depth_of(key).max(depth_of(value))))?;
        let mut dict = Dict { depth, ..Dict::default() };
        for (key, value) in pairs {
            let unhashable =
                || RenderError::failed(format!("unhashable type: '{}'", key.type_name()));
            let hash = key_of(&key).ok_or_else(unhashable)?;
            match dict.places.get(&hash) {
                Some(place) => dict.pairs[*place].1 = value,
                None => {
                    dict.places.insert(hash, dict.pairs.len());
                    dict.pairs.push((key, value));
                }
            }
        }
        Ok(dict)
    }

    pub(super) fn depth(&self) -> u16 {
        self.depth
    }

    pub(in crate::jinja) fn get(&self, key: &PyValue) -> Option<&PyValue> {
        let place = self.places.get(&key_of(key)?)?;
        Some(&self.pairs[*place].1)
    }

    pub(in crate::jinja) fn get_str(&self, key: &str) -> Option<&PyValue> {
        let place = self.places.get(&DictKey::Str(key.into()))?;
        Some(&self.pairs[*place].1)
    }

    pub(in crate::jinja) fn pairs(&self) -> &[(PyValue, PyValue)] {
        &self.pairs
    }

    pub(in crate::jinja) fn len(&self) -> usize {
        self.pairs.len()
    }
}

/// None for what cannot be a key.
fn key_of(value: &PyValue) -> Option<DictKey> {
    Some(match value {
        PyValue::None => DictKey::None,
        PyValue::Bool(value) => DictKey::Int(i128::from(*value)),
        PyValue::Int(value) => DictKey::Int(*value),
        PyValue::Float(value) if value.fract() == 0.0 && value.abs() < 1e30 => {
            DictKey::Int(*value as i128)
        }
        PyValue::Float(value) => DictKey::Float(value.to_bits()),
        PyValue::Str(text) => DictKey::Str(Arc::clone(text)),
        PyValue::Bytes(bytes) => DictKey::Bytes(Arc::clone(bytes)),
        PyValue::Tuple(items) => {
            DictKey::Tuple(items.items.iter().map(key_of).collect::<Option<Vec<_>>>()?)
        }
        PyValue::Undefined(_) => DictKey::Undefined,
        _ => return None,
    })
}

/// Whether two values are equal as keys; none of what cannot be one.
pub(in crate::jinja) fn same_key(a: &PyValue, b: &PyValue) -> Option<bool> {
    Some(key_of(a)? == key_of(b)?)
}
