//! Requests whose last start ended without a token: one of them may be why.
//!
//! A node claims one of them at a time, and the next when that one has got a token. So a request that kills its node takes no
//! other down with it that has been in such a fall before: those wait unclaimed, and nothing counts against them.

use std::collections::VecDeque;

/// Those of one node; `T` is what is known of a job that waits.
#[derive(Debug)]
pub struct Suspects<T> {
    /// The number of the one that is claimed.
    current: Option<u64>,
    waiting: VecDeque<T>,
}

impl<T> Default for Suspects<T> {
    fn default() -> Self {
        Self { current: None, waiting: VecDeque::new() }
    }
}

impl<T> Suspects<T> {
    /// Whether one may be claimed now.
    pub fn may_claim(&self) -> bool {
        self.current.is_none()
    }

    /// One is claimed, under this number.
    pub fn claimed(&mut self, number: u64) {
        self.current = Some(number);
    }

    /// One waits for its turn.
    pub fn wait(&mut self, job: T) {
        self.waiting.push_back(job);
    }

    /// The one of this number has got a token, or is the node's no more. Gives who is to be claimed next, if it was a suspect.
    pub fn cleared(&mut self, number: u64) -> Option<T> {
        self.current.take_if(|current| *current == number)?;
        self.waiting.pop_front()
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter()
    }

    /// Lets go of all that wait.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_claimed_at_a_time_in_the_order_in_which_they_came() {
        let mut suspects = Suspects::default();
        assert!(suspects.may_claim());
        suspects.claimed(1);
        suspects.wait('b');
        suspects.wait('c');
        assert!(!suspects.may_claim());
        assert_eq!(suspects.cleared(9), None, "none of them");
        assert_eq!(suspects.cleared(1), Some('b'));
        suspects.claimed(2);
        assert_eq!(suspects.cleared(2), Some('c'));
        assert_eq!(suspects.cleared(2), None, "once");
    }
}
