//! Bodies of `/v1/completions` and `/v1/chat/completions` → what they ask for. Here is what OpenAI's clients write in their own way;
//! the rest is read by [`crate::reader`], as for the bus.

use super::prompts;
use crate::error::{Error, Result};
use crate::reader::{self, Layout, MemberPlace, RequestOptions, take_neutral};
use crate::request::{Fields, Params, Prompt, Value};

/// How HTTP clients write a request.
const LAYOUT: Layout =
    Layout { params_in: None, streams: false, max_tokens: "max_tokens", prompt: None };

/// What a body asks for.
#[derive(Debug, PartialEq)]
pub(super) struct GenerationBody {
    /// The alias of the model.
    pub(super) model: String,
    /// At least one; each is a choice of the answer.
    pub(super) prompts: Vec<Prompt>,
    /// For each of them.
    pub(super) options: RequestOptions,
    /// A last chunk with the usage, before `[DONE]`.
    pub(super) include_usage: bool,
    /// What the client called the members that later stages may refuse.
    pub(super) layout: Layout,
}

/// Reads a body of `/v1/chat/completions`.
///
/// # Errors
/// `invalid` or `unsupported`, naming the member.
pub(super) fn chat(body: &[u8]) -> Result<GenerationBody> {
    let mut fields = Fields::of_body(reader::json(body)?)?;
    let messages = fields.required("messages", reader::messages)?;
    let generation = generation(fields, vec![Prompt::Messages(messages)])?;
    if generation.options.params.echoes() {
        let text = "not supported for a chat; expected false or nothing";
        return Err(Error::unsupported("echo", text));
    }
    Ok(generation)
}

/// Reads a body of `/v1/completions` with at most `max_prompts` prompts.
///
/// # Errors
/// `invalid` or `unsupported`, naming the member.
pub(super) fn completion(body: &[u8], max_prompts: usize) -> Result<GenerationBody> {
    let mut fields = Fields::of_body(reader::json(body)?)?;
    let prompts = fields.required("prompt", prompts::read)?;
    if prompts.len() > max_prompts {
        return Err(Error::invalid(
            "prompt",
            format!("expected at most {max_prompts} prompts, got {}", prompts.len()),
        ));
    }
    generation(fields, prompts)
}

fn generation(mut fields: Fields, prompts: Vec<Prompt>) -> Result<GenerationBody> {
    let mut options = RequestOptions::read(&mut fields, &LAYOUT)?;
    let max_tokens = max_tokens(&mut fields, &mut options.params)?;
    let model = fields.required("model", Value::text)?;
    let include_usage = stream_options(&mut fields, options.stream)?;
    take_neutral(&mut fields, MemberPlace::OpenAi)?;
    fields.finish()?;
    if options.detached {
        let text = "not supported over HTTP; expected false or nothing";
        return Err(Error::unsupported("detached", text));
    }
    if options.stream && options.params.prompt_logprobs.is_some() {
        // As vLLM has it: its stream has no place for them.
        let text = "not supported with stream; expected nothing, or echo with logprobs";
        return Err(Error::unsupported("prompt_logprobs", text));
    }
    let layout = Layout { max_tokens, ..LAYOUT };
    Ok(GenerationBody { model, prompts, options, include_usage, layout })
}

/// Takes OpenAI's newer name of `max_tokens`; gives the one that the client wrote.
fn max_tokens(fields: &mut Fields, params: &mut Params) -> Result<&'static str> {
    const NAME: &str = "max_completion_tokens";
    let read = |value: Value, path: &str| value.integer(path, 0, u32::MAX.into());
    let Some(given) = fields.optional(NAME, read)?.map(|given| given as u32) else {
        return Ok(LAYOUT.max_tokens);
    };
    if params.max_tokens.is_some_and(|other| other != given) {
        let text = "expected the same value as in max_tokens, or one of the two alone";
        return Err(Error::invalid(NAME, text));
    }
    params.max_tokens = Some(given);
    Ok(NAME)
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(mut options) = fields.optional("stream_options", Fields::of)? else {
        return Ok(false);
    };
    if !stream {
        return Err(Error::invalid("stream_options", "only allowed where stream is true"));
    }
    let include_usage = options.optional("include_usage", Value::boolean)?.unwrap_or(false);
    if options.optional("include_obfuscation", Value::boolean)?.unwrap_or(false) {
        return Err(Error::unsupported(
            options.path_of("include_obfuscation"),
            "not supported by this node; expected false or nothing",
        ));
    }
    options.finish()?;
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Encoding, decode};
    use crate::error::Kind;
    use crate::request::DEFAULT_PRIORITY;

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
        assert_eq!(generation.options.params, Params::default());
        assert_eq!(generation.options.priority, DEFAULT_PRIORITY);
        assert!(!generation.options.stream && !generation.include_usage);
        assert_eq!(generation.options.request_id, None);
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
        assert_eq!(generation.options.params, params);
        assert!(
            generation.options.stream
                && generation.include_usage
                && generation.options.priority == 255
        );
        assert_eq!(generation.options.request_id.map(|id| id.to_string()), Some("r-1".to_owned()));
        let seed =
            at_chat(r#","seed":18446744073709551615,"stop":"x""#).expect("valid").options.params;
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
            (r#","detached":true"#, Kind::Unsupported, "detached"),
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
        assert_eq!(both.options.params.max_tokens, Some(3));
        assert_eq!(both, alias);
        assert_eq!(
            alias.layout.max_tokens, "max_completion_tokens",
            "an error names what was sent"
        );
        let plain =
            completion(br#"{"model":"demo","prompt":"x","max_tokens":3}"#, 1).expect("valid");
        assert_eq!(plain.layout.max_tokens, "max_tokens");
    }

    /// What both doors say of a request with one bad member: over HTTP, and on the bus.
    fn said(over_http: Result<GenerationBody>, on_bus: &str) -> (Error, Error) {
        let on_bus = decode(Encoding::Json, on_bus.as_bytes()).expect_err(on_bus).error;
        (over_http.expect_err(on_bus.message.as_str()), on_bus)
    }

    #[test]
    fn both_doors_say_the_same_of_a_bad_parameter_but_for_its_path() {
        let bad = [
            r#""max_tokens":-1"#,
            r#""temperature":"hot""#,
            r#""stop":["a",1]"#,
            r#""seed":1.5"#,
            r#""logit_bias":{"7":"x"}"#,
            r#""stop_token_ids":[0,-1]"#,
            r#""stream":"yes""#,
            r#""tools":[{}]"#,
            r#""response_format":{"type":"json_object"}"#,
            r#""grammar":"g""#,
            r#""suffix":"x""#,
            r#""top_q":1"#,
            r#""seed":1,"seed":1"#,
        ];
        for member in bad {
            let body = format!(r#"{{"model":"demo","prompt":"x",{member}}}"#);
            let on_bus = format!(r#"{{"prompt":"x","params":{{{member}}}}}"#);
            let (over_http, on_bus) = said(completion(body.as_bytes(), 1), &on_bus);
            assert_eq!(on_bus.kind, over_http.kind);
            assert_eq!(on_bus.text(), format!("params.{}", over_http.text()));
        }
    }

    #[test]
    fn both_doors_say_the_same_of_any_other_bad_member() {
        let bad = [
            r#""messages":[]"#,
            r#""messages":"hi""#,
            r#""messages":[{"role":"user","content":"x"},{"role":"user","content":1}]"#,
            r#""messages":[{"role":"king","content":"x"}]"#,
            r#""messages":[{"role":"tool","content":"x"}]"#,
            r#""messages":[{"role":"user","content":[{"type":"image_url"}]}]"#,
            r#""messages":[{"role":"user","role":"user","content":"x"}]"#,
            r#""messages":[{"role":"user","content":"x","name":"n"}]"#,
            r#""messages":[{"role":"user","content":"x","age":3}]"#,
            r#""messages":[{"role":"user","content":"x"}],"priority":256"#,
            r#""messages":[{"role":"user","content":"x"}],"request_id":"a b""#,
            r#""messages":[{"role":"user","content":"x"}],"detached":1"#,
            r#""messages":[{"role":"user","content":"x"}],"tenant":"t""#,
            r#""messages":[{"role":"user","content":"x"}],"whatever":null"#,
        ];
        for members in bad {
            let body = format!(r#"{{"model":"demo",{members}}}"#);
            let (over_http, on_bus) = said(chat(body.as_bytes()), &format!("{{{members}}}"));
            assert_eq!(on_bus, over_http, "{members}");
            assert!(on_bus.param.is_some(), "{on_bus}");
        }
        for body in ["", "[]", "{", "null"] {
            let (over_http, on_bus) = said(chat(body.as_bytes()), body);
            assert_eq!(on_bus, over_http, "{body}");
        }
    }
}
