//! Dicts, and what can be a key of one.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::budget::{Budget, Evaluated, RenderError};
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
            let hash = key_of(&key)?;
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
        self.find(key).ok().flatten()
    }

    /// # Errors
    /// For what cannot be a key.
    pub(in crate::jinja) fn find(&self, key: &PyValue) -> Evaluated<Option<&PyValue>> {
        let place = self.places.get(&key_of(key)?);
        Ok(place.map(|place| &self.pairs[*place].1))
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

fn key_of(value: &PyValue) -> Evaluated<DictKey> {
    Ok(match value {
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
            DictKey::Tuple(items.items.iter().map(key_of).collect::<Evaluated<Vec<_>>>()?)
        }
        PyValue::Undefined(_) => DictKey::Undefined,
        other => {
            let name = other.type_name();
            return Err(RenderError::failed(format!("unhashable type: '{name}'")));
        }
    })
}

/// # Errors
/// For what cannot be a key.
pub(in crate::jinja) fn hashable(value: &PyValue) -> Evaluated<()> {
    key_of(value).map(|_| ())
}

/// The pairs of a dict, or of a list of pairs.
///
/// # Errors
/// In the name of `callee`, where an item is no pair.
pub(in crate::jinja) fn pairs_of(
    value: &PyValue,
    callee: &str,
    budget: &Budget,
) -> Evaluated<Vec<(PyValue, PyValue)>> {
    if let PyValue::Dict(dict) = value {
        budget.items(dict.len())?;
        return Ok(dict.pairs().to_vec());
    }
    let mut pairs = Vec::new();
    for pair in value.items(budget)? {
        let [key, value] = <[PyValue; 2]>::try_from(pair.items(budget)?)
            .map_err(|_| RenderError::failed(format!("{callee}: expected pairs")))?;
        pairs.push((key, value));
    }
    Ok(pairs)
}
