//! Bodies of `/v1/completions` and `/v1/chat/completions` → what they ask for. Types and names are judged here, ranges by admission.

use super::fields::{Fields, wrong};
use super::json::{self, Json};
use super::openai_params::{ParamPlace, take_neutral};
use super::{messages, prompts};
use crate::error::{Error, Result};
use crate::ids::RequestId;
use crate::request::{DEFAULT_PRIORITY, Params, Prompt};

/// What a body asks for.
#[derive(Debug, PartialEq)]
pub(super) struct GenerationBody {
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
pub(super) fn chat(body: &[u8]) -> Result<GenerationBody> {
    let mut fields = Fields::of(json::parse(body)?, "")?;
    let mut params = Params::read(&mut fields)?;
    if params.echoes() {
        let text = "not supported for a chat; expected false or nothing";
        return Err(Error::unsupported("echo", text));
    }
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
    let messages = messages::read(fields.required("messages", "an array of messages")?)?;
    let prompts = vec![Prompt::Messages(messages)];
    take_neutral(&mut fields, ParamPlace::Chat)?;
    finish(fields, params, prompts)
}

/// Reads a body of `/v1/completions` with at most `max_prompts` prompts.
///
/// # Errors
/// `invalid` or `unsupported`, naming the field.
pub(super) fn completion(body: &[u8], max_prompts: usize) -> Result<GenerationBody> {
    let mut fields = Fields::of(json::parse(body)?, "")?;
    let params = Params::read(&mut fields)?;
    let prompts = prompts::read(fields.required("prompt", "a prompt")?)?;
    if prompts.len() > max_prompts {
        return Err(Error::invalid(
            "prompt",
            format!("expected at most {max_prompts} prompts, got {}", prompts.len()),
        ));
    }
    take_neutral(&mut fields, ParamPlace::Completions)?;
    finish(fields, params, prompts)
}

fn finish(mut fields: Fields<'_>, params: Params, prompts: Vec<Prompt>) -> Result<GenerationBody> {
    let model = match fields.required("model", "the name of a model")? {
        Json::Text(model) => model.into_owned(),
        other => return Err(wrong("model", "a string", &other)),
    };
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = stream_options(&mut fields, stream)?;
    if stream && params.prompt_logprobs.is_some() {
        // As vLLM has it: its stream has no place for them.
        let text = "not supported with stream; expected nothing, or echo with logprobs";
        return Err(Error::unsupported("prompt_logprobs", text));
    }
    let priority = fields.integer("priority", 0, u8::MAX.into())?;
    let request_id = match fields.text("request_id")? {
        Some(id) => Some(RequestId::parse(&id)?),
        None => None,
    };
    fields.finish()?;
    Ok(GenerationBody {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn at_chat(members: &str) -> Result<GenerationBody> {
        let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
        chat(format!(r#"{{"model":"demo",{messages}{members}}}"#).as_bytes())
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
               "logprobs":true,"top_logprobs":2,"logit_bias":{"7":-1.5},
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
            logprobs: Some(0),
            top_logprobs: Some(2),
            logit_bias: [(7, -1.5)].into(),
            ..Params::default()
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
            (r#","echo":true"#, Kind::Unsupported, "echo"),
            (r#","stream":true,"prompt_logprobs":1"#, Kind::Unsupported, "prompt_logprobs"),
            (r#","n":1.5"#, Kind::Invalid, "n"),
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
}
