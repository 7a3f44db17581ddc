//! How fast the node gets through its work lately, and what that means for a client that has to come back.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Timestamp;

/// What "lately" means: long enough to even out bursts, short enough to follow a change of load.
const WINDOW: Duration = Duration::from_secs(10);

/// Samples closer together than this say nothing new; the window holds 40.
const SPACING: Duration = Duration::from_millis(250);

/// A client is never asked to wait longer: by then the load is another.
const MAX_RETRY_MS: u64 = 60_000;

/// Nor shorter, or it would be back before anything changed.
const MIN_RETRY_MS: u64 = 100;

/// Samples of a count that only grows.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Timestamp, u64)>,
}

impl Rate {
    /// Notes the count of tokens done so far.
    pub(super) fn observe(&mut self, now: Timestamp, total: u64) {
        while self.samples.front().is_some_and(|&(at, _)| now.since(at) > WINDOW) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|&(at, _)| now.since(at) >= SPACING) {
            self.samples.push_back((now, total));
        }
    }

    /// Tokens per second over the window up to now; none while there is too little to say.
    fn per_second(&self, now: Timestamp, total: u64) -> Option<f64> {
        let &(from, before) = self.samples.front()?;
        let time = now.since(from);
        let done = total.saturating_sub(before);
        (time >= SPACING && done > 0).then(|| done as f64 / time.as_secs_f64())
    }

    /// When so many tokens will be done; `unknown_ms` if the rate is not known.
    pub(super) fn retry_after_ms(
        &self,
        now: Timestamp,
        total: u64,
        tokens: u64,
        unknown_ms: u64,
    ) -> u64 {
        match self.per_second(now, total) {
            Some(rate) => {
                ((tokens as f64 / rate * 1e3).ceil() as u64).clamp(MIN_RETRY_MS, MAX_RETRY_MS)
            }
            None => unknown_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    #[test]
    fn the_time_to_come_back_follows_the_measured_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.retry_after_ms(at(0), 0, 500, 777), 777);
        for ms in (0..5_000).step_by(10) {
            rate.observe(at(ms), ms); // 1,000 tokens/s
        }
        assert_eq!(rate.retry_after_ms(at(5_000), 5_000, 2_500, 777), 2_500);
        assert_eq!(rate.retry_after_ms(at(5_000), 5_000, 1, 777), MIN_RETRY_MS);
        assert_eq!(rate.retry_after_ms(at(5_000), 5_000, u64::MAX, 777), MAX_RETRY_MS);
        assert!(rate.samples.len() <= 40);
    }

    #[test]
    fn old_times_do_not_count() {
        let mut rate = Rate::default();
        rate.observe(at(0), 0);
        rate.observe(at(1_000), 1_000_000);
        // An idle hour later a burst begins: nothing is known of it yet.
        rate.observe(at(3_600_000), 1_000_000);
        assert_eq!(rate.retry_after_ms(at(3_600_100), 1_000_000, 100, 777), 777);
        rate.observe(at(3_601_000), 1_000_100);
        assert_eq!(rate.retry_after_ms(at(3_602_000), 1_000_200, 100, 777), 1_000);
    }

    #[test]
    fn a_standstill_is_no_rate() {
        let mut rate = Rate::default();
        rate.observe(at(0), 5);
        assert_eq!(rate.retry_after_ms(at(9_000), 5, 100, 777), 777);
    }
}
