//! JSON read strictly: a key given twice is refused wherever it stands.
//!
//! `serde_json` itself refuses NaN, infinities, numbers out of range, bad UTF-8, trailing text and nesting beyond 128 levels.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{self, Error, Kind};
use crate::request::Value;

/// A JSON value; text is borrowed from the body where it has no escapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Object<'a>),
}

/// An object's members. A tree, because a list would make the search for duplicates quadratic in what a client sends.
pub(super) type Object<'a> = BTreeMap<Cow<'a, str>, Json<'a>>;

impl Json<'_> {
    /// The value's type for a message, with an article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Integer(_) => "an integer",
            Json::Float(_) => "a number",
            Json::Text(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }
}

impl From<Json<'_>> for Value {
    fn from(json: Json<'_>) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Integer(value) => Value::Int(value),
            Json::Float(value) => Value::Float(value),
            Json::Text(value) => Value::Text(value.into_owned()),
            Json::Array(items) => Value::List(items.into_iter().map(Value::from).collect()),
            Json::Object(members) => Value::Map(
                members.into_iter().map(|(key, value)| (key.into_owned(), value.into())).collect(),
            ),
        }
    }
}

/// Reads a whole body.
///
/// # Errors
/// `invalid`, naming the key if one is given twice.
pub(super) fn parse(body: &[u8]) -> error::Result<Json<'_>> {
    let duplicate = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = Strict { duplicate: &duplicate }
        .deserialize(&mut reader)
        .and_then(|json| reader.end().map(|()| json));
    parsed.map_err(|error| match duplicate.take() {
        Some(key) => Error::invalid(key, format!("the key is given twice ({error})")),
        None => Error::new(Kind::Invalid, format!("expected a JSON object as body: {error}")),
    })
}

#[derive(Clone, Copy)]
struct Strict<'c> {
    duplicate: &'c RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Json::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Json::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = Object::new();
        while let Some(key) = members.next_key_seed(JsonKey)? {
            match object.entry(key) {
                Entry::Occupied(entry) => {
                    *self.duplicate.borrow_mut() = Some(entry.key().to_string());
                    return Err(A::Error::custom("a key given twice"));
                }
                Entry::Vacant(entry) => entry.insert(members.next_value_seed(self)?),
            };
        }
        Ok(Json::Object(object))
    }
}

/// A key, borrowed where it has no escapes.
struct JsonKey;

impl<'de> DeserializeSeed<'de> for JsonKey {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for JsonKey {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_value() {
        let body =
            br#" {"a":null,"b":[true,1,-2,18446744073709551615,1.5,"x\n\u00e4"],"k\u0065y":{}} "#;
        let Ok(Json::Object(object)) = parse(body) else { panic!("is an object") };
        assert_eq!(object["a"], Json::Null);
        assert_eq!(object["key"], Json::Object(Object::new()));
        let Json::Array(items) = &object["b"] else { panic!("is an array") };
        assert_eq!(items[3], Json::Integer(u64::MAX.into()));
        assert_eq!(items[5], Json::Text("x\nä".into()));
        let kinds: Vec<_> = items.iter().map(Json::kind).collect();
        assert_eq!(
            kinds,
            ["a boolean", "an integer", "an integer", "an integer", "a number", "a string"]
        );
        assert_eq!((object["a"].kind(), object["b"].kind()), ("null", "an array"));
    }

    #[test]
    fn names_a_key_given_twice_at_any_depth() {
        for body in [r#"{"x":1,"x":1}"#, r#"{"a":[{"x":1,"y":2,"\u0078":null}]}"#] {
            let error = parse(body.as_bytes()).expect_err("twice");
            assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some("x")));
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        let deep = "[".repeat(100_000);
        let bodies: [&[u8]; 12] = [
            b"",
            b"{",
            b"{}x",
            b"{'a':1}",
            b"{\"a\":NaN}",
            b"{\"a\":-Infinity}",
            b"{\"a\":1e999}",
            b"{\"a\":01}",
            b"{\"a\":\"\xff\"}",
            b"{1:2}",
            b"\xef\xbb\xbf{}",
            deep.as_bytes(),
        ];
        for body in bodies {
            let error = parse(body).expect_err("not JSON");
            assert_eq!((error.kind, error.param), (Kind::Invalid, None));
        }
    }
}
