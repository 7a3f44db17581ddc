//! What the hub and its tasks share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::Client;
use async_nats::jetstream::Context;
use tokio::sync::mpsc::UnboundedSender;

use super::hub::Word;
use crate::bus::wire::Subjects;
use crate::health::{LogState, Vitals};
use crate::log::Config;

/// Jobs on their way from the queue to admission, which counts them from there on.
#[derive(Debug, Default)]
pub(super) struct RoomCount(Arc<AtomicUsize>);

impl RoomCount {
    /// One more.
    pub fn take(&self) -> TakenRoom {
        self.0.fetch_add(1, Ordering::Relaxed);
        TakenRoom(Arc::clone(&self.0))
    }
}

/// The room of one of them; dropped when admission counts it, or it is not the node's.
#[derive(Debug)]
pub(super) struct TakenRoom(Arc<AtomicUsize>);

impl Drop for TakenRoom {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
pub(super) struct DurableContext {
    pub client: Client,
    pub jetstream: Context,
    pub subjects: Subjects,
    pub config: Config,
    pub max_request_bytes: usize,
    pub room: Arc<dyn Fn() -> usize + Send + Sync>,
    pub words: UnboundedSender<Word>,
    pub taken: RoomCount,
    pub vitals: Arc<Vitals>,
    /// Whether the streams were there at any time.
    pub has_log: AtomicBool,
    /// As it was logged last.
    pub state: Mutex<Option<Result<(), String>>>,
}

impl DurableContext {
    /// How many further requests the node may take.
    pub fn room(&self) -> usize {
        (self.room)().saturating_sub(self.taken.0.load(Ordering::Relaxed))
    }

    /// Says something to the hub.
    pub fn say(&self, word: Word) {
        // Only its end, which is the bus's, closes it.
        let _ = self.words.send(word);
    }

    /// Whether this NATS has, or had, a place for durable requests.
    pub fn has_log(&self) -> bool {
        self.has_log.load(Ordering::Relaxed)
    }

    /// Whether the streams are there; what is new is logged.
    pub fn set_log(&self, new: Result<(), String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_ref() == Some(&new) {
            return;
        }
        let is_first = state.is_none();
        match &new {
            Ok(()) => {
                self.has_log.store(true, Ordering::Relaxed);
                self.vitals.set_log(LogState::Up);
                match is_first {
                    // As it should be.
                    true => tracing::debug!("durable requests are taken"),
                    false => tracing::info!("durable requests are taken"),
                }
            }
            Err(fault) => {
                // A NATS that never had JetStream is as it should be.
                if !is_first {
                    self.vitals.set_log(LogState::Impaired(fault.clone()));
                }
                tracing::info!(fault, "durable requests are not taken");
            }
        }
        *state = Some(new);
    }
}
