//! What a client gets for a well-formed request.

use inferno_node::error::{Error, Kind};
use inferno_node::request::{DefaultLength, FinishReason, Prompt};
use serde_json::{Value, json};

use crate::rig::{Rig, chat, completion, config, events, fault, text_of};
use inferno_node::http::Config;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[actix_web::test]
async fn a_chat_comes_as_one_body() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({"request_id": "r1", "temperature": 0, "priority": 9})));
    let played = rig.next().await;
    assert_eq!(played.request.id.as_str(), "r1");
    assert_eq!((played.request.priority, played.request.stream), (9, false));
    assert_eq!(played.request.default_length, DefaultLength::Context);
    assert!(matches!(&played.request.prompt, Prompt::Messages(m) if m[0].content == "hi"));
    played.play(&["Hel", "lo \"you\"\n"]);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-request-id"], "r1");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["id"], "chatcmpl-r1");
    assert_eq!(body["choices"][0]["message"]["content"], "Hello \"you\"\n");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    assert_eq!(body["receipt"]["device"], "cpu:0");
    assert!(body["created"].as_u64() > Some(1_600_000_000));
}

#[actix_web::test]
async fn a_chat_streams_one_event_per_chunk_as_it_comes() {
    let mut rig = Rig::new();
    let answer = rig.post(CHAT, chat(json!({"stream": true, "request_id": "r2"})));
    let mut played = rig.next().await;
    assert!(played.request.stream);
    played.accept();
    played.text("").unwrap();
    played.text("Once").unwrap();
    let mut answer = answer.await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    let first = String::from_utf8(answer.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let seen = events(&first);
    assert_eq!(seen[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(seen[1]["choices"][0]["delta"], json!({"content": "Once"}));
    // Nothing is held back: the second piece arrives before the node sends a third.
    played.text(" upon").unwrap();
    let second = String::from_utf8(answer.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(text_of(&events(&second)), " upon");
    played.finish(FinishReason::Length).unwrap();
    let rest = events(&answer.text().await.unwrap());
    assert_eq!(rest[0]["choices"][0]["finish_reason"], "length");
    assert_eq!(rest[0]["receipt"]["node_id"], "n1");
    assert_eq!(rest[1], "[DONE]");
    assert_eq!(rest.len(), 2);
    assert!(!played.handle.is_cancelled());
}

#[actix_web::test]
async fn usage_is_streamed_when_asked_for() {
    let mut rig = Rig::new();
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (path, body) in [(CHAT, chat(options.clone())), (COMPLETIONS, completion(options))] {
        let answer = rig.post(path, body);
        rig.next().await.play(&["a", "b"]);
        let seen = events(&answer.await.unwrap().text().await.unwrap());
        assert_eq!(seen.last().unwrap(), "[DONE]");
        let usage = &seen[seen.len() - 2];
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], 2);
        assert_eq!(usage["receipt"]["device"], "cpu:0");
        for chunk in &seen[..seen.len() - 2] {
            assert!(chunk["usage"].is_null() && chunk.get("usage").is_some());
        }
        assert_eq!(text_of(&seen), "ab");
    }
}

#[actix_web::test]
async fn usage_is_in_every_chunk_when_asked_for() {
    let mut rig = Rig::new();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let members = json!({"stream": true, "stream_options": options});
    for (path, body) in [(CHAT, chat(members.clone())), (COMPLETIONS, completion(members))] {
        let answer = rig.post(path, body);
        let mut played = rig.next().await;
        played.accept();
        played.text("a").unwrap();
        let mut answer = answer.await.unwrap();
        let first = String::from_utf8(answer.chunk().await.unwrap().unwrap().to_vec()).unwrap();
        let first = events(&first);
        played.text("b").unwrap();
        played.finish(FinishReason::Stop).unwrap();
        let rest = events(&answer.text().await.unwrap());
        let usage = |event: &Value| event["usage"].clone();
        let counted = |tokens: u64| json!({"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens});
        assert_eq!(usage(first.last().unwrap()), counted(1));
        assert_eq!(usage(&rest[rest.len() - 3]), counted(2), "the end of the choice");
        assert_eq!(usage(&rest[rest.len() - 2])["total_tokens"], 5);
    }
}

#[actix_web::test]
async fn line_ends_of_unicode_cut_no_event() {
    let mut rig = Rig::new();
    let text = "a\u{2028}b\u{2029}c\u{85}d";
    for stream in [false, true] {
        let answer = rig.post(CHAT, chat(json!({"stream": stream})));
        rig.next().await.play(&[text]);
        let answer = answer.await.unwrap().text().await.unwrap();
        assert!(!answer.contains(['\u{2028}', '\u{2029}', '\u{85}']), "{answer}");
        let told = match stream {
            true => text_of(&events(&answer)),
            false => {
                let body: Value = serde_json::from_str(&answer).unwrap();
                body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
            }
        };
        assert_eq!(told, text);
    }
}

#[actix_web::test]
async fn a_completion_comes_whole_and_streamed() {
    let mut rig = Rig::new();
    let answer = rig.post(COMPLETIONS, completion(json!({"max_tokens": 4, "seed": 7})));
    let played = rig.next().await;
    assert_eq!(played.request.prompt, Prompt::Text("once".to_owned()));
    assert_eq!(played.request.default_length, DefaultLength::Completions);
    assert_eq!((played.request.params.max_tokens, played.request.params.seed), (Some(4), Some(7)));
    played.play(&["x"]);
    let body: Value = answer.await.unwrap().json().await.unwrap();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], "x");
    let id = body["id"].as_str().unwrap();
    assert!(id.starts_with("cmpl-") && id.len() == 5 + 32, "{id}");

    let answer = rig.post(COMPLETIONS, completion(json!({"stream": true, "prompt": [1, 2]})));
    let played = rig.next().await;
    assert_eq!(played.request.prompt, Prompt::TokenIds(vec![1, 2]));
    played.play(&["x", "y"]);
    let seen = events(&answer.await.unwrap().text().await.unwrap());
    assert_eq!(text_of(&seen), "xy");
    assert_eq!(seen[seen.len() - 2]["choices"][0]["finish_reason"], "stop");
}

#[actix_web::test]
async fn several_prompts_are_one_choice_each() {
    let mut rig = Rig::new();
    for stream in [false, true] {
        let body = json!({"prompt": ["a", "b", "c"], "request_id": "p", "stream": stream});
        let answer = rig.post(COMPLETIONS, completion(body));
        let mut plays = vec![rig.next().await, rig.next().await, rig.next().await];
        for (i, (played, prompt)) in plays.iter().zip(["a", "b", "c"]).enumerate() {
            assert_eq!(played.request.id.as_str(), format!("p-{i}"));
            assert_eq!(played.request.prompt, Prompt::Text(prompt.to_owned()));
        }
        // They end in another order than they came.
        for (played, text) in plays.drain(..).rev().zip(["C", "B", "A"]) {
            played.play(&[text, text]);
        }
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "p");
        let text = answer.text().await.unwrap();
        if stream {
            let seen = events(&text);
            let mut texts = vec![String::new(); 3];
            for choice in seen.iter().filter_map(|event| event["choices"].get(0)) {
                let index = choice["index"].as_u64().unwrap() as usize;
                texts[index].push_str(choice["text"].as_str().unwrap());
            }
            assert_eq!(texts, ["AA", "BB", "CC"]);
            let receipts = seen.iter().filter(|event| event.get("receipt").is_some());
            assert_eq!(receipts.count(), 1);
            assert_eq!(seen.last().unwrap(), "[DONE]");
        } else {
            let body: Value = serde_json::from_str(&text).unwrap();
            let texts: Vec<_> = (0..3).map(|i| body["choices"][i]["text"].clone()).collect();
            assert_eq!(texts, ["AA", "BB", "CC"]);
            assert_eq!(body["usage"]["prompt_tokens"], 9);
            assert_eq!(body["usage"]["completion_tokens"], 6);
        }
    }
}

#[actix_web::test]
async fn one_refused_prompt_refuses_all_and_cancels_the_others() {
    let mut rig = Rig::new();
    let answer = rig.post(COMPLETIONS, completion(json!({"prompt": ["a", "b"], "stream": true})));
    let (mut first, second) = (rig.next().await, rig.next().await);
    first.accept();
    let full = Error::new(Kind::QueueFull, "full").with_retry_after_ms(1_500);
    second.refuse(&full);
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "2");
    assert_eq!(fault(answer).await.0, 429);
    first.cancelled().await;
}

#[actix_web::test]
async fn more_prompts_than_allowed_are_refused() {
    let rig = Rig::with(&Config { max_prompts: 2, ..config() });
    let many = completion(json!({"prompt": ["a", "b", "c"]}));
    assert_eq!(fault(rig.post(COMPLETIONS, many).await.unwrap()).await.0, 400);
}

#[actix_web::test]
async fn refusals_are_openais_errors() {
    let mut rig = Rig::new();
    let cases = [
        (Error::invalid("top_p", "bad"), 400, "invalid", Some("top_p")),
        (Error::unsupported("tenant", "no"), 400, "unsupported", Some("tenant")),
        (Error::new(Kind::ContextLength, "long"), 400, "context_length_exceeded", None),
        (
            Error::new(Kind::NotFound, "no").with_param("model"),
            404,
            "model_not_found",
            Some("model"),
        ),
        (Error::new(Kind::Conflict, "runs"), 409, "conflict", None),
        (Error::new(Kind::Internal, "oh"), 500, "internal", None),
        (Error::new(Kind::Draining, "x").with_retry_after_ms(1), 503, "draining", None),
    ];
    for (error, status, code, param) in cases {
        let answer = rig.post(CHAT, chat(json!({"stream": true})));
        rig.next().await.refuse(&error);
        let answer = answer.await.unwrap();
        let retry = answer.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(retry.as_deref(), error.retry_after_ms.map(|_| "1"));
        let seen = fault(answer).await;
        assert_eq!((seen.0, seen.2.as_str(), seen.3.as_deref()), (status, code, param));
    }
}

#[actix_web::test]
async fn before_the_first_byte_a_failure_is_a_status() {
    let mut rig = Rig::new();
    for stream in [false, true] {
        let answer = rig.post(CHAT, chat(json!({"stream": stream})));
        let mut played = rig.next().await;
        played.accept();
        played.text("").unwrap();
        played.fail(Some(Error::internal("the step failed twice")));
        assert_eq!(fault(answer.await.unwrap()).await.0, 500);

        let answer = rig.post(CHAT, chat(json!({"stream": stream})));
        let mut played = rig.next().await;
        played.accept();
        played.finish(FinishReason::Cancelled).unwrap();
        assert_eq!(fault(answer.await.unwrap()).await.0, 499);

        let answer = rig.post(CHAT, chat(json!({"stream": stream})));
        drop(rig.next().await);
        assert_eq!(fault(answer.await.unwrap()).await.0, 500);
    }
}

#[actix_web::test]
async fn in_mid_stream_a_failure_is_an_event_and_there_is_no_done() {
    let mut rig = Rig::new();
    for cancel in [false, true] {
        let answer = rig.post(CHAT, chat(json!({"stream": true})));
        let mut played = rig.next().await;
        played.accept();
        played.text("Hel").unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let code = if cancel {
            played.finish(FinishReason::Cancelled).unwrap();
            "cancelled"
        } else {
            played.fail(None);
            "internal"
        };
        let seen = events(&answer.text().await.unwrap());
        assert_eq!(seen.last().unwrap()["error"]["code"], code);
        assert!(!seen.contains(&json!("[DONE]")));
        assert_eq!(text_of(&seen), "Hel");
    }
}

#[actix_web::test]
async fn a_failure_after_some_text_of_a_whole_answer_is_a_status() {
    let mut rig = Rig::new();
    let answer = rig.post(COMPLETIONS, completion(json!({"prompt": ["a", "b"]})));
    let (mut first, mut second) = (rig.next().await, rig.next().await);
    first.accept();
    second.accept();
    first.text("x").unwrap();
    second.fail(None);
    assert_eq!(fault(answer.await.unwrap()).await.0, 500);
    first.cancelled().await;
}

#[actix_web::test]
async fn log_probabilities_come_in_openais_two_shapes() {
    let mut rig = Rig::new();
    let entry = |token: &str, top: Value| {
        let bytes = token.as_bytes();
        json!({"token": token, "logprob": -0.5, "bytes": bytes, "top_logprobs": top})
    };
    let likely = |token: &str, logprob: f32| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let a = entry("a", json!([likely("a", -0.5), likely("1", -1.0)]));
    let b = entry("b", json!([likely("b", -0.5), likely("1", -1.0)]));

    let answer = rig.post(CHAT, chat(json!({"logprobs": true, "top_logprobs": 2})));
    rig.next().await.play(&["a", "b"]);
    let body: Value = answer.await.unwrap().json().await.unwrap();
    assert_eq!(body["choices"][0]["logprobs"], json!({"content": [a, b], "refusal": null}));

    let answer = rig.post(CHAT, chat(json!({"logprobs": true, "stream": true})));
    let mut played = rig.next().await;
    played.accept();
    // Half a character has no text yet, and its token is not left out.
    played.text("").unwrap();
    played.finish(FinishReason::Stop).unwrap();
    let seen = events(&answer.await.unwrap().text().await.unwrap());
    assert_eq!(seen[1]["choices"][0]["delta"]["content"], "");
    let content = json!({"content": [entry("", json!([]))], "refusal": null});
    assert_eq!(seen[1]["choices"][0]["logprobs"], content);
    assert_eq!(seen[2]["choices"][0]["logprobs"], Value::Null);

    for stream in [false, true] {
        let answer = rig.post(COMPLETIONS, completion(json!({"logprobs": 1, "stream": stream})));
        rig.next().await.play(&["a", "b"]);
        let text = answer.await.unwrap().text().await.unwrap();
        let parts = if stream { events(&text) } else { vec![serde_json::from_str(&text).unwrap()] };
        let column = |name: &str| -> Vec<Value> {
            let parts = parts.iter().map(|part| part["choices"][0]["logprobs"][name].clone());
            parts.filter_map(|column| column.as_array().cloned()).flatten().collect()
        };
        assert_eq!(column("tokens"), [json!("a"), json!("b")]);
        assert_eq!(column("token_logprobs"), [json!(-0.5), json!(-0.5)]);
        assert_eq!(column("top_logprobs"), [json!({"a": -0.5}), json!({"b": -0.5})]);
        assert_eq!(column("text_offset"), [json!(0), json!(1)]);
    }
}

#[actix_web::test]
async fn an_echo_comes_before_the_completion_in_text_and_columns() {
    let mut rig = Rig::new();
    for stream in [false, true] {
        let asked = json!({"echo": true, "logprobs": 0, "max_tokens": 1, "stream": stream});
        let answer = rig.post(COMPLETIONS, completion(asked));
        let mut played = rig.next().await;
        assert_eq!(played.request.params.num_prompt_logprobs(), Some(0));
        played.accept();
        played.prompt_and_text(["on", "cé"], "x").unwrap();
        played.finish(FinishReason::Length).unwrap();
        let text = answer.await.unwrap().text().await.unwrap();
        let parts = if stream { events(&text) } else { vec![serde_json::from_str(&text).unwrap()] };
        let choice = &parts[0]["choices"][0];
        assert_eq!(choice["text"], "oncéx");
        let expected = json!({
            "tokens": ["on", "cé", "x"],
            "token_logprobs": [null, -3.0, -0.5],
            "top_logprobs": [null, {"cé": -3.0}, {"x": -0.5}],
            "text_offset": [0, 2, 4],
        });
        assert_eq!(choice["logprobs"], expected);
        assert!(choice.get("prompt_logprobs").is_none(), "nobody asked for that shape");
    }
}

#[actix_web::test]
async fn prompt_logprobs_stand_where_vllm_has_them() {
    let mut rig = Rig::new();
    let expected = json!([null, {"5": {"logprob": -3.0, "decoded_token": "ce"}}]);
    for (path, body) in [(CHAT, chat as fn(Value) -> Value), (COMPLETIONS, completion)] {
        let answer = rig.post(path, body(json!({"prompt_logprobs": 0})));
        let mut played = rig.next().await;
        played.accept();
        played.prompt_and_text(["on", "ce"], "x").unwrap();
        played.finish(FinishReason::Stop).unwrap();
        let body: Value = answer.await.unwrap().json().await.unwrap();
        let of_choice = &body["choices"][0]["prompt_logprobs"];
        let (there, not_there) = match path {
            CHAT => (&body["prompt_logprobs"], of_choice),
            _ => (of_choice, &body["prompt_logprobs"]),
        };
        assert_eq!((there, not_there), (&expected, &Value::Null), "{path}");
        assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    }
}
