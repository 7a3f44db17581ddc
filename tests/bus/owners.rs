//! One id runs on one node of a cluster: two nodes on one nats-server, each with a fake admission that knows its own requests only.

use super::*;

/// Two nodes that know of each other.
async fn two() -> (NatsServer, [Node; 2], Client) {
    let (server, one, client) = setup().await;
    let other = Node::start(config(&server), "node-b").await;
    eventually("both serve", || async { (nodes(&client).await.len() == 2).then_some(()) }).await;
    for node in [&one, &other] {
        let tell = node.bus.health_publisher();
        tokio::spawn(async move {
            loop {
                tell(r#"{"status":"healthy"}"#.into());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    (server, [one, other], client)
}

fn body(id: &str, pace_ms: u32, max_tokens: u32) -> bytes::Bytes {
    let params = json!({"max_tokens": max_tokens});
    let prompt = format!("pace {pace_ms}");
    json!({"request_id": id, "prompt": prompt, "params": params}).to_string().into()
}

#[tokio::test]
async fn an_id_that_runs_on_one_node_is_refused_by_the_other_until_it_has_ended() {
    let (_server, nodes, client) = two().await;
    let mut events = client.subscribe("inferno.v1.tokens.mine").await.expect("subscribes");
    let first = client.request(GENERATE, body("mine", 5, 400)).await.expect("answers");
    let owner = parsed(&first)["node_id"].clone();
    let refused = json!({"request_id": "mine", "prompt": "refuse"}).to_string();
    // Each goes to one of the two nodes by chance.
    for _ in 0..20 {
        let asked_at = Instant::now();
        let again = client.request(GENERATE, refused.clone().into()).await.expect("answers");
        let error = &parsed(&again)["error"];
        // A node that hears nothing of the other for 100 ms lets it in.
        if error["kind"] == "queue_full" && asked_at.elapsed() >= Duration::from_millis(100) {
            continue;
        }
        assert_eq!((&error["kind"], &error["param"]), (&json!("conflict"), &json!("request_id")));
        let text = error["message"].as_str().expect("text");
        assert!(text.ends_with(owner.as_str().expect("a name")), "{text}");
        assert_eq!(header(&again, "Nats-Service-Error-Code"), Some("409"));
    }
    let (ids, text, last) = whole(&mut events).await;
    expect_tokens(400, &ids, &text);
    assert_eq!(last["finish_reason"], "length");
    // Free again a moment after its last event, wherever it goes.
    for _ in 0..10 {
        eventually("it is free", || async {
            let answer = client.request(GENERATE, body("mine", 0, 5)).await.expect("answers");
            (parsed(&answer)["status"] == "accepted").then_some(())
        })
        .await;
        assert_eq!(whole(&mut events).await.0.len(), 5);
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn of_two_that_are_sent_at_once_one_is_streamed_whole_and_the_other_never_ends_it() {
    let (_server, nodes, client) = two().await;
    for round in 0..20 {
        let id = format!("twin-{round}");
        let subject = format!("inferno.v1.tokens.{id}");
        let mut events = client.subscribe(subject).await.expect("subscribes");
        let send = || client.request(GENERATE, body(&id, 10, 20));
        let (one, other) = tokio::join!(send(), send());
        let accepted = [one, other].map(|answer| parsed(&answer.expect("answers")));
        let accepted = accepted.iter().filter(|answer| answer["status"] == "accepted").count();
        assert!(accepted >= 1, "{id}");
        let (ids, text, last) = whole(&mut events).await;
        expect_tokens(20, &ids, &text);
        assert_eq!(last["finish_reason"], "length", "{id}");
        let ends = || nodes.iter().filter_map(|node| node.seen.end_of(&id)).collect::<Vec<_>>();
        let ends = eventually("all end", || async {
            let ends = ends();
            (ends.len() >= accepted).then_some(ends)
        })
        .await;
        let whole = ends.iter().filter(|end| end.reason == FinishReason::Length).count();
        assert_eq!((whole, ends.len()), (1, accepted), "{id}: {ends:?}");
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn who_runs_a_request_can_be_asked_without_ending_it() {
    let (_server, node, client) = setup().await;
    let mut events = client.subscribe("inferno.v1.tokens.asked").await.expect("subscribes");
    client.request(GENERATE, body("asked", 5, 400)).await.expect("accepted");
    let ask = || {
        let mut headers = HeaderMap::new();
        headers.insert("Inferno-Probe", "owner");
        client.request_with_headers("inferno.v1.cancel.asked", headers, "".into())
    };
    let answer = parsed(&ask().await.expect("answers"));
    assert_eq!(answer, json!({"request_id": "asked", "node_id": "node-a", "running": true}));
    assert_eq!(whole(&mut events).await.0.len(), 400);
    eventually("nobody runs it", || async { ask().await.err() }).await;
    node.stop().await;
}

#[tokio::test]
async fn where_somebody_watches_every_subject_and_is_silent_a_request_still_runs() {
    let (_server, nodes, client) = two().await;
    let _watching = client.subscribe("inferno.v1.>").await.expect("subscribes");
    let answer = client.request(GENERATE, body("watched", 0, 5)).await.expect("answers");
    assert_eq!(parsed(&answer)["status"], "accepted");
    for node in nodes {
        node.stop().await;
    }
}
