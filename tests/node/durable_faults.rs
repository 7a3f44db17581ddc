//! What becomes of durable requests when the log has no room, or NATS says nothing.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures_util::StreamExt;
use inferno_node::request::Event;
use serde_json::{Value, json};

use super::durable::run;
use super::harness::{NodeProcess, external, request};
use super::jobs::{publish, wait_for_empty_queue, wait_for_streams};
use super::nats::NatsServer;

/// The smallest log that may be configured.
const SMALL: u64 = 1 << 20;

async fn post(node: &NodeProcess) -> (u16, Value) {
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 5});
    let request = reqwest::Client::new().post(format!("{}/v1/completions", node.http()));
    let reply = request.header("inferno-durable", "true").json(&body).send().await;
    let reply = reply.expect("the node answers");
    (reply.status().as_u16(), reply.json().await.expect("JSON"))
}

#[tokio::test]
async fn a_full_log_refuses_new_requests_and_holds_those_that_run_until_there_is_room() {
    let nats = NatsServer::with_jetstream("");
    let small = format!("[log]\nmax_bytes = {SMALL}\n");
    let node = NodeProcess::start_sim(10_000, &format!("{small}{}", external(&nats.url(), "one")));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let stream = jetstream::new(bus.clone());
    let log = stream.get_stream("inferno_log").await.expect("is there");
    let mut is_filled = false;
    let heard = run(&bus, "mine", request(400, 1), async |count| {
        if count >= 20 && !is_filled {
            is_filled = true;
            fill(&stream).await;
            let (status, body) = post(&node).await;
            assert_eq!((status, &body["error"]["code"]), (503, &"log_full".into()), "{body}");
            wait_until_held(&node).await;
            log.purge().filter("inferno.v1.log.rubbish").await.expect("makes room");
        }
    })
    .await;
    assert!(is_filled);
    assert_eq!((heard.tokens.len(), heard.attempts), (400, vec![1]));
    wait_for_empty_queue(&bus).await;
}

/// Until the server takes no more.
async fn fill(stream: &jetstream::Context) {
    for bytes in [64 << 10, 4 << 10, 200, 1] {
        let rubbish = Bytes::from(vec![b'x'; bytes]);
        loop {
            let sent = stream.publish("inferno.v1.log.rubbish", rubbish.clone()).await;
            if sent.expect("sent").await.is_err() {
                break;
            }
        }
    }
}

/// Until the node computes no further token.
async fn wait_until_held(node: &NodeProcess) {
    let mut before = -1.0;
    for _ in 0..100 {
        let tokens = node.metric(&["inferno_completion_tokens_total"]).await;
        if tokens == before {
            return;
        }
        before = tokens;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    panic!("the node goes on without the log");
}

#[tokio::test]
async fn while_nats_says_nothing_streams_wait_and_new_ones_are_refused_and_plain_ones_go_on() {
    let nats = NatsServer::with_jetstream("");
    let node = NodeProcess::start_sim(5_000, &external(&nats.url(), "one"));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let mut is_frozen = false;
    let heard = run(&bus, "mine", request(600, 1), async |count| {
        if count >= 20 && !is_frozen {
            is_frozen = true;
            nats.freeze();
            wait_until_held(&node).await;
            let asked_at = Instant::now();
            let (status, body) = post(&node).await;
            assert_eq!(
                (status, &body["error"]["code"]),
                (503, &"log_unavailable".into()),
                "{body}"
            );
            assert!(asked_at.elapsed() < Duration::from_secs(10), "it does not wait for NATS");
            let plain = json!({"model": "demo", "prompt": "Once", "max_tokens": 5});
            assert_eq!(node.post("/v1/completions", &plain).await.status(), 200);
            cancel_a_plain_one(&node).await;
            nats.thaw();
        }
    })
    .await;
    assert!(is_frozen);
    assert_eq!(heard.tokens.len(), 600);
    wait_for_empty_queue(&bus).await;
}

/// Begins a plain request and cancels it by its id.
async fn cancel_a_plain_one(node: &NodeProcess) {
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 2_000, "stream": true});
    let mut running = node.post("/v1/completions", &body).await;
    let id = running.headers()["x-request-id"].to_str().expect("text").to_owned();
    running.chunk().await.expect("runs").expect("says something");
    let url = format!("{}/v1/requests/{id}", node.http());
    let cancelled = reqwest::Client::new().delete(url).send().await.expect("answers");
    assert_eq!(cancelled.status(), 200);
    let ended: Value = cancelled.json().await.expect("JSON");
    assert_eq!((&ended["request_id"], &ended["cancelled"]), (&id.into(), &true.into()));
}

#[tokio::test]
async fn a_store_that_is_wiped_ends_every_open_request_in_one_clear_error() {
    let nats = NatsServer::with_jetstream("");
    let _node = NodeProcess::start_sim(10_000, &external(&nats.url(), "one"));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let stream = jetstream::new(bus.clone());
    let mut is_wiped = false;
    let heard = run(&bus, "mine", request(1_000, 1), async |count| {
        if count >= 20 && !is_wiped {
            is_wiped = true;
            for name in ["inferno_log", "inferno_jobs", "inferno_dead"] {
                stream.delete_stream(name).await.expect("wiped");
            }
        }
    })
    .await;
    let error = heard.last.error.expect("an error");
    assert_eq!(error.kind, inferno_node::error::Kind::LogUnavailable);
    assert!(error.message.contains("lost with the log"), "{error}");
    // And the next is taken as ever.
    let next = run(&bus, "next", request(5, 1), async |_| ()).await;
    assert_eq!(next.tokens.len(), 5);
}

#[tokio::test]
async fn nobody_goes_on_with_what_is_kept_in_part_only() {
    let nats = NatsServer::with_jetstream("");
    let quick = "[log]\nack_wait_ms = 1000\n";
    let start =
        |id: &str| NodeProcess::start_sim(5_000, &format!("{quick}{}", external(&nats.url(), id)));
    let mut node = Some(start("one"));
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    wait_for_streams(&bus).await;
    let log = jetstream::new(bus.clone()).get_stream("inferno_log").await.expect("is there");
    let heard = run(&bus, "long", request(1_000, 1), async |count| {
        if count < 200 || node.as_ref().is_some_and(|node| node.id() == "two") {
            return;
        }
        // As if they were older than `log.max_age_s`.
        for place in 1..=5 {
            log.delete_message(place).await.expect("is there");
        }
        let one = node.take().expect("runs");
        let (status, refused) = one.get("/v1/requests/long/events").await;
        assert_eq!((status, &refused["error"]["code"]), (410, &"expired".into()), "{refused}");
        drop(one);
        node = Some(start("two"));
    })
    .await;
    let error = heard.last.error.expect("an error");
    assert_eq!(error.kind, inferno_node::error::Kind::Expired, "{error}");
    assert!(heard.tokens.len() < 1_000);
    wait_for_empty_queue(&bus).await;
}

#[tokio::test]
async fn several_copies_on_a_server_whose_fence_has_a_hole_are_refused_by_name() {
    let nats = NatsServer::with_jetstream("");
    let copies = format!("[log]\nreplicas = 3\n{}", external(&nats.url(), "one"));
    let node = NodeProcess::start_sim(1_000, &copies);
    let (status, body) = post(&node).await;
    assert_eq!((status, &body["error"]["code"]), (503, &"log_unavailable".into()), "{body}");
    let said = node.said("durable requests are not taken");
    let why = said.first().map(|line| line["fields"]["fault"].to_string()).unwrap_or_default();
    // Debian's server is 2.9.10; on a newer one alone, three copies have no place.
    assert!(why.contains("2.9.21") || why.contains("replicas"), "{why}");
}

async fn queue(bus: &async_nats::Client) -> PullConsumer {
    let jobs = jetstream::new(bus.clone()).get_stream("inferno_jobs").await.expect("is there");
    jobs.get_consumer("demo").await.expect("the nodes' queue")
}

/// In place of the nodes' queue one that gives out a job and, until that is acknowledged, no other.
async fn narrow_queue(bus: &async_nats::Client) -> PullConsumer {
    let before = queue(bus).await.cached_info().config.clone();
    let jobs = jetstream::new(bus.clone()).get_stream("inferno_jobs").await.expect("is there");
    jobs.delete_consumer("demo").await.expect("is there");
    let narrow = pull::Config {
        durable_name: Some("demo".to_owned()),
        filter_subject: before.filter_subject,
        ack_policy: AckPolicy::Explicit,
        ack_wait: before.ack_wait,
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    jobs.create_consumer(narrow).await.expect("a queue")
}

/// Takes so many jobs, and has the server believe for ever that somebody works at them.
async fn take(queue: &PullConsumer, count: usize) {
    let mut taken = Vec::new();
    let all = async {
        while taken.len() < count {
            let left = count - taken.len();
            let mut jobs = queue.batch().max_messages(left).messages().await.expect("a pull");
            while let Some(job) = jobs.next().await {
                taken.push(job.expect("no fault"));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("so many are there");
    tokio::spawn(async move {
        loop {
            for job in &taken {
                // Until the server goes.
                let _ = job.ack_with(AckKind::Progress).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

#[tokio::test]
async fn what_the_queue_gives_to_nobody_any_more_goes_on_or_is_removed() {
    let nats = NatsServer::with_jetstream("");
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    let quick = "[log]\nack_wait_ms = 1000\n";
    let start =
        |id: &str| NodeProcess::start_sim(5_000, &format!("{quick}{}", external(&nats.url(), id)));
    let (mut node, mut is_killed) = (Some(start("one")), false);
    wait_for_streams(&bus).await;
    let queue = queue(&bus).await;
    run(&bus, "ended", request(5, 1), async |_| ()).await;
    let begun = run(&bus, "begun", request(1_000, 1), async |count| {
        if count < 20 || is_killed {
            return;
        }
        is_killed = true;
        drop(node.take());
        publish(&bus, "ended", request(5, 1)).await;
        publish(&bus, "new", request(5, 1)).await;
        take(&queue, 3).await;
        node = Some(start("two"));
    })
    .await;
    assert_eq!((begun.tokens.len(), begun.attempts), (1_000, vec![1, 2]));
    wait_for_empty_queue(&bus).await;
    let log = jetstream::new(bus).get_stream("inferno_log").await.expect("is there");
    let last = log.direct_get_last_for_subject("inferno.v1.log.new").await.expect("is there");
    let last: Event = serde_json::from_slice(&last.payload).expect("an event");
    assert_eq!(last.usage.map(|usage| usage.completion_tokens), Some(5));
}

#[tokio::test]
async fn a_queue_that_waits_otherwise_than_a_node_is_named() {
    let nats = NatsServer::with_jetstream("");
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    let _first = NodeProcess::start_sim(1_000, &external(&nats.url(), "one"));
    wait_for_streams(&bus).await;
    let other = format!("[log]\nack_wait_ms = 30000\n{}", external(&nats.url(), "two"));
    let other = NodeProcess::start_sim(1_000, &other);
    for _ in 0..100 {
        let said = other.said("durable requests are not taken");
        if let Some(line) = said.first() {
            let why = line["fields"]["fault"].to_string();
            assert!(why.contains("log.ack_wait_ms): expected 30s, got 6s"), "{why}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it says nothing of it");
}

#[tokio::test]
async fn a_queue_that_gives_out_nothing_is_made_anew() {
    let nats = NatsServer::with_jetstream("");
    let bus = async_nats::connect(nats.url()).await.expect("connects");
    let node = NodeProcess::start_sim(5_000, &external(&nats.url(), "one"));
    wait_for_streams(&bus).await;
    drop(node);
    let queue = narrow_queue(&bus).await;
    publish(&bus, "taken", request(5, 1)).await;
    take(&queue, 1).await;
    let _node = NodeProcess::start_sim(5_000, &external(&nats.url(), "two"));
    let heard = run(&bus, "stuck", request(5, 1), async |_| ()).await;
    assert_eq!(heard.tokens.len(), 5);
    wait_for_empty_queue(&bus).await;
}
