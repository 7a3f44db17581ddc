//! Requests whose last start ended without a token: one of them may be why.
//!
//! After one such start a node claims few of them together: one, and twice as many as before each time that one has got a token, as
//! TCP's slow start does (RFC 5681). After two it claims each alone. So a request that kills its node does so three times at most, and
//! takes no other down with it three times: those that wait are unclaimed, and nothing counts against them.

use std::collections::{BTreeMap, VecDeque};

/// Those that are claimed together, at most.
const MAX_TOGETHER: usize = 256;

/// How much is held against a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Its last start was fruitless.
    Some,
    /// The one before, too.
    Grave,
}

impl Suspicion {
    /// After so many starts in a row that stored no new token; there is none after none.
    pub fn after(fruitless: u32) -> Option<Self> {
        match fruitless {
            0 => None,
            1 => Some(Self::Some),
            _ => Some(Self::Grave),
        }
    }
}

/// Those of one node; `T` is what is known of a job that waits.
#[derive(Debug)]
pub struct Suspects<T> {
    /// The numbers of those that are claimed.
    claimed: BTreeMap<u64, Suspicion>,
    /// How many may be claimed together.
    together: usize,
    waiting: VecDeque<(Suspicion, T)>,
}

impl<T> Default for Suspects<T> {
    fn default() -> Self {
        Self { claimed: BTreeMap::new(), together: 1, waiting: VecDeque::new() }
    }
}

impl<T> Suspects<T> {
    /// Whether one may be claimed now.
    pub fn may_claim(&self, suspicion: Suspicion) -> bool {
        match suspicion {
            Suspicion::Grave => self.claimed.is_empty(),
            Suspicion::Some => {
                self.claimed.len() < self.together
                    && self.claimed.values().all(|other| *other == Suspicion::Some)
            }
        }
    }

    /// One is claimed, under this number.
    pub fn claimed(&mut self, number: u64, suspicion: Suspicion) {
        self.claimed.insert(number, suspicion);
    }

    /// One waits for its turn.
    pub fn wait(&mut self, suspicion: Suspicion, job: T) {
        self.waiting.push_back((suspicion, job));
    }

    /// The one of this number has got a token, or is the node's no more.
    pub fn cleared(&mut self, number: u64) {
        if self.claimed.remove(&number).is_some() {
            self.together = (2 * self.together).min(MAX_TOGETHER);
        }
    }

    /// Who is to be claimed next, if one may be.
    pub fn take_next(&mut self) -> Option<T> {
        let (suspicion, _) = self.waiting.front()?;
        self.may_claim(*suspicion).then(|| self.waiting.pop_front().map(|(_, job)| job))?
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, job)| job)
    }

    /// The same, to be changed.
    pub fn waiting_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().map(|(_, job)| job)
    }

    /// Lets go of all that wait.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..).map(|(_, job)| job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_of_one_fall_twice_as_many_are_claimed_with_each_that_is_cleared() {
        let mut suspects = Suspects::default();
        assert!(suspects.may_claim(Suspicion::Some));
        suspects.claimed(1, Suspicion::Some);
        for job in 'b'..='g' {
            suspects.wait(Suspicion::Some, job);
        }
        suspects.cleared(9);
        assert_eq!(suspects.take_next(), None, "it was none of them");
        suspects.cleared(1);
        for (number, job) in [(2, 'b'), (3, 'c')] {
            assert_eq!(suspects.take_next(), Some(job));
            suspects.claimed(number, Suspicion::Some);
        }
        assert_eq!(suspects.take_next(), None);
        suspects.cleared(3);
        assert_eq!([suspects.take_next(), suspects.take_next()], [Some('d'), Some('e')]);
    }

    #[test]
    fn one_of_two_falls_is_alone_among_them_and_none_goes_before_its_turn() {
        let mut suspects = Suspects::default();
        suspects.claimed(1, Suspicion::Some);
        suspects.cleared(1);
        suspects.claimed(2, Suspicion::Some);
        suspects.wait(Suspicion::Grave, 'b');
        suspects.wait(Suspicion::Some, 'c');
        assert_eq!(suspects.take_next(), None, "another runs");
        suspects.cleared(2);
        assert_eq!(suspects.take_next(), Some('b'));
        suspects.claimed(3, Suspicion::Grave);
        assert_eq!(suspects.take_next(), None, "it is alone");
        suspects.cleared(3);
        assert_eq!(suspects.take_next(), Some('c'));
    }

    #[test]
    fn suspicion_grows_with_each_fruitless_start() {
        let all = [None, Some(Suspicion::Some), Some(Suspicion::Grave), Some(Suspicion::Grave)];
        assert_eq!([0, 1, 2, 3].map(Suspicion::after), all);
    }
}
