//! The parameters of OpenAI's API that this node knows and does not have: each with the values that ask for nothing.
//!
//! A parameter with such a neutral value is taken; with another one it is refused as `unsupported`, never ignored. A
//! parameter that stands in none of the lists is unknown.

use super::fields::Fields;
use super::json::Json;
use crate::error::{Error, Result};

/// Which values of a parameter ask for nothing that the node lacks.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// None: the parameter always asks for something.
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

/// Of both endpoints.
const COMMON: &[(&str, Neutral)] = &[
    ("deadline_ms", Neutral::Nothing),
    ("detached", Neutral::False),
    ("tenant", Neutral::Nothing),
    ("user", Neutral::Label),
];

/// Of `/v1/completions`.
const COMPLETIONS: &[(&str, Neutral)] = &[("suffix", Neutral::Empty)];

/// Of `/v1/chat/completions`.
const CHAT: &[(&str, Neutral)] = &[
    ("audio", Neutral::Nothing),
    ("function_call", Neutral::OneOf(&["none", "auto"])),
    ("functions", Neutral::Empty),
    ("metadata", Neutral::Labels),
    ("modalities", Neutral::TextOnly),
    ("moderation", Neutral::Nothing),
    ("parallel_tool_calls", Neutral::Boolean),
    ("prediction", Neutral::Nothing),
    ("prompt_cache_key", Neutral::Label),
    ("prompt_cache_options", Neutral::Empty),
    ("prompt_cache_retention", Neutral::OneOf(&["in_memory"])),
    ("reasoning_effort", Neutral::OneOf(&["none"])),
    ("response_format", Neutral::TextFormat),
    ("safety_identifier", Neutral::Label),
    ("service_tier", Neutral::OneOf(&["auto", "default"])),
    ("store", Neutral::False),
    ("tool_choice", Neutral::OneOf(&["none", "auto"])),
    ("tools", Neutral::Empty),
    ("verbosity", Neutral::OneOf(&["medium"])),
    ("web_search_options", Neutral::Nothing),
];

/// Of a message; those of a reply that clients send back with the conversation.
const MESSAGE: &[(&str, Neutral)] = &[
    ("annotations", Neutral::Empty),
    ("audio", Neutral::Nothing),
    ("function_call", Neutral::Nothing),
    ("name", Neutral::Nothing),
    ("refusal", Neutral::Nothing),
    ("tool_call_id", Neutral::Nothing),
    ("tool_calls", Neutral::Empty),
];

/// Of a text part.
const PART: &[(&str, Neutral)] = &[("prompt_cache_breakpoint", Neutral::Nothing)];

/// Where a list of parameters belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParamPlace {
    /// The body of `/v1/completions`.
    Completions,
    /// The body of `/v1/chat/completions`.
    Chat,
    /// One message of it.
    Message,
    /// One text part of a message.
    Part,
}

/// Takes every parameter of `place` that the node does not have.
///
/// # Errors
/// `unsupported`, naming the first that has another than a neutral value.
pub(super) fn take_neutral(fields: &mut Fields<'_>, place: ParamPlace) -> Result<()> {
    let (common, own) = match place {
        ParamPlace::Completions => (COMMON, COMPLETIONS),
        ParamPlace::Chat => (COMMON, CHAT),
        ParamPlace::Message => (&[][..], MESSAGE),
        ParamPlace::Part => (&[][..], PART),
    };
    for (key, neutral) in common.iter().chain(own) {
        if let Some(value) = fields.take(key)
            && !neutral.admits(&value)
        {
            let message = format!("not supported by this node; {}", neutral.expectation());
            return Err(Error::unsupported(fields.name(key), message));
        }
    }
    Ok(())
}

impl Neutral {
    fn admits(self, value: &Json<'_>) -> bool {
        match (self, value) {
            (Neutral::False, Json::Bool(value)) => !value,
            (Neutral::Boolean, Json::Bool(_)) => true,
            (Neutral::Empty, Json::Text(value)) => value.is_empty(),
            (Neutral::Empty, Json::Array(items)) => items.is_empty(),
            (Neutral::Empty, Json::Object(members)) => members.is_empty(),
            (Neutral::OneOf(accepted), Json::Text(value)) => accepted.contains(&value.as_ref()),
            (Neutral::Label, Json::Text(_)) => true,
            (Neutral::Labels, Json::Object(members)) => {
                members.values().all(|label| matches!(label, Json::Text(_)))
            }
            (Neutral::TextFormat, Json::Object(members)) => {
                members.len() == 1 && members.get("type").is_some_and(is_text)
            }
            (Neutral::TextOnly, Json::Array(items)) => items.len() == 1 && is_text(&items[0]),
            _ => false,
        }
    }

    fn expectation(self) -> String {
        match self {
            Neutral::Nothing => "leave it out".to_owned(),
            Neutral::False => "expected false or nothing".to_owned(),
            Neutral::Boolean => "expected a boolean or nothing".to_owned(),
            Neutral::Empty => "expected it empty or nothing".to_owned(),
            Neutral::OneOf(accepted) => format!("expected {} or nothing", accepted.join(", ")),
            Neutral::Label => "expected a string or nothing".to_owned(),
            Neutral::Labels => "expected an object of strings or nothing".to_owned(),
            Neutral::TextFormat => "expected {\"type\": \"text\"} or nothing".to_owned(),
            Neutral::TextOnly => "expected [\"text\"] or nothing".to_owned(),
        }
    }
}

fn is_text(value: &Json<'_>) -> bool {
    matches!(value, Json::Text(text) if text == "text")
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;
    use crate::error::Kind;

    fn take(body: &str, place: ParamPlace) -> Result<()> {
        let mut fields = Fields::of(parse(body.as_bytes())?, "")?;
        take_neutral(&mut fields, place)?;
        fields.finish()
    }

    #[test]
    fn neutral_values_are_taken() {
        let chat = r#"{"user":"u","tools":[],"tool_choice":"auto","function_call":"none",
            "functions":[],"metadata":{"a":"b"},"modalities":["text"],"parallel_tool_calls":true,
            "prompt_cache_key":"k","prompt_cache_retention":"in_memory","reasoning_effort":"none",
            "response_format":{"type":"text"},"safety_identifier":"s","service_tier":"auto",
            "store":false,"verbosity":"medium","prediction":null}"#;
        assert_eq!(take(chat, ParamPlace::Chat), Ok(()));
        let completion = r#"{"suffix":""}"#;
        assert_eq!(take(completion, ParamPlace::Completions), Ok(()));
        assert_eq!(take(r#"{"tool_calls":[],"refusal":null}"#, ParamPlace::Message), Ok(()));
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
            r#""service_tier":"flex""#,
            r#""store":true"#,
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
            let error = take(&format!("{{{member}}}"), ParamPlace::Chat).expect_err(member);
            assert_eq!(error.kind, Kind::Unsupported, "{member}");
            let name = error.param.unwrap_or_default();
            assert!(member.starts_with(&format!("\"{name}\"")), "{member}: {name}");
        }
        let error = take(r#"{"suffix":"x"}"#, ParamPlace::Completions).expect_err("a suffix");
        assert_eq!(error.kind, Kind::Unsupported);
    }

    #[test]
    fn what_belongs_to_the_other_endpoint_is_unknown() {
        assert_eq!(
            take(r#"{"suffix":""}"#, ParamPlace::Chat).map_err(|e| e.kind),
            Err(Kind::Invalid)
        );
        assert_eq!(
            take(r#"{"tools":[]}"#, ParamPlace::Completions).map_err(|e| e.kind),
            Err(Kind::Invalid)
        );
    }
}
