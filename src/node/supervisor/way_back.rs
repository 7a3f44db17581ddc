//! A failed device's way back, as decisions alone: what is done next, given how the last thing went. The supervisor does it to a
//! device's actors, the simulator to its own.

use std::time::Duration;

/// The first pause between two builds, and the longest; it doubles in between.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Why a device was not built again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotBuilt {
    /// For log and health.
    pub reason: String,
    /// The device needs a new process.
    pub sticky: bool,
}

impl NotBuilt {
    /// One that may be tried again.
    pub fn of(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), sticky: false }
    }
}

/// What is done next. All but [`Start`](Self::Start) and [`Load`](Self::Load) go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebuildAction {
    /// The scheduler sends nothing more to the build.
    TellDown,
    /// The build gives back what it has, and what it sampled reaches the clients. Behind [`TellDown`](Self::TellDown): what is
    /// assigned later would be lost with its mailbox.
    Depart,
    /// The build's actors end. Its memory is given back before the next build takes any.
    End,
    /// The next build is made.
    Start,
    /// The scheduler learns of it.
    TellUp,
    /// Every model is loaded onto it, and it takes requests of those that are.
    Load,
    /// It is the present build.
    Keep,
    /// Nothing, for so long; others are told that the device is away.
    Pause {
        /// Why there is no build.
        reason: String,
        /// How long.
        pause: Duration,
    },
    /// The device does not come back in this process.
    Lose {
        /// Why there is no build.
        reason: String,
    },
}

/// One device's builds from its failure on.
#[derive(Debug)]
pub struct WayBack {
    generation: u64,
    pause: Duration,
    /// Being done; none at first.
    last: Option<RebuildAction>,
    /// Why the build that ends is not kept; the one that failed first was.
    not_built: Option<NotBuilt>,
}

impl WayBack {
    /// The way back from the failure of build `failed`; none unless that is the `present` one: the others are gone already, and a
    /// build under way tells of its failure itself.
    pub fn of(failed: u64, present: Option<u64>) -> Option<Self> {
        let way = Self { generation: failed, pause: PAUSE.0, last: None, not_built: None };
        (present == Some(failed)).then_some(way)
    }

    /// The build that the last action is about. Growing, so that a late word of an older one is known as such.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is done next, now that the last action is done; none at the end of the way. Where the node ends, no further build is
    /// begun and no pause; one that has been begun is kept, for the node to end.
    pub fn next(
        &mut self,
        outcome: Result<(), NotBuilt>,
        is_ending: bool,
    ) -> Option<RebuildAction> {
        let next = match (self.last.take(), outcome) {
            (None, _) => RebuildAction::TellDown,
            (Some(RebuildAction::TellDown), _) => RebuildAction::Depart,
            (Some(RebuildAction::Depart), _) => RebuildAction::End,
            (Some(RebuildAction::End | RebuildAction::Pause { .. }), _) if is_ending => {
                return None;
            }
            (Some(RebuildAction::End), _) => match self.not_built.take() {
                Some(not_built) => self.after_failure(not_built),
                None => self.start(),
            },
            (Some(RebuildAction::Pause { .. }), _) => self.start(),
            (Some(RebuildAction::Start), Ok(())) => RebuildAction::TellUp,
            (Some(RebuildAction::Start), Err(_)) if is_ending => return None,
            (Some(RebuildAction::Start), Err(not_built)) => self.after_failure(not_built),
            (Some(RebuildAction::TellUp), _) => RebuildAction::Load,
            (Some(RebuildAction::Load), Ok(())) => RebuildAction::Keep,
            (Some(RebuildAction::Load), Err(not_built)) => {
                self.not_built = Some(not_built);
                RebuildAction::TellDown
            }
            (Some(RebuildAction::Keep | RebuildAction::Lose { .. }), _) => return None,
        };
        self.last = Some(next.clone());
        Some(next)
    }

    fn start(&mut self) -> RebuildAction {
        self.generation += 1;
        RebuildAction::Start
    }

    fn after_failure(&mut self, NotBuilt { reason, sticky }: NotBuilt) -> RebuildAction {
        if sticky {
            return RebuildAction::Lose { reason };
        }
        let pause = self.pause;
        self.pause = PAUSE.1.min(pause * 2);
        RebuildAction::Pause { reason, pause }
    }
}

#[cfg(test)]
mod tests {
    use super::RebuildAction::{Depart, End, Keep, Load, Lose, Pause, Start, TellDown, TellUp};
    use super::*;

    /// The actions from here on, and the build that each is about. What is to fail does so once.
    fn walk(
        way: &mut WayBack,
        mut fails: Vec<(RebuildAction, NotBuilt)>,
    ) -> Vec<(RebuildAction, u64)> {
        let (mut seen, mut outcome) = (Vec::new(), Ok(()));
        while let Some(action) = way.next(outcome, false) {
            let failing = fails.iter().position(|(at, _)| *at == action);
            outcome = failing.map_or(Ok(()), |at| Err(fails.remove(at).1));
            seen.push((action, way.generation()));
        }
        seen
    }

    #[test]
    fn of_two_words_of_one_failure_and_of_an_older_builds_only_the_first_counts() {
        assert!(WayBack::of(3, Some(3)).is_some());
        assert!(WayBack::of(3, None).is_none(), "the first has taken the build away");
        assert!(WayBack::of(3, Some(4)).is_none(), "an older build's");
    }

    #[test]
    fn the_old_build_goes_whole_before_the_next_comes() {
        let mut way = WayBack::of(1, Some(1)).expect("the present one");
        let old = [TellDown, Depart, End].map(|action| (action, 1));
        let new = [Start, TellUp, Load, Keep].map(|action| (action, 2));
        assert_eq!(walk(&mut way, Vec::new()), [&old[..], &new].concat());
    }

    #[test]
    fn a_build_that_cannot_be_loaded_goes_as_one_that_failed() {
        let mut way = WayBack::of(1, Some(1)).expect("the present one");
        let seen = walk(&mut way, vec![(Load, NotBuilt::of("no file"))]);
        let pause = Pause { reason: "no file".to_owned(), pause: PAUSE.0 };
        let second = [Start, TellUp, Load, TellDown, Depart, End, pause].map(|action| (action, 2));
        let third = [Start, TellUp, Load, Keep].map(|action| (action, 3));
        assert_eq!(seen[3..], [&second[..], &third].concat());
    }

    #[test]
    fn builds_are_numbered_upwards_with_pauses_that_double_to_half_a_minute() {
        let mut way = WayBack::of(7, Some(7)).expect("the present one");
        let seen = walk(&mut way, vec![(Start, NotBuilt::of("no memory")); 11]);
        let millis: Vec<_> = seen
            .iter()
            .filter_map(|(action, _)| match action {
                Pause { reason, pause } if reason == "no memory" => Some(pause.as_millis()),
                _ => None,
            })
            .collect();
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        assert_eq!(millis, expected);
        let starts = seen.iter().filter(|(action, _)| *action == Start);
        assert!(starts.map(|(_, generation)| *generation).eq(8..20));
    }

    #[test]
    fn a_device_that_only_a_new_process_can_have_is_lost() {
        let mut way = WayBack::of(1, Some(1)).expect("the present one");
        let sticky = NotBuilt { reason: "illegal address".to_owned(), sticky: true };
        let seen = walk(&mut way, vec![(Start, sticky)]);
        let lose = Lose { reason: "illegal address".to_owned() };
        assert_eq!(seen[3..], [(Start, 2), (lose, 2)]);
    }

    #[test]
    fn an_ending_node_begins_no_build_and_keeps_the_one_that_it_began() {
        for (ends_at, last) in [(TellDown, End), (Start, Keep), (Load, Keep)] {
            let mut way = WayBack::of(1, Some(1)).expect("the present one");
            let (mut is_ending, mut seen) = (false, Vec::new());
            while let Some(action) = way.next(Ok(()), is_ending) {
                is_ending |= action == ends_at;
                seen.push(action);
            }
            assert_eq!(seen.last(), Some(&last), "{ends_at:?}");
        }
        let mut way = WayBack::of(1, Some(1)).expect("the present one");
        while way.next(Ok(()), false) != Some(Start) {}
        assert_eq!(way.next(Err(NotBuilt::of("no memory")), true), None);
    }
}
