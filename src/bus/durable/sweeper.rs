//! Looks after jobs that stand in a model's queue and are nobody's ([`crate::log::Strays`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;

use super::context::DurableContext;
use super::job::{self, digest_of_job};
use super::reader::{self, ReadFault};
use super::requests::owner;
use super::streams::{JOBS, JobClass, consumer_name, next_job, subject_of};
use crate::bus::stored::publish_stored;
use crate::ids::RequestId;
use crate::log::{LogProgress, Remedy, Strays};

/// Jobs of one look, at most: two reads each.
const MAX_LOOK: usize = 256;

/// Looks again and again, for as long as a message may be with a node that does not say that it lives.
pub(super) async fn sweep(shared: &Arc<DurableContext>, model: &str) {
    let every = Duration::from_millis(shared.config.ack_wait_ms);
    let begin = Instant::now();
    let of = |class| Sweeper {
        shared,
        model,
        class,
        begin,
        strays: Strays::new(every),
        next: 1,
        num_found: 0,
    };
    let mut sweepers = [of(JobClass::Usual), of(JobClass::Bulk)];
    loop {
        tokio::time::sleep(every).await;
        for sweeper in &mut sweepers {
            if let Err(fault) = sweeper.look().await {
                tracing::debug!(model, fault, "the queue is looked at later");
            }
            let num_jobs = std::mem::take(&mut sweeper.num_found);
            if num_jobs > 0 {
                tracing::warn!(
                    model,
                    num_jobs,
                    "the queue gave out some jobs to nobody any more: those that have ended are removed, \
                    others published again"
                );
            }
        }
    }
}

struct Sweeper<'a> {
    shared: &'a Arc<DurableContext>,
    model: &'a str,
    class: JobClass,
    begin: Instant,
    strays: Strays,
    /// Where the next look begins.
    next: u64,
    /// Strays in this look.
    num_found: usize,
}

impl Sweeper<'_> {
    /// Looks at the next jobs of those that were given out.
    async fn look(&mut self) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let jetstream = &self.shared.jetstream;
        let queue = jetstream.get_stream_no_info(JOBS).await.map_err(|error| text(&error))?;
        let name = consumer_name(self.model, self.class);
        let info = queue.consumer_info(name).await.map_err(|error| text(&error))?;
        let subject = subject_of(&self.shared.subjects, (self.model, self.class));
        for _ in 0..MAX_LOOK {
            let job = next_job(&queue, &subject, self.next).await?;
            let Some(job) = job.filter(|job| job.sequence <= info.delivered.stream_sequence) else {
                self.strays.seen_all();
                self.next = 1;
                break;
            };
            self.next = job.sequence + 1;
            self.look_at(&queue, job).await?;
        }
        Ok(())
    }

    async fn look_at(&mut self, queue: &Stream<()>, job: StreamMessage) -> Result<(), String> {
        let id = job::id_in(&job.headers, &job.payload);
        let progress = match &id {
            Some(id) => self.progress(id).await?,
            None => LogProgress::default(),
        };
        let remedy = self.strays.look(self.begin.elapsed(), job.sequence, progress);
        match remedy {
            None => return Ok(()),
            Some(Remedy::PublishAgain) => {
                if self.shared.room() == 0 || self.is_run(id.as_ref()).await {
                    return Ok(());
                }
                self.publish_again(&job).await?;
            }
            Some(Remedy::Remove) => {}
        }
        tracing::debug!(place = job.sequence, ?remedy, "a job that the queue gives to nobody");
        self.num_found += 1;
        if let Err(error) = queue.delete_message(job.sequence).await {
            // Another node has seen it, too.
            tracing::debug!(%error, "a job that is not removed");
        }
        Ok(())
    }

    async fn progress(&self, id: &RequestId) -> Result<LogProgress, String> {
        let subject = self.shared.subjects.log(id.as_str());
        match reader::last(&self.shared.jetstream, &subject).await {
            Ok(last) => Ok(LogProgress::of(last.as_ref())),
            // Who takes it up finds that, and makes it a dead letter.
            Err(ReadFault::Body(last, _)) => Ok(LogProgress { last, has_ended: false }),
            Err(ReadFault::Unavailable(error)) => Err(error),
        }
    }

    async fn is_run(&self, id: Option<&RequestId>) -> bool {
        match id {
            Some(id) => owner(self.shared, id).await.is_some(),
            None => false,
        }
    }

    /// Puts the job to the end of the queue, as the same job. Nodes that do it at once do it once.
    async fn publish_again(&self, job: &StreamMessage) -> Result<(), String> {
        let mut headers = job::headers_again(&job.headers, job.sequence);
        let body = digest_of_job(self.model, Some(&job.headers), &job.payload);
        headers.insert(NATS_MESSAGE_ID, format!("again-{}-{body}", job.sequence));
        let (subject, payload) = (job.subject.to_string(), job.payload.clone());
        let stored = publish_stored(&self.shared.jetstream, subject, headers, payload).await;
        stored.map(drop).map_err(|error| error.to_string())
    }
}
