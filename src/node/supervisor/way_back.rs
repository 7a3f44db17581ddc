//! A failed device's way back, as decisions alone: the supervisor builds what is said here, and tells how it went.

use std::time::Duration;

/// The first pause between two builds, and the longest; it doubles in between.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Why a device was not built again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotBuilt {
    pub reason: String,
    /// The device needs a new process.
    pub sticky: bool,
}

impl NotBuilt {
    /// One that may be tried again.
    pub(super) fn of(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), sticky: false }
    }
}

/// One device's builds from its failure on.
#[derive(Debug)]
pub(super) struct WayBack {
    generation: u64,
    pause: Duration,
}

/// What follows a build.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It is back.
    Up,
    /// It does not come back in this process.
    Lost { reason: String },
    /// It is built once more, after the pause.
    Again { reason: String, pause: Duration },
}

impl WayBack {
    /// The way back from the failure of build `failed`; none unless that is the `present` one: the others are gone already, and a
    /// build under way tells of its failure itself.
    pub(super) fn of(failed: u64, present: Option<u64>) -> Option<Self> {
        (present == Some(failed)).then_some(Self { generation: failed, pause: PAUSE.0 })
    }

    /// The generation of the next build; none while the node ends. Growing, so that a late word of an older build is known as such.
    pub(super) fn next_build(&mut self, is_ending: bool) -> Option<u64> {
        self.generation += 1;
        (!is_ending).then_some(self.generation)
    }

    /// What follows from how a build went.
    pub(super) fn after(&mut self, built: Result<(), NotBuilt>) -> After {
        match built {
            Ok(()) => After::Up,
            Err(NotBuilt { reason, sticky: true }) => After::Lost { reason },
            Err(NotBuilt { reason, sticky: false }) => {
                let pause = self.pause;
                self.pause = PAUSE.1.min(pause * 2);
                After::Again { reason, pause }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_words_of_one_failure_and_of_an_older_builds_only_the_first_counts() {
        assert!(WayBack::of(3, Some(3)).is_some());
        assert!(WayBack::of(3, None).is_none(), "the first has taken the build away");
        assert!(WayBack::of(3, Some(4)).is_none(), "an older build's");
    }

    #[test]
    fn builds_are_numbered_upwards_with_pauses_that_double_to_half_a_minute() {
        let mut way = WayBack::of(7, Some(7)).expect("the present one");
        let mut pauses = Vec::new();
        for generation in 8..20 {
            assert_eq!(way.next_build(false), Some(generation));
            match way.after(Err(NotBuilt::of("no memory"))) {
                After::Again { reason, pause } if reason == "no memory" => pauses.push(pause),
                other => panic!("{other:?}"),
            }
        }
        let millis: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        assert_eq!(millis[..11], expected);
        assert_eq!(way.after(Ok(())), After::Up);
    }

    #[test]
    fn a_device_that_only_a_new_process_can_have_is_lost_and_an_ending_node_builds_none() {
        let mut way = WayBack::of(1, Some(1)).expect("the present one");
        let sticky = NotBuilt { reason: "illegal address".to_owned(), sticky: true };
        assert_eq!(way.after(Err(sticky)), After::Lost { reason: "illegal address".to_owned() });
        assert_eq!(way.next_build(true), None);
    }
}
