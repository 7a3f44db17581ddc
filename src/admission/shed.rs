//! Refusals for load, and when their clients are to come back.

use std::sync::Arc;

use super::ledger::{Denied, Ledger};
use super::return_times::ReturnTimes;
use crate::clock::Timestamp;
use crate::error::{Error, Kind};

/// Makes the refusals.
pub(super) struct Shed {
    ledger: Arc<Ledger>,
    returns: ReturnTimes,
    /// Where nothing better is known.
    retry_after_ms: u64,
}

impl Shed {
    /// One that has refused nobody.
    pub(super) fn new(ledger: Arc<Ledger>, retry_after_ms: u64) -> Self {
        Self { ledger, returns: ReturnTimes::default(), retry_after_ms }
    }

    /// A request that wants so many `places` gets none.
    pub(super) fn denied(&mut self, denied: Denied, places: usize, now: Timestamp) -> Error {
        match denied {
            Denied::Conflict => {
                Error::new(Kind::Conflict, "a request with this id is already running")
                    .with_param("request_id")
            }
            Denied::Full(count) => {
                let text = format!("the node already holds {count} requests, its limit");
                let ms = self.returns.place(self.ledger.load(now), places, self.retry_after_ms);
                Error::new(Kind::QueueFull, text).with_retry_after_ms(ms)
            }
        }
    }

    /// A request finds no room for its `tokens` among those that wait, because `excess` are too many.
    pub(super) fn no_room(
        &mut self,
        text: String,
        (tokens, excess): (u64, u64),
        now: Timestamp,
    ) -> Error {
        let load = self.ledger.load(now);
        let ms = self.returns.room(load, (tokens, excess), self.retry_after_ms);
        Error::new(Kind::QueueFull, text).with_retry_after_ms(ms)
    }

    /// There is no room for a while that nobody can tell.
    pub(super) fn crowded(&mut self, text: &str) -> Error {
        let ms = self.returns.apart(self.retry_after_ms);
        Error::new(Kind::QueueFull, text).with_retry_after_ms(ms)
    }

    /// Those who are refused for a reason that is the same for all do not all come back at once.
    pub(super) fn apart(&mut self, error: Error) -> Error {
        match (error.kind, error.retry_after_ms) {
            (Kind::Draining | Kind::Unavailable, Some(ms)) => {
                error.with_retry_after_ms(self.returns.apart(ms))
            }
            _ => error,
        }
    }
}
