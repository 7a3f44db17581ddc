//! The members of a JSON object, taken one by one by name and type; what nobody took is unknown.

use super::json::{Json, Object};
use crate::error::{Error, Result};
use crate::request::{Members, Value};

/// The members of one object and where it stands in the body.
pub(super) struct Fields<'a> {
    path: String,
    members: Object<'a>,
}

impl<'a> Fields<'a> {
    /// The members of `json`, which stands at `path` (empty for the body itself).
    pub(super) fn of(json: Json<'a>, path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        match json {
            Json::Object(members) => Ok(Self { path, members }),
            other if path.is_empty() => Err(Error::new(
                crate::error::Kind::Invalid,
                format!("expected a JSON object as body, got {}", other.kind()),
            )),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// A member's full name, such as `messages[0].role`.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Takes a member; null is absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Json<'a>> {
        self.members.remove(key).filter(|value| *value != Json::Null)
    }

    /// Takes a member that must be there.
    pub(super) fn required(&mut self, key: &str, expected: &str) -> Result<Json<'a>> {
        self.take(key).ok_or_else(|| {
            Error::invalid(self.name(key), format!("expected {expected}, got nothing"))
        })
    }

    /// Takes a boolean.
    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(self.name(key), "a boolean", &other)),
        }
    }

    /// Takes an integer from `min` to `max`.
    pub(super) fn integer(&mut self, key: &str, min: i128, max: i128) -> Result<Option<i128>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        integer(&value, min, max, || self.name(key)).map(Some)
    }

    /// Takes an integer of 32 bits.
    pub(super) fn u32(&mut self, key: &str) -> Result<Option<u32>> {
        let value = self.integer(key, 0, u32::MAX.into())?;
        Ok(value.and_then(|value| u32::try_from(value).ok()))
    }

    /// Takes a string.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Text(value)) => Ok(Some(value.into_owned())),
            Some(other) => Err(wrong(self.name(key), "a string", &other)),
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<()> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::invalid(self.name(key), "unknown parameter")),
        }
    }
}

/// What is read for both doors: the generation parameters.
impl Members for Fields<'_> {
    fn take(&mut self, name: &str) -> Option<Value> {
        Fields::take(self, name).map(Value::from)
    }

    fn path(&self, name: &str) -> String {
        self.name(name)
    }
}

/// The value as an integer from `min` to `max`.
pub(super) fn integer(
    value: &Json<'_>,
    min: i128,
    max: i128,
    name: impl FnOnce() -> String,
) -> Result<i128> {
    match value {
        Json::Integer(value) if (min..=max).contains(value) => Ok(*value),
        Json::Integer(value) => {
            Err(Error::invalid(name(), format!("expected {min} to {max}, got {value}")))
        }
        other => Err(wrong(name(), "an integer", other)),
    }
}

/// A value of the wrong type.
pub(super) fn wrong(name: impl Into<String>, expected: &str, got: &Json<'_>) -> Error {
    Error::invalid(name, format!("expected {expected}, got {}", got.kind()))
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn fields(body: &str) -> Fields<'_> {
        Fields::of(parse(body.as_bytes()).expect("JSON"), "").expect("an object")
    }

    #[test]
    fn null_is_absent_and_the_rest_is_unknown() {
        let mut fields = fields(r#"{"a":null,"b":1}"#);
        assert_eq!(fields.u32("a"), Ok(None));
        assert_eq!(fields.boolean("c"), Ok(None));
        let error = fields.finish().expect_err("b is left");
        assert_eq!(error.param.as_deref(), Some("b"));
    }

    #[test]
    fn wrong_types_name_field_and_both_types() {
        let mut f = fields(r#"{"a":"x","b":1.5,"c":-1,"e":{}}"#);
        let errors = [
            f.boolean("a").map(drop),
            f.u32("b").map(drop),
            f.u32("c").map(drop),
            f.text("e").map(drop),
            f.required("h", "a string").map(drop),
        ];
        let seen: Vec<_> = errors
            .into_iter()
            .map(|e| e.expect_err("wrong"))
            .map(|e| format!("{} {}", e.param.unwrap_or_default(), e.message))
            .collect();
        assert_eq!(
            seen,
            [
                "a expected a boolean, got a string",
                "b expected an integer, got a number",
                "c expected 0 to 4294967295, got -1",
                "e expected a string, got an object",
                "h expected a string, got nothing"
            ]
        );
    }

    #[test]
    fn an_object_is_expected_where_one_stands() {
        let at = |path: &str| Fields::of(Json::Bool(true), path).map(drop).expect_err("no object");
        assert_eq!(at("").param, None);
        assert_eq!(at("stream_options").param.as_deref(), Some("stream_options"));
    }
}
