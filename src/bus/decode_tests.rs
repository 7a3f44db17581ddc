//! Goal: every rule of the request's body holds in both encodings. Method: small bodies, each wrong in one way, checked by kind
//! and named field.

use serde_json::{Value, json};

use super::*;

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
    let expected = Decoded {
        id: RequestId::parse("a-1").ok(),
        prompt: Prompt::Text("Hi".into()),
        params,
        stream: false,
        priority: 200,
        detached: true,
    };
    assert_eq!(decoded, expected);
}

#[test]
fn the_least_body_takes_the_defaults() {
    let decoded = both(&json!({"prompt_token_ids": [1, 2, 4_294_967_295_u32]})).expect("decodes");
    assert_eq!(decoded.prompt, Prompt::TokenIds(vec![1, 2, u32::MAX]));
    assert_eq!(decoded.params, Params::default());
    assert!(decoded.stream && !decoded.detached && decoded.id.is_none());
    assert_eq!(decoded.priority, 128);
}

#[test]
fn null_is_absent_everywhere() {
    let decoded = both(&json!({
        "request_id": null, "prompt": null, "messages": [{"role": "user", "content": "x", "name": null}],
        "params": {"seed": null, "stop": null, "stream": null, "n": null, "tools": null},
        "priority": null, "tenant": null, "deadline_ms": null, "detached": null, "prompt_token_ids": null
    }))
    .expect("decodes");
    let message = ChatMessage { role: "user".into(), content: "x".into() };
    assert_eq!(decoded.prompt, Prompt::Messages(vec![message]));
    assert_eq!(both(&json!({"prompt": "a", "params": null})).map(|d| d.stream), Ok(true));
}

#[test]
fn neutral_values_of_what_is_not_here_are_taken() {
    let body = json!({"prompt": "a", "params": {
        "n": 1, "best_of": 1, "logprobs": false, "tools": [], "stop": "end", "seed": -1
    }});
    let decoded = both(&body).expect("decodes");
    assert_eq!(decoded.params.stop, ["end"]);
    assert_eq!(decoded.params.seed, Some(u64::MAX));
}

#[test]
fn what_is_not_built_yet_is_unsupported_by_name() {
    for (name, value) in [("tenant", json!("t")), ("deadline_ms", json!(5))] {
        let mut body = json!({"prompt": "a"});
        body[name] = value;
        assert_eq!(refused(&body), (Kind::Unsupported, name.into()));
    }
    for (name, value) in [("suffix", json!("x")), ("response_format", json!({"type": "text"}))] {
        let body = json!({"prompt": "a", "params": {name: value}});
        assert_eq!(refused(&body), (Kind::Unsupported, format!("params.{name}")));
    }
    let body = json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]});
    assert_eq!(refused(&body), (Kind::Unsupported, "messages[0].tool_call_id".into()));
}

#[test]
fn an_unknown_key_is_invalid_by_name_even_if_null() {
    assert_eq!(refused(&json!({"prompt": "a", "x": 1})), (Kind::Invalid, "x".into()));
    assert_eq!(refused(&json!({"prompt": "a", "x": null})), (Kind::Invalid, "x".into()));
    let body = json!({"prompt": "a", "params": {"top_q": 1}});
    assert_eq!(refused(&body), (Kind::Invalid, "params.top_q".into()));
    let body = json!({"messages": [{"role": "user", "content": "x", "age": 3}]});
    assert_eq!(refused(&body), (Kind::Invalid, "messages[0].age".into()));
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
        (json!({"prompt_token_ids": [-1]}), "prompt_token_ids"),
        (json!({"prompt_token_ids": [4_294_967_296_u64]}), "prompt_token_ids"),
        (json!([]), ""),
        (json!(null), ""),
        (json!("text"), ""),
    ];
    for (body, param) in cases {
        assert_eq!(refused(&body), (Kind::Invalid, param.into()), "{body}");
    }
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
fn what_is_no_number_is_refused() {
    for body in [
        r#"{"prompt":"a","params":{"temperature":NaN}}"#,
        r#"{"prompt":"a","params":{"temperature":1e999}}"#,
        r#"{"prompt":"a","params":{"temperature":Infinity}}"#,
    ] {
        assert_eq!(json_body(body).expect_err("refused").error.kind, Kind::Invalid);
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let mut packed = b"\x82\xa6prompt\xa1a\xa6params\x81\xabtemperature\xcb".to_vec();
        packed.extend(bad.to_be_bytes());
        let error = decode(Encoding::Msgpack, &packed).expect_err("refused").error;
        assert_eq!(error.param.as_deref(), Some("params.temperature"));
    }
}

#[test]
fn broken_bytes_are_refused_without_harm() {
    let deep = "[".repeat(100_000);
    for body in ["", "{", "{}x", "\u{0}", r#"{"prompt":"\ud800"}"#, deep.as_str()] {
        assert_eq!(json_body(body).expect_err("refused").error.kind, Kind::Invalid, "{body:.20}");
    }
    let nested = vec![0x91_u8; 100_000];
    let bodies: [&[u8]; 9] = [
        b"",
        b"\xc1",
        b"\x81\xa6prompt",
        b"\x81\xa6prompt\xa1\xff",
        b"\x81\x01\x02",
        b"\x81\xa6prompt\xc4\x01a",
        b"\x81\xa6prompt\xd4\x01a",
        b"\xdf\xff\xff\xff\xff",
        &nested,
    ];
    for body in bodies {
        let error = decode(Encoding::Msgpack, body).expect_err("refused").error;
        assert_eq!(error.kind, Kind::Invalid, "{:?}", &body[..body.len().min(20)]);
    }
    let trailing = b"\x81\xa6prompt\xa1a\x00";
    assert!(decode(Encoding::Msgpack, trailing).is_err());
}

#[test]
fn a_refusal_keeps_the_id_that_can_be_read() {
    let id = |body: &str| json_body(body).expect_err("refused").id;
    assert_eq!(id(r#"{"request_id":"r1","x":1}"#), RequestId::parse("r1").ok());
    assert_eq!(id(r#"{"request_id":"r1","prompt":1,"prompt":2}"#), RequestId::parse("r1").ok());
    assert_eq!(id(r#"{"request_id":"r1","request_id":"r2","prompt":"a"}"#), None);
    assert_eq!(id(r#"{"request_id":"no good","prompt":"a"}"#), None);
}
