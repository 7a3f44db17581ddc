//! Whether a step of newcomers alone waits a moment for more of them.
//!
//! Every step reads all weights, so one that begins with the first of eight requests costs nearly as much as one with all eight, and the
//! other seven wait for it. Sequences that ended together were asked for together, and a client that got their ends often asks for
//! as many again; the first of these is here some microseconds before the last.

use std::time::Duration;

use crate::clock::Timestamp;

/// The wait may take so much of the step before: from the last one that came back, ...
const SHARE_OF_STEP: u32 = 8;

/// ... or, where some were here before that step ended, from its end, for the others have their way to the client and back before
/// them, ...
const SHARE_AFTER_STEP: u32 = 2;

/// ... and no more than this from the first one, ...
const MOST: Duration = Duration::from_millis(1);

/// ... and nobody waits for those whose ends are longer ago.
const RETURN_WITHIN: Duration = Duration::from_millis(100);

/// Steps whose ends are looked back on: those that began some steps apart end so.
pub(super) const STEPS_OF_ENDS: usize = 8;

/// A device that has nothing to do but for newcomers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Newcomers {
    /// Those that are here.
    pub waiting: u32,
    /// Sequences that ended with the last [`STEPS_OF_ENDS`] steps, or will with those in flight: as many as may come back.
    pub returning: u32,
    /// Those that are here need a whole step's tokens: more would not be in it.
    pub fill_step: bool,
}

/// When the next step is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormStep {
    /// A step is formed.
    Now,
    /// None before a step in flight ends.
    AfterStep,
    /// None before this time, unless more come.
    Until(Timestamp),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// When the last step ended, and how long it took.
    last_step: Option<(Timestamp, Duration)>,
    /// Some were here before it ended.
    came_before: bool,
    /// Kept when it is over: who finds no room then does not wait again.
    wait: Option<Wait>,
}

/// For more of those that may come back.
#[derive(Debug)]
struct Wait {
    began: Timestamp,
    until: Timestamp,
    /// How many were here when it was last prolonged.
    waiting: u32,
}

impl Gathering {
    /// A step ended that took so long.
    pub fn step_ended(&mut self, at: Timestamp, took: Duration) {
        self.last_step = Some((at, took));
    }

    /// `newcomers`: `None` where there is something else to do, too.
    pub fn when(
        &mut self,
        newcomers: Option<Newcomers>,
        steps_in_flight: usize,
        now: Timestamp,
    ) -> FormStep {
        let are_all = |of: Newcomers| of.fill_step || of.waiting >= of.returning;
        let (ended, took) = self.last_step.unwrap_or_default();
        let share = if self.came_before { SHARE_AFTER_STEP } else { SHARE_OF_STEP };
        let patience = (took / share).min(MOST);
        let Some(newcomers) = newcomers.filter(|of| !are_all(*of) && !patience.is_zero()) else {
            (self.wait, self.came_before) = (None, false);
            return FormStep::Now;
        };
        if steps_in_flight > 0 {
            (self.wait, self.came_before) = (None, true);
            return FormStep::AfterStep;
        }
        if now.since(ended) > RETURN_WITHIN {
            return FormStep::Now;
        }
        let Newcomers { waiting, .. } = newcomers;
        let first = Wait { began: now, until: now.after(patience), waiting };
        let wait = self.wait.get_or_insert(first);
        if waiting > wait.waiting && now < wait.until {
            wait.until = now.after(patience).min(wait.began.after(MOST));
            wait.waiting = waiting;
        }
        if now < wait.until { FormStep::Until(wait.until) } else { FormStep::Now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn of(waiting: u32, returning: u32) -> Option<Newcomers> {
        Some(Newcomers { waiting, returning, fill_step: false })
    }

    /// After a step that ended at 1,000.
    fn after_step_of(micros: u64) -> Gathering {
        let mut gathering = Gathering::default();
        gathering.step_ended(at(1_000), Duration::from_micros(micros));
        gathering
    }

    fn gathering() -> Gathering {
        after_step_of(1_600)
    }

    #[test]
    fn the_first_of_those_that_ended_together_waits_for_the_others_but_not_for_long() {
        let mut all_come = gathering();
        assert_eq!(all_come.when(of(1, 8), 0, at(1_300)), FormStep::Until(at(1_500)));
        assert_eq!(all_come.when(of(1, 8), 0, at(1_340)), FormStep::Until(at(1_500)));
        assert_eq!(all_come.when(of(5, 8), 0, at(1_350)), FormStep::Until(at(1_550)));
        assert_eq!(all_come.when(of(8, 8), 0, at(1_360)), FormStep::Now);
        let mut one_comes = gathering();
        assert_eq!(one_comes.when(of(1, 8), 0, at(1_300)), FormStep::Until(at(1_500)));
        assert_eq!(one_comes.when(of(1, 8), 0, at(1_500)), FormStep::Now);
    }

    #[test]
    fn who_comes_while_the_last_step_of_all_others_runs_waits_for_its_end() {
        let mut gathering = gathering();
        assert_eq!(gathering.when(of(1, 8), 1, at(1_300)), FormStep::AfterStep);
        gathering.step_ended(at(2_000), Duration::from_micros(800));
        assert_eq!(gathering.when(of(1, 8), 0, at(2_010)), FormStep::Until(at(2_410)));
    }

    #[test]
    fn nobody_waits_where_nobody_is_expected_or_the_device_has_work() {
        for (newcomers, now) in [
            (of(1, 1), 1_300),
            (of(1, 0), 1_300),
            (None, 1_300),
            // The ends are too long ago.
            (of(1, 8), 200_000),
        ] {
            assert_eq!(gathering().when(newcomers, 0, at(now)), FormStep::Now, "{newcomers:?}");
        }
        assert_eq!(Gathering::default().when(of(1, 8), 0, at(5)), FormStep::Now, "no step yet");
        let full = Some(Newcomers { waiting: 1, returning: 8, fill_step: true });
        assert_eq!(gathering().when(full, 1, at(1_300)), FormStep::Now);
        let free = after_step_of(0).when(of(1, 8), 1, at(1_300));
        assert_eq!(free, FormStep::Now, "where steps cost nothing");
    }

    #[test]
    fn the_step_in_flight_is_awaited_however_long_ago_the_one_before_it_ended() {
        assert_eq!(gathering().when(of(1, 8), 1, at(900_000)), FormStep::AfterStep);
    }

    #[test]
    fn a_slow_device_does_not_wait_longer_than_clients_take() {
        let when = after_step_of(80_000).when(of(1, 8), 0, at(1_300));
        assert_eq!(when, FormStep::Until(at(2_300)));
    }
}
