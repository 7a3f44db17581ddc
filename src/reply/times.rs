//! The moments of a request that its receipt tells.

use std::time::Duration;

use crate::clock::Timestamp;

/// When what happened first, and when the last token came.
pub(super) struct Times {
    pub(super) accepted_at: Timestamp,
    pub(super) scheduled_at: Option<Timestamp>,
    pub(super) first_token_at: Option<Timestamp>,
    pub(super) last_token_at: Option<Timestamp>,
}

impl Times {
    pub(super) fn new(accepted_at: Timestamp) -> Self {
        Self { accepted_at, scheduled_at: None, first_token_at: None, last_token_at: None }
    }

    /// Accepted to first scheduled; all the time until `end` if it never was.
    pub(super) fn queue_ms(&self, end: Timestamp) -> f64 {
        ms(self.scheduled_at.unwrap_or(end).since(self.accepted_at))
    }

    /// First scheduled to first token; until `end` if there was none.
    pub(super) fn prefill_ms(&self, end: Timestamp) -> f64 {
        let first_token = self.first_token_at.unwrap_or(end);
        self.scheduled_at.map_or(0.0, |scheduled| ms(first_token.since(scheduled)))
    }

    /// First token to last token.
    pub(super) fn decode_ms(&self) -> f64 {
        match (self.first_token_at, self.last_token_at) {
            (Some(first), Some(last)) => ms(last.since(first)),
            _ => 0.0,
        }
    }
}

/// In whole microseconds, so that it is written with three places.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
