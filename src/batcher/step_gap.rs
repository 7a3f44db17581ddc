//! How long the device had nothing to do between two steps although sequences ran, so that the wait was the host's doing.

use std::time::Duration;

use crate::bridge::ffi::StepOutput;
use crate::clock::Timestamp;

/// When the last step ended, if sequences ran on.
#[derive(Debug, Default)]
pub(super) struct StepGap(Option<Timestamp>);

impl StepGap {
    /// The gap before a step: by the device's own clock where it has one. `None` after a step that left nothing to run.
    pub fn before(
        &mut self,
        output: &StepOutput,
        (started, ended): (Timestamp, Timestamp),
        sequences_run_on: bool,
    ) -> Option<Duration> {
        let gap = self.0.map(|last_ended| {
            if output.device_us > 0.0 {
                Duration::from_secs_f64(f64::from(output.idle_us.max(0.0)) * 1e-6)
            } else {
                started.since(last_ended)
            }
        });
        self.0 = sequences_run_on.then_some(ended);
        gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_of_running_sequences_is_a_gap() {
        let ms = Duration::from_millis;
        let (mut gap, host) = (StepGap::default(), StepOutput::default());
        let step = |first: u64| {
            (Timestamp::from_micros(first * 1000), Timestamp::from_micros((first + 10) * 1000))
        };
        assert_eq!(gap.before(&host, step(0), true), None, "the first");
        assert_eq!(gap.before(&host, step(12), true), Some(ms(2)));
        // Handed over while the one before ran.
        assert_eq!(gap.before(&host, step(20), false), Some(ms(0)));
        assert_eq!(gap.before(&host, step(100), true), None, "nothing ran");
        let device = StepOutput { device_us: 9_000.0, idle_us: 2.0, ..StepOutput::default() };
        assert_eq!(gap.before(&device, step(112), true), Some(Duration::from_micros(2)));
        let early = StepOutput { idle_us: -1.0, ..device };
        assert_eq!(gap.before(&early, step(122), true), Some(ms(0)));
    }
}
