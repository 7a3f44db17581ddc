//! A node of some places between clients that come back when they are told, with two retries each; seeded.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::turnover::Turnover;
use super::*;

const UNKNOWN_MS: u64 = 1_000;

fn at(ms: u64) -> Timestamp {
    Timestamp::from_micros(ms * 1_000)
}

/// A full node of eight places whose requests came in at 0 and have 300 tokens each.
fn full(ms: u64) -> NodeLoad {
    let held_us = 8 * ms * 1_000;
    NodeLoad {
        at: at(ms),
        places: 8,
        held_us,
        mean_tokens: 300,
        oldest: at(0),
        ..NodeLoad::default()
    }
}

/// What is computed, for how long, and by how many at once.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    clients: usize,
    places: usize,
    /// Of the places, those that are computed; the others wait.
    seats: usize,
    service_ms: u64,
    /// How far a request's own time may be from that, in percent.
    spread: u64,
    /// `max_tokens` is so many times what is sampled.
    promise: u64,
    /// The time of a request that is computed alone, in percent of one among all the others.
    alone: u64,
}

const CROWD: Crowd = Crowd {
    clients: 40,
    places: 8,
    seats: 8,
    service_ms: 1_000,
    spread: 0,
    promise: 1,
    alone: 100,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ends(usize),
    /// A client's try: so many have failed.
    Tries(usize, u32),
}

struct World {
    crowd: Crowd,
    random: StdRng,
    now: Timestamp,
    events: BinaryHeap<Reverse<(Timestamp, u64, What)>>,
    next: u64,
    turnover: Turnover,
    returns: ReturnTimes,
    /// With begin and length.
    running: BTreeMap<usize, (Timestamp, Duration)>,
    waiting: Vec<usize>,
    tokens_ended: f64,
    answered: usize,
}

impl World {
    fn new(crowd: Crowd, seed: u64) -> Self {
        let mut world = Self {
            crowd,
            random: StdRng::seed_from_u64(seed),
            now: Timestamp::default(),
            events: BinaryHeap::new(),
            next: 0,
            turnover: Turnover::default(),
            returns: ReturnTimes::default(),
            running: BTreeMap::new(),
            waiting: Vec::new(),
            tokens_ended: 0.0,
            answered: 0,
        };
        world.crowd_comes();
        world
    }

    fn crowd_comes(&mut self) {
        (0..self.crowd.clients).for_each(|client| self.comes(0, client, 0));
    }

    fn push(&mut self, after: Duration, what: What) {
        self.next += 1;
        self.events.push(Reverse((self.now.after(after), self.next, what)));
    }

    /// Within 20 ms after that time, as threads and sockets are.
    fn comes(&mut self, after_ms: u64, client: usize, tries: u32) {
        let late = self.random.random_range(0..20_000);
        let after = Duration::from_millis(after_ms) + Duration::from_micros(late);
        self.push(after, What::Tries(client, tries));
    }

    fn take_seats(&mut self) {
        while self.running.len() < self.crowd.seats && !self.waiting.is_empty() {
            let client = self.waiting.remove(0);
            let Crowd { service_ms, seats, alone, spread, .. } = self.crowd;
            let (others, all) = (self.running.len() as u64, (seats as u64 - 1).max(1));
            let service_ms = service_ms * (alone * all + (100 - alone) * others) / (100 * all);
            let spread = service_ms * spread / 100;
            let least = service_ms - spread;
            let takes = Duration::from_millis(self.random.random_range(least..=least + 2 * spread));
            self.running.insert(client, (self.now, takes));
            self.push(takes, What::Ends(client));
        }
    }

    fn tokens_done(&self) -> u64 {
        let of = |(begun, takes): &(Timestamp, Duration)| {
            self.now.since(*begun).min(*takes).as_secs_f64() * 100.0
        };
        (self.tokens_ended + self.running.values().map(of).sum::<f64>()) as u64
    }

    fn load(&mut self) -> NodeLoad {
        let mean = self.crowd.service_ms / 10 * self.crowd.promise;
        NodeLoad { mean_tokens: mean, ..self.turnover.load(self.now, self.tokens_done()) }
    }

    /// How many are answered at last.
    fn run(&mut self) -> usize {
        self.answered = 0;
        while let Some(Reverse((now, _, what))) = self.events.pop() {
            self.now = now;
            match what {
                What::Ends(client) => {
                    let (_, takes) = self.running.remove(&client).expect("it runs");
                    self.tokens_ended += takes.as_secs_f64() * 100.0;
                    self.turnover.leave(now, 1, true, self.tokens_done());
                    self.answered += 1;
                }
                What::Tries(client, _) if self.turnover.places() < self.crowd.places => {
                    self.turnover.enter(now, 1, self.tokens_done());
                    self.waiting.push(client);
                }
                What::Tries(client, tries) => {
                    let load = self.load();
                    let ms = self.returns.place(load, 1, UNKNOWN_MS);
                    assert!((1_000..=60_000).contains(&ms), "{ms}");
                    if tries < 2 {
                        self.comes(ms, client, tries + 1);
                    }
                }
            }
            self.take_seats();
        }
        self.answered
    }
}

/// The fewest that are answered over a hundred seeds.
fn fewest(crowd: Crowd) -> usize {
    let runs = (0..100).map(|seed| World::new(crowd, seed).run());
    runs.min().expect("a hundred")
}

#[test]
fn of_40_clients_with_two_retries_on_8_places_at_least_38_are_answered_however_fast_the_node_is() {
    for service_ms in [30, 100, 300, 600, 1_000, 2_000, 4_000, 6_000, 9_000] {
        let crowd = Crowd { service_ms, ..CROWD };
        assert!(fewest(crowd) >= 38, "{crowd:?}: {}", fewest(crowd));
    }
}

#[test]
fn and_whatever_requests_differ_in_wait_for_or_promise() {
    for crowd in [
        Crowd { service_ms: 600, spread: 50, ..CROWD },
        Crowd { service_ms: 1_000, spread: 50, ..CROWD },
        Crowd { service_ms: 600, seats: 4, ..CROWD },
        Crowd { service_ms: 3_000, seats: 4, ..CROWD },
        Crowd { service_ms: 400, seats: 1, ..CROWD },
        Crowd { service_ms: 3_000, spread: 50, promise: 3, ..CROWD },
    ] {
        assert!(fewest(crowd) >= 38, "{crowd:?}: {}", fewest(crowd));
    }
}

#[test]
fn a_crowd_that_comes_when_the_last_of_another_were_done_quickly_is_answered_too() {
    for (service_ms, alone) in [(300, 25), (600, 20), (1_000, 30), (2_000, 20)] {
        let crowd = Crowd { service_ms, alone, spread: 30, ..CROWD };
        for seed in 0..100 {
            let mut world = World::new(crowd, seed);
            for time in ["first", "second", "third"] {
                let answered = world.run();
                assert!(answered >= 38, "{crowd:?}, {seed}, {time}: {answered}");
                world.crowd_comes();
            }
        }
    }
}

#[test]
fn of_many_clients_on_many_places_95_in_100_are_answered() {
    for crowd in [
        Crowd { clients: 200, ..CROWD },
        Crowd { clients: 400, places: 64, seats: 16, ..CROWD },
        Crowd { clients: 2_000, places: 256, seats: 256, ..CROWD },
    ] {
        let least = crowd.clients * 95 / 100;
        let answered = (0..3).map(|seed| World::new(crowd, seed).run()).min().expect("three");
        assert!(answered >= least, "{crowd:?}: {answered}");
    }
}

#[test]
fn those_who_are_refused_at_once_are_told_different_times_a_place_apart() {
    let mut returns = ReturnTimes::default();
    let times: Vec<u64> = (0..32).map(|_| returns.place(full(0), 1, UNKNOWN_MS)).collect();
    // Nothing is known, so eight places are taken to be held for a second, and a quarter more.
    assert_eq!(times[..3], [1_250, 1_407, 1_563]);
    assert!(times.is_sorted() && times[31] == 1_250 + 31 * 1_250 / 8 + 1, "{times:?}");
}

#[test]
fn the_time_follows_what_was_measured_by_tokens_first_and_then_by_ends() {
    let mut returns = ReturnTimes::default();
    returns.place(full(0), 1, UNKNOWN_MS);
    // 300 of 2,400 tokens in 0.5 s: the first end is at 4 s, by caution 5 s.
    let load = NodeLoad { computed_tokens: 300, ..full(500) };
    assert_eq!(returns.place(load, 1, UNKNOWN_MS), 4_500);
    // After sixteen ends in two seconds of eight places a place is held for one second.
    let load = NodeLoad { ended: 16, computed_tokens: 1_200, oldest: at(1_900), ..full(2_000) };
    let mut fresh = ReturnTimes { loads: returns.loads, ..ReturnTimes::default() };
    assert_eq!(fresh.place(load, 1, UNKNOWN_MS), 1_150);
    assert_eq!(fresh.place(load, 4, UNKNOWN_MS), 1_150 + 4 * 1_250 / 8);
    // Of requests that have just come in no token is counted yet: what is known of the last ones holds.
    let next = NodeLoad { at: at(2_500), mean_tokens: 0, oldest: at(2_500), ..load };
    let mut again =
        ReturnTimes { loads: [load].into(), known_hold_us: Some(1e6), ..ReturnTimes::default() };
    let next = NodeLoad { computed_tokens: 1_300, ..next };
    assert_eq!(again.place(next, 1, UNKNOWN_MS), 1_250);
    // A full node again an hour later: nothing is measured yet, but how long a place was held is known.
    let later = full(3_600_000);
    let load = NodeLoad { oldest: later.at, ended: 16, computed_tokens: 1_200, ..later };
    assert_eq!(fresh.place(load, 1, 9_000), 1_250);
}

#[test]
fn room_for_tokens_is_reckoned_by_the_tokens_of_a_second() {
    let mut returns = ReturnTimes::default();
    assert_eq!(returns.room(full(0), (100, 50), UNKNOWN_MS), 1_000);
    let load = NodeLoad { computed_tokens: 1_000, ..full(1_000) };
    assert_eq!(returns.room(load, (100, 4_000), UNKNOWN_MS), 5_000);
    assert_eq!(returns.room(load, (800, 0), UNKNOWN_MS), 6_000, "behind the one before");
}

#[test]
fn beyond_a_minute_the_times_lie_in_its_last_quarter_and_the_line_gets_no_longer() {
    let mut returns = ReturnTimes::default();
    let times: Vec<u64> = (0..10_000).map(|_| returns.place(full(0), 1, 60_000)).collect();
    assert!(times.iter().all(|ms| (45_000..=60_000).contains(ms)), "{times:?}");
    let different: std::collections::BTreeSet<_> = times.iter().collect();
    assert!(different.len() >= 500, "{}", different.len());
    let later = NodeLoad { at: at(120_000), oldest: at(119_000), ..full(120_000) };
    assert!(returns.place(later, 1, UNKNOWN_MS) < 2_000);
}

#[test]
fn where_nobody_knows_the_times_lie_between_once_and_twice_what_is_configured() {
    let mut returns = ReturnTimes::default();
    let times: Vec<u64> = (0..100).map(|_| returns.apart(2_000)).collect();
    assert_eq!(times[..3], [2_000, 3_236, 2_472]);
    assert!(times.iter().all(|ms| (2_000..4_000).contains(ms)));
    assert!((1_000..2_000).contains(&returns.apart(1)), "never sooner than in a second");
}
