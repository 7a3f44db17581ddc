//! When a client that is refused for load is to come back: when a place will be free for it, those refused before it counted.
//!
//! A queue without members: each refusal takes the next turn of one line, at the rate at which places become free, so the crowd that
//! was refused at once does not come back at once. Who comes on its turn finds a place, unless others took it meanwhile; clients
//! that have few tries (OpenAI's has two more) need that.

use std::collections::VecDeque;
use std::time::Duration;

use super::turnover::NodeLoad;
use crate::clock::Timestamp;

/// The load is measured over this: long enough to even out bursts, short enough to follow a change. After as long without a
/// refusal it is measured anew, because what an unhurried node did says little of a full one.
const WINDOW: Duration = Duration::from_secs(10);

/// Loads closer together than this say nothing new; the window holds 40.
const SPACING: Duration = Duration::from_millis(250);

/// A client is never asked to wait longer: by then the load is another, and clients honour no more (OpenAI's: 60 s, since 2026 120).
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Nor shorter: a turn taken too early costs a try.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// Ends from which on their rate is better known than by the tokens.
const ENOUGH_ENDS: u64 = 8;

/// Turns to come, at most; 8 bytes each. Who is refused beyond gets none.
const MAX_TURNS: usize = 65_536;

/// How much longer than measured a place is taken to be held. A place that stays free a moment costs less than a client that comes
/// a moment early: simulated clients with two retries are all served with 1.25, of 40 up to 4 are not with 1.
const CAUTION: f64 = 1.25;

/// The turns that were given, and what they are computed from.
#[derive(Debug, Default)]
pub(super) struct ReturnTimes {
    loads: VecDeque<NodeLoad>,
    /// How long a place was held in the node when it was last full, in microseconds.
    known_hold_us: Option<f64>,
    /// The turns to come, in their order.
    turns: VecDeque<Timestamp>,
    /// Refusals without a turn, so far.
    aside: u64,
}

impl ReturnTimes {
    /// When `places` more will be free, in milliseconds from now; `unknown_ms` is how long a place is taken to be held before
    /// anything is known.
    pub(super) fn place(&mut self, load: NodeLoad, places: usize, unknown_ms: u64) -> u64 {
        let hold_us = CAUTION * self.hold_us(load).unwrap_or(unknown_ms as f64 * 1e3);
        let first_free = load.oldest.after(micros(hold_us)).since(load.at);
        let step = hold_us * places as f64 / load.places.max(1) as f64;
        self.turn(load.at, first_free, micros(step))
    }

    /// When `tokens` more may wait, of which `excess` are too many now, in milliseconds from now; `unknown_ms` before anything is known.
    pub(super) fn room(
        &mut self,
        load: NodeLoad,
        (tokens, excess): (u64, u64),
        unknown_ms: u64,
    ) -> u64 {
        self.observe(load);
        let places = load.places.max(1);
        let (first, step) = match self.us_per_token(load) {
            Some(us) => {
                let lasts = |count: u64| micros(CAUTION * us * count as f64 / places as f64);
                (lasts(excess), lasts(tokens))
            }
            None => (Duration::ZERO, micros(unknown_ms as f64 * 1e3 / places as f64)),
        };
        self.turn(load.at, first, step)
    }

    /// Where nobody knows when that will be: between `base_ms` and twice as much.
    pub(super) fn apart(&mut self, base_ms: u64) -> u64 {
        let base = Duration::from_millis(base_ms).clamp(MIN_WAIT, MAX_WAIT / 2);
        millis(base + self.fraction_of(base))
    }

    /// The next turn where the first place is free in `first`, and then one in each `step`.
    fn turn(&mut self, now: Timestamp, first: Duration, step: Duration) -> u64 {
        let passed = self.turns.partition_point(|turn| *turn <= now);
        self.turns.drain(..passed);
        // Turns that were given before so much was known may lie before the first free place, and closer than places become free.
        let first_free = now.after(first);
        let ahead = self.turns.len() - self.turns.partition_point(|turn| *turn < first_free);
        let free = first_free.after(step.saturating_mul(ahead as u32));
        let behind = self.turns.back().map_or(now, |last| last.after(step));
        let due = free.max(behind).max(now.after(MIN_WAIT));
        if due.since(now) > MAX_WAIT || self.turns.len() >= MAX_TURNS {
            // Beyond what can be said; not all at its end.
            return millis(MAX_WAIT - self.fraction_of(MAX_WAIT / 4));
        }
        self.turns.push_back(due);
        millis(due.since(now))
    }

    /// Another part of `whole` each time, evenly spread however many there are: multiples of the golden section.
    fn fraction_of(&mut self, whole: Duration) -> Duration {
        let thousandths = (self.aside.wrapping_mul(618) % 1_000) as u32;
        self.aside += 1;
        whole * thousandths / 1_000
    }

    /// How long a place is held, in microseconds; none while there is too little to say.
    fn hold_us(&mut self, load: NodeLoad) -> Option<f64> {
        self.observe(load);
        let before = self.loads.front()?;
        let ended = load.ended - before.ended;
        // Of many places the first few ends are those of the shortest requests.
        if ended >= ENOUGH_ENDS.max(load.places / 8) {
            self.known_hold_us = Some((load.held_us - before.held_us) as f64 / ended as f64);
            return self.known_hold_us;
        }
        let by_tokens = self.us_per_token(load).map(|us| us * load.mean_tokens as f64);
        // Of those that have just come in nothing may be counted yet.
        by_tokens.filter(|hold_us| *hold_us > 0.0).or(self.known_hold_us)
    }

    /// Place-time that a token takes, in microseconds; none while there is too little to say.
    fn us_per_token(&self, load: NodeLoad) -> Option<f64> {
        let before = self.loads.front().filter(|before| load.at.since(before.at) >= SPACING)?;
        let tokens = load.computed_tokens - before.computed_tokens;
        (tokens > 0).then(|| (load.held_us - before.held_us) as f64 / tokens as f64)
    }

    fn observe(&mut self, load: NodeLoad) {
        while self.loads.front().is_some_and(|before| load.at.since(before.at) > WINDOW) {
            self.loads.pop_front();
        }
        if self.loads.back().is_none_or(|last| load.at.since(last.at) >= SPACING) {
            self.loads.push_back(load);
        }
    }
}

fn micros(us: f64) -> Duration {
    // A cast of a float goes to the nearest number that there is.
    Duration::from_micros(us.ceil() as u64)
}

fn millis(duration: Duration) -> u64 {
    duration.as_micros().div_ceil(1_000) as u64
}

#[cfg(test)]
#[path = "return_times_tests.rs"]
mod tests;
