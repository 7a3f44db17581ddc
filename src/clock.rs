//! Time as a parameter: policies take a [`Timestamp`], so a test can bring its own.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment of the monotonic clock, in microseconds since the process began to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment of this call.
    pub fn now() -> Self {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let origin = ORIGIN.get_or_init(Instant::now);
        Self(origin.elapsed().as_micros() as u64)
    }

    /// A moment of a fake clock.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the clock's origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved by `duration`.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards() {
        let a = Timestamp::now();
        let b = Timestamp::now();
        assert!(b >= a);
        assert_eq!(a.since(a.after(Duration::from_millis(5))), Duration::ZERO);
        assert_eq!(a.after(Duration::from_millis(5)).since(a), Duration::from_millis(5));
    }
}
