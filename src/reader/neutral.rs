//! The members that this node knows and does not have: each with the values that ask for nothing.
//!
//! One with such a neutral value is taken; with another it is refused as `unsupported`, never ignored. A member that stands in no row
//! is unknown.

use self::MemberPlace::{Message, OpenAi, Params, Part, Request};
use self::Neutral::{Boolean, Empty, False, Label, Labels, Nothing, OneOf, TextFormat, TextOnly};
use crate::error::{Error, Result};
use crate::request::{Fields, Value};

/// Which values of a member ask for nothing that the node lacks; null always does.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// None: the member always asks for something.
    Nothing,
    /// `false`.
    False,
    /// Any boolean, because what it governs does not occur here.
    Boolean,
    /// An empty string, array or object.
    Empty,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// Any string: a label for the client's own books.
    Label,
    /// An object of labels.
    Labels,
    /// `{"type": "text"}`.
    TextFormat,
    /// `["text"]`.
    TextOnly,
}

/// The object that a member stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberPlace {
    /// The body, through every door.
    Request,
    /// That which holds the parameters: `params` on the bus, over HTTP the body.
    Params,
    /// A body over HTTP: names that are OpenAI's alone.
    OpenAi,
    /// A message.
    Message,
    /// A text part of a message.
    Part,
}

const KNOWN: &[(MemberPlace, &str, Neutral)] = &[
    (Request, "deadline_ms", Nothing),
    (Request, "tenant", Nothing),
    (Params, "grammar", Nothing),
    (Params, "guided_choice", Nothing),
    (Params, "guided_grammar", Nothing),
    (Params, "guided_json", Nothing),
    (Params, "guided_regex", Nothing),
    (Params, "json_schema", Nothing),
    (Params, "response_format", TextFormat),
    (Params, "suffix", Empty),
    (Params, "tool_choice", OneOf(&["none", "auto"])),
    (Params, "tools", Empty),
    (OpenAi, "audio", Nothing),
    (OpenAi, "function_call", OneOf(&["none", "auto"])),
    (OpenAi, "functions", Empty),
    (OpenAi, "metadata", Labels),
    (OpenAi, "modalities", TextOnly),
    (OpenAi, "moderation", Nothing),
    (OpenAi, "parallel_tool_calls", Boolean),
    (OpenAi, "prediction", Nothing),
    (OpenAi, "prompt_cache_key", Label),
    (OpenAi, "prompt_cache_options", Empty),
    (OpenAi, "prompt_cache_retention", OneOf(&["in_memory"])),
    (OpenAi, "reasoning_effort", OneOf(&["none"])),
    (OpenAi, "safety_identifier", Label),
    (OpenAi, "service_tier", OneOf(&["auto", "default"])),
    (OpenAi, "store", False),
    (OpenAi, "user", Label),
    (OpenAi, "verbosity", OneOf(&["medium"])),
    (OpenAi, "web_search_options", Nothing),
    // Those of a reply that clients send back with the conversation.
    (Message, "annotations", Empty),
    (Message, "audio", Nothing),
    (Message, "function_call", Nothing),
    (Message, "name", Nothing),
    (Message, "refusal", Nothing),
    (Message, "tool_call_id", Nothing),
    (Message, "tool_calls", Empty),
    (Part, "prompt_cache_breakpoint", Nothing),
];

/// Takes every member of `place` that the node does not have.
///
/// # Errors
/// `unsupported`, naming the first that has another than a neutral value.
pub fn take_neutral(fields: &mut Fields, place: MemberPlace) -> Result<()> {
    for (_, name, neutral) in KNOWN.iter().filter(|(of, ..)| *of == place) {
        if let Some(value) = fields.take(name)
            && !neutral.admits(&value)
        {
            let message = format!("not supported by this node; {}", neutral.expectation());
            return Err(Error::unsupported(fields.path_of(name), message));
        }
    }
    Ok(())
}

impl Neutral {
    fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (False, Value::Bool(value)) => !value,
            (Boolean, Value::Bool(_)) | (Label, Value::Text(_)) => true,
            (Empty, Value::Text(text)) => text.is_empty(),
            (Empty, Value::List(items)) => items.is_empty(),
            (Empty, Value::Map(members)) => members.is_empty(),
            (OneOf(accepted), Value::Text(text)) => accepted.contains(&text.as_str()),
            (Labels, Value::Map(members)) => {
                members.iter().all(|(_, label)| matches!(label, Value::Text(_)))
            }
            (TextFormat, Value::Map(members)) => {
                let mut given = members.iter().filter(|(_, value)| *value != Value::Null);
                given.next().is_some_and(|(name, value)| name == "type" && is_text(value))
                    && given.next().is_none()
            }
            (TextOnly, Value::List(items)) => matches!(items.as_slice(), [one] if is_text(one)),
            _ => false,
        }
    }

    fn expectation(self) -> String {
        match self {
            Nothing => "leave it out".to_owned(),
            False => "expected false or nothing".to_owned(),
            Boolean => "expected a boolean or nothing".to_owned(),
            Empty => "expected it empty or nothing".to_owned(),
            OneOf(accepted) => format!("expected {} or nothing", accepted.join(", ")),
            Label => "expected a string or nothing".to_owned(),
            Labels => "expected an object of strings or nothing".to_owned(),
            TextFormat => "expected {\"type\": \"text\"} or nothing".to_owned(),
            TextOnly => "expected [\"text\"] or nothing".to_owned(),
        }
    }
}

fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text == "text")
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;
    use crate::error::Kind;

    fn take(body: &str, places: &[MemberPlace]) -> Result<()> {
        let mut fields = Fields::of_body(json(body.as_bytes())?)?;
        for place in places {
            take_neutral(&mut fields, *place)?;
        }
        fields.finish()
    }

    #[test]
    fn neutral_values_are_taken() {
        let params = r#"{"tools":[],"tool_choice":"auto","response_format":{"type":"text"},"suffix":"","grammar":null}"#;
        assert_eq!(take(params, &[Params]), Ok(()));
        let schema = r#"{"response_format":{"json_schema":null,"type":"text"}}"#;
        assert_eq!(take(schema, &[Params]), Ok(()));
        let openai = r#"{"user":"u","function_call":"none",
            "functions":[],"metadata":{"a":"b"},"modalities":["text"],"parallel_tool_calls":true,
            "prompt_cache_key":"k","prompt_cache_retention":"in_memory","reasoning_effort":"none",
            "safety_identifier":"s","service_tier":"auto",
            "store":false,"verbosity":"medium","prediction":null}"#;
        assert_eq!(take(openai, &[OpenAi]), Ok(()));
        assert_eq!(take(r#"{"tool_calls":[],"refusal":null}"#, &[Message]), Ok(()));
    }

    #[test]
    fn other_values_are_unsupported_and_named() {
        let bad = [
            r#""tools":[{}]"#,
            r#""tool_choice":"required""#,
            r#""tool_choice":{}"#,
            r#""functions":[1]"#,
            r#""function_call":{"name":"f"}"#,
            r#""metadata":{"a":1}"#,
            r#""metadata":"x""#,
            r#""modalities":["text","audio"]"#,
            r#""modalities":["audio"]"#,
            r#""audio":{}"#,
            r#""prediction":{}"#,
            r#""response_format":{"type":"json_object"}"#,
            r#""response_format":{"type":"text","x":1}"#,
            r#""response_format":{}"#,
            r#""service_tier":"flex""#,
            r#""store":true"#,
            r#""suffix":"x""#,
            r#""verbosity":"low""#,
            r#""web_search_options":{}"#,
            r#""reasoning_effort":"high""#,
            r#""parallel_tool_calls":1"#,
            r#""user":1"#,
            r#""moderation":{}"#,
            r#""prompt_cache_options":{"mode":"explicit"}"#,
            r#""prompt_cache_retention":"24h""#,
            r#""deadline_ms":5"#,
            r#""tenant":"t""#,
        ];
        for member in bad {
            let error =
                take(&format!("{{{member}}}"), &[Request, Params, OpenAi]).expect_err(member);
            assert_eq!(error.kind, Kind::Unsupported, "{member}");
            let name = error.param.unwrap_or_default();
            assert!(member.starts_with(&format!("\"{name}\"")), "{member}: {name}");
        }
    }

    #[test]
    fn openais_own_names_are_unknown_elsewhere() {
        for body in [r#"{"user":"u"}"#, r#"{"store":false}"#] {
            assert_eq!(take(body, &[Request, Params]).map_err(|e| e.kind), Err(Kind::Invalid));
        }
    }
}
