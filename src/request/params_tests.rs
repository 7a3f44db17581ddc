//! Goal: every row of the table is read, checked and handed on as it says. Method: JSON bodies, values at and beyond each bound.

use serde::Deserialize as _;
use serde_json::{Value as Json, json};

use super::*;
use crate::error::Kind;
use crate::request::Value;

const VOCAB: u32 = 1_000;

fn read(body: Json) -> Result<Params> {
    let body = Value::deserialize(body).expect("JSON is a value");
    let mut fields = Fields::of(body, "params", None)?;
    let params = Params::read(&mut fields)?;
    assert_eq!(fields.finish(), Ok(()));
    Ok(params)
}

fn named<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.expect_err("a fault");
    assert_eq!(error.kind, Kind::Invalid, "{error}");
    error.param.unwrap_or_default()
}

fn everything() -> Json {
    json!({
        "n": 2, "best_of": 3, "max_tokens": 7, "min_tokens": 2, "ignore_eos": true, "stop": ["a", "b"], "stop_token_ids": [3, 4],
        "include_stop_str_in_output": true, "skip_special_tokens": false,
        "temperature": 0.5, "top_k": 40, "top_p": 0.25, "min_p": 0.125, "presence_penalty": -2,
        "frequency_penalty": 2, "repetition_penalty": 1.5,
        "seed": u64::MAX, "logit_bias": {"5": -100, "6": 1.5}, "allowed_token_ids": [5, 6, 7], "banned_token_ids": [8],
        "bad_words": ["no"], "logprobs": true, "top_logprobs": 20, "prompt_logprobs": 3, "echo": true,
        "logprobs_mode": "processed", "add_special_tokens": false, "add_generation_prompt": false,
        "chat_template_kwargs": {"enable_thinking": false}
    })
}

#[test]
fn every_parameter_is_read_checked_and_bound() {
    let body = everything();
    let given: Vec<&str> =
        body.as_object().expect("an object").keys().map(String::as_str).collect();
    for name in Params::FIELDS {
        assert!(given.contains(name), "{name} is not in this test");
    }
    let params = read(body).expect("well formed");
    assert_eq!(params.check(VOCAB), Ok(()));
    let expected = SamplerSpec {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.25,
        min_p: 0.125,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        repetition_penalty: 1.5,
        seed: u64::MAX,
        end_from: 12,
        stop_token_ids: vec![3, 4],
        bias: vec![TokenBias { token_id: 5, value: -100.0 }, TokenBias { token_id: 6, value: 1.5 }],
        allowed_ids: vec![5, 6, 7],
        banned_ids: vec![8, 9],
        banned_words: vec![1, 2, 3, 4, 5],
        banned_word_lens: vec![2, 3],
        num_logprobs: 20,
        want_logprob: true,
        processed_logprobs: true,
    };
    assert_eq!(params.sampler(10, &[vec![9], vec![1, 2], vec![3, 4, 5]]), expected);
    assert_eq!((params.max_tokens, params.ignore_eos), (Some(7), Some(true)));
    assert_eq!((params.stop.len(), params.skip_special_tokens), (2, Some(false)));
    assert_eq!(params.include_stop_str_in_output, Some(true));
    assert_eq!((params.num_choices(), params.num_samples()), (2, 3));
}

#[test]
fn nothing_given_changes_nothing() {
    let params = read(json!({"temperature": null, "stop": null})).expect("well formed");
    assert_eq!(params, Params::default());
    assert_eq!(params.check(0), Ok(()));
    assert_eq!(params.sampler(10, &[]), SamplerSpec::neutral());
}

#[test]
fn samples_have_seeds_of_their_own_and_the_first_the_requests() {
    let seeds = |seed| {
        let params = Params { seed, ..Params::default() };
        (0..128).map(|sample| params.seed_of(sample)).collect::<Vec<_>>()
    };
    let (one, other) = (seeds(Some(7)), seeds(Some(8)));
    assert_eq!((one[0], other[0], seeds(None)[0]), (7, 8, 0));
    let all: std::collections::HashSet<_> = one.iter().chain(&other).collect();
    assert_eq!(all.len(), 256);
    let of = |n, best_of| Params { n, best_of, ..Params::default() };
    assert!(!of(Some(2), Some(2)).ranks_samples() && of(None, Some(2)).ranks_samples());
    assert!(of(None, Some(2)).sampler(1, &[]).want_logprob);
    assert_eq!(named(of(Some(3), Some(2)).check(VOCAB)), "best_of");
}

#[test]
fn other_ways_to_write_a_value_are_known() {
    let params =
        read(json!({"top_k": -1, "seed": -1, "stop": "end", "logprobs": 3, "temperature": 1}));
    let params = params.expect("well formed");
    assert_eq!((params.top_k, params.seed), (Some(0), Some(u64::MAX)));
    assert_eq!((params.stop.as_slice(), params.num_logprobs()), (&["end".to_owned()][..], Some(3)));
    let flags = |body| read(body).expect("well formed").num_logprobs();
    assert_eq!(flags(json!({"logprobs": false, "top_logprobs": 0})), None);
    assert_eq!(flags(json!({"logprobs": true})), Some(0));
    assert_eq!(flags(json!({"logprobs": true, "top_logprobs": 5})), Some(5));
    assert_eq!(flags(json!({"logprobs": 5, "top_logprobs": 5})), Some(5));
}

#[test]
fn a_wrong_type_is_refused_by_its_path() {
    for (body, name) in [
        (json!({"max_tokens": "7"}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": true}), "temperature"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"seed": 0.5}), "seed"),
        (json!({"stop": 1}), "stop"),
        (json!({"stop": ["a", 1]}), "stop[1]"),
        (json!({"stop_token_ids": 1}), "stop_token_ids"),
        (json!({"stop_token_ids": [1, -1]}), "stop_token_ids[1]"),
        (json!({"allowed_token_ids": ["1"]}), "allowed_token_ids[0]"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"logit_bias": {"+1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": "much"}}), "logit_bias.1"),
        (json!({"logit_bias": {"1": 1, "01": 1}}), "logit_bias.1"),
        (json!({"logprobs": "all"}), "logprobs"),
        (json!({"top_logprobs": true}), "top_logprobs"),
        (json!({"logprobs_mode": "cooked"}), "logprobs_mode"),
        (json!({"logprobs_mode": 1}), "logprobs_mode"),
    ] {
        assert_eq!(named(read(body.clone())), format!("params.{name}"), "{body}");
    }
}

/// Reads and checks a parameter by itself; true if it is in range, else it must be named.
fn takes(name: &str, value: Json) -> bool {
    let params = read(json!({name: value})).expect("well formed");
    match params.check(VOCAB) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!((error.kind, error.param.as_deref()), (Kind::Invalid, Some(name)));
            false
        }
    }
}

#[test]
fn numbers_are_taken_up_to_their_bounds_and_not_beyond() {
    for (name, good, bad) in [
        ("max_tokens", vec![1.0], vec![0.0]),
        ("prompt_logprobs", vec![0.0, 20.0], vec![21.0]),
        ("min_tokens", vec![0.0], vec![]),
        ("temperature", vec![0.0, 2.0], vec![-0.1, 2.1]),
        ("top_k", vec![0.0, f64::from(u32::MAX)], vec![]),
        ("top_p", vec![0.001, 1.0], vec![0.0, -1.0, 1.1]),
        ("min_p", vec![0.0, 1.0], vec![-0.1, 1.1]),
        ("presence_penalty", vec![-2.0, 2.0], vec![-2.1, 2.1]),
        ("frequency_penalty", vec![-2.0, 2.0], vec![-2.1, 2.1]),
        ("repetition_penalty", vec![0.1, 1_000.0], vec![0.0, -1.0, 1_001.0, 1e300, 1e-300]),
        ("logprobs", vec![0.0, 20.0], vec![21.0]),
        ("top_logprobs", vec![0.0], vec![21.0]),
    ] {
        let whole = name.ends_with("_tokens") || name.ends_with("logprobs") || name == "top_k";
        let value = |x: f64| if whole { json!(x as u64) } else { json!(x) };
        for x in good {
            assert!(takes(name, value(x)), "{name}: {x}");
        }
        for x in bad {
            assert!(!takes(name, value(x)), "{name}: {x}");
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let params = Params { temperature: Some(bad), ..Params::default() };
        assert_eq!(named(params.check(VOCAB)), "temperature");
    }
}

#[test]
fn lists_are_taken_up_to_their_lengths_and_not_beyond() {
    let ids = |count: usize| json!(vec![1; count]);
    let texts = |count: usize, bytes: usize| json!(vec!["x".repeat(bytes); count]);
    let bias = |count: u32| (0..count).map(|id| (id.to_string(), json!(1))).collect::<Json>();
    for (name, good, bad) in [
        ("stop", texts(16, 256), vec![texts(17, 1), texts(1, 257), texts(1, 0)]),
        ("bad_words", texts(256, 256), vec![texts(257, 1), texts(1, 257), texts(1, 0)]),
        ("stop_token_ids", ids(128), vec![ids(129), json!([VOCAB])]),
        ("allowed_token_ids", ids(16_384), vec![ids(16_385), ids(0), json!([1, VOCAB])]),
        ("banned_token_ids", ids(16_384), vec![ids(16_385), json!([VOCAB])]),
        ("logit_bias", bias(1_000), vec![bias(1_025), json!({"1": 100.5}), json!({"1": -101})]),
    ] {
        assert!(takes(name, good), "{name}");
        for value in bad {
            assert!(!takes(name, value.clone()), "{name}: {value:.60}");
        }
    }
    assert!(!takes("logit_bias", json!({"1000": 1})), "the model has not so many tokens");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (body, name) in [
        (json!({"max_tokens": 2, "min_tokens": 3}), "min_tokens"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": false, "top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": 3, "top_logprobs": 2}), "top_logprobs"),
        (json!({"max_tokens": 0, "echo": false, "logprobs": 1}), "max_tokens"),
    ] {
        assert_eq!(named(read(body.clone()).expect("well formed").check(VOCAB)), name, "{body}");
    }
}

#[test]
fn a_prompt_is_scored_for_itself_or_with_the_echo_of_a_scored_completion() {
    let of = |body| {
        let params = read(body).expect("well formed");
        assert_eq!(params.check(VOCAB), Ok(()));
        let sampler = params.sampler(10, &[]);
        (params.num_prompt_logprobs(), sampler.num_logprobs, sampler.want_logprob)
    };
    assert_eq!(of(json!({"echo": true, "max_tokens": 0})), (None, 0, false));
    assert_eq!(of(json!({"echo": true, "logprobs": 1, "max_tokens": 0})), (Some(1), 1, true));
    assert_eq!(of(json!({"prompt_logprobs": 4, "max_tokens": 0})), (Some(4), 4, false));
    assert_eq!(of(json!({"logprobs": 2, "prompt_logprobs": 0})), (Some(0), 2, true));
    assert_eq!(of(json!({"logprobs": 2})), (None, 2, true));
}

#[test]
fn messages_say_what_was_expected_and_what_came() {
    let message = |body: Json| {
        let checked = read(body).and_then(|params| params.check(VOCAB));
        checked.expect_err("out of range").message
    };
    for (body, text) in [
        (json!({"temperature": 2.1}), "expected 0 to 2, got 2.1"),
        (json!({"top_p": 0}), "expected more than 0, at most 1, got 0"),
        (json!({"repetition_penalty": -1}), "expected more than 0, at most 1000, got -1"),
        (
            json!({"max_tokens": 0}),
            "expected at least 1 (0 only beside echo or prompt_logprobs), got 0",
        ),
        (json!({"max_tokens": "1"}), "expected a whole number of 0 to 4294967295, got \"1\""),
        (json!({"logit_bias": {"7": 101}}), "expected -100 to 100, got 101 for token 7"),
        (json!({"stop_token_ids": [1000]}), "expected token ids below 1000, got 1000"),
        (json!({"logprobs_mode": "x"}), "expected \"raw\" or \"processed\", got \"x\""),
    ] {
        assert_eq!(message(body), text);
    }
}

#[test]
fn an_absent_value_takes_the_default_and_a_given_one_does_not() {
    let given = read(json!({"temperature": 0, "stop": ["a"]})).expect("well formed");
    let defaults = read(json!({"temperature": 1, "top_p": 0.5, "stop": ["b"], "bad_words": ["c"]}));
    let params = given.or(&defaults.expect("well formed"));
    let expected = json!({"temperature": 0, "top_p": 0.5, "stop": ["a"], "bad_words": ["c"]});
    assert_eq!(Ok(params), read(expected));
}

#[test]
fn the_samplers_scalars_are_those_that_a_checkpoint_may_say() {
    assert!(Params::SCALARS.contains(&"repetition_penalty"));
    assert!(!Params::SCALARS.contains(&"seed") && !Params::SCALARS.contains(&"max_tokens"));
}

#[test]
fn a_templates_variables_have_any_name_but_the_nodes() {
    let params = read(json!({"chat_template_kwargs": {"a": null, "b": [1]}})).expect("an object");
    assert_eq!(params.chat_template_kwargs.len(), 2);
    assert_eq!(read(json!({"chat_template_kwargs": {}})), read(json!({})));
    let bad = [
        (json!({"chat_template_kwargs": []}), "params.chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"tools": []}}), "params.chat_template_kwargs.tools"),
    ];
    for (body, name) in bad {
        assert_eq!(named(read(body)), name);
    }
    let many: serde_json::Map<String, Json> = (0..65).map(|i| (i.to_string(), json!(1))).collect();
    let params = read(json!({"chat_template_kwargs": many})).expect("an object");
    assert_eq!(named(params.check(VOCAB)), "chat_template_kwargs");
}
