//! Bodies of `/v1/completions` and `/v1/chat/completions` → what they ask for. Types and names are judged here, ranges by admission.

use super::fields::{Fields, integer, wrong};
use super::json::{self, Json};
use super::openai_params::{Place, take_neutral};
use crate::error::{Error, Result};
use crate::request::{ChatMessage, DEFAULT_PRIORITY, Params, Prompt, RequestId};

/// What a body asks for.
#[derive(Debug, PartialEq)]
pub(super) struct Generation {
    /// The alias of the model.
    pub(super) model: String,
    /// At least one; each is a choice of the answer.
    pub(super) prompts: Vec<Prompt>,
    /// For each of them.
    pub(super) params: Params,
    /// SSE, or one body.
    pub(super) stream: bool,
    /// A last chunk with the usage, before `[DONE]`.
    pub(super) include_usage: bool,
    /// 0 to 255, 255 first.
    pub(super) priority: u8,
    /// The client's id, if the body has one.
    pub(super) request_id: Option<RequestId>,
}

/// Reads a body of `/v1/chat/completions`.
///
/// # Errors
/// `invalid` or `unsupported`, naming the field.
pub(super) fn chat(body: &[u8]) -> Result<Generation> {
    let mut fields = Fields::of(json::parse(body)?, "")?;
    let mut params = take_params(&mut fields)?;
    let max_completion_tokens = fields.u32("max_completion_tokens")?;
    if max_completion_tokens.is_some() {
        if params.max_tokens.is_some() && params.max_tokens != max_completion_tokens {
            return Err(Error::invalid(
                "max_completion_tokens",
                "expected the same value as in max_tokens, or one of the two alone",
            ));
        }
        params.max_tokens = max_completion_tokens;
    }
    let messages = match fields.required("messages", "an array of messages")? {
        Json::Array(items) => items,
        other => return Err(wrong("messages", "an array of messages", &other)),
    };
    if messages.is_empty() {
        return Err(Error::invalid("messages", "expected at least one message, got none"));
    }
    let messages = messages.into_iter().enumerate().map(|(i, json)| message(i, json));
    let prompts = vec![Prompt::Messages(messages.collect::<Result<_>>()?)];
    take_neutral(&mut fields, Place::Chat)?;
    finish(fields, params, prompts)
}

/// Reads a body of `/v1/completions` with at most `max_prompts` prompts.
///
/// # Errors
/// `invalid` or `unsupported`, naming the field.
pub(super) fn completion(body: &[u8], max_prompts: usize) -> Result<Generation> {
    let mut fields = Fields::of(json::parse(body)?, "")?;
    let params = take_params(&mut fields)?;
    let prompts = prompts(fields.required("prompt", "a prompt")?)?;
    if prompts.len() > max_prompts {
        return Err(Error::invalid(
            "prompt",
            format!("expected at most {max_prompts} prompts, got {}", prompts.len()),
        ));
    }
    take_neutral(&mut fields, Place::Completions)?;
    finish(fields, params, prompts)
}

fn take_params(fields: &mut Fields<'_>) -> Result<Params> {
    Ok(Params {
        max_tokens: fields.u32("max_tokens")?,
        min_tokens: fields.u32("min_tokens")?,
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.u32("top_k")?,
        min_p: fields.number("min_p")?,
        // 64 bits, signed or not: OpenAI's seeds may be negative.
        seed: fields.integer("seed", i64::MIN.into(), u64::MAX.into())?.map(|seed| seed as u64),
        stop: fields.texts("stop")?.unwrap_or_default(),
        ignore_eos: fields.boolean("ignore_eos")?,
    })
}

fn finish(mut fields: Fields<'_>, params: Params, prompts: Vec<Prompt>) -> Result<Generation> {
    let model = match fields.required("model", "the name of a model")? {
        Json::Text(model) => model.into_owned(),
        other => return Err(wrong("model", "a string", &other)),
    };
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = stream_options(&mut fields, stream)?;
    let priority = fields.integer("priority", 0, u8::MAX.into())?;
    let request_id = match fields.text("request_id")? {
        Some(id) => Some(RequestId::parse(&id)?),
        None => None,
    };
    fields.finish()?;
    Ok(Generation {
        model,
        prompts,
        params,
        stream,
        include_usage,
        priority: priority.and_then(|p| u8::try_from(p).ok()).unwrap_or(DEFAULT_PRIORITY),
        request_id,
    })
}

fn stream_options(fields: &mut Fields<'_>, stream: bool) -> Result<bool> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(Error::invalid("stream_options", "only allowed where stream is true"));
    }
    let mut options = Fields::of(options, fields.name("stream_options"))?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    if options.boolean("include_obfuscation")?.unwrap_or(false) {
        return Err(Error::unsupported(
            options.name("include_obfuscation"),
            "not supported by this node; expected false or nothing",
        ));
    }
    options.finish()?;
    Ok(include_usage)
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
    take_neutral(&mut fields, Place::Message)?;
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
        take_neutral(&mut part, Place::Part)?;
        part.finish()?;
    }
    Ok(content)
}

fn prompts(json: Json<'_>) -> Result<Vec<Prompt>> {
    const EXPECTED: &str =
        "a string, an array of strings, an array of token ids, or an array of those";
    let items = match json {
        Json::Text(text) => return Ok(vec![Prompt::Text(text.into_owned())]),
        Json::Array(items) => items,
        other => return Err(wrong("prompt", EXPECTED, &other)),
    };
    match items.first() {
        None => Err(Error::invalid("prompt", "expected at least one prompt, got an empty array")),
        Some(Json::Integer(_)) => {
            Ok(vec![Prompt::TokenIds(token_ids(&items, |i| format!("prompt[{i}]"))?)])
        }
        Some(Json::Text(_)) => {
            let prompts = items.into_iter().enumerate().map(|(i, item)| match item {
                Json::Text(text) => Ok(Prompt::Text(text.into_owned())),
                other => Err(wrong(format!("prompt[{i}]"), "a string", &other)),
            });
            prompts.collect()
        }
        Some(Json::Array(_)) => {
            let prompts = items.iter().enumerate().map(|(i, item)| match item {
                Json::Array(ids) => {
                    token_ids(ids, |j| format!("prompt[{i}][{j}]")).map(Prompt::TokenIds)
                }
                other => Err(wrong(format!("prompt[{i}]"), "an array of token ids", other)),
            });
            prompts.collect()
        }
        Some(other) => Err(wrong("prompt[0]", EXPECTED, other)),
    }
}

fn token_ids(items: &[Json<'_>], name: impl Fn(usize) -> String) -> Result<Vec<u32>> {
    let ids = items.iter().enumerate().map(|(i, item)| {
        let id = integer(item, 0, u32::MAX.into(), || name(i))?;
        Ok(id as u32)
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn at_chat(members: &str) -> Result<Generation> {
        let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
        chat(format!(r#"{{"model":"demo",{messages}{members}}}"#).as_bytes())
    }

    fn with_messages(messages: &str) -> Result<Vec<ChatMessage>> {
        let body = format!(r#"{{"model":"demo","messages":{messages}}}"#);
        match chat(body.as_bytes())?.prompts.remove(0) {
            Prompt::Messages(messages) => Ok(messages),
            other => panic!("not messages: {other:?}"),
        }
    }

    fn with_prompt(prompt: &str) -> Result<Vec<Prompt>> {
        let body = format!(r#"{{"model":"demo","prompt":{prompt}}}"#);
        completion(body.as_bytes(), 3).map(|generation| generation.prompts)
    }

    fn fault<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
        let error = result.expect_err("a fault");
        (error.kind, error.param.unwrap_or_default())
    }

    #[test]
    fn a_bare_body_takes_the_defaults() {
        let generation = at_chat("").expect("valid");
        assert_eq!(generation.params, Params::default());
        assert_eq!(generation.priority, DEFAULT_PRIORITY);
        assert!(!generation.stream && !generation.include_usage);
        assert_eq!(generation.request_id, None);
        let nulls =
            r#","temperature":null,"stop":null,"stream":null,"stream_options":null,"n":null"#;
        assert_eq!(at_chat(nulls).expect("valid"), generation);
    }

    #[test]
    fn every_parameter_arrives() {
        let generation = at_chat(
            r#","max_tokens":7,"min_tokens":2,"temperature":0.5,"top_p":1,"top_k":4,"min_p":0.25,
               "seed":-1,"stop":["a","b"],"ignore_eos":true,"stream":true,"priority":255,
               "stream_options":{"include_usage":true,"include_obfuscation":false},"request_id":"r-1""#,
        )
        .expect("valid");
        let params = Params {
            max_tokens: Some(7),
            min_tokens: Some(2),
            temperature: Some(0.5),
            top_p: Some(1.0),
            top_k: Some(4),
            min_p: Some(0.25),
            seed: Some(u64::MAX),
            stop: vec!["a".to_owned(), "b".to_owned()],
            ignore_eos: Some(true),
        };
        assert_eq!(generation.params, params);
        assert!(generation.stream && generation.include_usage && generation.priority == 255);
        assert_eq!(generation.request_id.map(|id| id.to_string()), Some("r-1".to_owned()));
        let seed = at_chat(r#","seed":18446744073709551615,"stop":"x""#).expect("valid").params;
        assert_eq!((seed.seed, seed.stop), (Some(u64::MAX), vec!["x".to_owned()]));
    }

    #[test]
    fn faults_name_their_field() {
        let cases = [
            (r#","max_tokens":"7""#, Kind::Invalid, "max_tokens"),
            (r#","max_tokens":-1"#, Kind::Invalid, "max_tokens"),
            (r#","max_tokens":1.0"#, Kind::Invalid, "max_tokens"),
            (r#","temperature":"hot""#, Kind::Invalid, "temperature"),
            (r#","stop":[1]"#, Kind::Invalid, "stop[0]"),
            (r#","seed":18446744073709551616"#, Kind::Invalid, "seed"),
            (r#","priority":256"#, Kind::Invalid, "priority"),
            (r#","request_id":"a b""#, Kind::Invalid, "request_id"),
            (r#","request_id":7"#, Kind::Invalid, "request_id"),
            (r#","stream":"yes""#, Kind::Invalid, "stream"),
            (r#","stream_options":{}"#, Kind::Invalid, "stream_options"),
            (r#","stream":true,"stream_options":[]"#, Kind::Invalid, "stream_options"),
            (r#","stream":true,"stream_options":{"x":1}"#, Kind::Invalid, "stream_options.x"),
            (
                r#","stream":true,"stream_options":{"include_obfuscation":true}"#,
                Kind::Unsupported,
                "stream_options.include_obfuscation",
            ),
            (
                r#","max_tokens":1,"max_completion_tokens":2"#,
                Kind::Invalid,
                "max_completion_tokens",
            ),
            (r#","n":2"#, Kind::Unsupported, "n"),
            (r#","prompt":"x""#, Kind::Invalid, "prompt"),
            (r#","whatever":null"#, Kind::Invalid, "whatever"),
            (r#","model":"again""#, Kind::Invalid, "model"),
        ];
        for (members, kind, name) in cases {
            assert_eq!(fault(at_chat(members)), (kind, name.to_owned()), "{members}");
        }
        assert_eq!(fault(chat(b"[]")), (Kind::Invalid, String::new()));
        assert_eq!(fault(chat(b"{}")), (Kind::Invalid, "messages".to_owned()));
        assert_eq!(fault(completion(b"{}", 1)), (Kind::Invalid, "prompt".to_owned()));
        assert_eq!(fault(completion(b"{\"prompt\":\"x\"}", 1)).1, "model");
        assert_eq!(fault(completion(b"{\"prompt\":\"x\",\"model\":1}", 1)).1, "model");
    }

    #[test]
    fn both_names_of_the_limit_are_taken_when_they_agree() {
        let both = at_chat(r#","max_tokens":3,"max_completion_tokens":3"#).expect("valid");
        let alias = at_chat(r#","max_completion_tokens":3"#).expect("valid");
        assert_eq!(both.params.max_tokens, Some(3));
        assert_eq!(both, alias);
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

    #[test]
    fn prompts_come_in_four_shapes() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(with_prompt(r#""x""#), Ok(vec![text("x")]));
        assert_eq!(with_prompt(r#"["x","y"]"#), Ok(vec![text("x"), text("y")]));
        assert_eq!(with_prompt("[1,2]"), Ok(vec![Prompt::TokenIds(vec![1, 2])]));
        assert_eq!(
            with_prompt("[[1],[]]"),
            Ok(vec![Prompt::TokenIds(vec![1]), Prompt::TokenIds(vec![])])
        );
    }

    #[test]
    fn faulty_prompts_are_named() {
        let cases = [
            ("[]", "prompt"),
            ("{}", "prompt"),
            ("null", "prompt"),
            ("[{}]", "prompt[0]"),
            ("[1,\"x\"]", "prompt[1]"),
            ("[\"x\",1]", "prompt[1]"),
            ("[[1],2]", "prompt[1]"),
            ("[[1,-1]]", "prompt[0][1]"),
            ("[4294967296]", "prompt[0]"),
            ("[1.5]", "prompt[0]"),
            ("[\"a\",\"b\",\"c\",\"d\"]", "prompt"),
        ];
        for (prompt, name) in cases {
            assert_eq!(fault(with_prompt(prompt)), (Kind::Invalid, name.to_owned()), "{prompt}");
        }
    }
}
