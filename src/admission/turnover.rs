//! How long requests hold their places in a full node: sums that are kept as requests enter and leave, read where one is refused.
//!
//! A node that is half empty says nothing of a full one: with fewer in a batch a request is done in a fraction of the time. So only
//! what happens while the node is nearly full counts.

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
    /// Places that were taken when somebody was last refused.
    full_places: u64,
    /// Until when the sums are right, and the tokens that the node had done by then.
    at: Timestamp,
    tokens_done: u64,
    /// While nearly full: place-time in microseconds, places given back by requests that ran, tokens done.
    held_us: u64,
    ended: u64,
    computed_tokens: u64,
}

/// The node's load at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct NodeLoad {
    /// The moment.
    pub(super) at: Timestamp,
    /// Places taken.
    pub(super) places: u64,
    /// Place-time while the node was nearly full, in microseconds.
    pub(super) held_us: u64,
    /// Places given back in that time, by requests that ran.
    pub(super) ended: u64,
    /// Prompt and completion tokens done in that time.
    pub(super) computed_tokens: u64,
    /// Prompt and `max_tokens` of a place, over those that are in and have been tokenized; 0 where none has.
    pub(super) mean_tokens: u64,
    /// When the request came in that is the next to leave, as far as that can be told.
    pub(super) oldest: Timestamp,
}

impl Turnover {
    /// A request takes its places. `tokens_done`, here and below, are those of the node since it began.
    pub(super) fn enter(&mut self, now: Timestamp, places: usize, tokens_done: u64) {
        self.advance(now, tokens_done);
        self.entered.push_back(now);
        self.places += places as u64;
    }

    /// A request gives its places back. One that was refused after all (`ran` is false) is no end.
    pub(super) fn leave(&mut self, now: Timestamp, places: usize, ran: bool, tokens_done: u64) {
        self.advance(now, tokens_done);
        if ran && self.is_nearly_full() {
            self.ended += places as u64;
        }
        self.entered.pop_front();
        self.places -= places as u64;
    }

    /// Places taken.
    pub(super) fn places(&self) -> usize {
        self.places as usize
    }

    /// The load now, when somebody is refused; the tokens of a place are not known here.
    pub(super) fn load(&mut self, now: Timestamp, tokens_done: u64) -> NodeLoad {
        self.advance(now, tokens_done);
        self.full_places = self.places;
        NodeLoad {
            at: now,
            places: self.places,
            held_us: self.held_us,
            ended: self.ended,
            computed_tokens: self.computed_tokens,
            mean_tokens: 0,
            oldest: self.entered.front().copied().unwrap_or(now),
        }
    }

    /// More than three quarters of the places are taken.
    fn is_nearly_full(&self) -> bool {
        4 * self.places > 3 * self.full_places && self.full_places > 0
    }

    fn advance(&mut self, now: Timestamp, tokens_done: u64) {
        if self.is_nearly_full() {
            self.held_us += now.since(self.at).as_micros() as u64 * self.places;
            self.computed_tokens += tokens_done.saturating_sub(self.tokens_done);
        }
        self.at = self.at.max(now);
        self.tokens_done = tokens_done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    #[test]
    fn time_ends_and_tokens_are_summed_while_the_node_is_nearly_full() {
        let mut turnover = Turnover::default();
        turnover.enter(at(0), 1, 0);
        turnover.enter(at(10), 3, 5);
        turnover.leave(at(20), 1, true, 10);
        let load = turnover.load(at(30), 20);
        assert_eq!((load.places, load.held_us, load.ended, load.computed_tokens), (3, 0, 0, 0));
        turnover.enter(at(40), 1, 30);
        // Four of three places, then three, then none.
        turnover.leave(at(50), 1, false, 50);
        turnover.leave(at(70), 3, true, 90);
        turnover.enter(at(500), 1, 91);
        turnover.leave(at(900), 1, true, 400);
        let load = turnover.load(at(900), 400);
        assert_eq!((load.places, load.ended, load.computed_tokens), (0, 3, 70));
        assert_eq!(load.held_us, (3 * 10 + 4 * 10 + 3 * 20) * 1_000);
        assert_eq!(turnover.places(), 0);
    }

    #[test]
    fn the_oldest_request_is_never_taken_to_be_older_than_it_is() {
        let mut turnover = Turnover::default();
        [0, 10, 20].into_iter().for_each(|ms| turnover.enter(at(ms), 1, 0));
        turnover.leave(at(40), 1, true, 0);
        turnover.leave(at(50), 1, false, 0);
        assert_eq!(turnover.load(at(100), 0).oldest, at(20));
        turnover.leave(at(100), 1, true, 0);
        assert_eq!(turnover.load(at(900), 0).oldest, at(900));
    }
}
