//! The members that this node knows and does not have: each with the values that ask for nothing.
//!
//! One with such a neutral value is taken; with another it is refused as `unsupported`, never ignored. A member that stands in no row
//! of [`KNOWN`] is unknown.

use super::known::KNOWN;
use crate::error::Result;
use crate::request::{Fields, Value};

/// Which values of a member ask for nothing that the node lacks; null always does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    /// None: the member always asks for something.
    NoValue,
    /// `false`.
    False,
    /// `true`.
    True,
    /// Any boolean, because what it governs does not occur here.
    AnyBoolean,
    /// Any number, for the same reason.
    AnyNumber,
    /// Any object: a hint that changes no answer.
    AnyObject,
    /// Any string: a label for the client's own books.
    AnyText,
    /// One of these numbers.
    Numbers(&'static [f64]),
    /// An empty string, array or object.
    Empty,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// An object of labels.
    Labels,
    /// `{"type": "text"}`.
    TextFormat,
    /// `["text"]`.
    TextOnly,
}

use Neutral::{
    AnyBoolean, AnyNumber, AnyObject, AnyText, Empty, False, Labels, NoValue, Numbers, OneOf,
    TextFormat, TextOnly, True,
};

/// The object that a member stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberPlace {
    /// The body, through every door.
    Request,
    /// That which holds the parameters: `params` on the bus, over HTTP the body.
    Params,
    /// A body over HTTP: names that are OpenAI's alone.
    OpenAi,
    /// `stream_options` over HTTP.
    StreamOptions,
    /// A message.
    Message,
    /// A text part of a message.
    Part,
}

/// What is known and not there: where, the member's name, and which values are taken, in words (empty: none but null).
pub fn known_members() -> impl Iterator<Item = (MemberPlace, &'static str, String)> {
    KNOWN.iter().map(|(place, name, neutral)| (*place, *name, neutral.values()))
}

/// Whether a member of this name is known there.
pub(super) fn is_known(place: MemberPlace, name: &str) -> bool {
    KNOWN.iter().any(|(of, known, _)| *of == place && *known == name)
}

/// Takes every member of `place` that the node does not have.
///
/// # Errors
/// `unsupported`, naming the first that has another than a neutral value.
pub fn take_neutral(fields: &mut Fields<'_>, place: MemberPlace) -> Result<()> {
    fields.take_judged(|name, value| {
        let (.., neutral) = KNOWN.iter().find(|(of, known, _)| *of == place && *known == name)?;
        Some(match *value == Value::Null || neutral.admits(value) {
            true => Ok(()),
            false => Err(format!("not supported by this node yet; {}", neutral.expectation())),
        })
    })
}

impl Neutral {
    fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (False, Value::Bool(value)) => !value,
            (True, Value::Bool(value)) => *value,
            (AnyBoolean, Value::Bool(_))
            | (AnyNumber, Value::Int(_) | Value::Float(_))
            | (AnyObject, Value::Map(_))
            | (AnyText, Value::Text(_)) => true,
            (Numbers(accepted), Value::Int(n)) => accepted.contains(&(*n as f64)),
            (Numbers(accepted), Value::Float(x)) => accepted.contains(x),
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
            NoValue => "leave it out".to_owned(),
            _ => format!("expected {} or nothing", self.values()),
        }
    }

    /// The values that are taken beside null.
    fn values(self) -> String {
        let numbers =
            |accepted: &[f64]| accepted.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        match self {
            NoValue => String::new(),
            False => "false".to_owned(),
            True => "true".to_owned(),
            AnyBoolean => "true, false".to_owned(),
            AnyNumber => "a number".to_owned(),
            AnyObject => "an object".to_owned(),
            AnyText => "a string".to_owned(),
            Numbers(accepted) => numbers(accepted),
            Empty => "an empty string, array or object".to_owned(),
            OneOf(accepted) => accepted.join(", "),
            Labels => "an object of strings".to_owned(),
            TextFormat => "{\"type\": \"text\"}".to_owned(),
            TextOnly => "[\"text\"]".to_owned(),
        }
    }
}

fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text == "text")
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::MemberPlace::{Message, OpenAi, Params, Part, Request};
    use super::*;
    use crate::error::Kind;

    fn take(body: &str, places: &[MemberPlace]) -> Result<()> {
        let mut fields = Fields::of_body(json(body.as_bytes())?, None)?;
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
        assert_eq!(take(r#"{"cache_control":{"type":"ephemeral"}}"#, &[Part]), Ok(()));
        let habits = r#"{"use_beam_search":false,"length_penalty":1,"cache_prompt":true,"repeat_last_n":-1,
            "typical_p":1.0,"mirostat":0,"mirostat_tau":5,"include_reasoning":true,"grammar":"",
            "spaces_between_special_tokens":false}"#;
        assert_eq!(take(habits, &[Params]), Ok(()));
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
            r#""use_beam_search":true"#,
            r#""length_penalty":2"#,
            r#""repeat_penalty":1.1"#,
            r#""cache_prompt":false"#,
            r#""mirostat_tau":"x""#,
            r#""grammar":"root ::= x""#,
            r#""n_predict":5"#,
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

    #[test]
    fn a_name_stands_in_one_row_of_its_place() {
        for (at, (place, name, _)) in KNOWN.iter().enumerate() {
            let again = KNOWN[..at].iter().any(|(of, known, _)| of == place && known == name);
            assert!(!again, "{place:?} {name}");
        }
    }
}
