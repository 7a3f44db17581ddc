//! The members of an object, taken one by one by name; what nobody took is unknown.

use super::Value;
use crate::error::{Error, Kind, Result};

/// The members of one object and where it stands in the body.
#[derive(Debug)]
pub struct Fields {
    /// Empty for the body itself.
    path: String,
    /// In the order of the body; one that was taken leaves its place empty.
    members: Vec<(String, Option<Value>)>,
}

impl Fields {
    /// The members of a whole body.
    ///
    /// # Errors
    /// `invalid`: no object, or a key that is given twice at any depth, by its path.
    pub fn of_body(body: Value) -> Result<Self> {
        if let Some(path) = body.key_given_twice() {
            return Err(Error::invalid(path, "given twice"));
        }
        match body {
            Value::Map(members) => Ok(Self::new(members, "")),
            other => {
                Err(Error::new(Kind::Invalid, format!("expected an object as body, got {other}")))
            }
        }
    }

    /// The members of a value inside a body.
    ///
    /// # Errors
    /// `invalid` if it is no object.
    pub fn of(value: Value, path: &str) -> Result<Self> {
        match value {
            Value::Map(members) => Ok(Self::new(members, path)),
            other => Err(other.refused(path, "an object")),
        }
    }

    /// These members of the object at `path`.
    pub fn new(members: Vec<(String, Value)>, path: &str) -> Self {
        let members = members.into_iter().map(|(name, value)| (name, Some(value)));
        Self { path: path.to_owned(), members: members.collect() }
    }

    /// A member's path in the body, such as `messages[0].role`.
    pub fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// Takes a member as it is; none if it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let (_, value) = self.members.iter_mut().find(|(member, _)| member == name)?;
        value.take().filter(|value| *value != Value::Null)
    }

    /// Takes a member and reads it; none if it is absent or null.
    ///
    /// # Errors
    /// Those of `read`, which is given the member's path.
    pub fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        self.take(name).map(|value| read(value, &self.path_of(name))).transpose()
    }

    /// Takes a member that must be there and reads it.
    ///
    /// # Errors
    /// Those of `read`, which is given null where the member is absent.
    pub fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value, &str) -> Result<T>,
    ) -> Result<T> {
        read(self.take(name).unwrap_or(Value::Null), &self.path_of(name))
    }

    /// Refuses the first member that nobody took, even if it is null.
    ///
    /// # Errors
    /// `invalid`, naming it.
    pub fn finish(self) -> Result<()> {
        match self.members.iter().find(|(_, value)| value.is_some()) {
            None => Ok(()),
            Some((name, _)) => Err(Error::invalid(self.path_of(name), "unknown parameter")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn value(json: serde_json::Value) -> Value {
        Value::deserialize(json).expect("JSON is a value")
    }

    #[test]
    fn null_is_absent_and_what_is_left_is_unknown() {
        let mut fields =
            Fields::of_body(value(json!({"a": null, "b": 1, "c": null}))).expect("an object");
        assert_eq!(fields.optional("a", Value::text), Ok(None));
        assert_eq!(fields.optional("d", Value::boolean), Ok(None));
        assert_eq!(fields.take("b"), Some(Value::Int(1)));
        assert_eq!(fields.take("b"), None);
        let error = fields.finish().expect_err("c is left");
        assert_eq!(error, Error::invalid("c", "unknown parameter"));
    }

    #[test]
    fn a_wrong_type_names_path_and_both_types() {
        let inner = value(json!({"a": "x", "b": 1.5, "c": -1, "e": {}, "f": [0, -1]}));
        let mut inner = Fields::of(inner, "m[2]").expect("an object");
        let byte = |value: Value, path: &str| value.integer(path, 0, 255);
        let errors = [
            inner.optional("a", Value::boolean).map(drop),
            inner.optional("b", byte).map(drop),
            inner.optional("c", byte).map(drop),
            inner.optional("e", Value::text).map(drop),
            inner.optional("f", Value::token_ids).map(drop),
            inner.required("h", Value::text).map(drop),
        ];
        assert_eq!(
            errors.map(|error| error.expect_err("wrong").text()),
            [
                "m[2].a: expected true or false, got \"x\"",
                "m[2].b: expected a whole number of 0 to 255, got 1.5",
                "m[2].c: expected 0 to 255, got -1",
                "m[2].e: expected a string, got an object",
                "m[2].f[1]: expected 0 to 4294967295, got -1",
                "m[2].h: expected a string, got nothing",
            ]
        );
    }

    #[test]
    fn an_object_is_expected_where_one_stands() {
        let body = Fields::of_body(Value::Bool(true)).expect_err("no object");
        assert_eq!(body.text(), "expected an object as body, got true");
        let inner = Fields::of(Value::Bool(true), "params").expect_err("no object");
        assert_eq!(inner.text(), "params: expected an object, got true");
    }

    #[test]
    fn a_key_given_twice_is_named_at_any_depth() {
        let map = |members: &[(&str, Value)]| {
            Value::Map(
                members.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            )
        };
        let twice = map(&[("x", Value::Null), ("y", Value::Int(1)), ("x", Value::Null)]);
        let cases = [
            (twice.clone(), "x"),
            (map(&[("a", twice.clone())]), "a.x"),
            (
                map(&[
                    ("x", Value::Int(1)),
                    ("a", Value::List(vec![map(&[("x", Value::Null)]), twice])),
                ]),
                "a[1].x",
            ),
        ];
        for (body, path) in cases {
            let error = Fields::of_body(body).expect_err("twice");
            assert_eq!(error, Error::invalid(path, "given twice"));
        }
    }
}
