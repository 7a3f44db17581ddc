//! Recent figures, bounded: what the last minute looked like.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::request::FinishReason;

/// How far back the windows look.
const SPAN: Duration = Duration::from_secs(60);
/// Most samples kept; at higher rates the window covers less than a minute.
const MAX_SAMPLES: usize = 1_024;

/// Latencies of the last minute.
#[derive(Debug, Default)]
pub struct LatencyWindow(Mutex<VecDeque<(Timestamp, Duration)>>);

impl LatencyWindow {
    /// Adds one.
    pub fn record(&self, latency: Duration, now: Timestamp) {
        push(&self.0, (now, latency));
    }

    /// The 95th percentile (nearest rank) in milliseconds; `None` without samples.
    pub fn p95_ms(&self, now: Timestamp) -> Option<f64> {
        let mut latencies = recent(&self.0, now);
        latencies.sort_unstable();
        let rank = (latencies.len() * 95).div_ceil(100).checked_sub(1)?;
        latencies.get(rank).map(|latency| latency.as_secs_f64() * 1e3)
    }
}

/// How full steps were over the last minute: sequences of a step over seats.
#[derive(Debug, Default)]
pub struct BatchWindow(Mutex<VecDeque<(Timestamp, f64)>>);

impl BatchWindow {
    /// One step: how many sequences it had of how many it may have.
    pub fn record(&self, sequences: u32, max_batch_size: u32, now: Timestamp) {
        push(&self.0, (now, f64::from(sequences) / f64::from(max_batch_size.max(1))));
    }

    /// The mean share; `None` without steps.
    pub fn mean(&self, now: Timestamp) -> Option<f64> {
        let shares = recent(&self.0, now);
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// Requests that ended in the last minute: how long each took, and whether it failed.
#[derive(Debug, Default)]
pub struct RequestWindow(Mutex<VecDeque<(Timestamp, (Duration, bool))>>);

/// Figures of requests that ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndedRequests {
    /// Mean time from accept to last event, in milliseconds.
    pub mean_ms: f64,
    /// Share of those that failed, 0 to 1.
    pub failed: f64,
}

impl RequestWindow {
    /// One that ended now.
    pub fn record(&self, took: Duration, reason: FinishReason, now: Timestamp) {
        push(&self.0, (now, (took, reason == FinishReason::Failed)));
    }

    /// The figures; `None` without requests.
    pub fn figures(&self, now: Timestamp) -> Option<EndedRequests> {
        let ended = recent(&self.0, now);
        let (count, failed) = (ended.len(), ended.iter().filter(|(_, failed)| *failed).count());
        let took: Duration = ended.iter().map(|(took, _)| *took).sum();
        let mean = |sum: f64| sum / count as f64;
        let figures =
            EndedRequests { mean_ms: mean(took.as_secs_f64() * 1e3), failed: mean(failed as f64) };
        (count > 0).then_some(figures)
    }
}

fn push<T>(window: &Mutex<VecDeque<(Timestamp, T)>>, sample: (Timestamp, T)) {
    let mut samples = window.lock().unwrap_or_else(PoisonError::into_inner);
    if samples.len() == MAX_SAMPLES {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn recent<T: Copy>(window: &Mutex<VecDeque<(Timestamp, T)>>, now: Timestamp) -> Vec<T> {
    let mut samples = window.lock().unwrap_or_else(PoisonError::into_inner);
    while samples.front().is_some_and(|(at, _)| now.since(*at) > SPAN) {
        samples.pop_front();
    }
    samples.iter().map(|(_, value)| *value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn p95_is_the_nearest_rank_of_the_last_minute() {
        let window = LatencyWindow::default();
        assert_eq!(window.p95_ms(at(0)), None);
        window.record(Duration::from_secs(9), at(0));
        for ms in 1..=100 {
            window.record(Duration::from_millis(ms), at(70));
        }
        assert_eq!(window.p95_ms(at(71)), Some(95.0));
        assert_eq!(window.p95_ms(at(200)), None);
    }

    #[test]
    fn requests_that_ended_have_a_mean_time_and_a_share_that_failed() {
        let window = RequestWindow::default();
        assert_eq!(window.figures(at(0)), None);
        use FinishReason::{Cancelled, Failed, Length, Stop};
        window.record(Duration::from_secs(9), Failed, at(0));
        for (ms, reason) in [(10, Stop), (20, Length), (30, Failed), (40, Cancelled)] {
            window.record(Duration::from_millis(ms), reason, at(70));
        }
        let figures = window.figures(at(71));
        assert_eq!(figures, Some(EndedRequests { mean_ms: 25.0, failed: 0.25 }));
        assert_eq!(window.figures(at(200)), None);
    }

    #[test]
    fn windows_are_bounded() {
        let window = BatchWindow::default();
        for _ in 0..MAX_SAMPLES {
            window.record(1, 4, at(1));
        }
        for _ in 0..MAX_SAMPLES {
            window.record(3, 4, at(1));
        }
        assert_eq!(window.mean(at(2)), Some(0.75));
    }
}
