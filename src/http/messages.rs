//! A chat's messages: roles and contents as OpenAI's clients send them.

use super::fields::{Fields, wrong};
use super::json::Json;
use super::openai_params::{ParamPlace, take_neutral};
use crate::error::{Error, Result};
use crate::request::ChatMessage;

/// Reads the value of `messages`.
///
/// # Errors
/// `invalid` or `unsupported`, naming the field.
pub(super) fn read(json: Json<'_>) -> Result<Vec<ChatMessage>> {
    let items = match json {
        Json::Array(items) => items,
        other => return Err(wrong("messages", "an array of messages", &other)),
    };
    if items.is_empty() {
        return Err(Error::invalid("messages", "expected at least one message, got none"));
    }
    items.into_iter().enumerate().map(|(i, json)| message(i, json)).collect()
}

fn message(index: usize, json: Json<'_>) -> Result<ChatMessage> {
    let mut fields = Fields::of(json, format!("messages[{index}]"))?;
    let role = match fields.required("role", "a role")? {
        Json::Text(role) => role,
        other => return Err(wrong(fields.name("role"), "a string", &other)),
    };
    let role = match role.as_ref() {
        // OpenAI's newer name of the same thing; checkpoints' templates know `system`.
        "developer" | "system" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            let message = format!("the role {role} is not supported by this node");
            return Err(Error::unsupported(fields.name("role"), message));
        }
        other => {
            let message = format!("expected system, developer, user or assistant, got {other:?}");
            return Err(Error::invalid(fields.name("role"), message));
        }
    };
    take_neutral(&mut fields, ParamPlace::Message)?;
    let content = content(&mut fields)?;
    fields.finish()?;
    Ok(ChatMessage { role: role.to_owned(), content })
}

/// A string, or text parts put together as they stand.
fn content(fields: &mut Fields<'_>) -> Result<String> {
    const EXPECTED: &str = "a string or an array of text parts";
    let parts = match fields.required("content", EXPECTED)? {
        Json::Text(text) => return Ok(text.into_owned()),
        Json::Array(parts) => parts,
        other => return Err(wrong(fields.name("content"), EXPECTED, &other)),
    };
    let mut content = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, format!("{}[{i}]", fields.name("content")))?;
        match part.text("type")?.as_deref() {
            Some("text") => {}
            Some(kind) => {
                let message = format!(
                    "content parts of type {kind:?} are not supported by this node; expected text"
                );
                return Err(Error::unsupported(part.name("type"), message));
            }
            None => {
                return Err(Error::invalid(part.name("type"), "expected \"text\", got nothing"));
            }
        }
        match part.required("text", "a string")? {
            Json::Text(text) => content.push_str(&text),
            other => return Err(wrong(part.name("text"), "a string", &other)),
        }
        take_neutral(&mut part, ParamPlace::Part)?;
        part.finish()?;
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;
    use crate::error::Kind;

    fn with_messages(messages: &str) -> Result<Vec<ChatMessage>> {
        read(parse(messages.as_bytes()).expect("JSON"))
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
        let error = result.expect_err("a fault");
        (error.kind, error.param.unwrap_or_default())
    }

    #[test]
    fn roles_and_contents_are_taken_as_openai_has_them() {
        let messages = with_messages(
            r#"[{"role":"developer","content":"be brief"},{"role":"user","content":[
                {"type":"text","text":"a "},{"type":"text","text":"b"}]},
                {"role":"assistant","content":"c","refusal":null,"tool_calls":null,"annotations":[]},
                {"role":"system","content":""}]"#,
        )
        .expect("valid");
        let seen: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(
            seen,
            [("system", "be brief"), ("user", "a b"), ("assistant", "c"), ("system", "")]
        );
    }

    #[test]
    fn faulty_messages_are_named() {
        let cases = [
            ("[]", Kind::Invalid, "messages"),
            ("\"hi\"", Kind::Invalid, "messages"),
            ("[1]", Kind::Invalid, "messages[0]"),
            (r#"[{"content":"x"}]"#, Kind::Invalid, "messages[0].role"),
            (r#"[{"role":1,"content":"x"}]"#, Kind::Invalid, "messages[0].role"),
            (r#"[{"role":"king","content":"x"}]"#, Kind::Invalid, "messages[0].role"),
            (r#"[{"role":"tool","content":"x"}]"#, Kind::Unsupported, "messages[0].role"),
            (r#"[{"role":"user"}]"#, Kind::Invalid, "messages[0].content"),
            (r#"[{"role":"user","content":null}]"#, Kind::Invalid, "messages[0].content"),
            (r#"[{"role":"user","content":1}]"#, Kind::Invalid, "messages[0].content"),
            (
                r#"[{"role":"user","content":"x","name":"n"}]"#,
                Kind::Unsupported,
                "messages[0].name",
            ),
            (r#"[{"role":"user","content":"x","x":1}]"#, Kind::Invalid, "messages[0].x"),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#,
                Kind::Unsupported,
                "messages[0].content[0].type",
            ),
            (
                r#"[{"role":"user","content":[{"text":"x"}]}]"#,
                Kind::Invalid,
                "messages[0].content[0].type",
            ),
            (
                r#"[{"role":"user","content":[{"type":"text","text":1}]}]"#,
                Kind::Invalid,
                "messages[0].content[0].text",
            ),
            (
                r#"[{"role":"user","content":[{"type":"text","text":"x","y":1}]}]"#,
                Kind::Invalid,
                "messages[0].content[0].y",
            ),
            (r#"[{"role":"user","content":["x"]}]"#, Kind::Invalid, "messages[0].content[0]"),
        ];
        for (messages, kind, name) in cases {
            assert_eq!(fault(with_messages(messages)), (kind, name.to_owned()), "{messages}");
        }
    }
}
