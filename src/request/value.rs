//! A value as a client wrote it, whatever the encoding.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// Any value that JSON and msgpack can hold; an object keeps its members in order, those given twice included.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// null
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
            Value::Null => f.write_str("null"),
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

/// Each reads one type; `name` is the member's, with its path, for the error.
impl Value {
    /// # Errors
    /// `invalid` if it is no string.
    pub fn text(self, name: &str) -> Result<String> {
        match self {
            Value::Text(text) => Ok(text),
            other => Err(other.refused(name, "a string")),
        }
    }

    /// # Errors
    /// `invalid` if it is no boolean.
    pub fn boolean(self, name: &str) -> Result<bool> {
        match self {
            Value::Bool(value) => Ok(value),
            other => Err(other.refused(name, "true or false")),
        }
    }

    /// # Errors
    /// `invalid` if it is no array.
    pub fn list(self, name: &str) -> Result<Vec<Value>> {
        match self {
            Value::List(items) => Ok(items),
            other => Err(other.refused(name, "an array")),
        }
    }

    /// # Errors
    /// `invalid` if it is no whole number of `min` to `max`.
    pub fn integer(self, name: &str, min: i128, max: i128) -> Result<i128> {
        match self {
            Value::Int(n) if (min..=max).contains(&n) => Ok(n),
            Value::Int(n) => Err(Error::invalid(name, format!("expected {min} to {max}, got {n}"))),
            other => Err(other.refused(name, &format!("a whole number of {min} to {max}"))),
        }
    }

    /// # Errors
    /// `invalid` if it is no finite number.
    pub fn number(self, name: &str) -> Result<f64> {
        match self {
            Value::Int(n) => Ok(n as f64),
            Value::Float(x) if x.is_finite() => Ok(x),
            other => Err(other.refused(name, "a number")),
        }
    }

    /// The error that this is not what was expected.
    pub fn refused(&self, name: &str, expected: &str) -> Error {
        Error::invalid(name, format!("expected {expected}, got {self}"))
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
