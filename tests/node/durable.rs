//! Durable requests: what was accepted is finished whatever node dies, and a subscriber sees every token once and in order.

use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::StreamExt;
use inferno_node::bus::client::{Client, Generation};
use inferno_node::request::{Event, FinishReason};
use serde_json::{Value, json};

use super::harness::{CPU, NodeProcess, client, collect, external, request};
use super::jobs::{publish, wait_for_empty_queue, wait_for_streams};
use super::nats::NatsServer;

/// What a subscriber has of a durable request.
pub struct Heard {
    pub tokens: Vec<u32>,
    pub text: String,
    pub attempts: Vec<u32>,
    pub last: Event,
}

/// Publishes a durable request and hears all of it; `meanwhile` is told how many tokens have come.
pub async fn run(
    nats: &async_nats::Client,
    id: &str,
    body: Value,
    mut meanwhile: impl AsyncFnMut(usize),
) -> Heard {
    let mut events = nats.subscribe(format!("inferno.v1.tokens.{id}")).await.expect("subscribes");
    publish(nats, id, body).await;
    let (mut tokens, mut text, mut attempts) = (Vec::new(), String::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
        let message = next.expect("an event in time").expect("connected");
        let event: Event = serde_json::from_slice(&message.payload).expect("an event");
        assert_eq!(event.seq as usize, tokens.len(), "no gap and no repetition");
        if attempts.last() != Some(&event.attempt) {
            attempts.push(event.attempt);
        }
        tokens.extend(&event.token_ids);
        text.push_str(&event.text);
        if event.is_last() {
            return Heard { tokens, text, attempts, last: event };
        }
        meanwhile(tokens.len()).await;
    }
}

#[tokio::test]
async fn a_durable_request_says_what_a_plain_one_says_and_all_of_it_is_stored() {
    let nats = NatsServer::with_jetstream("");
    let _node = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let mut plain =
        client(&nats.url()).await.generate("demo", request(40, 7)).await.expect("accepted");
    let (tokens, text, _) = collect(&mut plain).await.expect("streams");
    let heard = run(&bus, "mine", request(40, 7), async |_| ()).await;
    assert_eq!((&heard.tokens, &heard.text), (&tokens, &text));
    assert_eq!(heard.last.finish_reason, Some(FinishReason::Length));
    assert_eq!(heard.last.usage.map(|usage| usage.completion_tokens), Some(40));
    assert_eq!(heard.attempts, [1]);
    wait_for_empty_queue(&bus).await;
    let log = jetstream::new(bus).get_stream("inferno_log").await.expect("is there");
    let last = log.direct_get_last_for_subject("inferno.v1.log.mine").await.expect("is there");
    let last: Event = serde_json::from_slice(&last.payload).expect("an event");
    assert_eq!(last, Event { at: last.at, ..heard.last });
}

#[tokio::test]
async fn a_stream_outlives_its_node_and_its_subscriber_sees_every_token_once() {
    let nats = NatsServer::with_jetstream("");
    let quick = "[log]\nack_wait_ms = 1000\n";
    let start =
        |id: &str| NodeProcess::start(&format!("{CPU}{quick}{}", external(&nats.url(), id)));
    let mut nodes = vec![start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let wanted = json!({
        "prompt": "Once upon a time",
        // No seed: it is the id's, on every node.
        "params": {"max_tokens": 60, "ignore_eos": true, "stop": ["never said"]},
    });
    let whole = run(&bus, "whole", wanted.clone(), async |_| ()).await;
    let other = json!({
        "prompt": "Once upon a time",
        "params": {"max_tokens": 1_500, "seed": 3, "ignore_eos": true, "presence_penalty": 0.5},
    });
    let undisturbed = run(&bus, "undisturbed", other.clone(), async |_| ()).await;
    let mut is_killed = false;
    let heard = run(&bus, "killed", other, async |count| {
        if count >= 10 && !is_killed {
            is_killed = true;
            kill_owner(&bus, &mut nodes, "killed").await;
        }
    })
    .await;
    assert!(is_killed && nodes.len() == 1);
    assert_eq!((heard.tokens, heard.text), (undisturbed.tokens, undisturbed.text));
    // More where a slow machine misses the sign of life of the second node, too.
    assert!(heard.attempts.starts_with(&[1, 2]), "{:?}", heard.attempts);
    let receipt = heard.last.receipt.expect("in the last event");
    assert_eq!(Some(&receipt.attempt), heard.attempts.last());
    assert_eq!(receipt.node_id, nodes[0].id());
    assert_eq!(receipt.exact, Some(true), "nodes of one kind");
    assert_eq!(whole.tokens.len(), 60);
    wait_for_empty_queue(&bus).await;
}

/// Answers of the nodes about a request.
async fn ask(nats: &async_nats::Client, verb: &str, id: &str) -> Value {
    let body = Bytes::from(json!({"request_id": id}).to_string());
    let answer = nats.request(format!("inferno.v1.requests.{verb}"), body).await;
    serde_json::from_slice(&answer.expect("a node answers").payload).expect("JSON")
}

#[tokio::test]
async fn a_durable_request_is_cancelled_by_its_id_and_says_the_same_when_asked_again() {
    let nats = NatsServer::with_jetstream("");
    let _node = NodeProcess::start_sim(5_000, &external(&nats.url(), "one"));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let mut answer = None;
    let heard = run(&bus, "mine", request(1_500, 1), async |count| {
        if count >= 5 && answer.is_none() {
            let status = ask(&bus, "status", "mine").await;
            assert_eq!((&status["status"], &status["node_id"]), (&"running".into(), &"one".into()));
            answer = Some(ask(&bus, "cancel", "mine").await);
        }
    })
    .await;
    let answer = answer.expect("was asked");
    assert_eq!(heard.last.finish_reason, Some(FinishReason::Cancelled));
    let expected = json!({"request_id": "mine", "cancelled": true, "tokens": heard.tokens.len()});
    assert_eq!(answer, expected);
    assert_eq!(ask(&bus, "cancel", "mine").await, expected);
    let status = ask(&bus, "status", "mine").await;
    assert_eq!(
        (&status["status"], &status["finish_reason"]),
        (&"finished".into(), &"cancelled".into())
    );
    assert_eq!(ask(&bus, "cancel", "nobody").await["error"]["kind"], "not_found");
    assert_eq!(ask(&bus, "status", "nobody").await["error"]["kind"], "not_found");
    let old = "018f0000000070008000000000000000"; // a node's, of 2024
    assert_eq!(ask(&bus, "status", old).await["error"]["kind"], "expired");
    wait_for_empty_queue(&bus).await;
}

/// A node of one place, which a plain request has.
async fn busy_node(nats: &NatsServer) -> (NodeProcess, Client, Generation) {
    let limits = "[admission]\nmax_requests = 1\n[log]\nlook_ahead = 0\n";
    let node = NodeProcess::start_sim(20_000, &format!("{limits}{}", external(&nats.url(), "one")));
    wait_for_streams(&async_nats::connect(nats.url()).await.expect("connects")).await;
    let own = client(&nats.url()).await;
    let busy = own.generate("demo", request(1_000, 1)).await.expect("accepted");
    node.wait_health("running", |health| health["running"] == 1).await;
    (node, own, busy)
}

#[tokio::test]
async fn one_that_waits_says_so_and_is_cancelled_before_it_runs() {
    let nats = NatsServer::with_jetstream("");
    let (_node, own, mut busy) = busy_node(&nats).await;
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    publish(&bus, "late", request(5, 2)).await;
    let status = ask(&bus, "status", "late").await;
    assert_eq!(status["status"], "waiting", "{status}");
    assert!(status["reason"].as_str().is_some_and(|why| why.contains("demo")), "{status}");
    let ended = json!({"request_id": "late", "cancelled": true, "tokens": 0});
    assert_eq!(ask(&bus, "cancel", "late").await, ended);
    wait_for_empty_queue(&bus).await;
    own.cancel(busy.id()).await.expect("cancelled");
    let _ = collect(&mut busy).await;
    wait_for_empty_queue(&bus).await;
    assert_eq!(ask(&bus, "cancel", "late").await, ended, "it was not run");
}

#[tokio::test]
async fn bulk_requests_run_when_nothing_else_waits() {
    let nats = NatsServer::with_jetstream("");
    let (_node, own, mut busy) = busy_node(&nats).await;
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    let mut bulk = request(5, 2);
    bulk["request_id"] = "bulk".into();
    let stream = jetstream::new(bus.clone());
    let sent = stream.publish("inferno.v1.jobs.demo.bulk", bulk.to_string().into());
    sent.await.expect("sent").await.expect("stored");
    let mut order = bus.subscribe("inferno.v1.tokens.*").await.expect("subscribes");
    for id in ["a", "b"] {
        publish(&bus, id, request(5, 2)).await;
    }
    assert_eq!(ask(&bus, "status", "bulk").await["status"], "waiting");
    own.cancel(busy.id()).await.expect("cancelled");
    let _ = collect(&mut busy).await;
    let mut ended = Vec::new();
    while ended.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(60), order.next()).await;
        let event = next.expect("in time").expect("connected").payload;
        let event: Event = serde_json::from_slice(&event).expect("an event");
        if event.is_last() && event.request_id != *busy.id() {
            ended.push(event.request_id.to_string());
        }
    }
    assert_eq!(ended, ["a", "b", "bulk"], "though it was published first");
}

#[tokio::test]
async fn a_dead_letter_is_requeued_as_it_was_asked_for() {
    let nats = NatsServer::with_jetstream("");
    let start = || NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let node = start();
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let stream = jetstream::new(bus.clone());
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Inferno-Default-Length", "completions");
    let anonymous = json!({"prompt": "x", "params": {"ignore_eos": true}}).to_string();
    let bulk = "inferno.v1.jobs.demo.bulk";
    let sent = stream.publish_with_headers(bulk, headers, anonymous.into()).await;
    sent.expect("sent").await.expect("stored");
    wait_for_empty_queue(&bus).await;
    drop(node);
    let listed = command(&nats, &["dead", "list"]).0;
    let number = listed.split(' ').next().expect("a number").to_owned();
    let requeued = command(&nats, &["dead", "requeue", &number]).0;
    let id = requeued.trim().rsplit(' ').next().expect("an id").to_owned();
    let jobs = stream.get_stream("inferno_jobs").await.expect("is there");
    jobs.direct_get_last_for_subject(bulk).await.expect("it waits there again");
    let _node = start();
    command(&nats, &["resume", &id]);
    assert_eq!(ask(&bus, "status", &id).await["tokens"], 16, "as /v1/completions has it");
}

#[tokio::test]
async fn a_drain_hands_a_stream_to_another_node_at_its_next_token() {
    let nats = NatsServer::with_jetstream("");
    let start = |id: &str| NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), id)));
    let mut nodes = vec![start("one"), start("two")];
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let undisturbed = run(&bus, "undisturbed", request(1_500, 9), async |_| ()).await;
    let mut drained = None;
    let heard = run(&bus, "drained", request(1_500, 9), async |count| {
        if count >= 10 && drained.is_none() {
            let owner = owner(&bus, "drained").await;
            let at = nodes.iter().position(|node| node.id() == owner).expect("is one of them");
            let node = nodes.remove(at);
            node.signal("-TERM");
            drained = Some(node);
        }
    })
    .await;
    assert!(drained.expect("was drained").wait().success());
    assert_eq!((heard.tokens, heard.text), (undisturbed.tokens, undisturbed.text));
    assert_eq!(heard.attempts, [1, 2]);
    assert_eq!(heard.last.receipt.expect("in the last event").node_id, nodes[0].id());
    wait_for_empty_queue(&bus).await;
}

#[tokio::test]
async fn an_id_is_one_request_and_another_body_under_it_is_a_dead_letter() {
    let nats = NatsServer::with_jetstream("");
    let _node = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let first = run(&bus, "mine", request(10, 1), async |_| ()).await;
    publish(&bus, "mine", request(10, 1)).await;
    publish(&bus, "mine", request(11, 1)).await;
    publish(&bus, "wrong", json!({"prompt": "x", "params": {"max_tokens": 0.5}})).await;
    let anonymous = Bytes::from_static(b"{\"prompt\": \"x\"}");
    let stream = jetstream::new(bus.clone());
    let sent = stream.publish("inferno.v1.jobs.demo", anonymous).await.expect("sent");
    sent.await.expect("stored");
    wait_for_empty_queue(&bus).await;
    let mut dead = stream.get_stream("inferno_dead").await.expect("is there");
    assert_eq!(dead.info().await.expect("is there").state.messages, 2, "the other, the anonymous");
    dead_letters_are_listed_shown_requeued_and_dropped(&nats, &first).await;
    let own = client(&nats.url()).await;
    let id = inferno_node::ids::RequestId::parse("mine").expect("an id");
    let mut again = own.follow(&id, 4).await.expect("subscribes");
    let mut rest = Vec::new();
    while let Some(event) = again.next().await.expect("streams") {
        rest.extend(event.token_ids);
    }
    assert_eq!(rest, first.tokens[4..], "untouched, and read from its fifth token on");
    let refused = ask(&bus, "status", "wrong").await;
    assert_eq!(
        (&refused["status"], &refused["finish_reason"]),
        (&"finished".into(), &"failed".into())
    );
}

/// Of the two: one has another body under the id of a request, the other no id.
async fn dead_letters_are_listed_shown_requeued_and_dropped(nats: &NatsServer, first: &Heard) {
    let listed = command(nats, &["dead", "list"]).0;
    let lines: Vec<&str> = listed.lines().collect();
    let of = |start: &str| lines.iter().find(|line| line.contains(start)).copied();
    let other = of("demo  mine  another request").expect("listed");
    let number = |line: &str| line.split(' ').next().expect("a number").to_owned();
    let shown = command(nats, &["dead", "show", &number(other)]).0;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["request"]["params"]["max_tokens"], 11);
    let requeued = command(nats, &["dead", "requeue", &number(other)]).0;
    let id = requeued.trim().rsplit(' ').next().expect("an id").to_owned();
    // The same seed, and a token more.
    let text = command(nats, &["resume", &id]).0;
    assert!(text.starts_with(&first.text), "{text:?}");
    let anonymous = number(of("demo  -  ").expect("listed"));
    assert_eq!(command(nats, &["dead", "drop", &anonymous]).0, format!("{anonymous} is gone\n"));
    assert_eq!(command(nats, &["dead", "list"]).0, "");
}

/// What a command says on standard output and standard error.
fn command(nats: &NatsServer, line: &[&str]) -> (String, String) {
    let output = super::harness::program().args(line).args(["--url", &nats.url()]).output();
    let output = output.expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    (String::from_utf8(output.stdout).expect("text"), told)
}

#[tokio::test]
async fn the_command_line_makes_a_durable_request_and_reads_it_again_from_any_token() {
    let nats = NatsServer::with_jetstream("");
    let _node = NodeProcess::start(&format!("{CPU}{}", external(&nats.url(), "one")));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let command = |line: &[&str]| command(&nats, line);
    let generate =
        ["generate", "--durable", "--model", "demo", "--seed", "5", "--max-tokens", "30"];
    let (text, told) = command(&[&generate[..], &["--request-id", "mine", "Once upon"]].concat());
    assert!(told.contains("[mine") && told.contains("30 tokens"), "{told}");
    assert_eq!(command(&["resume", "mine"]).0, text);
    let (rest, _) = command(&["resume", "mine", "--from", "12"]);
    assert!(text.ends_with(&rest) && rest.len() < text.len(), "{rest:?} of {text:?}");
    let (ended, _) = command(&["cancel", "mine"]);
    assert_eq!(ended, "mine had ended after 30 tokens\n");
}

/// Kills the node that runs a request, with -9.
pub async fn kill_owner(bus: &async_nats::Client, nodes: &mut Vec<NodeProcess>, id: &str) {
    let owner = owner(bus, id).await;
    let at = nodes.iter().position(|node| node.id() == owner).expect("is one of them");
    let mut node = nodes.remove(at);
    node.signal("-KILL");
    node.wait();
}

/// The node that runs a request.
async fn owner(bus: &async_nats::Client, id: &str) -> String {
    let status = ask(bus, "status", id).await;
    assert_eq!(status["status"], "running", "it is long enough to be met while it runs: {status}");
    status["node_id"].as_str().expect("somebody has it").to_owned()
}
