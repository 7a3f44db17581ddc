//! Half load and a fault a minute, for as long as `INFERNO_SOAK_MINUTES` says: what fails, and what grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use inferno_node::bus::client::{Client, ClientError, Timeouts};
use inferno_node::ids::RequestId;
use inferno_node::request::FinishReason;

use super::fleet::Fleet;
use super::harness::collect;
use super::jobs::publish_job;
use super::streams::{Said, known, read, request};
use super::vitals::{descriptors, rss_bytes, threads};

const NODES: u32 = 3;
/// Requests that a node runs at once.
const SEATS: usize = 64;
/// Half of what the nodes can run. Few of them are plain: those that are on a node when it is killed fail, as they must.
const DURABLE: usize = 88;
const PLAIN: usize = 8;
const TOKENS: u32 = 40;
const ANSWERS: usize = 100;

/// The share of all requests that may fail.
const MAX_FAILED: f64 = 0.001;

/// How often processes are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A process that lived shorter is warming up.
const MIN_LIFE: usize = 30;
/// How much a process may hold at the end of its life beyond what it held in the middle of it.
const MAX_GROWTH: [(&str, u64); 3] =
    [("resident bytes", 24 << 20), ("threads", 4), ("descriptors", 24)];

/// What becomes of requests.
#[derive(Default)]
struct Tally {
    finished: AtomicU64,
    failed: AtomicU64,
    durable: AtomicU64,
    is_over: AtomicBool,
}

pub async fn hours_of_half_load_and_a_fault_a_minute_leave_everything_flat() {
    let minutes = std::env::var("INFERNO_SOAK_MINUTES").map_or(3, |m| m.parse().expect("minutes"));
    let known = Arc::new(known(ANSWERS, TOKENS).await);
    let sections =
        format!("[batcher]\nmax_batch_size = {SEATS}\n[log]\nmax_age_s = 60\nack_wait_ms = 3000\n");
    let mut fleet = Fleet::start(NODES, 50_000, &sections).await;
    let tally = Arc::new(Tally::default());
    let mut workers = Vec::new();
    for number in 0..DURABLE + PLAIN {
        let worker = Worker {
            number,
            bus: fleet.connection().await,
            known: known.clone(),
            tally: tally.clone(),
        };
        workers.push(tokio::spawn(worker.run()));
    }
    let mut watch = Watch::default();
    let begin = Instant::now();
    for minute in 0..minutes {
        watch.look_for(&fleet, begin + Duration::from_secs(60 * minute + 30)).await;
        disturb(&mut fleet, minute).await;
        watch.look_for(&fleet, begin + Duration::from_secs(60 * (minute + 1))).await;
    }
    tally.is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.expect("no worker fails");
    }
    let [finished, failed, durable] =
        [&tally.finished, &tally.failed, &tally.durable].map(|count| count.load(Ordering::Relaxed));
    println!(
        "soak of {minutes} min: {finished} requests finished ({durable} durable, none of them failed), {failed} plain ones failed \
         ({:.3} %)\n{}",
        100.0 * failed as f64 / finished as f64,
        watch.table()
    );
    // A slow machine finishes few beside the plain ones of a node that is killed.
    let kills = minutes.div_ceil(4) as usize;
    let most = (MAX_FAILED * finished as f64).max((PLAIN * kills) as f64);
    assert!(failed as f64 <= most, "{failed} of {finished} failed");
    watch.assert_flat();
    assert_nothing_is_left(&fleet).await;
}

/// The fault of a minute. The first node is left alone: it shows what hours do to a node.
async fn disturb(fleet: &mut Fleet, minute: u64) {
    match minute % 4 {
        0 => fleet.replace(1, "-KILL"),
        1 => fleet.replace(1, "-TERM"),
        2 => {
            fleet.nats.stop();
            tokio::time::sleep(Duration::from_secs(3)).await;
            fleet.nats.start_again();
        }
        _ => {
            fleet.nats.kill();
            fleet.nats.start_again();
        }
    }
}

/// A client that asks again as soon as it has its answer.
struct Worker {
    number: usize,
    bus: async_nats::Client,
    known: Arc<Vec<Said>>,
    tally: Arc<Tally>,
}

impl Worker {
    async fn run(self) {
        let patience = Duration::from_secs(30);
        let client = Client::over(self.bus.clone(), "inferno.v1")
            .with_timeouts(Timeouts { accept: Duration::from_secs(5), event: patience });
        let mut round = 0;
        while !self.tally.is_over.load(Ordering::Relaxed) {
            round += 1;
            let seed = (self.number + round * 7) % ANSWERS;
            if self.number < DURABLE {
                self.durable(&client, round, seed).await;
            } else {
                self.plain(&client, seed).await;
            }
        }
    }

    async fn durable(&self, client: &Client, round: usize, seed: usize) {
        let id = RequestId::parse(&format!("w{}-{round}", self.number)).expect("an id");
        // Its promise may get lost on the way: the same id again is the same request.
        while publish_job(&self.bus, &id, request(TOKENS, seed)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let heard = read(client, &id).await;
        assert_eq!(heard.last.finish_reason, Some(FinishReason::Length), "{id}");
        assert!(heard.said == self.known[seed], "{id}: not what it says when nobody disturbs it");
        self.tally.durable.fetch_add(1, Ordering::Relaxed);
        self.tally.finished.fetch_add(1, Ordering::Relaxed);
    }

    async fn plain(&self, client: &Client, seed: usize) {
        let mut generation = match client.generate("demo", request(TOKENS, seed)).await {
            Ok(generation) => generation,
            // Refused, or nobody is there for a moment: nothing was promised.
            Err(_) => return tokio::time::sleep(Duration::from_millis(200)).await,
        };
        match collect(&mut generation).await {
            Ok((ids, text, _)) if (&ids, &text) == (&self.known[seed].0, &self.known[seed].1) => {
                self.tally.finished.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) | Err(ClientError::Timeout { .. } | ClientError::Refused(_)) => {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What processes held, by name and process id, from look to look.
#[derive(Default)]
struct Watch {
    held: BTreeMap<(String, u32), Vec<[u64; 3]>>,
}

impl Watch {
    /// Looks on until a moment.
    async fn look_for(&mut self, fleet: &Fleet, until: Instant) {
        while Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            let nodes = fleet.nodes.iter().enumerate();
            let nodes = nodes.map(|(at, node)| (format!("node {at}"), node.pid()));
            for (name, pid) in nodes.chain([("nats-server".to_owned(), fleet.nats.pid())]) {
                let held = [rss_bytes(pid), threads(pid), descriptors(pid)];
                self.held.entry((name, pid)).or_default().push(held);
            }
        }
    }

    /// Medians of the third quarter of a process's life and of its last; the first half is warming up.
    fn quarters(held: &[[u64; 3]], what: usize) -> [u64; 2] {
        let median = |part: &[[u64; 3]]| {
            let mut values: Vec<u64> = part.iter().map(|held| held[what]).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let quarter = held.len() / 4;
        [median(&held[2 * quarter..3 * quarter]), median(&held[3 * quarter..])]
    }

    fn long_lived(&self) -> impl Iterator<Item = (&(String, u32), &Vec<[u64; 3]>)> {
        self.held.iter().filter(|(_, held)| held.len() >= MIN_LIFE)
    }

    fn table(&self) -> String {
        let mut lines = Vec::new();
        for ((name, _), held) in self.long_lived() {
            let [rss, threads, descriptors] = [0, 1, 2].map(|what| Self::quarters(held, what));
            let [before, after] = rss.map(|bytes| bytes >> 20);
            lines.push(format!(
                "  {name}, {} s: {before} → {after} MB, {} → {} threads, {} → {} descriptors",
                held.len() as u64 * LOOK.as_secs(),
                threads[0],
                threads[1],
                descriptors[0],
                descriptors[1]
            ));
        }
        lines.join("\n")
    }

    fn assert_flat(&self) {
        assert!(self.long_lived().count() > 0, "some process lives for a minute");
        for ((name, _), held) in self.long_lived() {
            for (what, (label, most)) in MAX_GROWTH.into_iter().enumerate() {
                let [before, after] = Self::quarters(held, what);
                assert!(after <= before + most, "{name}: {before} {label}, then {after}");
            }
        }
    }
}

/// Of streams, consumers and keys there are no more than there are nodes for; readers and jobs are gone.
async fn assert_nothing_is_left(fleet: &Fleet) {
    let jetstream = jetstream::new(fleet.connection().await);
    let count = async |name: &str| {
        let stream = jetstream.get_stream(name).await.expect("is there");
        let state = stream.cached_info().state.clone();
        (state.messages, state.consumer_count, state.subjects_count)
    };
    let mut held = Vec::new();
    for _ in 0..60 {
        let (jobs, pullers, _) = count("inferno_jobs").await;
        let (_, readers, _) = count("inferno_log").await;
        let (dead, ..) = count("inferno_dead").await;
        let (keys, ..) = count("KV_inferno_nodes").await;
        held = vec![jobs, pullers as u64, readers as u64, dead, keys];
        // Two queues of one model are pulled from.
        if held == [0, 2, 0, 0, u64::from(NODES)] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("jobs, pullers, readers, dead letters, nodes: {held:?}");
}
