//! Jobs that stand in the queue and are nobody's: which of them to remove, and which to publish again.
//!
//! What the server knows of who has which job is stored apart from the jobs. When it is killed, the two may come back at odds: jobs
//! that were acknowledged stand there again, and jobs that were given out are given to nobody any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::join::StoredRecord;

/// What is to become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Its request has ended: take it out of the queue.
    Remove,
    /// Its request does not go on: publish it again, if nobody says that he runs it, and remove this one.
    PublishAgain,
}

/// How far a job's request has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogProgress {
    /// Place of the last record of its log; 0: there is none.
    pub last: u64,
    /// Whether that is its end.
    pub has_ended: bool,
}

impl LogProgress {
    /// By the last record of its log, if there is one.
    pub fn of(last: Option<&StoredRecord>) -> Self {
        last.map_or_else(Self::default, |stored| Self {
            last: stored.sequence,
            has_ended: stored.record.is_last(),
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    progress: LogProgress,
    since: Duration,
    round: u64,
}

/// What a node has seen of jobs that were given out: a job is a stray when nothing becomes of it for longer than the server takes to
/// give it to somebody else.
#[derive(Debug)]
pub struct Strays {
    patience: Duration,
    seen: BTreeMap<u64, Sighting>,
    round: u64,
}

impl Strays {
    /// With the server's `ack_wait`: in three of them it would have given out the job twice.
    pub fn new(ack_wait: Duration) -> Self {
        Self { patience: 3 * ack_wait, seen: BTreeMap::new(), round: 0 }
    }

    /// Looks at the job with this place in the queue. `now` is time since any moment.
    pub fn look(&mut self, now: Duration, job: u64, progress: LogProgress) -> Option<Remedy> {
        let new = Sighting { progress, since: now, round: self.round };
        let seen = self.seen.entry(job).or_insert(new);
        if seen.progress != progress {
            *seen = new;
        }
        seen.round = self.round;
        if now.saturating_sub(seen.since) < self.patience {
            return None;
        }
        seen.since = now;
        Some(if progress.has_ended { Remedy::Remove } else { Remedy::PublishAgain })
    }

    /// All that there are were looked at: those that were not are gone.
    pub fn seen_all(&mut self) {
        let round = self.round;
        self.seen.retain(|_, seen| seen.round == round);
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: LogProgress = LogProgress { last: 7, has_ended: true };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_has_ended_for_long_is_removed_and_what_does_not_go_on_is_published_again() {
        let mut strays = Strays::new(at(6));
        let waits = LogProgress::default();
        assert_eq!(strays.look(at(0), 1, ENDED), None);
        assert_eq!(strays.look(at(0), 2, waits), None);
        strays.seen_all();
        assert_eq!(strays.look(at(17), 1, ENDED), None);
        assert_eq!(strays.look(at(18), 1, ENDED), Some(Remedy::Remove));
        assert_eq!(strays.look(at(18), 2, waits), Some(Remedy::PublishAgain));
        assert_eq!(strays.look(at(19), 2, waits), None, "that takes its time");
        assert_eq!(strays.look(at(36), 2, waits), Some(Remedy::PublishAgain));
    }

    #[test]
    fn what_goes_on_is_left_alone() {
        let mut strays = Strays::new(at(6));
        for second in 0..60 {
            let progress = LogProgress { last: second / 17, has_ended: false };
            assert_eq!(strays.look(at(second), 1, progress), None, "{second}");
            strays.seen_all();
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut strays = Strays::new(at(1));
        assert_eq!(strays.look(at(0), 1, ENDED), None);
        strays.seen_all();
        strays.seen_all();
        assert_eq!(strays.look(at(9), 1, ENDED), None, "another with the same place");
        assert_eq!(strays.seen.len(), 1);
    }
}
