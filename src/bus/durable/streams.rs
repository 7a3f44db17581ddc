//! The streams of JetStream that durable requests need: made by the first node that needs them; one that is there and differs is
//! named, not altered.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    self, DirectGetErrorKind, DiscardPolicy, Republish, RetentionPolicy, StorageType, Stream,
};

use crate::bus::wire::Subjects;
use crate::log::Config;

/// Requests that no node has finished yet.
pub(in crate::bus) const JOBS: &str = "inferno_jobs";
/// What they have said.
pub(in crate::bus) const LOG: &str = "inferno_log";
/// Those that were tried too often, or cannot be read.
pub(in crate::bus) const DEAD: &str = "inferno_dead";

/// How long the server takes a request that is published again for the same.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long a dead letter is kept.
const DEAD_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Jobs that are with nodes at once, of one model: more than any cluster runs.
const MAX_ACK_PENDING: i64 = 100_000;

/// Why durable requests cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamFault {
    /// The server has no JetStream, or it does not answer.
    #[error("JetStream: {0}")]
    Unavailable(String),
    /// A stream differs, or a queue.
    #[error("the {kind} {name} is there with other {what}: expected {expected}, got {got}")]
    Differs { kind: &'static str, name: String, what: &'static str, expected: String, got: String },
    /// Several copies on a server whose fence has a hole then (nats-server's issue 4320).
    #[error(
        "log.replicas = {replicas} needs nats-server {}.{}.{} or newer, got {version}: before it, two nodes may both store what \
         follows a record", SAFE_REPLICAS[0], SAFE_REPLICAS[1], SAFE_REPLICAS[2]
    )]
    TooOld { replicas: u32, version: String },
}

/// The first nats-server whose replicated streams store one of two records that follow the same one.
const SAFE_REPLICAS: [u32; 3] = [2, 9, 21];

/// Of which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobClass {
    Usual,
    /// Pulled when nothing else waits.
    Bulk,
}

/// Makes the streams where they are not there, on a server of this version.
pub(super) async fn ensure(
    jetstream: &Context,
    subjects: &Subjects,
    config: &Config,
    version: &str,
) -> Result<(), StreamFault> {
    check_replicas(config.replicas, version)?;
    for wanted in wanted(subjects, config) {
        let name = wanted.0;
        let made = jetstream.get_or_create_stream(wanted.1.clone()).await;
        let made = made.map_err(|error| StreamFault::Unavailable(error.to_string()))?;
        compare(name, &wanted.1, &made.cached_info().config)?;
    }
    Ok(())
}

/// # Errors
/// `TooOld`.
fn check_replicas(replicas: u32, version: &str) -> Result<(), StreamFault> {
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|word| word.parse().ok()).collect();
    if replicas > 1 && numbers.as_slice() < SAFE_REPLICAS.as_slice() {
        return Err(StreamFault::TooOld { replicas, version: version.to_owned() });
    }
    Ok(())
}

fn wanted(subjects: &Subjects, config: &Config) -> [(&'static str, stream::Config); 3] {
    let base = |name: &str, subjects: Vec<String>| stream::Config {
        name: name.to_owned(),
        subjects,
        max_bytes: i64::try_from(config.max_bytes.0).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: config.replicas as usize,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..stream::Config::default()
    };
    let max_age = Duration::from_secs(config.max_age_s);
    let jobs = stream::Config {
        retention: RetentionPolicy::WorkQueue,
        ..base(JOBS, vec![subjects.jobs("*"), subjects.bulk_jobs("*")])
    };
    let log = stream::Config {
        max_age,
        duplicate_window: DUPLICATE_WINDOW.min(max_age),
        republish: Some(Republish {
            source: subjects.log("*"),
            destination: subjects.tokens_of_log(),
            headers_only: false,
        }),
        ..base(LOG, vec![subjects.log("*")])
    };
    let dead = stream::Config {
        max_age: DEAD_AGE,
        discard: DiscardPolicy::Old,
        ..base(DEAD, vec![subjects.dead("*")])
    };
    [(JOBS, jobs), (LOG, log), (DEAD, dead)]
}

fn compare(name: &str, wanted: &stream::Config, got: &stream::Config) -> Result<(), StreamFault> {
    let republishes = |config: &stream::Config| {
        config.republish.as_ref().map(|to| (to.source.clone(), to.destination.clone()))
    };
    let differs = |what, expected: String, got: String| {
        let (kind, name) = ("stream", name.to_owned());
        (expected != got).then_some(StreamFault::Differs { kind, name, what, expected, got })
    };
    let fault = differs("subjects", wanted.subjects.join(" "), got.subjects.join(" "))
        .or_else(|| {
            differs("retention", format!("{:?}", wanted.retention), format!("{:?}", got.retention))
        })
        .or_else(|| {
            let (expected, got) = (republishes(wanted), republishes(got));
            differs("republished subjects", format!("{expected:?}"), format!("{got:?}"))
        })
        .or_else(|| differs("age", format!("{:?}", wanted.max_age), format!("{:?}", got.max_age)))
        .or_else(|| differs("size", wanted.max_bytes.to_string(), got.max_bytes.to_string()))
        .or_else(|| {
            let copies = |config: &stream::Config| config.num_replicas.to_string();
            differs("replicas", copies(wanted), copies(got))
        });
    fault.map_or(Ok(()), Err)
}

/// The name under which all nodes pull a model's jobs. An alias has no underscore.
pub(super) fn consumer_name(model: &str, class: JobClass) -> String {
    match class {
        JobClass::Usual => model.to_owned(),
        JobClass::Bulk => format!("{model}_bulk"),
    }
}

/// Where a model's jobs are published.
pub(super) fn subject_of(subjects: &Subjects, (model, class): (&str, JobClass)) -> String {
    match class {
        JobClass::Usual => subjects.jobs(model),
        JobClass::Bulk => subjects.bulk_jobs(model),
    }
}

/// The first job of a subject from this place on.
///
/// # Errors
/// JetStream does not answer.
pub(super) async fn next_job(
    queue: &Stream<()>,
    subject: &str,
    from: u64,
) -> Result<Option<StreamMessage>, String> {
    match queue.direct_get_next_for_subject(subject, Some(from)).await {
        Ok(job) => Ok(Some(job)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// What all nodes pull a model's jobs from.
pub(super) async fn queue(
    jetstream: &Context,
    subjects: &Subjects,
    config: &Config,
    (model, class): (&str, JobClass),
) -> Result<PullConsumer, StreamFault> {
    let unavailable = |error: &dyn std::fmt::Display| StreamFault::Unavailable(error.to_string());
    let stream = jetstream.get_stream_no_info(JOBS).await.map_err(|error| unavailable(&error))?;
    let name = consumer_name(model, class);
    let wanted = consumer::pull::Config {
        durable_name: Some(name.clone()),
        filter_subject: subject_of(subjects, (model, class)),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(config.ack_wait_ms),
        // Attempts are counted in the log: the server would leave the job where it is.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        ..consumer::pull::Config::default()
    };
    let ack_wait = wanted.ack_wait;
    let made = stream.get_or_create_consumer(&name, wanted).await;
    let made = made.map_err(|error| unavailable(&error))?;
    let got = made.cached_info().config.ack_wait;
    if got == ack_wait {
        return Ok(made);
    }
    // A node that speaks up more seldom than the server waits would lose what it works at to the next one, for ever.
    let (expected, got) = (format!("{ack_wait:?}"), format!("{got:?}"));
    let kind = "queue of inferno_jobs";
    Err(StreamFault::Differs { kind, name, what: "ack wait (log.ack_wait_ms)", expected, got })
}

/// Whether jobs wait in a queue that nobody was given yet, although it is allowed to give out more.
pub(super) async fn withholds(queue: &mut PullConsumer) -> bool {
    let info = queue.info().await;
    info.is_ok_and(|info| info.num_pending > 0 && (info.num_ack_pending as i64) < MAX_ACK_PENDING)
}

/// Has the server forget which of a model's jobs it has given out. Another node may have done it just now: there is nothing to lose.
pub(super) async fn forget_queues(jetstream: &Context, model: &str) {
    for class in [JobClass::Usual, JobClass::Bulk] {
        let name = consumer_name(model, class);
        if let Err(error) = jetstream.delete_consumer_from_stream(&name, JOBS).await {
            tracing::debug!(name, %error, "a queue that was not there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_copies_need_a_server_whose_fence_holds() {
        let is_taken = |replicas, version| check_replicas(replicas, version).is_ok();
        assert!(is_taken(1, "2.9.10"));
        assert!(!is_taken(3, "2.9.10") && !is_taken(3, "2.9.20") && !is_taken(2, ""));
        assert!(is_taken(3, "2.9.21") && is_taken(3, "2.10.0-beta.1") && is_taken(3, "2.11.0"));
        let fault = check_replicas(3, "2.9.10").expect_err("too old").to_string();
        assert!(fault.starts_with("log.replicas = 3 needs nats-server 2.9.21"), "{fault}");
    }
}
