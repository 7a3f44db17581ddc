//! What a reader knows of the nodes: who is live, stale or gone, by the reader's own clock; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::entry::NodeEntry;
use super::{GONE_AFTER, STALE_AFTER};
use crate::clock::Timestamp;

/// How long ago a node was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// A moment ago.
    Live,
    /// More than three seconds ago: perhaps it is frozen, or its NATS is away.
    Stale,
    /// More than ten seconds ago, or it has taken its entry back.
    Gone,
}

impl NodeState {
    fn after(silence: Duration) -> Self {
        match silence {
            silence if silence > GONE_AFTER => Self::Gone,
            silence if silence > STALE_AFTER => Self::Stale,
            _ => Self::Live,
        }
    }

    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stale => "stale",
            Self::Gone => "gone",
        }
    }
}

/// A node, as a reader sees it at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenNode<'a> {
    /// What it said last.
    pub entry: &'a NodeEntry,
    /// Live or stale: one that is gone is in no table.
    pub state: NodeState,
    /// Since it was said.
    pub silence: Duration,
}

#[derive(Debug)]
struct KnownNode {
    entry: NodeEntry,
    heard_at: Timestamp,
    /// How old the entry was then.
    age: Duration,
}

impl KnownNode {
    fn silence(&self, now: Timestamp) -> Duration {
        now.since(self.heard_at) + self.age
    }
}

/// The nodes, by their ids. No clock but the reader's counts, so clocks of machines may differ.
#[derive(Debug, Default)]
pub struct NodeTable {
    nodes: BTreeMap<String, KnownNode>,
}

impl NodeTable {
    /// Takes an entry that came `now` and was `age` old: nothing, but for what the bucket had before the reader came. What is told
    /// again is no sign of life. Another process under the same id takes the place of the one before.
    pub fn hear(&mut self, entry: NodeEntry, age: Duration, now: Timestamp) {
        let is_known = self.nodes.get(&entry.id).is_some_and(|known| {
            (&known.entry.life, &known.entry.timestamp) == (&entry.life, &entry.timestamp)
        });
        if !is_known && NodeState::after(age) < NodeState::Gone {
            self.nodes.insert(entry.id.clone(), KnownNode { entry, heard_at: now, age });
        }
    }

    /// A node has taken its entry back.
    pub fn leave(&mut self, id: &str) {
        self.nodes.remove(id);
    }

    /// Forgets those that are gone.
    pub fn sweep(&mut self, now: Timestamp) {
        self.nodes.retain(|_, node| NodeState::after(node.silence(now)) < NodeState::Gone);
    }

    /// Those that are not gone, in the order of their ids.
    pub fn nodes(&self, now: Timestamp) -> impl Iterator<Item = SeenNode<'_>> {
        let seen = self.nodes.values().map(move |node| {
            let silence = node.silence(now);
            SeenNode { entry: &node.entry, state: NodeState::after(silence), silence }
        });
        seen.filter(|node| node.state < NodeState::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn said(id: &str, life: &str, timestamp: &str) -> NodeEntry {
        NodeEntry { timestamp: timestamp.to_owned(), ..entry(id, life) }
    }

    fn states(table: &NodeTable, ms: u64) -> Vec<(&str, NodeState)> {
        table.nodes(at(ms)).map(|node| (node.entry.id.as_str(), node.state)).collect()
    }

    #[test]
    fn a_silent_node_is_stale_after_three_seconds_and_gone_after_ten() {
        let mut table = NodeTable::default();
        table.hear(said("b", "1", "t1"), Duration::ZERO, at(1_000));
        table.hear(said("a", "1", "t1"), Duration::ZERO, at(2_000));
        assert_eq!(states(&table, 4_000), [("a", NodeState::Live), ("b", NodeState::Live)]);
        assert_eq!(states(&table, 4_001), [("a", NodeState::Live), ("b", NodeState::Stale)]);
        assert_eq!(states(&table, 11_001), [("a", NodeState::Stale)]);
        table.hear(said("b", "1", "t2"), Duration::ZERO, at(11_500));
        table.sweep(at(12_001));
        assert_eq!(states(&table, 12_001), [("b", NodeState::Live)]);
        assert_eq!(table.nodes.len(), 1);
    }

    #[test]
    fn what_is_told_again_is_no_sign_of_life() {
        let mut table = NodeTable::default();
        table.hear(said("a", "1", "t1"), Duration::ZERO, at(0));
        for _ in 0..2 {
            table.hear(said("a", "1", "t1"), Duration::ZERO, at(3_500));
        }
        assert_eq!(states(&table, 3_500), [("a", NodeState::Stale)]);
        table.hear(said("a", "1", "t2"), Duration::ZERO, at(3_600));
        assert_eq!(states(&table, 3_600), [("a", NodeState::Live)]);
    }

    #[test]
    fn what_was_old_when_it_came_is_as_old_as_it_was() {
        let mut table = NodeTable::default();
        table.hear(said("a", "1", "t1"), Duration::from_secs(5), at(0));
        table.hear(said("b", "1", "t1"), Duration::from_secs(11), at(0));
        assert_eq!(states(&table, 0), [("a", NodeState::Stale)]);
        assert_eq!(
            table.nodes(at(1_000)).map(|node| node.silence.as_secs()).collect::<Vec<_>>(),
            [6]
        );
        assert_eq!(states(&table, 5_001), []);
    }

    #[test]
    fn another_process_under_the_same_id_takes_the_place_of_the_one_before() {
        let mut table = NodeTable::default();
        table.hear(said("a", "1", "t1"), Duration::ZERO, at(0));
        table.hear(said("a", "2", "t1"), Duration::ZERO, at(3_500));
        let lives: Vec<_> = table.nodes(at(3_500)).map(|node| node.entry.life.as_str()).collect();
        assert_eq!((lives, states(&table, 3_500)), (vec!["2"], vec![("a", NodeState::Live)]));
    }

    #[test]
    fn who_takes_its_entry_back_is_gone_at_once() {
        let mut table = NodeTable::default();
        table.hear(said("a", "1", "t1"), Duration::ZERO, at(0));
        table.leave("a");
        table.leave("never-there");
        assert_eq!(states(&table, 1), []);
    }
}
