//! Callers that wait for one answer, as the request methods of clients do: those that go, and those of whom nothing can be known.

use super::*;

/// Asks for one answer that takes eight seconds.
async fn ask(client: &Client, reply: &'static str, detached: bool) {
    let params = json!({"max_tokens": 400, "stream": false});
    let body = json!({"prompt": "pace 20", "detached": detached, "params": params});
    client.publish_with_reply(GENERATE, reply, body.to_string().into()).await.expect("publishes");
}

#[tokio::test]
async fn a_caller_is_asked_for_beside_its_answer_and_its_request_ends_when_its_inbox_goes() {
    let (_server, node, client) = setup().await;
    let mut inbox = client.subscribe("_INBOX.caller.*").await.expect("subscribes");
    ask(&client, "_INBOX.caller.answer", false).await;
    ask(&client, "_INBOX.caller.detached", true).await;
    let probe = next(&mut inbox).await;
    assert!(probe.subject.as_str() != "_INBOX.caller.answer" && probe.payload.is_empty());
    assert!(header(&probe, "Inferno-Probe").is_some() && probe.reply.is_some());
    drop(inbox);
    let mut reasons = eventually("both end", || async {
        let ends = node.seen.ends.lock().expect("no panic");
        let reasons: Vec<_> = ends.iter().map(|(_, ended)| ended.reason).collect();
        (reasons.len() == 2).then_some(reasons)
    })
    .await;
    assert_eq!(reasons.pop(), Some(FinishReason::Length), "the detached one, later");
    assert_eq!(reasons.pop(), Some(FinishReason::Cancelled));
    node.stop().await;
}

#[tokio::test]
async fn nothing_is_concluded_of_an_inbox_that_only_somebody_who_watched_everything_heard() {
    let (_server, node, client) = setup().await;
    let mut own = client.subscribe("_INBOX.own.answer").await.expect("subscribes");
    let mut watched = client.subscribe("watched.own.answer").await.expect("subscribes");
    let mut watcher = client.subscribe("watched.>").await.expect("subscribes");
    ask(&client, "_INBOX.own.answer", false).await;
    ask(&client, "watched.own.answer", false).await;
    for _ in 0..2 {
        assert!(header(&next(&mut watcher).await, "Inferno-Probe").is_some());
    }
    drop(watcher);
    for inbox in [&mut own, &mut watched] {
        let answer = next(inbox).await;
        assert_eq!(parsed(&answer)["finish_reason"], "length", "the first message is the answer");
    }
    node.stop().await;
}
