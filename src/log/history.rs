//! What a request's log says of it: how far it has come, who has it, how often it was tried.

use std::collections::BTreeMap;

use super::join::StoredRecord;
use super::positions::Positions;
use super::record::{Claim, Record};
use super::suspects::Suspicion;
use crate::error::Error;
use crate::ids::RequestId;
use crate::request::{
    Event, FinishReason, MAX_SAMPLES, SampleSoFar, Scores, SoFar, Token, TokenLogprob, Usage,
};

/// A log that no node can have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {sequence} of the log: {fault}")]
pub struct Broken {
    /// Its place in the stream.
    pub sequence: u64,
    /// What is wrong.
    pub fault: String,
}

/// The records of a request, read in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    last: u64,
    attempt: u32,
    tries: u32,
    fruitless: u32,
    first: Option<Claim>,
    /// Whether nodes whose tokens may differ have worked on it.
    crossed: bool,
    latest: Option<Claim>,
    choices: BTreeMap<u32, SampleSoFar>,
    /// The records before the first one are kept no longer.
    begins_late: bool,
    /// What they said of each choice.
    gone: Positions,
    end: Option<Box<Event>>,
}

impl History {
    /// Of all records, in their order.
    ///
    /// # Errors
    /// [`Broken`] where one cannot follow the one before.
    pub fn read(records: impl IntoIterator<Item = StoredRecord>) -> Result<Self, Broken> {
        let mut history = Self::default();
        for StoredRecord { sequence, record } in records {
            history.take(sequence, record)?;
        }
        Ok(history)
    }

    /// Takes the next record; `sequence` is its place in the stream.
    ///
    /// # Errors
    /// [`Broken`] where it cannot follow what was read; nothing of it counts then.
    pub fn take(&mut self, sequence: u64, record: Record) -> Result<(), Broken> {
        self.check(sequence, &record).map_err(|fault| Broken { sequence, fault })?;
        self.begins_late |= self.last == 0 && is_behind_beginning(&record);
        self.last = sequence;
        self.attempt = record.event.attempt;
        if let Some(claim) = record.claim {
            self.claimed(*claim);
        }
        if !record.event.token_ids.is_empty() {
            self.fruitless = 0;
        }
        if record.handed_back {
            self.tries = self.tries.saturating_sub(1);
            self.fruitless = self.fruitless.saturating_sub(1);
        }
        self.begun(record.event);
        Ok(())
    }

    fn check(&self, sequence: u64, record: &Record) -> Result<(), String> {
        let Record { event, claim, .. } = record;
        if sequence <= self.last {
            return Err(format!("expected a sequence above {}", self.last));
        }
        if self.end.is_some() {
            return Err("expected nothing after the last event".to_owned());
        }
        if self.last == 0 && is_behind_beginning(record) {
            return Ok(());
        }
        let is_next = event.attempt == self.attempt.saturating_add(1);
        // Who cancels a request that no node has says so as if it had claimed it.
        // Of a log that was lost there is nothing but what its last holder says of that.
        if self.last == 0 && event.is_last() && claim.is_none() {
            return Ok(());
        }
        let fits = is_next && (claim.is_some() || event.is_last())
            || event.attempt == self.attempt && claim.is_none();
        if !fits {
            return Err(format!("got attempt {} after {}", event.attempt, self.attempt));
        }
        if event.index >= MAX_SAMPLES {
            return Err(format!("expected a choice below {MAX_SAMPLES}, got {}", event.index));
        }
        let expected = self.num_tokens_of(event.index);
        let is_first_left = self.begins_late && !self.choices.contains_key(&event.index);
        if event.seq != expected && !is_first_left {
            return Err(format!("expected the token with index {expected}, got {}", event.seq));
        }
        Ok(())
    }

    fn claimed(&mut self, claim: Claim) {
        self.tries += 1;
        self.fruitless += 1;
        let before = self.latest.replace(claim.clone());
        self.crossed |= before.is_some_and(|before| before.exactness != claim.exactness);
        self.first.get_or_insert(claim);
    }

    fn begun(&mut self, event: Event) {
        if !event.is_empty() {
            if self.begins_late && !self.choices.contains_key(&event.index) {
                self.gone.reach(event.index, event.seq);
            }
            let begun = self.choices.entry(event.index).or_default();
            begun.tokens.extend(tokens_of(&event));
            *begun.text_len.get_or_insert(0) += event.text.len();
            begun.prompt_logprobs_told += event.prompt_logprobs.as_ref().map_or(0, Vec::len);
            begun.finish_reason = begun.finish_reason.or(event.finish_reason);
        }
        if event.is_last() {
            self.end = Some(Box::new(event));
        }
    }

    /// The place of the last record in the stream: what the next one has to follow. 0: there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The number of the last claim, which its records have, too. 0: there is none.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Claims, but for those that were handed back.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The last of them, in a row, behind which no token is stored.
    pub fn fruitless(&self) -> u32 {
        self.fruitless
    }

    /// By whom and for which request it was claimed first.
    pub fn first_claim(&self) -> Option<&Claim> {
        self.first.as_ref()
    }

    /// By whom it was claimed last.
    pub fn latest_claim(&self) -> Option<&Claim> {
        self.latest.as_ref()
    }

    /// Whether its beginning is kept no longer: nobody can go on with it who does not have it.
    pub fn begins_late(&self) -> bool {
        self.begins_late
    }

    /// The last event, if it is stored.
    pub fn end(&self) -> Option<&Event> {
        self.end.as_deref()
    }

    /// Whether a node with this digest is another than one that worked on it before.
    pub fn crosses(&self, exactness: &str) -> bool {
        self.crossed || self.latest.as_ref().is_some_and(|latest| latest.exactness != exactness)
    }

    /// How far each choice has come.
    pub fn positions(&self) -> Positions {
        let mut positions = self.gone.clone();
        for index in self.choices.keys() {
            positions.reach(*index, self.num_tokens_of(*index));
        }
        positions
    }

    /// Tokens of one choice.
    pub fn num_tokens_of(&self, index: u32) -> u32 {
        let kept = self.choices.get(&index).map_or(0, |begun| begun.tokens.len() as u32);
        self.gone.of(index).saturating_add(kept)
    }

    /// The last record, by somebody who ends the request without having claimed it: with an error, or as cancelled.
    pub fn closing(&self, id: &RequestId, error: Option<Error>) -> Record {
        let completion_tokens = self.positions().total();
        let reason = if error.is_some() { FinishReason::Failed } else { FinishReason::Cancelled };
        Record::of(Event {
            // As a claim, so that whoever has it is fenced out.
            attempt: self.attempt + 1,
            seq: self.num_tokens_of(0),
            finish_reason: Some(reason),
            usage: Some(Usage { completion_tokens, ..Usage::default() }),
            error: error.map(Box::new),
            ..Event::new(id.clone())
        })
    }

    /// What is held against the request.
    pub fn suspicion(&self) -> Option<Suspicion> {
        Suspicion::after(self.fruitless)
    }

    /// What a node goes on from that has claimed it as `attempt`.
    pub fn so_far(&self, attempt: u32) -> SoFar {
        let count = self.choices.keys().last().map_or(0, |last| *last as usize + 1);
        let mut samples = vec![SampleSoFar::default(); count];
        for (index, begun) in &self.choices {
            samples[*index as usize] = begun.clone();
        }
        SoFar { samples, attempt, is_suspect: self.suspicion() == Some(Suspicion::Grave) }
    }
}

/// Whether other records stood before this one: a log begins with a claim, or with its end.
fn is_behind_beginning(Record { event, claim, .. }: &Record) -> bool {
    match claim {
        Some(_) => event.attempt > 1,
        None => !event.is_last(),
    }
}

fn tokens_of(event: &Event) -> impl Iterator<Item = Token> + '_ {
    let entries = event.logprobs.iter().flatten().map(Some).chain(std::iter::repeat(None));
    let scores = |entry: &TokenLogprob| {
        let top = entry.top.iter().map(|top| (top.token_id, top.logprob));
        Some(Box::new(Scores { logprob: entry.logprob?, top: top.collect() }))
    };
    event
        .token_ids
        .iter()
        .zip(entries)
        .map(move |(&id, entry)| Token { id, scores: entry.and_then(scores) })
}

#[cfg(test)]
mod tests {
    use super::super::record::testing::{claim, end, event, tokens};
    use super::*;
    use crate::request::FinishReason;

    fn read(records: impl IntoIterator<Item = Record>) -> Result<History, Broken> {
        let stored = |(at, record): (u64, Record)| StoredRecord { sequence: at * 10, record };
        History::read((1..).zip(records).map(stored))
    }

    #[test]
    fn a_log_says_how_far_a_request_has_come() {
        let records = [claim(1, 0), tokens(1, 0, &[5, 6]), tokens(1, 2, &[7]), claim(2, 3)];
        let history = read(records).expect("sound");
        assert_eq!((history.last(), history.attempt(), history.positions().total()), (40, 2, 3));
        assert_eq!((history.tries(), history.fruitless()), (2, 1));
        let so_far = history.so_far(3);
        let ids: Vec<u32> = so_far.samples[0].tokens.iter().map(|token| token.id).collect();
        assert_eq!((so_far.attempt, ids, so_far.samples[0].text_len), (3, vec![5, 6, 7], Some(3)));
        assert!(!so_far.is_suspect && history.end().is_none());
        let again = read([claim(1, 0), claim(2, 0)]).expect("sound");
        assert!(again.so_far(3).is_suspect);
    }

    #[test]
    fn what_is_handed_back_was_no_try() {
        let back = || Record { handed_back: true, ..Record::of(event(1, 0)) };
        let history = read([claim(1, 0), back()]).expect("sound");
        assert_eq!((history.tries(), history.fruitless()), (0, 0));
        let with_tokens = Record { handed_back: true, ..tokens(1, 0, &[1]) };
        let history = read([claim(1, 0), with_tokens, claim(2, 1)]).expect("sound");
        assert_eq!((history.tries(), history.fruitless()), (1, 1));
    }

    #[test]
    fn choices_count_for_themselves() {
        let of =
            |index, record: Record| Record { event: Event { index, ..record.event }, ..record };
        let mut finish = of(1, tokens(1, 1, &[]));
        finish.event.finish_reason = Some(FinishReason::Stop);
        let records = [claim(1, 0), of(1, tokens(1, 0, &[3])), of(0, tokens(1, 0, &[4])), finish];
        let so_far = read(records).expect("sound").so_far(2);
        assert_eq!(so_far.samples.len(), 2);
        assert_eq!(so_far.samples[0].finish_reason, None);
        assert_eq!(so_far.samples[1].finish_reason, Some(FinishReason::Stop));
    }

    #[test]
    fn a_cancel_from_elsewhere_ends_it_like_a_claim() {
        let history = read([claim(1, 0), tokens(1, 0, &[5]), end(2, 1)]).expect("sound");
        assert!(history.end().is_some());
        assert!(read([end(1, 0)]).is_ok(), "before any claim");
    }

    #[test]
    fn a_log_whose_beginning_is_kept_no_longer_says_so_and_counts_on() {
        let left = || [tokens(1, 7, &[1, 2]), claim(2, 9), tokens(2, 9, &[3])];
        let history = read(left()).expect("sound");
        assert!(history.begins_late() && history.first_claim().is_some());
        assert_eq!((history.num_tokens_of(0), history.positions().total()), (10, 10));
        assert!(read([claim(3, 7), tokens(3, 7, &[1])]).expect("sound").begins_late());
        let broken = read([tokens(1, 7, &[1, 2]), tokens(1, 8, &[3])]).expect_err("a gap");
        assert_eq!(broken.fault, "expected the token with index 9, got 8");
        assert!(!read([claim(1, 0), tokens(1, 0, &[1])]).expect("sound").begins_late());
    }

    #[test]
    fn a_choice_that_no_request_has_is_told() {
        let far = Event { index: MAX_SAMPLES, ..tokens(1, 0, &[1]).event };
        let broken = read([claim(1, 0), Record::of(far)]).expect_err("no such choice");
        assert_eq!(broken.fault, "expected a choice below 128, got 128");
    }

    #[test]
    fn a_log_that_no_node_wrote_is_told() {
        for (records, fault) in [
            (vec![claim(1, 0), claim(3, 0)], "got attempt 3 after 1"),
            (vec![claim(1, 0), claim(1, 0)], "got attempt 1 after 1"),
            (vec![claim(1, 0), tokens(1, 1, &[1])], "expected the token with index 0, got 1"),
            (vec![end(1, 0), claim(2, 0)], "expected nothing after the last event"),
        ] {
            let broken = read(records).expect_err(fault);
            assert_eq!(broken.fault, fault);
        }
        let mut history = read([claim(1, 0)]).expect("sound");
        assert!(history.take(10, tokens(1, 0, &[1])).is_err(), "a place that was read");
    }
}
