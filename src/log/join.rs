//! A reader's stored and live records as one stream: each token once and in order, whatever is repeated, late or lost on the way.
//!
//! Live records say, beside their own place in the stream, the place of the record before them in the same log (NATS puts both into
//! headers of what it republishes). So a gap is seen at once, and what is missing is read from the log.

use std::collections::{BTreeMap, BTreeSet};

use super::positions::Positions;
use super::record::Record;

/// A record and its place in the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// Its place.
    pub sequence: u64,
    /// What it says.
    pub record: Record,
}

/// What comes of something that was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Joined {
    /// What the reader has not seen, in order.
    pub fresh: Vec<StoredRecord>,
    /// What follows this place is to be read from the log.
    pub read_after: Option<u64>,
}

/// Live records that wait for what is before them, at most; beyond it they are read from the log in their turn.
const MAX_EARLY: usize = 1_024;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Join {
    /// The first record that was taken, and the last; 0 before any.
    first: u64,
    last: u64,
    attempt: u32,
    seen: Positions,
    /// Live records that came before those that they follow, with the places of these.
    early: BTreeMap<u64, (u64, Record)>,
    /// What is missing is being read.
    reads: bool,
    is_over: bool,
    /// What the reader lacks stands in the log no more.
    is_cut: bool,
    /// Choices whose end the reader has.
    ended: BTreeSet<u32>,
}

impl Join {
    /// A reader who has come so far; it begins with reading the log.
    pub fn from(seen: Positions) -> Self {
        Self { seen, reads: true, ..Self::default() }
    }

    /// Whether the last event was taken.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the next tokens that the reader lacks stand in the log no more; nothing is given from there on.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The place of the last record that was taken.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// A live record came; `previous` is the place of the one before it in the log, 0 if it is the first.
    pub fn live(&mut self, live: StoredRecord, previous: u64) -> Joined {
        let StoredRecord { sequence, record } = live;
        if self.is_over {
            return Joined::default();
        }
        if sequence <= self.last {
            // Another first record: the log was lost, and begins anew.
            let begins = previous == 0 && sequence != self.first && !self.reads;
            self.reads |= begins;
            return Joined { read_after: begins.then_some(self.last), ..Joined::default() };
        }
        if previous == 0 && self.last > 0 {
            // All of the log has gone, and it begins anew.
            (self.first, self.attempt) = (0, 0);
        }
        if self.reads || previous > self.last {
            if self.early.len() < MAX_EARLY {
                self.early.insert(sequence, (previous, record));
            }
            let read_after = (!std::mem::replace(&mut self.reads, true)).then_some(self.last);
            return Joined { read_after, ..Joined::default() };
        }
        let fresh = self.take(sequence, record).into_iter().collect();
        Joined { fresh, read_after: None }
    }

    /// What was read from the log behind `after`, in its order, up to its end; all of a log whose end is before that place, because it
    /// is another one: places are counted anew then, tokens are not.
    pub fn stored(&mut self, after: u64, stored: Vec<StoredRecord>) -> Joined {
        self.reads = false;
        if stored.first().is_some_and(|stored| stored.sequence <= after) {
            (self.first, self.last, self.attempt) = (0, 0, 0);
        }
        let mut fresh: Vec<StoredRecord> = Vec::new();
        for StoredRecord { sequence, record } in stored {
            fresh.extend(self.take(sequence, record));
        }
        while let Some((sequence, (previous, record))) = self.early.pop_first() {
            if sequence > self.last && previous > self.last {
                self.early.insert(sequence, (previous, record));
                self.reads = true;
                return Joined { fresh, read_after: Some(self.last) };
            }
            fresh.extend(self.take(sequence, record));
        }
        Joined { fresh, read_after: None }
    }

    /// What of a record the reader does not have.
    fn take(&mut self, sequence: u64, record: Record) -> Option<StoredRecord> {
        if sequence <= self.last || self.is_over || self.is_cut {
            return None;
        }
        self.last = sequence;
        if self.first == 0 {
            self.first = sequence;
        }
        // Nothing of an attempt that another has fenced out; the server refuses it, but not in every version of a cluster.
        if record.event.attempt < self.attempt {
            return None;
        }
        self.attempt = record.event.attempt;
        let event = &record.event;
        let (index, seen) = (event.index, self.seen.of(event.index));
        self.is_cut = event.seq > seen && !event.token_ids.is_empty();
        if self.is_cut {
            return None;
        }
        self.is_over = record.is_last();
        let is_old = event.end() <= seen && !event.token_ids.is_empty() && !self.is_over;
        let ends_again = event.finish_reason.is_some() && !self.ended.insert(index);
        self.seen.pass(event);
        if is_old || ends_again && !self.is_over {
            return None;
        }
        let num_seen = seen.saturating_sub(event.seq) as usize;
        let mut record = without(record, num_seen);
        if record.event.token_ids.is_empty() {
            // Who ends a stream may not know that its last tokens were stored: the answer was lost.
            record.event.seq = record.event.seq.max(self.seen.of(index));
        }
        Some(StoredRecord { sequence, record })
    }
}

/// A record without its first tokens. Their text goes with them where it can be told apart: where all tokens are seen, all of it.
fn without(mut record: Record, seen: usize) -> Record {
    let event = &mut record.event;
    let seen = seen.min(event.token_ids.len());
    if seen == 0 {
        return record;
    }
    event.token_ids.drain(..seen);
    event.seq += seen as u32;
    if let Some(entries) = &mut event.logprobs {
        entries.drain(..seen.min(entries.len()));
    }
    if event.token_ids.is_empty() {
        event.text.clear();
    }
    record
}

#[cfg(test)]
mod tests {
    use super::super::record::testing::{claim, end, tokens};
    use super::*;

    fn at(sequence: u64, record: Record) -> StoredRecord {
        StoredRecord { sequence, record }
    }

    fn places(joined: &Joined) -> Vec<u64> {
        joined.fresh.iter().map(|stored| stored.sequence).collect()
    }

    /// A reader of three tokens whose log has places 7 to 9.
    fn reader() -> Join {
        let mut join = Join::from(Positions::default());
        let stored =
            vec![at(7, claim(1, 0)), at(8, tokens(1, 0, &[1, 2])), at(9, tokens(1, 2, &[3]))];
        assert_eq!(places(&join.stored(0, stored)), [7, 8, 9]);
        join
    }

    #[test]
    fn what_was_stored_and_comes_live_as_well_is_passed_over() {
        let mut join = reader();
        assert_eq!(join.live(at(7, claim(1, 0)), 0), Joined::default());
        assert_eq!(join.live(at(9, tokens(1, 2, &[3])), 8), Joined::default());
        assert_eq!(places(&join.live(at(10, tokens(1, 3, &[4])), 9)), [10]);
    }

    #[test]
    fn the_end_in_a_log_that_begins_anew_is_found_live_and_by_looking() {
        let mut live = reader();
        assert_eq!(live.live(at(2, end(1, 3)), 0).read_after, Some(9));
        let mut looking = reader();
        for join in [&mut live, &mut looking] {
            assert_eq!(places(&join.stored(9, vec![at(2, end(1, 3))])), [2]);
            assert!(join.is_over());
        }
        let mut further_on = reader();
        assert_eq!(places(&further_on.live(at(20, end(1, 3)), 0)), [20]);
    }

    #[test]
    fn an_end_stands_behind_the_tokens_that_the_reader_has() {
        let ended = reader().live(at(10, end(1, 2)), 9);
        assert_eq!(ended.fresh.iter().map(|last| last.record.event.seq).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_log_whose_beginning_is_gone_gives_nothing_to_who_lacks_it() {
        let late = || vec![at(8, tokens(1, 2, &[3])), at(9, tokens(1, 3, &[4]))];
        let mut join = Join::from(Positions::default());
        assert!(join.stored(0, late()).fresh.is_empty());
        assert!(join.is_cut() && !join.is_over());
        let mut further_on = Join::from(Positions::from(2));
        assert_eq!(places(&further_on.stored(0, late())), [8, 9]);
        assert!(!further_on.is_cut());
    }

    #[test]
    fn each_choice_goes_on_where_its_reader_is() {
        let of = |index, record: Record| {
            let event = crate::request::Event { index, ..record.event };
            Record { event, ..record }
        };
        let stored = vec![
            at(7, claim(1, 0)),
            at(8, tokens(1, 0, &[1, 2])),
            at(9, of(1, tokens(1, 0, &[5, 6, 7]))),
            at(10, tokens(1, 2, &[3])),
        ];
        let mut join = Join::from("1,0".parse().expect("positions"));
        let fresh = join.stored(0, stored).fresh;
        let told = fresh.iter().map(|fresh| &fresh.record.event);
        let told: Vec<_> = told.map(|event| (event.index, event.token_ids.clone())).collect();
        assert_eq!(told, [(0, vec![]), (1, vec![6, 7]), (0, vec![3])]);
    }

    #[test]
    fn a_request_that_is_made_again_in_a_new_log_gives_only_what_the_reader_has_not() {
        let mut join = reader();
        let again = vec![at(1, claim(1, 0)), at(2, tokens(1, 0, &[1, 2, 3, 4]))];
        let fresh = join.stored(9, again).fresh;
        assert_eq!(fresh.last().map(|last| last.record.event.token_ids.clone()), Some(vec![4]));
    }
}
