//! How long the device had nothing to do between two steps although sequences ran, so that the wait was the host's doing.

use std::time::Duration;

use crate::bridge::ffi::StepOutput;

/// A time of the device's; what its clock tells as less than nothing is nothing.
pub(super) fn device_time(us: f32) -> Duration {
    Duration::try_from_secs_f64(f64::from(us) * 1e-6).unwrap_or_default()
}

/// Whether sequences ran on after the last step.
#[derive(Debug, Default)]
pub(super) struct StepGap {
    ran_on: bool,
}

impl StepGap {
    /// The gap before a step. `None` after a step that left nothing to run.
    pub fn before(&mut self, output: &StepOutput, sequences_run_on: bool) -> Option<Duration> {
        let ran_on = std::mem::replace(&mut self.ran_on, sequences_run_on);
        ran_on.then(|| device_time(output.idle_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_of_running_sequences_is_a_gap() {
        let after = |idle_us| StepOutput { device_us: 9_000.0, idle_us, ..StepOutput::default() };
        let mut gap = StepGap::default();
        assert_eq!(gap.before(&after(0.0), true), None, "the first");
        assert_eq!(gap.before(&after(2_000.0), true), Some(Duration::from_millis(2)));
        assert_eq!(gap.before(&after(-1.0), false), Some(Duration::ZERO));
        assert_eq!(gap.before(&after(80_000.0), true), None, "nothing ran");
        assert_eq!(gap.before(&after(f32::NAN), true), Some(Duration::ZERO));
    }
}
