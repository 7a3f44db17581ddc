//! NATS itself goes, dies, or loses all that it had.

use std::time::Duration;

use futures_util::future::join_all;
use inferno_node::error::Kind;
use inferno_node::request::FinishReason;

use super::fleet::{Fleet, ROOMY};
use super::jobs::publish;
use super::streams::{compare, id_of, known, read, request, start};

const STREAMS: usize = 200;

pub async fn nats_that_stops_or_dies_loses_repeats_and_reorders_nothing() {
    const TOKENS: u32 = 200;
    let known = known(STREAMS, TOKENS).await;
    let mut fleet = Fleet::start(3, 400_000, ROOMY).await;
    let readers = start(&fleet, STREAMS, TOKENS).await;
    for number in 0..5 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        if number % 2 == 0 {
            fleet.nats.stop();
            tokio::time::sleep(Duration::from_secs(10)).await;
        } else {
            fleet.nats.kill();
        }
        fleet.nats.start_again();
        // With it some node goes: what NATS forgets of a delivery must not matter.
        if number == 3 {
            fleet.replace(0, "-KILL");
        }
    }
    assert!(readers.iter().any(|reader| !reader.is_finished()), "it was in mid-stream");
    compare("NATS stopped for 10 s three times, killed twice", &fleet, readers, &known).await;
}

pub async fn a_wiped_store_ends_every_open_request_in_one_clear_error() {
    const ROUNDS: usize = 5;
    let mut fleet = Fleet::start(2, 50_000, ROOMY).await;
    for round in 0..ROUNDS {
        let ids = || (0..STREAMS).map(|seed| id_of(round * STREAMS + seed));
        let (client, bus) = (fleet.client().await, fleet.connection().await);
        let readers: Vec<_> = ids()
            .map(|id| {
                let client = client.clone();
                tokio::spawn(async move { read(&client, &id).await })
            })
            .collect();
        for id in ids() {
            publish(&bus, &id, request(1_900, 1)).await;
        }
        wait_until_all_run(&fleet).await;
        fleet.nats.kill();
        fleet.nats.wipe();
        fleet.nats.start_again();
        for heard in join_all(readers).await {
            let last = heard.expect("no reader fails").last;
            let error = last.error.expect("an error");
            assert_eq!(last.finish_reason, Some(FinishReason::Failed));
            assert_eq!(error.kind, Kind::LogUnavailable);
            assert!(error.message.contains("lost with the log"), "{error}");
        }
        let after = id_of(10_000 + round);
        publish(&bus, &after, request(5, 1)).await;
        assert_eq!(read(&client, &after).await.said.0.len(), 5, "it goes on with new ones");
    }
    println!("store wiped {ROUNDS} times: each of {} requests ended once", ROUNDS * STREAMS);
}

/// Until every stream has a token.
async fn wait_until_all_run(fleet: &Fleet) {
    for _ in 0..600 {
        let mut running = 0.0;
        for node in &fleet.nodes {
            running += node.get("/v1/health").await.1["running"].as_f64().unwrap_or_default();
        }
        if running as usize == STREAMS {
            return tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not all streams run");
}
