//! Cancels, listeners that go, several nodes, and what a node tells about itself.

use super::*;

#[tokio::test]
async fn a_cancel_is_acknowledged_with_the_tokens_of_the_last_event() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.c1").await.expect("subscribes");
    let body = json!({"request_id": "c1", "prompt": "pace 5", "params": {"max_tokens": 100_000}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    let (first, second) = tokio::join!(
        client.request("inferno.v1.cancel.c1", "".into()),
        client.request("inferno.v1.cancel.c1", "".into())
    );
    let first = parsed(&first.expect("answers"));
    assert_eq!((&first["request_id"], &first["cancelled"]), (&json!("c1"), &json!(true)));
    assert_eq!(parsed(&second.expect("answers")), first, "both callers are answered");
    let last = loop {
        let message = next(&mut events).await;
        if parsed(&message).get("finish_reason").is_some() {
            break message;
        }
    };
    assert!(last.headers.is_none(), "a cancel is no failure");
    assert_eq!(parsed(&last)["finish_reason"], "cancelled");
    assert_eq!(parsed(&last)["usage"]["completion_tokens"], first["tokens"]);
    eventually("the subject is left", || async {
        let error = client.request("inferno.v1.cancel.c1", "".into()).await.err()?;
        (error.kind() == async_nats::client::RequestErrorKind::NoResponders).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_request_from_elsewhere_can_be_cancelled_by_its_id() {
    let (_server, node, client) = setup().await;
    let id = inferno_node::ids::RequestId::parse("http-1").expect("an id");
    node.seen.observer().started(&id);
    // The fake does not know it, so the answer is an error; what counts is that somebody answers.
    let answer = eventually("the subject is open", || async {
        client.request("inferno.v1.cancel.http-1", "".into()).await.ok()
    })
    .await;
    assert_eq!(parsed(&answer)["error"]["kind"], "not_found");
    assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("404"));
    node.seen.observer().ended(&id);
    eventually("the subject is left", || async {
        client.request("inferno.v1.cancel.http-1", "".into()).await.err()
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_goes_away_ends_its_request_unless_it_is_detached() {
    let (_server, node, client) = setup().await;
    let ask = |id: &str, detached: bool| {
        let body = json!({
            "request_id": id, "prompt": "pace 5", "detached": detached, "params": {"max_tokens": 500}
        });
        client.request(GENERATE, body.to_string().into())
    };
    let mut gone = client.subscribe("inferno.v1.tokens.gone").await.expect("subscribes");
    ask("gone", false).await.expect("accepted");
    ask("never", false).await.expect("accepted");
    ask("detached", true).await.expect("accepted");
    next(&mut gone).await;
    gone.unsubscribe().await.expect("unsubscribes");
    for id in ["gone", "never", "detached"] {
        let ended = eventually("it ends", || async { node.seen.end_of(id) }).await;
        match id {
            "detached" => assert_eq!(ended.reason, FinishReason::Length),
            _ => assert_eq!(ended.reason, FinishReason::Cancelled, "{id}"),
        }
    }
    let never = node.seen.end_of("never").expect("ended").completion_tokens;
    assert!(never < 200, "the first event finds that nobody listens: {never}");
    node.stop().await;
}

#[tokio::test]
async fn a_request_that_is_answered_whole_ends_when_its_listener_goes_and_not_before() {
    let (_server, node, client) = setup().await;
    let body = |id: &str, detached: bool| {
        json!({
            "request_id": id, "prompt": "pace 20", "detached": detached,
            "params": {"max_tokens": 300, "stream": false}
        })
    };
    let mut stays = client.subscribe("inferno.v1.tokens.stays").await.expect("subscribes");
    let gone = client.subscribe("inferno.v1.tokens.gone").await.expect("subscribes");
    for (id, detached) in [("stays", false), ("gone", false), ("detached", true)] {
        client.request(GENERATE, body(id, detached).to_string().into()).await.expect("accepted");
    }
    drop(gone);
    // Who reads one message finds the answer in it.
    let whole_in_one = json!({"prompt": "pace 20", "params": {"max_tokens": 300, "stream": false}});
    let request =
        async_nats::Request::new().payload(whole_in_one.to_string().into()).timeout(Some(SOON));
    let answer = client.send_request(GENERATE, request).await.expect("answers");
    assert_eq!(parsed(&answer)["finish_reason"], "length");
    let (ids, text, last) = whole(&mut stays).await;
    expect_tokens(300, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    let gone = eventually("it ends", || async { node.seen.end_of("gone") }).await;
    assert_eq!(gone.reason, FinishReason::Cancelled);
    let detached = eventually("it ends", || async { node.seen.end_of("detached") }).await;
    assert_eq!(detached.reason, FinishReason::Length);
    node.stop().await;
}

#[tokio::test]
async fn two_nodes_share_the_requests_of_one_model() {
    let (server, node, client) = setup().await;
    let other = Node::start(config(&server), "node-b").await;
    eventually("both serve", || async { (nodes(&client).await.len() == 2).then_some(()) }).await;
    let asker = Asker::over(client, "inferno.v1");
    let mut answered = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..60 {
        let mut generation =
            asker.generate("demo", json!({"prompt": "Hi"})).await.expect("accepted");
        *answered.entry(generation.node_id().to_owned()).or_default() += 1;
        while generation.next().await.expect("streams").is_some() {}
    }
    assert_eq!(answered.len(), 2, "{answered:?}");
    assert_eq!(answered.values().sum::<u32>(), 60, "one node takes each");
    node.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_service_api_shows_the_node_and_what_it_did() {
    let (_server, node, client) = setup().await;
    let asker = Asker::over(client.clone(), "inferno.v1");
    for prompt in ["Hi", "Hi", "refuse"] {
        match asker.generate("demo", json!({"prompt": prompt})).await {
            Ok(mut generation) => while generation.next().await.expect("streams").is_some() {},
            Err(error) => assert!(matches!(error, ClientError::Refused(_)), "{error}"),
        }
    }
    for name in ["$SRV.PING", "$SRV.PING.inferno", "$SRV.PING.inferno.node-a"] {
        let ping = parsed(&client.request(name, "".into()).await.expect("answers"));
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!((&ping["name"], &ping["id"]), (&json!("inferno"), &json!("node-a")));
    }
    let stats = client.request("$SRV.STATS.inferno.node-a", "".into()).await.expect("answers");
    let endpoint = parsed(&stats)["endpoints"][0].clone();
    assert_eq!(endpoint["subject"], GENERATE);
    assert_eq!(endpoint["queue_group"], "inferno");
    assert_eq!((&endpoint["num_requests"], &endpoint["num_errors"]), (&json!(3), &json!(1)));
    assert_eq!(endpoint["last_error"], "429:queue_full: full");
    assert!(endpoint["average_processing_time"].as_u64() > Some(0));
    let unknown = client.request("$SRV.PING.inferno.other", "".into()).await;
    assert!(unknown.is_err(), "a name that is not there has no responder");
    node.stop().await;
}

#[tokio::test]
async fn health_messages_are_published_on_the_nodes_subject() {
    let (_server, node, client) = setup().await;
    let mut health = client.subscribe("inferno.v1.node.node-a.health").await.expect("subscribes");
    // A round trip on the same connection: from here on the subscription is known.
    wait_ready(&client).await;
    node.bus.health_publisher()(r#"{"status":"healthy"}"#.into());
    assert_eq!(parsed(&next(&mut health).await)["status"], "healthy");
    node.bus.publish_health(r#"{"status":"critical"}"#);
    assert_eq!(parsed(&next(&mut health).await)["status"], "critical");
    node.stop().await;
}

#[tokio::test]
async fn a_request_whose_reply_subject_is_none_ends_and_costs_the_others_nothing() {
    use std::io::Write;
    let (server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.other").await.expect("subscribes");
    let body = json!({"request_id": "other", "prompt": "pace 2", "params": {"max_tokens": 200}});
    client.request(GENERATE, body.to_string().into()).await.expect("accepted");
    next(&mut events).await;
    // The client library would not send it; the server passes it on.
    let mut socket =
        std::net::TcpStream::connect(server.url().replace("nats://", "")).expect("connects");
    let body = json!({"prompt": "pace 2", "params": {"max_tokens": 1_000_000}}).to_string();
    let message = format!(
        "CONNECT {{\"verbose\":false}}\r\nPUB {GENERATE} no..subject {}\r\n{body}\r\n",
        body.len()
    );
    socket.write_all(message.as_bytes()).expect("writes");
    let ended = eventually("it ends", || async {
        node.seen.ends.lock().expect("no panic").iter().map(|(_, ended)| *ended).next()
    })
    .await;
    assert_eq!(ended.reason, FinishReason::Cancelled);
    let mut last = 0;
    while last < 200 {
        let event = parsed(&next(&mut events).await);
        last = event["seq"].as_u64().expect("a number") + 1;
        if event.get("finish_reason").is_some() {
            assert_eq!(event["usage"]["completion_tokens"], 200);
            break;
        }
    }
    node.stop().await;
}
