//! Keeps the node's entry: written each second and at all news, taken back when the drain begins, and never over another's.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::HEARTBEAT;
use super::bucket::{BucketFault, NodeBucket};
use super::claim::{ClaimStep, IdClaim};
use super::entry::{EntryMaker, NodeEntry, NodeFacts};
use crate::bus::publish::Outbox;
use crate::clock::Timestamp;
use crate::health::Vitals;
use crate::lifeline::Lifeline;

/// How long a bucket that cannot be had is left alone.
const AGAIN: Duration = Duration::from_millis(500);

/// What discovery is started with.
pub(in crate::bus) struct DiscoveryStart {
    pub client: Client,
    pub vitals: Arc<Vitals>,
    pub facts: NodeFacts,
    /// Copies of the bucket in a cluster of NATS servers.
    pub replicas: u32,
    /// Woken when the entry has been taken back.
    pub outbox: Arc<Outbox>,
}

/// The node's place in discovery.
pub(in crate::bus) struct Discovery {
    /// Dropped to take the entry back.
    stays: Option<oneshot::Sender<()>>,
    is_gone: Arc<AtomicBool>,
}

impl Discovery {
    /// Takes the node's id. Resolves when the entry stands, or when that cannot be for the moment: it is tried again then.
    ///
    /// # Errors
    /// The entry of another node that lives and has the same id.
    pub async fn start(start: DiscoveryStart, alive: &Lifeline) -> Result<Self, Box<NodeEntry>> {
        let news = start.vitals.news();
        let mut publisher = EntryPublisher::new(start);
        let due = publisher.take_id().await?;
        let (stays, leaving) = oneshot::channel();
        let is_gone = publisher.is_gone.clone();
        let alive = alive.beside("bus's place in discovery");
        tokio::spawn(publisher.run(due, news, leaving, alive));
        Ok(Self { stays: Some(stays), is_gone })
    }

    /// Takes the entry back: readers are told at once.
    pub fn leave(&mut self) {
        self.stays = None;
    }

    /// Whether nothing is left to be done.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }
}

/// What came of a heartbeat.
enum BeatOutcome {
    /// The next one is due in a second.
    Written,
    /// Somebody else's entry is looked at again in a moment.
    Waits(Duration),
    /// There is no connection; what is to be said of that, the connection says.
    Away,
    /// The bucket did not take it, as the log says.
    Failed,
}

impl BeatOutcome {
    /// Until the next one.
    fn pause(self) -> Duration {
        match self {
            Self::Written | Self::Away => HEARTBEAT,
            Self::Waits(pause) => pause,
            Self::Failed => AGAIN,
        }
    }
}

/// Why there was none.
enum BeatFault {
    Bucket(BucketFault),
    /// The id is another's, who lives.
    Taken(Box<NodeEntry>),
}

impl From<BucketFault> for BeatFault {
    fn from(fault: BucketFault) -> Self {
        Self::Bucket(fault)
    }
}

struct EntryPublisher {
    client: Client,
    vitals: Arc<Vitals>,
    bucket: NodeBucket,
    claim: IdClaim,
    maker: EntryMaker,
    outbox: Arc<Outbox>,
    is_gone: Arc<AtomicBool>,
    /// Something of this node may stand in the bucket.
    has_written: bool,
    /// What the log knows: none, nothing yet.
    said: Option<Result<(), BucketFault>>,
}

impl EntryPublisher {
    fn new(start: DiscoveryStart) -> Self {
        let life = start.vitals.life().to_owned();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            bucket: NodeBucket::new(start.client.clone(), start.replicas),
            client: start.client,
            vitals: start.vitals,
            claim: IdClaim::new(life.clone()),
            maker: EntryMaker::new(start.facts, life, host.trim().to_owned()),
            outbox: start.outbox,
            is_gone: Arc::default(),
            has_written: false,
            said: None,
        }
    }

    /// The first heartbeat, at the start of the node; gives when the next one is due. Only another's entry is waited for.
    async fn take_id(&mut self) -> Result<Instant, Box<NodeEntry>> {
        loop {
            match self.beat().await? {
                BeatOutcome::Waits(pause) => tokio::time::sleep(pause).await,
                outcome => return Ok(Instant::now() + outcome.pause()),
            }
        }
    }

    async fn run(
        mut self,
        mut due: Instant,
        mut news: watch::Receiver<()>,
        mut leaving: oneshot::Receiver<()>,
        alive: Lifeline,
    ) {
        loop {
            tokio::select! {
                _ = &mut leaving => break,
                () = tokio::time::sleep_until(due) => {}
                // It ends with the node, whose bus has been stopped then.
                _ = news.changed() => {}
            }
            alive.look();
            let now = Instant::now();
            let pause = match self.beat().await {
                Ok(outcome) => outcome.pause(),
                Err(other) => {
                    let (id, place) = (self.vitals.node_id(), other.place());
                    tracing::error!(node = id, "another node with this id runs {place}");
                    self.set_gone();
                    // The end of the lifeline ends the node.
                    return drop(alive);
                }
            };
            due = now + pause;
        }
        self.leave().await;
        self.set_gone();
        alive.dismiss();
    }

    /// One heartbeat, and what the log says of it. The error is the entry of another node with this id, which lives.
    async fn beat(&mut self) -> Result<BeatOutcome, Box<NodeEntry>> {
        match self.try_beat().await {
            Ok(outcome) => {
                if let BeatOutcome::Written = outcome {
                    self.say(Ok(()));
                }
                Ok(outcome)
            }
            Err(BeatFault::Taken(other)) => Err(other),
            Err(BeatFault::Bucket(fault)) => {
                self.failed(fault);
                Ok(BeatOutcome::Failed)
            }
        }
    }

    /// A bucket that was lost is made anew within it.
    async fn try_beat(&mut self) -> Result<BeatOutcome, BeatFault> {
        if self.client.connection_state() != State::Connected {
            self.claim.lost();
            return Ok(BeatOutcome::Away);
        }
        match self.step().await {
            Err(BeatFault::Bucket(BucketFault::Lost)) => {
                self.claim.lost();
                self.step().await
            }
            outcome => outcome,
        }
    }

    async fn step(&mut self) -> Result<BeatOutcome, BeatFault> {
        let mut step = self.claim.next();
        loop {
            step = match step {
                ClaimStep::Look => {
                    let found = self.bucket.read(self.vitals.node_id()).await?;
                    self.claim.found(found, Timestamp::now())
                }
                ClaimStep::LookIn(pause) => return Ok(BeatOutcome::Waits(pause)),
                ClaimStep::Yield(other) => return Err(BeatFault::Taken(other)),
                ClaimStep::Write(over) => return self.write(over).await,
            };
        }
    }

    async fn write(&mut self, over: u64) -> Result<BeatOutcome, BeatFault> {
        let entry = self.entry().to_json().into();
        self.has_written = true;
        match self.bucket.write(self.vitals.node_id(), entry, over).await {
            Ok(revision) => {
                self.claim.written(revision);
                Ok(BeatOutcome::Written)
            }
            Err(BucketFault::Overtaken) => {
                self.claim.lost();
                Ok(BeatOutcome::Waits(Duration::ZERO))
            }
            Err(fault) => Err(fault.into()),
        }
    }

    fn entry(&mut self) -> NodeEntry {
        let message = self.vitals.message(Timestamp::now());
        let own_ip: Option<IpAddr> = self.client.server_info().client_ip.parse().ok();
        self.maker.entry(message, self.vitals.is_ready(), &self.vitals.blocks(), own_ip)
    }

    /// Takes the entry back, if it is this node's; once, for readers see its silence in any case.
    async fn leave(&mut self) {
        if !self.has_written || self.client.connection_state() != State::Connected {
            return;
        }
        if self.claim.held().is_none()
            && let Ok(found) = self.bucket.read(self.vitals.node_id()).await
            && let ClaimStep::Write(revision) = self.claim.found(found, Timestamp::now())
        {
            self.claim.written(revision);
        }
        if let Some(revision) = self.claim.held()
            && let Err(fault) = self.bucket.delete(self.vitals.node_id(), revision).await
        {
            tracing::debug!(%fault, "the node's entry stays until it is old");
        }
    }

    fn failed(&mut self, fault: BucketFault) {
        self.claim.lost();
        self.say(Err(fault));
    }

    /// Says in the log what is new.
    fn say(&mut self, state: Result<(), BucketFault>) {
        if self.said.as_ref() == Some(&state) {
            return;
        }
        match (&state, &self.said) {
            // As it should be.
            (Ok(()), None) => tracing::debug!("discovery is on"),
            (Ok(()), Some(_)) => tracing::info!("discovery is on"),
            (Err(fault), _) => tracing::info!(%fault, "discovery is off"),
        }
        self.said = Some(state);
    }

    fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.outbox.wake();
    }
}
