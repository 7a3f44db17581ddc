//! A chat's messages: roles and contents as clients of OpenAI's API write them.

use super::{MemberPlace, take_neutral};
use crate::error::{Error, Result};
use crate::request::{ChatMessage, Fields, IgnoredMembers, Value};

/// Reads a list of messages that stands at `path`. What is neither served nor refused goes to the chat template, which may read any
/// member of a message.
///
/// # Errors
/// `invalid` or `unsupported`, naming the member.
pub fn messages(
    value: Value,
    path: &str,
    ignored: Option<&IgnoredMembers>,
) -> Result<Vec<ChatMessage>> {
    let items = value.list(path)?;
    if items.is_empty() {
        return Err(Error::invalid(path, "expected at least one message, got none"));
    }
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| message(Fields::of(item, &format!("{path}[{i}]"), ignored)?)).collect()
}

fn message(mut fields: Fields<'_>) -> Result<ChatMessage> {
    let ignored = fields.ignored();
    let content = |value: Value, path: &str| content(value, path, ignored);
    let role = fields.required("role", role)?;
    take_neutral(&mut fields, MemberPlace::Message)?;
    let content = match role {
        // A reply may have come without text.
        "assistant" => fields.optional("content", content)?.unwrap_or_default(),
        _ => fields.required("content", content)?,
    };
    Ok(ChatMessage { role: role.to_owned(), content, more: fields.into_rest() })
}

fn role(value: Value, path: &str) -> Result<&'static str> {
    match &value {
        Value::Text(role) => match role.as_str() {
            // OpenAI's newer name of the same thing; checkpoints' templates know `system`.
            "developer" | "system" => Ok("system"),
            "user" => Ok("user"),
            "assistant" => Ok("assistant"),
            "tool" | "function" => {
                let message = format!("the role {role} is not supported by this node yet");
                Err(Error::unsupported(path, message))
            }
            _ => Err(value.refused(path, "system, developer, user or assistant")),
        },
        _ => Err(value.refused(path, "a string")),
    }
}

/// A string, or text parts put together as they stand.
fn content(value: Value, path: &str, ignored: Option<&IgnoredMembers>) -> Result<String> {
    match value {
        Value::Text(text) => Ok(text),
        Value::List(parts) => {
            let parts = parts.into_iter().enumerate();
            parts
                .map(|(i, part)| text_of(Fields::of(part, &format!("{path}[{i}]"), ignored)?))
                .collect()
        }
        other => Err(other.refused(path, "a string or an array of text parts")),
    }
}

fn text_of(mut part: Fields<'_>) -> Result<String> {
    part.required("type", |value, path| match &value {
        Value::Text(kind) if kind == "text" => Ok(()),
        Value::Text(_) => {
            let message = format!(
                "content parts of type {value} are not supported by this node; expected text"
            );
            Err(Error::unsupported(path, message))
        }
        _ => Err(value.refused(path, "\"text\"")),
    })?;
    let text = part.required("text", Value::text)?;
    take_neutral(&mut part, MemberPlace::Part)?;
    part.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;
    use crate::error::Kind;

    fn read(text: &str) -> Result<Vec<ChatMessage>> {
        messages(json(text.as_bytes()).expect("JSON"), "messages", None)
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
        let error = result.expect_err("a fault");
        (error.kind, error.param.unwrap_or_default())
    }

    #[test]
    fn roles_and_contents_are_taken_as_openai_has_them() {
        let read = read(
            r#"[{"role":"developer","content":"be brief"},{"role":"user","content":[
                {"type":"text","text":"a "},{"type":"text","text":"b"}]},
                {"role":"assistant","content":"c","refusal":null,"tool_calls":null,"annotations":[]},
                {"role":"system","content":""},{"role":"assistant","content":null}]"#,
        )
        .expect("valid");
        let seen: Vec<_> = read.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("system", "be brief"),
                ("user", "a b"),
                ("assistant", "c"),
                ("system", ""),
                ("assistant", "")
            ]
        );
    }

    #[test]
    fn what_a_template_may_read_goes_with_the_message() {
        let read = read(
            r#"[{"role":"user","name":"n","content":[{"type":"text","text":"a","cache_control":{}}],
                "x":{"y":[1]}},{"role":"assistant","content":null,"reasoning_content":null,"name":"m"}]"#,
        )
        .expect("valid");
        let seen = serde_json::to_string(&read).expect("what a template sees");
        let expected = r#"[{"role":"user","content":"a","name":"n","x":{"y":[1]}},{"role":"assistant","content":"","name":"m"}]"#;
        assert_eq!(seen, expected);
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
            (r#"[{"role":"assistant","content":1}]"#, Kind::Invalid, "messages[0].content"),
            (r#"[{"role":"user"}]"#, Kind::Invalid, "messages[0].content"),
            (r#"[{"role":"user","content":null}]"#, Kind::Invalid, "messages[0].content"),
            (r#"[{"role":"user","content":1}]"#, Kind::Invalid, "messages[0].content"),
            (
                r#"[{"role":"assistant","content":"x","tool_calls":[{}]}]"#,
                Kind::Unsupported,
                "messages[0].tool_calls",
            ),
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
        for (text, kind, name) in cases {
            assert_eq!(fault(read(text)), (kind, name.to_owned()), "{text}");
        }
    }
}
