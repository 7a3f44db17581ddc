//! Requests, acceptances, refusals and events.

use super::*;

#[tokio::test]
async fn a_request_with_an_id_is_accepted_and_streamed_on_its_subject() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    let body = json!({"request_id": "r1", "prompt": "Hi", "params": {"max_tokens": 7}});
    let answer = client.request(GENERATE, body.to_string().into()).await.expect("answers");
    let accepted = json!({"request_id": "r1", "status": "accepted", "node_id": "node-a"});
    assert_eq!(parsed(&answer), accepted);
    assert!(answer.headers.is_none());
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(7, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    assert_eq!(last["usage"]["completion_tokens"], 7);
    assert_eq!((&last["request_id"], &last["attempt"]), (&json!("r1"), &json!(1)));
    assert!(last["receipt"].is_object() && last.get("error").is_none());
    nothing_more(&mut events).await;
    node.stop().await;
}

#[tokio::test]
async fn log_probabilities_are_one_entry_for_each_token() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    let params = json!({"max_tokens": 5, "logprobs": 0});
    let body = json!({"request_id": "r1", "prompt": "Hi", "params": params});
    client.publish(GENERATE, body.to_string().into()).await.expect("publishes");
    let (mut ids, mut entries) = (Vec::new(), Vec::new());
    loop {
        let event = parsed(&next(&mut events).await);
        let list = |name: &str| event[name].as_array().cloned().unwrap_or_default();
        assert_eq!(list("token_ids").len(), list("logprobs").len());
        ids.extend(list("token_ids"));
        entries.extend(list("logprobs"));
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert_eq!(ids.len(), 5);
    let third =
        json!({"token_id": 2, "token": "<2>", "logprob": -2.0, "text_offset": 6, "top": []});
    assert_eq!(entries[2], third);
    node.stop().await;
}

#[tokio::test]
async fn a_prompt_that_no_message_holds_comes_in_several_before_its_completion() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    // About two megabytes, of which NATS takes one at a time.
    let params = json!({"max_tokens": 2, "prompt_logprobs": 20});
    let body = json!({"request_id": "r1", "prompt": "Hi", "params": params});
    client.publish(GENERATE, body.to_string().into()).await.expect("publishes");
    let (mut prompt, mut carriers, mut ids) = (Vec::new(), 0, Vec::<Value>::new());
    loop {
        let event = parsed(&next(&mut events).await);
        assert_eq!(event["seq"], ids.len());
        if let Some(entries) = event["prompt_logprobs"].as_array() {
            assert!(ids.is_empty());
            prompt.extend(entries.iter().map(|entry| entry["token_id"].as_u64()));
            carriers += 1;
        }
        ids.extend(event["token_ids"].as_array().expect("a list").iter().cloned());
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert!(carriers > 1, "{carriers}");
    assert_eq!(prompt, (0..20_000).map(Some).collect::<Vec<_>>());
    assert_eq!(ids.len(), 2);
    node.stop().await;
}

#[tokio::test]
async fn the_first_event_carries_a_reply_subject_of_the_nodes() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r1").await.expect("subscribes");
    let body = json!({"request_id": "r1", "prompt": "pace 20", "params": {"max_tokens": 75}});
    client.publish(GENERATE, body.to_string().into()).await.expect("publishes");
    let started = Instant::now();
    let mut probes = Vec::new();
    loop {
        let message = next(&mut events).await;
        if message.reply.is_some() {
            probes.push(started.elapsed());
        }
        if parsed(&message).get("finish_reason").is_some() {
            break;
        }
    }
    assert!((2..=3).contains(&probes.len()), "one, and then one every second: {probes:?}");
    assert!(probes[0] < Duration::from_millis(900), "{probes:?}");
    node.stop().await;
}

#[tokio::test]
async fn msgpack_is_answered_in_msgpack() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.r2").await.expect("subscribes");
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/msgpack");
    let body = json!({"request_id": "r2", "prompt": "Hi", "params": {"max_tokens": 2}});
    let body = rmp_serde::to_vec_named(&body).expect("packs");
    let answer = client.request_with_headers(GENERATE, headers, body.into()).await;
    let answer = answer.expect("answers");
    assert_eq!(header(&answer, "Content-Type"), Some("application/msgpack"));
    let accepted: Value = rmp_serde::from_slice(&answer.payload).expect("msgpack");
    assert_eq!(accepted["status"], "accepted");
    let mut ids = Vec::new();
    loop {
        let message = next(&mut events).await;
        assert_eq!(header(&message, "Content-Type"), Some("application/msgpack"));
        let event: Value = rmp_serde::from_slice(&message.payload).expect("msgpack");
        ids.extend(event["token_ids"].as_array().expect("an array").clone());
        if event.get("finish_reason").is_some() {
            break;
        }
    }
    assert_eq!(ids, [0, 1]);
    node.stop().await;
}

#[tokio::test]
async fn without_an_id_events_go_to_the_reply_subject_and_end_with_an_empty_message() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "Hi", "params": {"max_tokens": 3}});
    client.publish_with_reply(GENERATE, inbox, body.to_string().into()).await.expect("publishes");
    let (ids, text, last) = whole(&mut answers).await;
    expect_tokens(3, &ids, &text);
    assert!(last["request_id"].as_str().is_some_and(|id| id.len() == 32), "{last}");
    assert!(next(&mut answers).await.payload.is_empty());
    nothing_more(&mut answers).await;
    node.stop().await;
}

#[tokio::test]
async fn without_streaming_there_is_one_event_with_everything() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "Hi", "params": {"max_tokens": 3, "stream": false}});
    client.publish_with_reply(GENERATE, inbox, body.to_string().into()).await.expect("publishes");
    let event = parsed(&next(&mut answers).await);
    assert_eq!((&event["text"], &event["finish_reason"]), (&json!("<0><1><2>"), &json!("length")));
    assert!(next(&mut answers).await.payload.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_has_a_body_and_service_error_headers() {
    let (_server, node, client) = setup().await;
    let body = json!({"request_id": "r3", "prompt": "refuse"}).to_string();
    let answer = client.request(GENERATE, body.into()).await.expect("answers");
    let expected = json!({
        "request_id": "r3", "error": {"kind": "queue_full", "message": "full", "retry_after_ms": 70}
    });
    assert_eq!(parsed(&answer), expected);
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("429"));
    assert_eq!(header(&answer, "Nats-Service-Error"), Some("queue_full: full"));
    // Without an id an empty message follows.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let body = json!({"prompt": "refuse"}).to_string();
    client.publish_with_reply(GENERATE, inbox, body.into()).await.expect("publishes");
    let refused = parsed(&next(&mut answers).await);
    assert!(refused.get("request_id").is_none() && refused["error"]["kind"] == "queue_full");
    assert!(next(&mut answers).await.payload.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_failure_after_acceptance_is_the_last_event_with_headers() {
    let (_server, node, client) = setup().await;
    for (script, message) in
        [("fail", "the step failed twice"), ("drop", "the node dropped the request")]
    {
        let mut events =
            client.subscribe(format!("inferno.v1.tokens.{script}")).await.expect("subscribes");
        let body = json!({"request_id": script, "prompt": script}).to_string();
        client.publish(GENERATE, body.into()).await.expect("publishes");
        let mut tokens = 0;
        let last = loop {
            let message = next(&mut events).await;
            tokens += parsed(&message)["token_ids"].as_array().expect("an array").len();
            if parsed(&message).get("finish_reason").is_some() {
                break message;
            }
        };
        assert_eq!(tokens, 2);
        assert_eq!(parsed(&last)["finish_reason"], "failed");
        assert_eq!(parsed(&last)["error"]["message"], message);
        assert_eq!(header(&last, "Nats-Service-Error-Code"), Some("500"));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_conflict_does_not_disturb_the_stream_that_runs() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.same").await.expect("subscribes");
    let body = json!({"request_id": "same", "prompt": "pace 5", "params": {"max_tokens": 400}});
    let body = body.to_string();
    client.request(GENERATE, body.clone().into()).await.expect("accepted");
    let refused = client.request(GENERATE, body.clone().into()).await.expect("answers");
    assert_eq!(parsed(&refused)["error"]["kind"], "conflict");
    assert_eq!(header(&refused, "Nats-Service-Error-Code"), Some("409"));
    // With no reply subject it is only counted.
    client.publish(GENERATE, body.into()).await.expect("publishes");
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(400, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    node.stop().await;
}

#[tokio::test]
async fn malformed_requests_of_every_kind_are_answered_and_leave_the_node_healthy() {
    let (_server, node, client) = setup().await;
    let big = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(1 << 20));
    let bodies = [
        "",
        "{",
        "[]",
        "null",
        "\u{0}",
        "{}",
        r#"{"prompt":1}"#,
        r#"{"prompt":"a","x":1}"#,
        r#"{"prompt":"a","prompt":"b"}"#,
        r#"{"prompt":"a","params":{"temperature":NaN}}"#,
        r#"{"prompt":"a","tenant":"t"}"#,
        r#"{"request_id":"a b","prompt":"a"}"#,
        r#"{"prompt":"a","messages":[]}"#,
        &big[..1 << 20],
    ];
    for body in bodies {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
        let sent = client.publish_with_reply(GENERATE, inbox, body.to_owned().into()).await;
        sent.expect("publishes");
        let refused = next(&mut answers).await;
        assert_eq!(header(&refused, "Nats-Service-Error-Code"), Some("400"), "{body:.40}");
        assert!(next(&mut answers).await.payload.is_empty(), "{body:.40}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "text/xml");
    let answer = client.request_with_headers(GENERATE, headers, "<a/>".into()).await;
    assert_eq!(parsed(&answer.expect("answers"))["error"]["kind"], "unsupported");
    // Nowhere to answer: dropped.
    client.publish(GENERATE, r#"{"prompt":"a"}"#.into()).await.expect("publishes");
    client.publish(GENERATE, "{".into()).await.expect("publishes");
    let asker = Asker::over(client, "inferno.v1");
    let mut generation = asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
    while generation.next().await.expect("streams").is_some() {}
    assert_eq!(node.seen.admitted.load(std::sync::atomic::Ordering::SeqCst), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_too_large() {
    let server = NatsServer::start();
    let node = Node::start(Config { max_request_bytes: 100, ..config(&server) }, "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let body = json!({"prompt": "x".repeat(200)}).to_string();
    let answer = client.request(GENERATE, body.into()).await.expect("answers");
    assert_eq!(parsed(&answer)["error"]["kind"], "too_large");
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("413"));
    node.stop().await;
}

#[tokio::test]
async fn a_full_mailbox_refuses_instead_of_losing() {
    let (_server, node, client) = setup().await;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribes");
    let send = |id: String, prompt: &str| {
        let body = json!({"request_id": id, "prompt": prompt, "detached": true}).to_string();
        client.publish_with_reply(GENERATE, inbox.clone(), body.into())
    };
    send("block".into(), "block").await.expect("publishes");
    for i in 0..2_000 {
        send(format!("m{i}"), "refuse").await.expect("publishes");
    }
    let (mut accepted, mut busy, mut refused) = (0, 0, 0);
    for _ in 0..2_001 {
        let answer = parsed(&next(&mut answers).await);
        match answer["error"]["message"].as_str() {
            None => accepted += 1,
            Some("full") => refused += 1,
            Some("the node is too busy to take this request now") => {
                assert!(answer["error"]["retry_after_ms"].is_u64());
                busy += 1;
            }
            Some(other) => panic!("{other}"),
        }
    }
    assert_eq!((accepted, busy + refused), (1, 2_000), "every request has one answer");
    assert!(busy > 0, "512 fit into the mailbox");
    node.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_a_message_is_split() {
    let server = NatsServer::with("max_payload: 1024\n");
    let node = Node::start(config(&server), "node-a").await;
    let client = connect(&server).await;
    wait_ready(&client).await;
    let mut events = client.subscribe("inferno.v1.tokens.long").await.expect("subscribes");
    let body = json!({
        "request_id": "long", "prompt": "Hi", "params": {"max_tokens": 2_000, "stream": false}
    });
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(2_000, &ids, &text);
    assert_eq!(last["usage"]["completion_tokens"], 2_000);
    node.stop().await;
}
