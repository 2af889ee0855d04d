//! A change stream: its partitions, their lineage, and what they hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use tonic::Code;

use crate::record::{Capture, Entry, Record};
use crate::time::Time;
use crate::transaction::Committed;

/// How a stream divides the keys among its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Partitions live a while, and end with child records.
    #[default]
    Immutable,
    /// `partition_mode='MUTABLE_KEY_RANGE'`: keys move between partitions; records are messages.
    MutableKeyRange,
}

/// A change stream as a test scripts it.
///
/// ```
/// use anabranch_spanner_fake::{Stream, Time};
/// let t = Time::seconds;
/// let mut stream = Stream::new("orders");
/// stream.root("a", t(0)).split("a", t(10), &["b", "c"]).merge(&["b", "c"], t(20), "d").heartbeat("d", t(25));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) partitions: BTreeMap<String, Partition>,
    pub(crate) failures: Vec<Failure>,
    /// Queries from before this time are refused, as after the retention period.
    pub(crate) oldest: Option<Time>,
    /// Transactions that ask for it are left out: `allow_txn_exclusion = true`.
    pub(crate) allow_exclusion: bool,
    /// What clients commit to the fake's tables is recorded.
    pub(crate) records_commits: bool,
    /// What the information schema says of it.
    pub(crate) capture: Capture,
    /// Further options that the information schema tells.
    pub(crate) options: Vec<(String, String)>,
}

/// What a partition holds: records from `start` (inclusive) to `end`.
#[derive(Debug, Clone)]
pub(crate) struct Partition {
    pub(crate) start: Time,
    pub(crate) end: Option<Time>,
    pub(crate) records: Vec<Record>,
    /// How often it was queried, for failures.
    pub(crate) queries: u32,
}

/// A query of a partition that does not go as it should.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) token: String,
    /// The first, second... query of this partition; `None`: every one.
    pub(crate) query: Option<u32>,
    /// After so many rows.
    pub(crate) after: usize,
    /// With this code; `None`: the query ends as if it were finished.
    pub(crate) with: Option<Code>,
}

impl Stream {
    /// A stream without partitions.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A stream whose key ranges are mutable.
    pub fn mutable(name: &str) -> Self {
        Self { name: name.to_owned(), mode: Mode::MutableKeyRange, ..Self::default() }
    }

    /// Its `value_capture_type`, as the information schema tells it. What its records have is said with
    /// each transaction.
    pub fn capture(&mut self, capture: Capture) -> &mut Self {
        self.capture = capture;
        self
    }

    /// A further option, as the information schema tells it; it changes nothing of what is sent.
    pub fn option(&mut self, name: &str, value: &str) -> &mut Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A partition without parents.
    pub fn root(&mut self, token: &str, start: Time) -> &mut Self {
        self.open(token, start);
        self
    }

    /// `token` ends at `at`, and `children` go on. Of a mutable stream: `token` goes on, and its keys
    /// move to new partitions, in part.
    pub fn split(&mut self, token: &str, at: Time, children: &[&str]) -> &mut Self {
        let list = children.iter().map(|child| ((*child).to_owned(), vec![token.to_owned()])).collect();
        for child in children {
            self.open(child, at);
        }
        match self.mode {
            Mode::Immutable => self.end_with(token, at, list),
            Mode::MutableKeyRange => {
                let tokens = children.iter().map(|c| (*c).to_owned()).collect();
                self.push(token, at, |sequence| Entry::Start { sequence, tokens });
                self.move_keys(&[token], at, children)
            }
        }
    }

    /// `parents` end at `at`, and `child` goes on: each of them reports it.
    pub fn merge(&mut self, parents: &[&str], at: Time, child: &str) -> &mut Self {
        self.open(child, at);
        let all: Vec<String> = parents.iter().map(|p| (*p).to_owned()).collect();
        if self.mode == Mode::MutableKeyRange {
            self.push(parents[0], at, |sequence| Entry::Start { sequence, tokens: vec![child.to_owned()] });
            self.move_keys(parents, at, &[child]);
        }
        for parent in parents {
            match self.mode {
                Mode::Immutable => self.end_with(parent, at, vec![(child.to_owned(), all.clone())]),
                Mode::MutableKeyRange => self.finish(parent, at),
            };
        }
        self
    }

    /// Keys move at `at` from every one of `from` to every one of `to`, which exist: of a mutable stream.
    pub fn move_keys(&mut self, from: &[&str], at: Time, to: &[&str]) -> &mut Self {
        let names = |tokens: &[&str]| tokens.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        for source in from {
            let moved_out = names(to);
            self.push(source, at, |sequence| Entry::Event { sequence, moved_in: Vec::new(), moved_out });
        }
        for target in to {
            let moved_in = names(from);
            self.push(target, at, |sequence| Entry::Event { sequence, moved_in, moved_out: Vec::new() });
        }
        self
    }

    /// The partition's last record says that it ends: of a mutable stream.
    pub fn finish(&mut self, token: &str, at: Time) -> &mut Self {
        self.push(token, at, |sequence| Entry::End { sequence });
        self.partition(token).end = Some(at);
        self
    }

    /// A transaction's records go to their partitions.
    pub fn commit(&mut self, transaction: Committed) -> &mut Self {
        let at = transaction.at;
        for (token, data) in transaction.records() {
            let entry = Entry::Data(Arc::new(data));
            self.push(&token, at, |_| entry);
        }
        self
    }

    /// A heartbeat at this time, besides those that an idle query gets.
    pub fn heartbeat(&mut self, token: &str, at: Time) -> &mut Self {
        self.push(token, at, |_| Entry::Heartbeat);
        self
    }

    /// A row as `row` is, malformed or not: in GoogleSQL the value of the column, in PostgreSQL the
    /// JSON, of a mutable stream the message in base64.
    pub fn raw(&mut self, token: &str, at: Time, row: Json) -> &mut Self {
        self.push(token, at, |_| Entry::Raw(row));
        self
    }

    /// The given query of this partition (from 1; `None`: every one) breaks off with `code` after so
    /// many rows. Without a code it ends as if the partition had: an end without children.
    pub fn fail(&mut self, token: &str, query: Option<u32>, after: usize, code: Option<Code>) -> &mut Self {
        self.failures.push(Failure { token: token.to_owned(), query, after, with: code });
        self
    }

    /// The retention period is over for everything before `at`.
    pub fn forget_before(&mut self, at: Time) -> &mut Self {
        self.oldest = Some(at);
        self
    }

    /// What clients commit to the fake's tables goes into this stream too, each key to a partition that
    /// is open then. `allow_exclusion` is the stream's option `allow_txn_exclusion`.
    pub fn record_commits(&mut self, allow_exclusion: bool) -> &mut Self {
        (self.records_commits, self.allow_exclusion) = (true, allow_exclusion);
        self
    }

    /// The partitions that hold what is committed at `at`.
    pub fn live(&self, at: Time) -> Vec<&str> {
        let live = |p: &Partition| p.start <= at && p.end.is_none_or(|end| at < end);
        self.partitions.iter().filter(|(_, p)| live(p)).map(|(token, _)| token.as_str()).collect()
    }

    fn open(&mut self, token: &str, start: Time) {
        let partition = Partition { start, end: None, records: Vec::new(), queries: 0 };
        self.partitions.insert(token.to_owned(), partition);
    }

    fn end_with(&mut self, token: &str, at: Time, children: Vec<(String, Vec<String>)>) -> &mut Self {
        self.push(token, at, |sequence| Entry::Children { sequence, children });
        self.partition(token).end = Some(at);
        self
    }

    /// Adds a record after all that are not later. `entry` gets the next number in its partition at its time.
    fn push(&mut self, token: &str, at: Time, entry: impl FnOnce(u64) -> Entry) {
        let records = &mut self.partition(token).records;
        let place = records.partition_point(|r| r.at <= at);
        let same = records[..place].iter().rev().take_while(|r| r.at == at);
        let next = same.filter_map(|r| r.entry.sequence()).max().map_or(0, |last| last + 1);
        records.insert(place, Record { at, entry: entry(next) });
    }

    fn partition(&mut self, token: &str) -> &mut Partition {
        let fresh = || Partition { start: Time::default(), end: None, records: Vec::new(), queries: 0 };
        self.partitions.entry(token.to_owned()).or_insert_with(fresh)
    }
}
