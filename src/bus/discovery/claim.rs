//! Whether a node may write under its id, or another one that lives has it; pure.
//!
//! A node writes only over what it has seen: its own last entry, nothing, or what a dead node left. NATS holds that
//! (`Nats-Expected-Last-Subject-Sequence`), so of two nodes that write at once one is told, and looks again.
//!
//! Whether the owner of an entry lives is seen by watching it for [`STALE_AFTER`]: a live node writes each second. No clock but this
//! node's own is asked. What the entry says of its age is the other machine's word, and a clock that is wrong by some seconds would
//! let two nodes run under one id, or keep a crashed one from coming back. The price is a start that waits three seconds after a
//! crash, and only then: a node that drains takes its entry back, and NATS removes one that is ten seconds old, by the clock that
//! stamped it.

use std::time::Duration;

use super::STALE_AFTER;
use super::entry::NodeEntry;
use crate::clock::Timestamp;

/// How often an entry is looked at that may be a dead node's.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What stands under the key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeyFound {
    /// What a writer has to name; 0: there is nothing.
    pub revision: u64,
    /// None where it was taken back, or is no entry.
    pub entry: Option<NodeEntry>,
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// See what stands under the key.
    Look,
    /// The same, after this time.
    LookIn(Duration),
    /// Write over this revision.
    Write(u64),
    /// The id is another's, who lives.
    Yield(Box<NodeEntry>),
}

#[derive(Debug)]
enum ClaimState {
    /// What stands there is not known.
    Unknown,
    /// Another's entry is watched.
    Watches { revision: u64, since: Timestamp },
    /// The last entry is this node's own.
    Held { revision: u64 },
}

/// See the module.
#[derive(Debug)]
pub(super) struct IdClaim {
    life: String,
    state: ClaimState,
}

impl IdClaim {
    /// Of a process that calls itself `life`.
    pub fn new(life: String) -> Self {
        Self { life, state: ClaimState::Unknown }
    }

    /// What a heartbeat begins with.
    pub fn next(&self) -> ClaimStep {
        match self.state {
            ClaimState::Held { revision } => ClaimStep::Write(revision),
            ClaimState::Unknown | ClaimState::Watches { .. } => ClaimStep::Look,
        }
    }

    /// The revision of this node's own entry, if it is the last.
    pub fn held(&self) -> Option<u64> {
        match self.state {
            ClaimState::Held { revision } => Some(revision),
            ClaimState::Unknown | ClaimState::Watches { .. } => None,
        }
    }

    /// What stands under the key is this.
    pub fn found(&mut self, found: KeyFound, now: Timestamp) -> ClaimStep {
        let KeyFound { revision, entry } = found;
        let Some(other) = entry.filter(|entry| entry.life != self.life) else {
            return ClaimStep::Write(revision);
        };
        match self.state {
            ClaimState::Watches { revision: before, .. } if before != revision => {
                ClaimStep::Yield(Box::new(other))
            }
            ClaimState::Watches { since, .. } if now.since(since) >= STALE_AFTER => {
                ClaimStep::Write(revision)
            }
            ClaimState::Watches { .. } => ClaimStep::LookIn(LOOK_AGAIN),
            ClaimState::Unknown | ClaimState::Held { .. } => {
                self.state = ClaimState::Watches { revision, since: now };
                ClaimStep::LookIn(LOOK_AGAIN)
            }
        }
    }

    /// The entry was written.
    pub fn written(&mut self, revision: u64) {
        self.state = ClaimState::Held { revision };
    }

    /// Somebody wrote in between, or NATS did not answer: what stands there is not known, and who was watched may have been unable
    /// to write.
    pub fn lost(&mut self) {
        self.state = ClaimState::Unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn found(revision: u64, life: &str) -> KeyFound {
        KeyFound { revision, entry: Some(entry("n", life)) }
    }

    fn claim() -> IdClaim {
        IdClaim::new("mine".to_owned())
    }

    #[test]
    fn an_id_that_nobody_has_is_taken_at_once() {
        for revision in [0, 7] {
            let mut claim = claim();
            assert_eq!(claim.next(), ClaimStep::Look);
            let nothing = KeyFound { revision, entry: None };
            assert_eq!(claim.found(nothing, at(0)), ClaimStep::Write(revision));
            claim.written(revision + 1);
            assert_eq!(
                (claim.next(), claim.held()),
                (ClaimStep::Write(revision + 1), Some(revision + 1))
            );
        }
    }

    #[test]
    fn what_a_crashed_node_left_is_written_over_when_it_was_silent_for_three_seconds() {
        let mut claim = claim();
        for ms in [0, 1_000, 2_999] {
            assert_eq!(
                claim.found(found(4, "dead"), at(ms)),
                ClaimStep::LookIn(LOOK_AGAIN),
                "{ms}"
            );
        }
        assert_eq!(claim.found(found(4, "dead"), at(3_000)), ClaimStep::Write(4));
    }

    #[test]
    fn an_id_whose_owner_writes_is_the_owners() {
        let mut claim = claim();
        claim.found(found(4, "other"), at(0));
        let step = claim.found(found(5, "other"), at(900));
        assert!(matches!(step, ClaimStep::Yield(other) if other.life == "other"));
    }

    #[test]
    fn of_two_that_start_at_once_after_a_crash_the_first_writer_has_the_id() {
        let mut claim = claim();
        claim.found(found(4, "dead"), at(0));
        assert_eq!(claim.found(found(4, "dead"), at(3_000)), ClaimStep::Write(4));
        claim.lost();
        assert_eq!(claim.next(), ClaimStep::Look);
        claim.found(found(5, "twin"), at(3_100));
        assert!(matches!(claim.found(found(6, "twin"), at(4_100)), ClaimStep::Yield(_)));
    }

    #[test]
    fn who_leaves_while_it_is_watched_leaves_the_id() {
        let mut claim = claim();
        claim.found(found(4, "other"), at(0));
        let taken_back = KeyFound { revision: 5, entry: None };
        assert_eq!(claim.found(taken_back, at(900)), ClaimStep::Write(5));
    }

    #[test]
    fn an_own_entry_of_which_nothing_was_heard_is_written_over() {
        let mut claim = claim();
        claim.written(3);
        claim.lost();
        assert_eq!((claim.next(), claim.held()), (ClaimStep::Look, None));
        assert_eq!(claim.found(found(4, "mine"), at(0)), ClaimStep::Write(4));
    }

    #[test]
    fn silence_while_nats_was_away_does_not_count() {
        let mut claim = claim();
        claim.found(found(4, "other"), at(0));
        claim.lost();
        assert_eq!(claim.found(found(4, "other"), at(9_000)), ClaimStep::LookIn(LOOK_AGAIN));
    }
}
