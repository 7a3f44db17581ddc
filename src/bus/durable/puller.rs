//! Takes a model's jobs out of the queue while the node has room: one task for each model.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::context::DurableContext;
use super::examine::examine;
use super::job::PulledJob;
use super::streams::{self, JobClass};
use super::sweeper::sweep;
use crate::lifeline::Lifeline;

/// Jobs of one pull, at most.
const MAX_PULL: usize = 64;
/// How long a pull waits for a job; then those are looked at that are pulled when nothing else waits.
const WAIT: Duration = Duration::from_secs(1);
/// How long the server may take to say that there is none.
const MAX_FETCH: Duration = Duration::from_secs(5);
/// How often a full node looks whether it has room.
const NO_ROOM: Duration = Duration::from_millis(10);
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Rounds in a row that bring nothing, after which the server is asked whether anything waits.
const MAX_EMPTY: u32 = 5;
/// How often it has to say so, with a round that brings nothing between: then it has lost its way in the queue. What nats-server 2.9.10
/// keeps on disk of who has which job goes astray with redeliveries, and after its next start it looks for jobs that are gone.
const MAX_STUCK: u32 = 3;
/// How long a queue that cannot be had is left alone.
const AGAIN: Duration = Duration::from_millis(500);

/// Pulls until `leaving` is dropped.
pub(super) async fn pull(
    shared: Arc<DurableContext>,
    model: String,
    leaving: oneshot::Receiver<()>,
    alive: Lifeline,
) {
    tokio::select! {
        _ = leaving => {}
        () = pull_for_ever(&shared, &model, &alive) => {}
        () = sweep(&shared, &model) => {}
    }
    alive.dismiss();
}

async fn pull_for_ever(shared: &Arc<DurableContext>, model: &str, alive: &Lifeline) {
    loop {
        // Before they are opened: they are lost with a server that comes back meanwhile, too.
        let connects = num_connects(shared);
        let queues = open(shared, model).await;
        match queues {
            Ok((usual, bulk)) => {
                shared.set_log(Ok(()));
                let pulls = pull_until_lost(shared, model, (usual, bulk), alive);
                // A server that comes back without the queues says nothing at all to who pulls.
                tokio::select! {
                    () = pulls => {}
                    () = connected_anew(shared, connects) => continue,
                }
            }
            Err(fault) => shared.set_log(Err(fault.to_string())),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Pulls as long as the queues can be had. Queues that give out nothing of what waits are made anew, and everything that is not
/// acknowledged is given out again: whoever works at it is fenced, and the stream goes on.
async fn pull_until_lost(
    shared: &Arc<DurableContext>,
    model: &str,
    (mut usual, mut bulk): (PullConsumer, PullConsumer),
    alive: &Lifeline,
) {
    let mut empty = 0;
    while let Ok(count) = take(shared, model, (&usual, &bulk), alive).await {
        empty = if count == Some(0) { empty + 1 } else { 0 };
        if empty < MAX_EMPTY {
            continue;
        }
        let waits = streams::withholds(&mut usual).await || streams::withholds(&mut bulk).await;
        if !waits {
            empty = 0;
        } else if empty == MAX_EMPTY + MAX_STUCK - 1 {
            tracing::warn!(model, "the queue gives out nothing of what waits: it is made anew");
            return streams::forget_queues(&shared.jetstream, model).await;
        }
    }
}

fn num_connects(shared: &DurableContext) -> u64 {
    shared.client.statistics().connects.load(Ordering::Relaxed)
}

/// Resolves when the connection to NATS is another than that of `before`.
async fn connected_anew(shared: &DurableContext, before: u64) {
    while num_connects(shared) == before {
        tokio::time::sleep(LOOK).await;
    }
}

async fn open(
    shared: &Arc<DurableContext>,
    model: &str,
) -> Result<(PullConsumer, PullConsumer), streams::StreamFault> {
    let DurableContext { client, jetstream, subjects, config, .. } = &**shared;
    streams::ensure(jetstream, subjects, config, &client.server_info().version).await?;
    let usual = streams::queue(jetstream, subjects, config, (model, JobClass::Usual)).await?;
    let bulk = streams::queue(jetstream, subjects, config, (model, JobClass::Bulk)).await?;
    Ok((usual, bulk))
}

/// One round: what there is, else what waits for that; how many jobs that were, where the node had room for any.
async fn take(
    shared: &Arc<DurableContext>,
    model: &str,
    (usual, bulk): (&PullConsumer, &PullConsumer),
    alive: &Lifeline,
) -> Result<Option<usize>, ()> {
    alive.look();
    let room = shared.room().min(MAX_PULL);
    if room == 0 {
        tokio::time::sleep(NO_ROOM).await;
        return Ok(None);
    }
    let batch = usual.batch().max_messages(room).expires(WAIT).messages().await;
    let count = drain(shared, model, batch).await?;
    if count > 0 || shared.room() == 0 {
        return Ok(Some(count));
    }
    let room = shared.room().clamp(1, MAX_PULL);
    let fetched = async {
        let batch = bulk.fetch().max_messages(room).messages().await;
        drain(shared, model, batch).await.map(Some)
    };
    // With a time limit of its own the server would wait for one.
    tokio::time::timeout(MAX_FETCH, fetched).await.map_err(drop)?
}

/// Hands on what a pull brings; how many that were.
async fn drain<E>(
    shared: &Arc<DurableContext>,
    model: &str,
    batch: Result<async_nats::jetstream::consumer::pull::Batch, E>,
) -> Result<usize, ()> {
    let mut batch = batch.map_err(drop)?;
    let mut count = 0;
    while let Some(message) = batch.next().await {
        let message = message.map_err(drop)?.message;
        if let Some(mut job) = PulledJob::of(message, model) {
            count += 1;
            if shared.room() == 0 {
                // Others came while the pull was open; another node may have room.
                job.give_back(&shared.client, 0).await;
                continue;
            }
            job.room = Some(shared.taken.take());
            tokio::spawn(examine(Arc::clone(shared), job));
        }
    }
    Ok(count)
}
