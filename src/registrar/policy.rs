//! When to register with a load balancer, and as what; pure. Time, chance and answers come from outside.
//!
//! ```text
//!             registered | exists                failed | unauthorized | refused
//! whole form ─────────────────────▶ stands ─────────────────────▶ tried again, for ever
//!     ▲ │ refused                     │ what it was told has changed: update
//!     │ ▼                             ▼
//! short form                        registered again, in case it has forgotten the node
//! ```

use std::time::Duration;

use crate::clock::Timestamp;

/// The first pause, before chance halves it at most.
const FIRST_PAUSE: Duration = Duration::from_millis(400);

/// The longest where nobody is there: with it a load balancer that comes up has the node within a second. To ask costs a packet.
const ABSENT_PAUSE: Duration = Duration::from_millis(800);

/// The shortest, and so the least between the end of one registration and the next.
const LEAST_PAUSE: Duration = Duration::from_millis(200);

/// What came of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The load balancer has taken the node up, or taken what is new of it.
    Registered,
    /// It has the node already.
    Exists,
    /// It wants another secret, or one at all.
    Unauthorized,
    /// It does not take what it was told.
    Refused,
    /// It is there, and did not answer as it should.
    Failed,
    /// There is no connection to it.
    Absent,
}

impl Outcome {
    /// Whether the load balancer has the node now.
    pub fn stands(self) -> bool {
        matches!(self, Outcome::Registered | Outcome::Exists)
    }
}

/// Which of Inferno's two forms a registration has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RegistrationForm {
    /// With action and capabilities.
    #[default]
    Whole,
    /// Id, address and port, as the first load balancers have it.
    Short,
}

/// What a load balancer is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationAction {
    /// To take the node up.
    Register,
    /// To take what is new of it.
    Update,
}

/// A registration that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistrationAttempt {
    /// How it is written.
    pub form: RegistrationForm,
    /// What it asks for.
    pub action: RegistrationAction,
}

/// What an outcome changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As before.
    Unchanged,
    /// It has the node from now on.
    Gained,
    /// It had forgotten the node, and has it again.
    Regained,
    /// It does not have the node any more, or not yet, for a reason that is new.
    Wanting,
}

/// How the node stands with one load balancer.
#[derive(Debug)]
pub struct Enrolment {
    longest: Duration,
    form: RegistrationForm,
    last: Option<Outcome>,
    /// Times that `last` came in a row, the first not counted.
    repeats: u32,
    /// What it was told and has taken; none: nothing, or what an earlier process of this id told it.
    told: Option<Vec<String>>,
    under_way: Option<UnderWay>,
    due: Timestamp,
}

#[derive(Debug)]
struct UnderWay {
    attempt: RegistrationAttempt,
    telling: Vec<String>,
    since: Timestamp,
}

impl Enrolment {
    /// With one of which nothing is known. `longest` is the longest pause.
    pub fn new(longest: Duration) -> Self {
        let (form, due) = (RegistrationForm::default(), Timestamp::default());
        Self { longest, form, last: None, repeats: 0, told: None, under_way: None, due }
    }

    /// Whether the load balancer has the node, by its last answer.
    pub fn stands(&self) -> bool {
        self.last.is_some_and(Outcome::stands)
    }

    /// No pause any longer: the node takes requests from now on.
    pub fn hurry(&mut self) {
        self.due = Timestamp::default();
        self.repeats = 0;
    }

    /// How long until the next registration is due; none while one is under way.
    pub fn wait(&self, now: Timestamp) -> Option<Duration> {
        self.under_way.is_none().then(|| self.due.since(now))
    }

    /// The registration to send now, if one is due; `capabilities` are those of the moment. Its end is to be [settled](Self::settle).
    pub fn begin(
        &mut self,
        capabilities: &[String],
        now: Timestamp,
    ) -> Option<RegistrationAttempt> {
        let is_told = self.told.as_deref() == Some(capabilities);
        let has_news = self.stands() && self.told.is_some() && !is_told;
        if self.under_way.is_some() || (now < self.due && !has_news) {
            return None;
        }
        let action = if self.stands() && !is_told {
            RegistrationAction::Update
        } else {
            RegistrationAction::Register
        };
        let attempt = RegistrationAttempt { form: self.form, action };
        self.under_way = Some(UnderWay { attempt, telling: capabilities.to_vec(), since: now });
        Some(attempt)
    }

    /// The registration under way has ended. `chance` is from 0 to below 1.
    pub fn settle(&mut self, outcome: Outcome, now: Timestamp, chance: f64) -> Standing {
        let Some(UnderWay { attempt, telling, since }) = self.under_way.take() else {
            return Standing::Unchanged;
        };
        let (stood, last) = (self.stands(), self.last.replace(outcome));
        let is_register = attempt.action == RegistrationAction::Register;
        let standing = match (stood, outcome.stands()) {
            (true, true) if is_register && outcome == Outcome::Registered => Standing::Regained,
            (true, true) => Standing::Unchanged,
            (false, true) => Standing::Gained,
            (_, false) if last == Some(outcome) => Standing::Unchanged,
            (_, false) => Standing::Wanting,
        };
        self.repeats = match outcome {
            // It may forget the node again as soon.
            Outcome::Registered if is_register => 0,
            _ if last
                .is_some_and(|last| last == outcome || (last.stands() && outcome.stands())) =>
            {
                self.repeats.saturating_add(1)
            }
            _ => 0,
        };
        self.learn(outcome, attempt, telling);
        let pause = self.pause(outcome, chance);
        // From its beginning: what waited long for an answer need not wait again.
        self.due = since.after(pause).max(now.after(LEAST_PAUSE));
        standing
    }

    /// What the load balancer knows, and which form it takes.
    fn learn(&mut self, outcome: Outcome, attempt: RegistrationAttempt, telling: Vec<String>) {
        let is_short = attempt.form == RegistrationForm::Short;
        match outcome {
            // The short form tells nothing that could change.
            Outcome::Registered => self.told = Some(telling),
            Outcome::Exists if is_short || attempt.action == RegistrationAction::Update => {
                self.told = Some(telling);
            }
            // By an earlier process, perhaps, with another address.
            Outcome::Exists => {}
            Outcome::Refused => {
                self.told = None;
                self.form = match attempt.form {
                    RegistrationForm::Whole => RegistrationForm::Short,
                    RegistrationForm::Short => RegistrationForm::Whole,
                };
            }
            Outcome::Absent => {
                // It may come back as a newer one.
                (self.told, self.form) = (None, RegistrationForm::Whole);
            }
            Outcome::Unauthorized | Outcome::Failed => self.told = None,
        }
    }

    /// Doubles with each repetition up to its limit; between half of that and all of it, so that nodes do not come all at once.
    fn pause(&self, outcome: Outcome, chance: f64) -> Duration {
        let limit = match outcome {
            Outcome::Absent => ABSENT_PAUSE.min(self.longest),
            _ => self.longest,
        };
        let whole = FIRST_PAUSE.saturating_mul(1 << self.repeats.min(8)).min(limit);
        whole.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0)).max(LEAST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Registers again and again with the same outcome, each after `takes` ms; gives the pauses between two beginnings in ms.
    fn pauses(outcome: Outcome, count: usize, takes: u64, chance: f64) -> Vec<u64> {
        let mut enrolment = Enrolment::new(LONGEST);
        let mut begun = Vec::new();
        let mut now = 0;
        while begun.len() <= count {
            if enrolment.begin(&words(&["a"]), at(now)).is_some() {
                begun.push(now);
                now += takes;
                enrolment.settle(outcome, at(now), chance);
            }
            now += 1;
        }
        begun.windows(2).map(|two| two[1] - two[0]).collect()
    }

    #[test]
    fn pauses_double_from_a_fifth_of_a_second_to_five() {
        assert_eq!(pauses(Outcome::Failed, 6, 0, 0.0), [200, 400, 800, 1600, 2500, 2500]);
        let most = pauses(Outcome::Unauthorized, 6, 0, 0.999_999);
        assert!(
            most[0] <= 400 && most.iter().all(|pause| (200..=5_000).contains(pause)),
            "{most:?}"
        );
        assert!(pauses(Outcome::Exists, 40, 0, 1.0).iter().all(|pause| *pause <= 5_000));
    }

    #[test]
    fn who_is_absent_is_found_within_a_second_however_long_it_was_away() {
        for takes in [0, 500] {
            let pauses = pauses(Outcome::Absent, 50, takes, 0.999_999);
            assert!(pauses.iter().all(|pause| (200..=801).contains(pause)), "{pauses:?}");
        }
    }

    #[test]
    fn who_does_not_answer_is_not_asked_without_a_pause() {
        let pauses = pauses(Outcome::Failed, 3, 2_000, 0.0);
        assert!(pauses.iter().all(|pause| *pause >= 2_200), "{pauses:?}");
    }

    #[test]
    fn a_load_balancer_that_exists_already_has_the_node_and_is_told_what_is_new() {
        let mut enrolment = Enrolment::new(LONGEST);
        let first = enrolment.begin(&words(&["a"]), at(0)).expect("due");
        assert_eq!(first.action, RegistrationAction::Register);
        assert_eq!(enrolment.begin(&words(&["a"]), at(9_000)), None, "one at a time");
        assert_eq!(enrolment.settle(Outcome::Exists, at(1), 0.0), Standing::Gained);
        // What it has may be an earlier process's.
        let second = enrolment.begin(&words(&["a"]), at(6_000)).expect("due");
        assert_eq!(second.action, RegistrationAction::Update);
        assert_eq!(enrolment.settle(Outcome::Exists, at(6_001), 0.0), Standing::Unchanged);
        let third = enrolment.begin(&words(&["a"]), at(12_000)).expect("due");
        assert_eq!(third.action, RegistrationAction::Register);
        assert!(enrolment.stands());
    }

    #[test]
    fn capabilities_that_change_are_told_at_once() {
        let mut enrolment = Enrolment::new(LONGEST);
        enrolment.begin(&words(&["a"]), at(0)).expect("due");
        enrolment.settle(Outcome::Registered, at(1), 0.0);
        assert_eq!(enrolment.begin(&words(&["a"]), at(2)), None);
        let news = enrolment.begin(&words(&["a", "b"]), at(3)).expect("news");
        assert_eq!(news.action, RegistrationAction::Update);
        assert_eq!(enrolment.settle(Outcome::Registered, at(4), 0.0), Standing::Unchanged);
        assert_eq!(enrolment.begin(&words(&["a", "b"]), at(5)), None);
    }

    #[test]
    fn one_that_forgets_has_the_node_again_and_soon_a_second_time() {
        let mut enrolment = Enrolment::new(LONGEST);
        let mut now = 0;
        let mut take = |outcome| {
            while enrolment.begin(&words(&["a"]), at(now)).is_none() {
                now += 1;
            }
            (enrolment.settle(outcome, at(now), 0.0), now)
        };
        assert_eq!(take(Outcome::Registered).0, Standing::Gained);
        for _ in 0..6 {
            assert_eq!(take(Outcome::Exists).0, Standing::Unchanged);
        }
        let (standing, then) = take(Outcome::Registered);
        assert_eq!(standing, Standing::Regained);
        assert_eq!(take(Outcome::Exists).1 - then, 200);
    }

    #[test]
    fn a_form_that_is_refused_gives_way_to_the_other() {
        let mut enrolment = Enrolment::new(LONGEST);
        let mut forms = Vec::new();
        for (ms, outcome) in [
            (0, Outcome::Refused),
            (10_000, Outcome::Registered),
            (20_000, Outcome::Exists),
            (30_000, Outcome::Absent),
            (40_000, Outcome::Registered),
        ] {
            forms.push(enrolment.begin(&words(&["a"]), at(ms)).expect("due").form);
            enrolment.settle(outcome, at(ms), 0.0);
        }
        use RegistrationForm::{Short, Whole};
        assert_eq!(forms, [Whole, Short, Short, Short, Whole]);
    }

    #[test]
    fn only_a_reason_that_is_new_is_said() {
        let mut enrolment = Enrolment::new(LONGEST);
        let outcomes = [
            (Outcome::Absent, Standing::Wanting),
            (Outcome::Absent, Standing::Unchanged),
            (Outcome::Unauthorized, Standing::Wanting),
            (Outcome::Unauthorized, Standing::Unchanged),
            (Outcome::Registered, Standing::Gained),
            (Outcome::Failed, Standing::Wanting),
            (Outcome::Exists, Standing::Gained),
        ];
        for (turn, (outcome, expected)) in (0..).zip(outcomes) {
            enrolment.begin(&words(&["a"]), at(turn * 10_000)).expect("due");
            assert_eq!(enrolment.settle(outcome, at(turn * 10_000), 0.5), expected, "{outcome:?}");
        }
    }

    #[test]
    fn a_node_that_takes_requests_again_does_not_wait() {
        let mut enrolment = Enrolment::new(LONGEST);
        enrolment.begin(&words(&["a"]), at(0)).expect("due");
        enrolment.settle(Outcome::Failed, at(1), 0.0);
        assert_eq!(enrolment.begin(&words(&["a"]), at(2)), None);
        assert_eq!(enrolment.wait(at(2)), Some(Duration::from_millis(199)));
        enrolment.hurry();
        assert_eq!(enrolment.wait(at(2)), Some(Duration::ZERO));
        assert!(enrolment.begin(&words(&["a"]), at(2)).is_some());
    }
}
