//! Goal: every rule of the request's body holds in both encodings. Method: small bodies, each wrong in one way, checked by kind
//! and named field.

use serde_json::{Value, json};

use super::*;
use crate::error::Kind;
use crate::request::{ChatMessage, Params};

fn json_body(body: &str) -> std::result::Result<Decoded, Undecodable> {
    decode(Encoding::Json, body.as_bytes())
}

fn both(body: &Value) -> std::result::Result<Decoded, Undecodable> {
    let json = decode(Encoding::Json, body.to_string().as_bytes());
    let packed = rmp_serde::to_vec_named(body).expect("packs");
    assert_eq!(json, decode(Encoding::Msgpack, &packed), "{body}");
    json
}

/// Kind and field of the refusal.
fn refused(body: &Value) -> (Kind, String) {
    let error = both(body).expect_err("refused").error;
    (error.kind, error.param.unwrap_or_default())
}

#[test]
fn reads_every_member() {
    let decoded = both(&json!({
        "request_id": "a-1", "prompt": "Hi", "priority": 200, "detached": true,
        "params": {
            "max_tokens": 5, "min_tokens": 2, "temperature": 0.5, "top_p": 1, "top_k": 40, "min_p": 0.25,
            "seed": 18_446_744_073_709_551_615_u64, "stop": ["a", "b"], "ignore_eos": true, "stream": false,
            "logprobs": 2, "logit_bias": {"7": -1.5}
        }
    }))
    .expect("decodes");
    let params = Params {
        max_tokens: Some(5),
        min_tokens: Some(2),
        temperature: Some(0.5),
        top_p: Some(1.0),
        top_k: Some(40),
        min_p: Some(0.25),
        seed: Some(u64::MAX),
        stop: vec!["a".into(), "b".into()],
        ignore_eos: Some(true),
        logprobs: Some(2),
        logit_bias: [(7, -1.5)].into(),
        ..Params::default()
    };
    let options = RequestOptions {
        request_id: RequestId::parse("a-1").ok(),
        params,
        stream: false,
        priority: 200,
        detached: true,
    };
    assert_eq!(decoded, Decoded { prompt: Prompt::Text("Hi".into()), options });
}

#[test]
fn the_least_body_takes_the_defaults() {
    let decoded = both(&json!({"prompt_token_ids": [1, 2, 4_294_967_295_u32]})).expect("decodes");
    assert_eq!(decoded.prompt, Prompt::TokenIds(vec![1, 2, u32::MAX]));
    assert_eq!(decoded.options.params, Params::default());
    assert!(
        decoded.options.stream && !decoded.options.detached && decoded.options.request_id.is_none()
    );
    assert_eq!(decoded.options.priority, 128);
}

#[test]
fn null_is_absent_everywhere() {
    let decoded = both(&json!({
        "request_id": null, "prompt": null, "messages": [{"role": "user", "content": "x", "name": null}],
        "params": {"seed": null, "stop": null, "stream": null, "n": null, "tools": null},
        "priority": null, "tenant": null, "deadline_ms": null, "detached": null, "prompt_token_ids": null
    }))
    .expect("decodes");
    let message = ChatMessage::new("user", "x");
    assert_eq!(decoded.prompt, Prompt::Messages(vec![message]));
    assert_eq!(
        both(&json!({"prompt": "a", "params": null})).map(|decoded| decoded.options.stream),
        Ok(true)
    );
}

#[test]
fn neutral_values_of_what_is_not_here_are_taken() {
    let body = json!({"prompt": "a", "params": {
        "n": 1, "best_of": 1, "logprobs": false, "tools": [], "response_format": {"type": "text"}, "stop": "end", "seed": -1
    }});
    let decoded = both(&body).expect("decodes");
    assert_eq!(decoded.options.params.stop, ["end"]);
    assert_eq!(decoded.options.params.seed, Some(u64::MAX));
}

#[test]
fn habits_of_other_servers_and_what_a_template_reads_are_taken_as_over_http() {
    let body = json!({
        "messages": [{"role": "user", "name": "ann", "content": "a", "reasoning_content": null}],
        "params": {
            "top_k": -1, "use_beam_search": false, "length_penalty": 1, "cache_prompt": true, "stop_token_ids": [],
            "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": true
        }
    });
    let decoded = both(&body).expect("decodes");
    let Prompt::Messages(messages) = &decoded.prompt else { panic!("a chat") };
    assert_eq!(messages[0].more, [("name".to_owned(), crate::request::Value::Text("ann".into()))]);
    assert_eq!(decoded.options.params.chat_template_kwargs.len(), 1);
    let body = json!({"prompt": "a", "params": {"use_beam_search": true}});
    assert_eq!(refused(&body), (Kind::Unsupported, "params.use_beam_search".into()));
}

#[test]
fn what_is_not_built_yet_is_unsupported_by_name() {
    for (name, value) in [("tenant", json!("t")), ("deadline_ms", json!(5))] {
        let mut body = json!({"prompt": "a"});
        body[name] = value;
        assert_eq!(refused(&body), (Kind::Unsupported, name.into()));
    }
    for (name, value) in
        [("suffix", json!("x")), ("response_format", json!({"type": "json_object"}))]
    {
        let body = json!({"prompt": "a", "params": {name: value}});
        assert_eq!(refused(&body), (Kind::Unsupported, format!("params.{name}")));
    }
    let body = json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]});
    assert_eq!(refused(&body), (Kind::Unsupported, "messages[0].role".into()));
}

#[test]
fn an_unknown_key_is_invalid_by_name_even_if_null() {
    assert_eq!(refused(&json!({"prompt": "a", "x": 1})), (Kind::Invalid, "x".into()));
    assert_eq!(refused(&json!({"prompt": "a", "x": null})), (Kind::Invalid, "x".into()));
    let body = json!({"prompt": "a", "params": {"top_q": 1}});
    assert_eq!(refused(&body), (Kind::Invalid, "params.top_q".into()));
    let part = json!({"type": "text", "text": "x", "age": 3});
    let body = json!({"messages": [{"role": "user", "content": [part]}]});
    assert_eq!(refused(&body), (Kind::Invalid, "messages[0].content[0].age".into()));
}

#[test]
fn a_misspelt_prompt_is_named_and_told_what_was_meant() {
    let error = both(&json!({"promt": "a"})).expect_err("refused").error;
    assert_eq!(error.text(), "promt: unknown parameter; did you mean prompt?");
}

#[test]
fn a_wrong_type_or_range_is_invalid_by_name() {
    let cases = [
        (json!({"prompt": 1}), "prompt"),
        (json!({"prompt": "a", "request_id": 7}), "request_id"),
        (json!({"prompt": "a", "request_id": "a b"}), "request_id"),
        (json!({"prompt": "a", "priority": 256}), "priority"),
        (json!({"prompt": "a", "priority": -1}), "priority"),
        (json!({"prompt": "a", "priority": 1.0}), "priority"),
        (json!({"prompt": "a", "detached": "yes"}), "detached"),
        (json!({"prompt": "a", "params": []}), "params"),
        (json!({"prompt": "a", "params": {"max_tokens": -1}}), "params.max_tokens"),
        (json!({"prompt": "a", "params": {"max_tokens": "5"}}), "params.max_tokens"),
        (json!({"prompt": "a", "params": {"top_p": "1"}}), "params.top_p"),
        (json!({"prompt": "a", "params": {"stop": [1]}}), "params.stop[0]"),
        (json!({"prompt": "a", "params": {"stop": true}}), "params.stop"),
        (json!({"prompt": "a", "params": {"stream": 1}}), "params.stream"),
        (json!({"prompt": "a", "params": {"seed": 0.5}}), "params.seed"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "usr", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
        (json!({"prompt_token_ids": [-1]}), "prompt_token_ids[0]"),
        (json!({"prompt_token_ids": [1, 4_294_967_296_u64]}), "prompt_token_ids[1]"),
        (json!([]), ""),
        (json!(null), ""),
        (json!("text"), ""),
    ];
    for (body, param) in cases {
        assert_eq!(refused(&body), (Kind::Invalid, param.into()), "{body}");
    }
}

#[test]
fn messages_are_taken_as_over_http() {
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
    ]);
    let message = ChatMessage::new("system", "be brief");
    let decoded = both(&json!({"messages": messages})).expect("decodes");
    assert_eq!(decoded.prompt, Prompt::Messages(vec![message]));
}

#[test]
fn exactly_one_prompt_is_wanted() {
    assert_eq!(refused(&json!({})), (Kind::Invalid, "prompt".into()));
    let two = json!({"prompt": "a", "prompt_token_ids": [1]});
    assert_eq!(refused(&two), (Kind::Invalid, "prompt".into()));
}

#[test]
fn a_key_given_twice_is_refused_in_both_encodings() {
    for (body, param) in [
        (r#"{"prompt":"a","prompt":"b"}"#, "prompt"),
        (r#"{"prompt":null,"prompt":"b"}"#, "prompt"),
        (r#"{"prompt":"a","params":{"seed":1,"seed":1}}"#, "params.seed"),
        (r#"{"messages":[{"role":"a","role":"b","content":""}]}"#, "messages[0].role"),
    ] {
        let error = json_body(body).expect_err("refused").error;
        assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some(param)), "{body}");
    }
    // {"prompt": "a", "prompt": "b"}
    let packed = b"\x82\xa6prompt\xa1a\xa6prompt\xa1b";
    let error = decode(Encoding::Msgpack, packed).expect_err("refused").error;
    assert_eq!(error.param.as_deref(), Some("prompt"));
}

#[test]
fn a_number_that_is_none_is_refused_in_msgpack_as_in_json() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut packed = b"\x82\xa6prompt\xa1a\xa6params\x81\xabtemperature\xcb".to_vec();
        packed.extend(bad.to_be_bytes());
        let error = decode(Encoding::Msgpack, &packed).expect_err("refused").error;
        assert_eq!(error.param.as_deref(), Some("params.temperature"));
    }
}

#[test]
fn a_refusal_keeps_the_id_that_can_be_read() {
    let id = |body: &str| json_body(body).expect_err("refused").id;
    assert_eq!(id(r#"{"request_id":"r1","x":1}"#), RequestId::parse("r1").ok());
    assert_eq!(id(r#"{"request_id":"r1","prompt":1,"prompt":2}"#), RequestId::parse("r1").ok());
    assert_eq!(id(r#"{"request_id":"r1","request_id":"r2","prompt":"a"}"#), None);
    assert_eq!(id(r#"{"request_id":"no good","prompt":"a"}"#), None);
}
