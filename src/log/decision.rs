//! What a node does with a request that the queue gives it.

use super::history::History;

/// Attempts in a row that stored no new token, after which a request is not tried any more.
pub const MAX_FRUITLESS: u32 = 3;

/// Attempts in all.
pub const MAX_ATTEMPTS: u32 = 10;

/// A message of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// The place in the queue that it was published to first: by it one that is published again is the same job.
    pub sequence: u64,
    /// Digest of the request.
    pub body: String,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request has ended: the job is done.
    Ended,
    /// The same request runs by another job: this one is done.
    Repeated,
    /// Another request has this id: this one goes to the dead letter, and the other is not touched.
    Other,
    /// What it has said is kept in part only, so nobody can go on with it: it ends as failed, unless somebody still runs it.
    Expired,
    /// It was tried too often: it ends as failed, and goes to the dead letter.
    Poison,
    /// The node claims it.
    Claim,
}

/// Decides by what the log says of a request; a log that is broken is nobody's, and its request [`Decision::Poison`].
pub fn decide(job: &QueuedJob, history: &History) -> Decision {
    let first = history.first_claim();
    if first.is_some_and(|first| first.body != job.body) {
        return Decision::Other;
    }
    if history.end().is_some() {
        return Decision::Ended;
    }
    if history.begins_late() {
        return Decision::Expired;
    }
    if first.is_some_and(|first| first.job != job.sequence) {
        return Decision::Repeated;
    }
    if history.fruitless() >= MAX_FRUITLESS || history.tries() >= MAX_ATTEMPTS {
        return Decision::Poison;
    }
    Decision::Claim
}

#[cfg(test)]
mod tests {
    use super::super::join::StoredRecord;
    use super::super::record::Record;
    use super::super::record::testing::{claim, end, event, tokens};
    use super::*;

    fn decided(job: (u64, &str), records: Vec<Record>) -> Decision {
        let stored = |(sequence, record)| StoredRecord { sequence, record };
        let history = History::read((1..).zip(records).map(stored)).expect("sound");
        decide(&QueuedJob { sequence: job.0, body: job.1.to_owned() }, &history)
    }

    #[test]
    fn a_new_request_and_one_whose_node_has_gone_are_claimed() {
        assert_eq!(decided((1, "b"), vec![]), Decision::Claim);
        assert_eq!(decided((1, "b"), vec![claim(1, 0), tokens(1, 0, &[1])]), Decision::Claim);
    }

    #[test]
    fn a_request_runs_by_the_job_that_was_claimed_first() {
        assert_eq!(decided((2, "b"), vec![claim(1, 0)]), Decision::Repeated);
        assert_eq!(decided((2, "other"), vec![claim(1, 0)]), Decision::Other);
        let ended = || vec![claim(1, 0), end(1, 0)];
        assert_eq!(decided((1, "b"), ended()), Decision::Ended);
        assert_eq!(decided((2, "b"), ended()), Decision::Ended);
        assert_eq!(decided((2, "other"), ended()), Decision::Other, "it was never run");
        assert_eq!(
            decided((1, "b"), vec![end(1, 0)]),
            Decision::Ended,
            "cancelled while it waited"
        );
    }

    #[test]
    fn nobody_goes_on_with_what_is_kept_in_part_only() {
        let left = || vec![tokens(1, 7, &[1])];
        assert_eq!(decided((1, "b"), left()), Decision::Expired);
        let ended = || [left(), vec![end(1, 8)]].concat();
        assert_eq!(decided((1, "b"), ended()), Decision::Ended);
    }

    #[test]
    fn three_claims_without_a_token_or_ten_in_all_are_enough() {
        let fruitless = |count: u32| (1..=count).map(|attempt| claim(attempt, 0)).collect();
        assert_eq!(decided((1, "b"), fruitless(2)), Decision::Claim);
        assert_eq!(decided((1, "b"), fruitless(3)), Decision::Poison);
        let with_tokens = |count: u32| -> Vec<Record> {
            (0..count).flat_map(|i| [claim(i + 1, i), tokens(i + 1, i, &[i])]).collect()
        };
        assert_eq!(decided((1, "b"), with_tokens(9)), Decision::Claim);
        assert_eq!(decided((1, "b"), with_tokens(10)), Decision::Poison);
    }

    #[test]
    fn what_nodes_hand_back_in_good_health_is_never_too_often() {
        let handed_back = |attempt| Record { handed_back: true, ..Record::of(event(attempt, 0)) };
        let records = (1..30).flat_map(|attempt| [claim(attempt, 0), handed_back(attempt)]);
        assert_eq!(decided((1, "b"), records.collect()), Decision::Claim);
    }
}
