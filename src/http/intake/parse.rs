//! Bodies of `/v1/completions` and `/v1/chat/completions` → what they ask for. Here is what OpenAI's clients write in their own way;
//! the rest is read by [`crate::reader`], as for the bus.

use super::super::api::Api;
use super::super::inferno::{self, InfernoNumber};
use super::prompts;
use crate::error::{Error, Result};
use crate::reader::{self, Layout, MemberPlace, RequestOptions, take_neutral};
use crate::request::{Fields, IgnoredMembers, Params, Prompt, Value};

/// How HTTP clients write a request.
const LAYOUT: Layout = Layout {
    params_in: None,
    streams: false,
    detaches: false,
    max_tokens: "max_tokens",
    prompt: None,
};

/// What a body asks for.
#[derive(Debug, PartialEq)]
pub(in crate::http) struct GenerationBody {
    /// The alias of the model; empty where `inferno` says that it is the first.
    pub(in crate::http) model: String,
    /// A load balancer of Inferno asks.
    pub(in crate::http) inferno: Option<InfernoNumber>,
    /// At least one; each is a choice of the answer.
    pub(in crate::http) prompts: Vec<Prompt>,
    /// For each of them.
    pub(in crate::http) options: RequestOptions,
    /// Where a stream says its usage.
    pub(in crate::http) usage: StreamUsage,
    /// What the client called the members that later stages may refuse.
    pub(in crate::http) layout: Layout,
}

impl GenerationBody {
    /// Which endpoint it is for.
    pub(in crate::http) fn api(&self) -> Api {
        match self.prompts.first() {
            Some(Prompt::Messages(_)) => Api::Chat,
            _ => Api::Completions,
        }
    }
}

/// Which chunks of a stream have the usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::http) enum StreamUsage {
    /// None.
    #[default]
    Nowhere,
    /// A last one, before `[DONE]`.
    AtEnd,
    /// That, and every other one has what there is until then: vLLM's `continuous_usage_stats`.
    Everywhere,
}

/// Reads a body of `/v1/chat/completions`; unknown members are refused, unless they can be noted.
///
/// # Errors
/// `invalid` or `unsupported`, naming the member.
pub(in crate::http) fn chat(
    body: &[u8],
    ignored: Option<&IgnoredMembers>,
) -> Result<GenerationBody> {
    let mut fields = Fields::of_body(reader::json(body)?, ignored)?;
    let read = |value: Value, path: &str| reader::messages(value, path, ignored);
    let messages = fields.required("messages", read);
    generation(fields, messages.map(|all| vec![Prompt::Messages(all)]), None)
}

/// Reads a body of `/v1/completions` with at most `max_prompts` prompts, in the same way.
///
/// # Errors
/// `invalid` or `unsupported`, naming the member.
pub(in crate::http) fn completion(
    body: &[u8],
    max_prompts: usize,
    ignored: Option<&IgnoredMembers>,
) -> Result<GenerationBody> {
    let mut fields = Fields::of_body(reader::json(body)?, ignored)?;
    let number = inferno::take_number(&mut fields)?;
    let max_prompts = number.map_or(max_prompts, |_| 1);
    let prompts = fields.required("prompt", prompts::read).and_then(|prompts| {
        let count = prompts.len();
        let text = || format!("expected at most {max_prompts} prompts, got {count}");
        if count > max_prompts { Err(Error::invalid("prompt", text())) } else { Ok(prompts) }
    });
    generation(fields, prompts, number)
}

fn generation(
    mut fields: Fields<'_>,
    prompts: Result<Vec<Prompt>>,
    inferno: Option<InfernoNumber>,
) -> Result<GenerationBody> {
    let mut options = RequestOptions::read(&mut fields, &LAYOUT)?;
    let max_tokens = max_tokens(&mut fields, &mut options.params)?;
    let model = match inferno {
        Some(_) => Ok(String::new()),
        None => fields.required("model", Value::text),
    };
    let usage = stream_options(&mut fields, options.stream)?;
    take_neutral(&mut fields, MemberPlace::OpenAi)?;
    // A misspelt name comes first: it may be that of what is missing.
    fields.finish()?;
    let (prompts, model) = (prompts?, model?);
    options.params.check_num_choices()?;
    if options.stream && options.params.prompt_logprobs.is_some() {
        // A rule of this wire: OpenAI's chunks have no place for them, so vLLM refuses it, too. An event of the bus has one.
        let text = "not supported with stream; leave it out, or use echo with logprobs";
        return Err(Error::unsupported("prompt_logprobs", text));
    }
    let layout = Layout { max_tokens, ..LAYOUT };
    Ok(GenerationBody { model, inferno, prompts, options, usage, layout })
}

/// Takes OpenAI's newer name of `max_tokens`; gives the one that the client wrote.
fn max_tokens(fields: &mut Fields<'_>, params: &mut Params) -> Result<&'static str> {
    const NAME: &str = "max_completion_tokens";
    let read = |value: Value, path: &str| value.integer(path, 0, u32::MAX.into());
    let Some(given) = fields.optional(NAME, read)?.map(|given| given as u32) else {
        return Ok(LAYOUT.max_tokens);
    };
    if params.max_tokens.is_some_and(|other| other != given) {
        let text = "differs from max_tokens; send one of them, or the same value in both";
        return Err(Error::invalid(NAME, text));
    }
    params.max_tokens = Some(given);
    Ok(NAME)
}

fn stream_options(fields: &mut Fields<'_>, stream: bool) -> Result<StreamUsage> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(StreamUsage::Nowhere);
    };
    if !stream {
        return Err(Error::invalid("stream_options", "only allowed where stream is true"));
    }
    let mut flag = |name| options.optional(name, Value::boolean).map(|flag| flag == Some(true));
    let usage = match (flag("include_usage")?, flag("continuous_usage_stats")?) {
        // As vLLM has it, the second says nothing without the first.
        (false, _) => StreamUsage::Nowhere,
        (true, false) => StreamUsage::AtEnd,
        (true, true) => StreamUsage::Everywhere,
    };
    take_neutral(&mut options, MemberPlace::StreamOptions)?;
    options.finish()?;
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Encoding, decode};
    use crate::error::Kind;
    use crate::request::DEFAULT_PRIORITY;

    fn at_chat(members: &str) -> Result<GenerationBody> {
        let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
        chat(format!(r#"{{"model":"demo",{messages}{members}}}"#).as_bytes(), None)
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
        assert!(!generation.options.stream && generation.usage == StreamUsage::Nowhere);
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
                && generation.usage == StreamUsage::AtEnd
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
        assert_eq!(fault(chat(b"[]", None)), (Kind::Invalid, String::new()));
        assert_eq!(fault(chat(b"{}", None)), (Kind::Invalid, "messages".to_owned()));
        assert_eq!(fault(completion(b"{}", 1, None)), (Kind::Invalid, "prompt".to_owned()));
        assert_eq!(fault(completion(b"{\"prompt\":\"x\"}", 1, None)).1, "model");
        assert_eq!(fault(completion(b"{\"prompt\":\"x\",\"model\":1}", 1, None)).1, "model");
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
            completion(br#"{"model":"demo","prompt":"x","max_tokens":3}"#, 1, None).expect("valid");
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
            let (over_http, on_bus) = said(completion(body.as_bytes(), 1, None), &on_bus);
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
            r#""messages":[{"role":"user","content":"x","tool_calls":[{}]}]"#,
            r#""messages":[{"role":"user","content":[{"type":"text","text":"x","age":3}]}]"#,
            r#""messages":[{"role":"user","content":"x"}],"priority":256"#,
            r#""messages":[{"role":"user","content":"x"}],"request_id":"a b""#,
            r#""messages":[{"role":"user","content":"x"}],"detached":1"#,
            r#""messages":[{"role":"user","content":"x"}],"tenant":"t""#,
            r#""messages":[{"role":"user","content":"x"}],"whatever":null"#,
        ];
        for members in bad {
            let body = format!(r#"{{"model":"demo",{members}}}"#);
            let (over_http, on_bus) = said(chat(body.as_bytes(), None), &format!("{{{members}}}"));
            assert_eq!(on_bus, over_http, "{members}");
            assert!(on_bus.param.is_some(), "{on_bus}");
        }
        for body in ["", "[]", "{", "null"] {
            let (over_http, on_bus) = said(chat(body.as_bytes(), None), body);
            assert_eq!(on_bus, over_http, "{body}");
        }
    }

    #[test]
    fn a_misspelt_name_is_said_before_what_is_missing_for_it() {
        let said = |body: &str| completion(body.as_bytes(), 1, None).expect_err(body).text();
        let misspelt = said(r#"{"model":"demo","promt":"x"}"#);
        assert_eq!(misspelt, "promt: unknown parameter; did you mean prompt?");
        let misspelt = said(r#"{"modle":"demo","prompt":"x"}"#);
        assert_eq!(misspelt, "modle: unknown parameter; did you mean model?");
    }

    #[test]
    fn usage_is_streamed_at_the_end_or_everywhere() {
        let usage = |options: &str| {
            let members = format!(r#","stream":true,"stream_options":{options}"#);
            at_chat(&members).expect("valid").usage
        };
        assert_eq!(usage(r#"{"include_usage":true}"#), StreamUsage::AtEnd);
        let everywhere = usage(r#"{"include_usage":true,"continuous_usage_stats":true}"#);
        assert_eq!(everywhere, StreamUsage::Everywhere);
        assert_eq!(usage(r#"{"continuous_usage_stats":true}"#), StreamUsage::Nowhere);
    }

    #[test]
    fn unknown_members_are_noted_where_that_is_wanted_and_others_judged_as_ever() {
        let note = |members: &str| {
            let noted = IgnoredMembers::default();
            let messages =
                r#""messages":[{"role":"user","content":[{"type":"text","text":"x","a":1}]}]"#;
            let body = format!(r#"{{"model":"demo",{messages}{members}}}"#);
            let read = chat(body.as_bytes(), Some(&noted)).map(|_| ());
            (read, noted.into_paths().0)
        };
        let (read, noted) = note(r#","top_q":1,"stream":true,"stream_options":{"b":1}"#);
        assert_eq!(
            (read, noted.join(" ").as_str()),
            (Ok(()), "messages[0].content[0].a stream_options.b top_q")
        );
        assert_eq!(note(r#","tools":[{}]"#).0.map_err(|e| e.kind), Err(Kind::Unsupported));
        assert_eq!(note(r#","top_p":"x""#).0.map_err(|e| e.kind), Err(Kind::Invalid));
    }
}
