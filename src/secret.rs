//! A text that nobody is shown: not by printing, not by serializing, not by an error about it.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A password, a token, a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

const HIDDEN: &str = "***";

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// What may stand where secrets are expected. Anything else is taken in and forgotten, because serde's own errors quote it.
#[derive(Deserialize)]
#[serde(untagged)]
enum SecretInput {
    Text(String),
    Texts(Vec<String>),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match SecretInput::deserialize(deserializer)? {
            SecretInput::Text(text) => Ok(Self(text)),
            SecretInput::Texts(_) | SecretInput::Other(_) => {
                Err(D::Error::custom("expected a text in quotes, got something else"))
            }
        }
    }
}

/// Reads several: a list of texts, or one text in which commas part them.
///
/// # Errors
/// The deserializer's, for anything else; it quotes nothing.
pub fn several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    match SecretInput::deserialize(deserializer)? {
        SecretInput::Text(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(parts.map(Secret::new).collect())
        }
        SecretInput::Texts(texts) => Ok(texts.into_iter().map(Secret).collect()),
        SecretInput::Other(_) => {
            Err(D::Error::custom("expected a list of texts in quotes, got something else"))
        }
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct Keys {
        one: Secret,
        #[serde(deserialize_with = "several")]
        many: Vec<Secret>,
    }

    fn read(one: &str, many: &str) -> Result<Keys, String> {
        let value: serde_json::Value =
            serde_json::from_str(&format!("{{\"one\":{one},\"many\":{many}}}")).expect("JSON");
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    fn texts(keys: &Keys) -> Vec<&str> {
        keys.many.iter().map(Secret::expose).collect()
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        let keys = read("\"hush\"", "[\"hush1\", \"hush2\"]").expect("reads");
        assert_eq!((keys.one.expose(), texts(&keys)), ("hush", vec!["hush1", "hush2"]));
        let shown = format!("{keys:?}{}", serde_json::to_string(&keys).expect("serializes"));
        assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
        let joined = read("\"hush\"", "\" a, b,\"").expect("reads");
        assert_eq!(texts(&joined), ["a", "b"]);
    }

    #[test]
    fn no_error_quotes_what_came() {
        let bad = ["7007", "-7007", "70.07", "true", "{\"7007\":7007}", "[7007]", "[[\"7007\"]]"];
        for bad in bad {
            let one = read(bad, "[]").expect_err(bad);
            let many = read("\"x\"", bad).expect_err(bad);
            for text in [one, many] {
                assert!(text.contains("expected") && !text.contains('7'), "{bad}: {text}");
                assert!(!text.contains("true"), "{text}");
            }
        }
        assert!(read("[\"hush\"]", "[]").is_err_and(|text| !text.contains("hush")));
    }
}
