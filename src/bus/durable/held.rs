//! A request that the node holds, beside what [`crate::log::Holding`] knows of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::{PulledJob, ReadJob};
use super::sink::Sayings;
use crate::clock::Timestamp;
use crate::ids::RequestId;
use crate::log::Holding;
use crate::request::Handle;

/// How long an answer of JetStream's may take before the node takes it for silent.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// How long a request that the node had no room for stays away from it and others.
pub(super) const REFUSED_DELAY_MS: u64 = 1_000;

/// See the module.
pub(super) struct HeldRequest {
    pub holding: Holding,
    pub job: PulledJob,
    pub id: RequestId,
    pub encoding: crate::bus::wire::Encoding,
    /// What is to be generated; until it starts.
    pub read: Option<ReadJob>,
    pub received_at: Timestamp,
    pub sayings: Arc<Sayings>,
    /// From the moment that it was accepted until its end is settled.
    pub handle: Option<Arc<Handle>>,
    /// Nothing more of the generation is wanted.
    pub is_stopped: bool,
    /// The number of the record whose answer is waited for, and since when.
    pub asked: Option<(u64, Instant)>,
    pub progress_at: Instant,
    pub ticked_at: Instant,
    /// How long it stays away when it is given back.
    pub delay_ms: u64,
}

impl HeldRequest {
    /// Whether the answer to a record is overdue; once.
    pub fn is_silent(&mut self, now: Instant) -> bool {
        let is_late = |(_, since): &mut (u64, Instant)| now.duration_since(*since) >= PATIENCE;
        self.asked.take_if(is_late).is_some()
    }

    /// Its end is stored, or another node has it; the first word counts.
    pub fn settle(&mut self, is_stored: bool) {
        self.handle.take().into_iter().for_each(|handle| handle.settle(is_stored));
    }

    /// Nothing more of the generation is wanted.
    pub fn stop(&mut self) {
        self.is_stopped = true;
        self.sayings.close();
        if let Some(handle) = &self.handle {
            handle.cancel();
        }
    }
}
