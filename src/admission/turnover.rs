//! How long requests hold their places: sums that are kept as requests enter and leave, read where one is refused.

use std::collections::VecDeque;

use crate::clock::Timestamp;

/// The sums. Places are counted, so a request with several samples counts as often.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    /// When those that are in came in. One that leaves takes the oldest entry with it, whichever is its own, so the front may be
    /// later than the true one, never earlier.
    entered: VecDeque<Timestamp>,
    /// Places taken.
    places: u64,
    /// The sum of the entries of those that are in, in microseconds, once for each place.
    entered_us: u64,
    /// Place-time of those that have left, in microseconds.
    left_us: u64,
    /// Places given back by requests that ran.
    ended: u64,
}

/// The node's load at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct NodeLoad {
    /// The moment.
    pub(super) at: Timestamp,
    /// Places taken.
    pub(super) places: u64,
    /// Place-time since the node began, in microseconds: of those that have left, and of those that are in so far.
    pub(super) held_us: u64,
    /// Places given back since the node began, by requests that ran.
    pub(super) ended: u64,
    /// Prompt and completion tokens done since the node began.
    pub(super) computed_tokens: u64,
    /// Prompt and `max_tokens` of a place, over those that are in.
    pub(super) mean_tokens: u64,
    /// When the request came in that is the next to leave, as far as that can be told.
    pub(super) oldest: Timestamp,
}

impl Turnover {
    /// A request takes its places.
    pub(super) fn enter(&mut self, now: Timestamp, places: usize) {
        self.entered.push_back(now);
        self.places += places as u64;
        self.entered_us += now.as_micros() * places as u64;
    }

    /// A request that came in at `since` gives its places back. One that was refused after all (`ran` is false) is no end.
    pub(super) fn leave(&mut self, now: Timestamp, (since, places): (Timestamp, usize), ran: bool) {
        let places = places as u64;
        self.entered.pop_front();
        self.places -= places;
        self.entered_us -= since.as_micros() * places;
        self.left_us += now.since(since).as_micros() as u64 * places;
        self.ended += if ran { places } else { 0 };
    }

    /// Places taken.
    pub(super) fn places(&self) -> usize {
        self.places as usize
    }

    /// The load now; the tokens are not known here.
    pub(super) fn load(&self, now: Timestamp) -> NodeLoad {
        let so_far_us = (now.as_micros() * self.places).saturating_sub(self.entered_us);
        NodeLoad {
            at: now,
            places: self.places,
            held_us: self.left_us + so_far_us,
            ended: self.ended,
            oldest: self.entered.front().copied().unwrap_or(now),
            ..NodeLoad::default()
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
    fn the_time_in_places_is_summed_over_those_that_left_and_those_that_are_in() {
        let mut turnover = Turnover::default();
        turnover.enter(at(0), 1);
        turnover.enter(at(10), 3);
        turnover.enter(at(20), 1);
        turnover.leave(at(40), (at(10), 3), true);
        turnover.leave(at(50), (at(20), 1), false);
        let load = turnover.load(at(100));
        assert_eq!((load.places, load.ended), (1, 3));
        assert_eq!(load.held_us, (100 + 3 * 30 + 30) * 1_000);
        assert_eq!(load.oldest, at(20), "never earlier than the true one");
        turnover.leave(at(100), (at(0), 1), true);
        let load = turnover.load(at(900));
        assert_eq!((load.places, load.ended, load.oldest), (0, 4, at(900)));
        assert_eq!(load.held_us, 220_000);
        assert_eq!(turnover.places(), 0);
    }
}
