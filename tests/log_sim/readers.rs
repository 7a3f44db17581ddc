//! What subscribers do: hear records live, and look into the log for what they miss.

use inferno_node::log::StoredRecord;

use crate::known::check_known;
use crate::world::{Bug, Happening, World};

impl World {
    pub(super) fn live(
        &mut self,
        reader: usize,
        stored: StoredRecord,
        previous: u64,
    ) -> Result<(), String> {
        if self.plan.bug == Some(Bug::NoDedupe) {
            return self.take_in(reader, vec![stored]);
        }
        let joined = self.readers[reader].join.live(stored, previous);
        if let Some(after) = joined.read_after {
            self.reads_log(reader, after);
        }
        self.take_in(reader, joined.fresh)
    }

    /// A reader who hears nothing looks into the log.
    pub(super) fn reader_asks(&mut self, reader: usize) {
        let after = self.readers[reader].join.last();
        self.reads_log(reader, after);
        self.after(2_000, Happening::ReaderAsks(reader));
    }

    pub(super) fn reads_log(&mut self, reader: usize, after: u64) {
        let records = self.log.after(self.readers[reader].request, after);
        self.send(None, Happening::ReaderReads(reader, after, records));
    }

    pub(super) fn take_in(
        &mut self,
        reader: usize,
        fresh: Vec<StoredRecord>,
    ) -> Result<(), String> {
        let reader = &mut self.readers[reader];
        for StoredRecord { record, .. } in fresh {
            reader.is_over |= record.is_last();
            reader.tokens.extend(record.event.token_ids);
            reader.text.push_str(&record.event.text);
        }
        check_known(reader.request, 0, &reader.tokens, &reader.text)
    }
}
