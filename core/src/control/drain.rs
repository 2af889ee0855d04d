//! Drain: whether everything that was committed on the source before a mark is in the target.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::Serialize;

use crate::model::{PartitionId, Position};
use crate::source::SourceOrder;

/// The answer of a drain.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Drained {
    /// Whether everything committed on the source before the call is durable in the target.
    pub drained: bool,
    /// Whether the marker was reached: with open dead letters that is not enough.
    pub marker_reached: bool,
    /// The place that was to be reached, for each partition.
    pub marker: BTreeMap<PartitionId, String>,
    /// What the target has, for each partition.
    pub reached: BTreeMap<PartitionId, String>,
    /// Dead letters that are open or held: with one of them the target is not whole.
    pub dead_letters_open: u64,
}

impl Drained {
    /// Takes in what came of another part.
    pub(crate) fn add(&mut self, part: Self) {
        self.drained &= part.drained;
        self.marker_reached &= part.marker_reached;
        self.marker.extend(part.marker);
        self.reached.extend(part.reached);
        self.dead_letters_open += part.dead_letters_open;
    }
}

/// What is durable in the target, as it was looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable {
    /// How far the partitions are that are not finished; `None`: nothing of it is durable yet.
    pub(crate) open: BTreeMap<PartitionId, Option<Position>>,
    /// Partitions that are durable to their end.
    pub(crate) finished: Arc<HashSet<PartitionId>>,
    /// Of those that are open: no checkpoint has them yet. A run that begins again hears of them anew.
    pub(crate) unsaved: HashSet<PartitionId>,
    /// Tables are still being copied: no position says what the target has.
    pub(crate) copying: bool,
    pub(crate) dead_letters_open: u64,
}

impl Durable {
    /// Takes in what is durable of another part.
    pub(crate) fn add(&mut self, part: Self) {
        self.open.extend(part.open);
        Arc::make_mut(&mut self.finished).extend(part.finished.iter().cloned());
        self.unsaved.extend(part.unsaved);
        self.copying |= part.copying;
        self.dead_letters_open += part.dead_letters_open;
    }
}

/// A drain that waits.
#[derive(Debug)]
pub(crate) struct Drain {
    marker: BTreeMap<PartitionId, Position>,
    /// Ranks of all partitions are by commit time: of a partition that is finished, what followed it
    /// must have passed the mark too, for the mark may have been meant for that.
    by_time: bool,
    /// Partitions of the marker that were seen to be there, in a checkpoint too.
    seen: BTreeSet<PartitionId>,
    /// Partitions of the marker that are passed.
    passed: BTreeSet<PartitionId>,
    last: Durable,
}

impl Drain {
    pub(crate) fn new(marker: BTreeMap<PartitionId, Position>, order: SourceOrder) -> Self {
        let by_time = order == SourceOrder::CommitTimePerPartition;
        Self { marker, by_time, seen: BTreeSet::new(), passed: BTreeSet::new(), last: Durable::default() }
    }

    /// Takes in what is durable now; true once the marker is reached in every partition.
    pub(crate) fn see(&mut self, now: Durable) -> bool {
        // A store that knows nothing at all has lost what it knew.
        let knows = !now.open.is_empty() || !now.finished.is_empty();
        if !now.copying && knows {
            for (id, at) in &self.marker {
                let has = |position: &Option<Position>| position.as_ref().is_some_and(|p| p.rank >= at.rank);
                let passed = match now.open.get(id) {
                    Some(position) => has(position),
                    // What was there and is gone was finished, and forgotten since.
                    None if now.finished.contains(id) || self.seen.contains(id) => {
                        !self.by_time || now.open.values().all(has)
                    }
                    None => false,
                };
                if now.open.contains_key(id) && !now.unsaved.contains(id) {
                    self.seen.insert(id.clone());
                }
                if passed {
                    self.passed.insert(id.clone());
                }
            }
        }
        self.last = now;
        self.reached()
    }

    pub(crate) fn reached(&self) -> bool {
        self.passed.len() == self.marker.len()
    }

    /// The answer, now. `describe` writes a position as the source's users do.
    pub(crate) fn answer(&self, describe: impl Fn(&Position) -> String) -> Drained {
        let reached = self.reached();
        let open = self.last.open.iter().filter_map(|(id, p)| Some((id.clone(), describe(p.as_ref()?))));
        Drained {
            drained: reached && self.last.dead_letters_open == 0,
            marker_reached: reached,
            marker: self.marker.iter().map(|(id, p)| (id.clone(), describe(p))).collect(),
            reached: open.collect(),
            dead_letters_open: self.last.dead_letters_open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rank;

    fn at(n: u64) -> Position {
        Position::new(Rank::of_end(&n.to_be_bytes()), Vec::new())
    }

    fn id(name: &str) -> PartitionId {
        PartitionId::new(name)
    }

    fn durable(open: &[(&str, Option<u64>)], finished: &[&str]) -> Durable {
        Durable {
            open: open.iter().map(|(p, n)| (id(p), n.map(at))).collect(),
            finished: Arc::new(finished.iter().map(|p| id(p)).collect()),
            ..Durable::default()
        }
    }

    fn drain() -> Drain {
        Drain::new(BTreeMap::from([(id("a"), at(5)), (id("b"), at(7))]), SourceOrder::Key)
    }

    #[test]
    fn every_partition_must_have_passed_its_own_mark() {
        let mut drain = drain();
        assert!(!drain.see(durable(&[], &[])), "nothing is known");
        assert!(!drain.see(durable(&[("a", Some(9)), ("b", None)], &[])), "one has not begun");
        assert!(!drain.see(durable(&[("a", Some(9)), ("b", Some(6))], &[])));
        assert!(drain.see(durable(&[("a", Some(9)), ("b", Some(7))], &[])));
        assert!(drain.answer(|_| String::new()).drained);
    }

    #[test]
    fn a_finished_partition_is_passed_and_an_unknown_one_is_not() {
        let mut drain = drain();
        assert!(!drain.see(durable(&[("c", Some(9))], &["a"])), "b was never seen");
        assert!(!drain.see(durable(&[("b", Some(1))], &[])), "a was finished before, b is read");
        assert!(!drain.see(durable(&[], &[])), "the store has lost everything");
        assert!(drain.see(durable(&[("c", Some(1))], &[])), "b was finished and forgotten");
    }

    #[test]
    fn a_partition_that_no_checkpoint_had_is_not_finished_when_it_is_gone() {
        let mut drain = Drain::new(BTreeMap::from([(id("child"), at(5))]), SourceOrder::Key);
        let heard = durable(&[("root", Some(9)), ("child", None)], &[]);
        assert!(!drain.see(Durable { unsaved: HashSet::from([id("child")]), ..heard.clone() }));
        assert!(!drain.see(durable(&[("root", Some(9))], &[])), "the run began again and has not heard of it yet");
        assert!(!drain.see(heard), "now it is in a checkpoint");
        assert!(drain.see(durable(&[("grandchild", None)], &[])), "it was finished and forgotten");
    }

    #[test]
    fn by_commit_time_what_followed_a_finished_partition_must_pass_its_mark() {
        let mut drain = Drain::new(BTreeMap::from([(id("root"), at(5))]), SourceOrder::CommitTimePerPartition);
        assert!(!drain.see(durable(&[("x", Some(4)), ("y", None)], &["root"])));
        assert!(!drain.see(durable(&[("x", Some(6)), ("y", Some(4))], &["root"])));
        assert!(drain.see(durable(&[("x", Some(6)), ("y", Some(5))], &["root"])));
    }

    #[test]
    fn no_position_counts_while_tables_are_copied() {
        let mut drain = drain();
        let both = durable(&[("a", Some(9)), ("b", Some(9))], &[]);
        assert!(!drain.see(Durable { copying: true, ..both.clone() }));
        assert!(drain.see(both));
    }

    #[test]
    fn one_open_dead_letter_is_enough_for_no() {
        let mut drain = drain();
        let both = durable(&[("a", Some(9)), ("b", Some(9))], &[]);
        assert!(drain.see(Durable { dead_letters_open: 1, ..both }));
        let answer = drain.answer(|_| String::new());
        assert!(answer.marker_reached && !answer.drained);
    }
}
