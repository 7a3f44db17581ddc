//! A value as a client wrote it, whatever the encoding.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::error::{Error, Result};

const MAX_TOKEN_ID: i128 = u32::MAX as i128;

/// Any value that JSON and msgpack can hold. An object keeps its members in order, those given twice included.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// null, which is the same as absent.
    Null,
    /// true or false
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number.
    Float(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An object.
    Map(Vec<(String, Value)>),
}

impl fmt::Display for Value {
    /// Short: a value that could be long is named by its type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("nothing"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Text(text) if text.len() <= 32 => write!(f, "{text:?}"),
            Value::Text(text) => write!(f, "a string of {} bytes", text.len()),
            Value::List(items) => write!(f, "an array of {}", items.len()),
            Value::Map(_) => f.write_str("an object"),
        }
    }
}

/// Each reads one type; `path` is where the value stands in the body, for the error.
impl Value {
    /// # Errors
    /// `invalid` if it is no string.
    pub fn text(self, path: &str) -> Result<String> {
        match self {
            Value::Text(text) => Ok(text),
            other => Err(other.refused(path, "a string")),
        }
    }

    /// # Errors
    /// `invalid` if it is no boolean.
    pub fn boolean(self, path: &str) -> Result<bool> {
        match self {
            Value::Bool(value) => Ok(value),
            other => Err(other.refused(path, "true or false")),
        }
    }

    /// # Errors
    /// `invalid` if it is no array.
    pub fn list(self, path: &str) -> Result<Vec<Value>> {
        match self {
            Value::List(items) => Ok(items),
            other => Err(other.refused(path, "an array")),
        }
    }

    /// # Errors
    /// `invalid` if it is no whole number of `min` to `max`.
    pub fn integer(self, path: &str, min: i128, max: i128) -> Result<i128> {
        match self {
            Value::Int(n) if (min..=max).contains(&n) => Ok(n),
            Value::Int(n) => Err(Error::invalid(path, format!("expected {min} to {max}, got {n}"))),
            other => Err(other.refused(path, &format!("a whole number of {min} to {max}"))),
        }
    }

    /// A list of token ids.
    ///
    /// # Errors
    /// `invalid` if it is no array of whole numbers of 32 bits.
    pub fn token_ids(self, path: &str) -> Result<Vec<u32>> {
        let items = self.list(path)?;
        // Prompts have many: room is made once, and no path is written for an id that is fine.
        let mut ids = Vec::with_capacity(items.len());
        for (i, item) in items.into_iter().enumerate() {
            let id = match item {
                Value::Int(id @ 0..=MAX_TOKEN_ID) => id,
                other => other.integer(&format!("{path}[{i}]"), 0, MAX_TOKEN_ID)?,
            };
            ids.push(id as u32);
        }
        Ok(ids)
    }

    /// # Errors
    /// `invalid` if it is no finite number.
    pub fn number(self, path: &str) -> Result<f64> {
        match self {
            Value::Int(n) => Ok(n as f64),
            Value::Float(x) if x.is_finite() => Ok(x),
            other => Err(other.refused(path, "a number")),
        }
    }

    /// The error that this is not what was expected.
    pub fn refused(&self, path: &str, expected: &str) -> Error {
        Error::invalid(path, format!("expected {expected}, got {self}"))
    }

    /// Bytes of its texts and keys, and one for each other value: about what it is when it is written.
    pub fn size(&self) -> usize {
        match self {
            Value::Text(text) => text.len(),
            Value::List(items) => items.iter().map(Value::size).sum(),
            Value::Map(members) => {
                members.iter().map(|(name, value)| name.len() + value.size()).sum()
            }
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 1,
        }
    }

    /// The path of the first key that an object has twice, at any depth.
    pub fn key_given_twice(&self) -> Option<String> {
        let path = self.twice_below()?;
        Some(path.strip_prefix('.').unwrap_or(&path).to_owned())
    }

    /// The same path as it goes on from this value: `.name` or `[0].name`.
    fn twice_below(&self) -> Option<String> {
        match self {
            Value::List(items) => {
                // The longest lists are of token ids.
                let is_nested = |item: &Value| matches!(item, Value::List(_) | Value::Map(_));
                let mut nested = items.iter().enumerate().filter(|(_, item)| is_nested(item));
                nested.find_map(|(i, item)| Some(format!("[{i}]{}", item.twice_below()?)))
            }
            Value::Map(members) => {
                let mut seen = HashSet::with_capacity(members.len());
                members.iter().find_map(|(key, value)| {
                    let rest = if seen.insert(key) { value.twice_below()? } else { String::new() };
                    Some(format!(".{key}{rest}"))
                })
            }
            _ => None,
        }
    }
}

/// What chat templates read.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            // What was read has 64 bits, signed or not.
            Value::Int(n) => match (i64::try_from(*n), u64::try_from(*n)) {
                (Ok(n), _) => serializer.serialize_i64(n),
                (_, Ok(n)) => serializer.serialize_u64(n),
                _ => serializer.serialize_i128(*n),
            },
            Value::Float(x) => serializer.serialize_f64(*x),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => serializer.collect_seq(items),
            Value::Map(members) => serializer.collect_map(members.iter().map(|(k, v)| (k, v))),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<Value, D::Error> {
        Value::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
