//! Compares what a reader of the target sees with what the source was.

use std::collections::{BTreeSet, HashMap};

use super::index::{Index, key_of};
use super::model::{Bag, Commit, Observation, Row, State};
use super::report::{Report, ViolationKind};
use super::tables::{JOURNAL, TABLES};

/// What an observation has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The source's state after some prefix of its commits, and never an earlier prefix than one
    /// seen before: `transaction` order.
    Prefix,
    /// Each row by itself is one that the source had, in the middle of a transaction perhaps, and
    /// never goes back: `key` order.
    PerKey,
}

/// Follows the history of the source and judges observations of the target.
///
/// Give it every commit, in order, as far as the source has come *after* an observation was made,
/// and then the observation. At the end, when the pipeline is drained, [`finish`](Self::finish).
#[derive(Debug)]
pub struct Checker {
    consistency: Consistency,
    commits: Vec<Commit>,
    /// The number (from 1) of the commit that inserted a row of the journal.
    numbers: HashMap<Row, usize>,
    index: Index,
    /// The state after `at` commits.
    state: State,
    at: usize,
    /// The prefix that the last good observation was. 0: none yet, the first load is under way.
    seen: usize,
    /// Per table and key, the place of the version that was seen last ([`Consistency::PerKey`]).
    last: HashMap<(usize, Row), usize>,
    /// Tables that the target does not have.
    without: Vec<&'static str>,
    report: Report,
}

impl Checker {
    /// Before the first commit. The seed is for the report.
    pub fn new(seed: u64, consistency: Consistency) -> Self {
        Self {
            consistency,
            commits: Vec::new(),
            numbers: HashMap::new(),
            index: Index::default(),
            state: State::empty(),
            at: 0,
            seen: 0,
            last: HashMap::new(),
            without: Vec::new(),
            report: Report { seed, ..Report::default() },
        }
    }

    /// For a target that does not have these tables: one that finds rows by key only.
    #[must_use]
    pub fn without(mut self, tables: &[&'static str]) -> Self {
        self.without.extend(tables);
        self
    }

    /// The next commit of the source.
    ///
    /// # Panics
    /// If it has no row in the journal: it is none of the workload's.
    pub fn commit(&mut self, commit: Commit) {
        let number = self.commits.len() + 1;
        let Some(name) = commit.journal() else { panic!("commit {number} has no row in the journal: {commit:?}") };
        let double = self.numbers.insert(name.clone(), number);
        assert!(double.is_none(), "commits {double:?} and {number} have the same row in the journal");
        match self.consistency {
            Consistency::Prefix => self.index.note(number, &commit.net()),
            Consistency::PerKey => self.index.note_each(number, &commit.changes),
        }
        self.commits.push(commit);
        self.report.commits = number;
    }

    /// Judges what a reader of the target saw. True if it is good.
    pub fn observe(&mut self, seen: &Observation) -> bool {
        let before = self.violations();
        match self.consistency {
            Consistency::Prefix => self.prefix(seen),
            Consistency::PerKey => self.per_key(seen),
        }
        self.violations() == before
    }

    /// Judges the target of a drained pipeline: every row of every table has to be as in the source.
    pub fn finish(mut self, seen: &Observation) -> Report {
        let all = self.commits.len();
        self.advance(all);
        // What is missing now stays missing: nothing may count as merely under way.
        self.seen = all;
        self.compare(seen);
        self.report
    }

    /// Whether an observation was a prefix yet: the first load is complete.
    pub fn following(&self) -> bool {
        self.seen > 0
    }

    /// What was found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn violations(&self) -> usize {
        let Report { lost, doubled, backwards, torn, wrong, .. } = self.report;
        lost + doubled + backwards + torn + wrong
    }

    fn prefix(&mut self, seen: &Observation) {
        let claimed = seen.tables[JOURNAL].iter().filter_map(|row| self.numbers.get(row)).max().copied().unwrap_or(0);
        if self.seen == 0 {
            self.report.loading += 1;
            if claimed >= self.at && claimed > 0 {
                self.advance(claimed);
                if self.differences(seen).is_empty() {
                    self.seen = claimed;
                    self.report.prefixes = 1;
                }
            }
            return;
        }
        self.report.compared += 1;
        if claimed < self.seen {
            let what = format!("the target was at transaction {} and is at {claimed}", self.seen);
            self.report.add(ViolationKind::Backwards, what);
            return;
        }
        self.advance(claimed);
        self.compare(seen);
        self.report.prefixes += usize::from(claimed > self.seen);
        self.seen = claimed;
    }

    /// Replays the history up to `number` commits.
    fn advance(&mut self, number: usize) {
        while self.at < number {
            let sum = (self.at > 0).then(|| self.state.sum());
            self.state.apply(&self.commits[self.at].net());
            self.at += 1;
            // Otherwise the history is read wrongly, and no verdict would mean anything.
            assert!(self.state.sound(), "the history takes a row that is not there, in commit {}", self.at);
            assert!(sum.is_none_or(|s| s == self.state.sum()), "the source's own sum changes in commit {}", self.at);
        }
    }

    fn compare(&mut self, seen: &Observation) {
        self.report.rows += seen.tables.iter().map(Vec::len).sum::<usize>();
        for (kind, what) in self.differences(seen) {
            self.report.add(kind, what);
        }
    }

    /// Where `seen` is not the state after `at` commits.
    fn differences(&self, seen: &Observation) -> Vec<(ViolationKind, String)> {
        let mut found = Vec::new();
        for (table, expected) in (0..TABLES.len()).map(|t| (t, self.state.table(t))) {
            if self.without.contains(&TABLES[table].name) {
                continue;
            }
            let there = seen.bag(table);
            if &there == expected {
                continue;
            }
            let more = |a: &Bag, b: &Bag| -> HashMap<Row, Row> {
                let rows = a.iter().filter(|(row, n)| **n > b.get(*row).copied().unwrap_or(0));
                rows.map(|(row, _)| (key_of(table, row), row.clone())).collect()
            };
            let (missing, extra) = (more(expected, &there), more(&there, expected));
            for key in missing.keys().chain(extra.keys()).collect::<BTreeSet<_>>() {
                let (kind, why) = self.judge(table, key, missing.get(key), extra.get(key), seen);
                let rows = format!("expected {:?}, found {:?}", missing.get(key), extra.get(key));
                found.push((kind, format!("{} after transaction {}: {why}; {rows}", TABLES[table].name, self.at)));
            }
        }
        found
    }

    /// What it means that under `key` the row `missing` is not there and the row `extra` is.
    fn judge(
        &self,
        table: usize,
        key: &Row,
        missing: Option<&Row>,
        extra: Option<&Row>,
        seen: &Observation,
    ) -> (ViolationKind, String) {
        let made = self.index.made_by(table, key, self.at);
        let fresh = made > self.seen;
        match (missing, extra) {
            (Some(_), None) if !fresh => (ViolationKind::Lost, format!("the row of transaction {made} is not there")),
            (Some(_), None) if self.partly(made, seen) => {
                (ViolationKind::Torn, format!("transaction {made} is visible without this row"))
            }
            (_, None) => (ViolationKind::Lost, format!("the row of transaction {made} never came")),
            (missing, Some(extra)) => {
                if seen.tables[table].iter().filter(|row| key_of(table, row) == *key).count() > 1 {
                    return (ViolationKind::Doubled, "the row is there more than once".to_owned());
                }
                let commits: Vec<usize> = self.index.commits_of(table, key, extra).collect();
                let older = commits.iter().any(|&c| c <= self.at);
                let newer = commits.iter().any(|&c| c > self.at);
                match (older, newer) {
                    (true, _) if fresh => (ViolationKind::Torn, format!("transaction {made} is visible without this")),
                    (true, _) if missing.is_none() => {
                        (ViolationKind::Doubled, format!("transaction {made} deleted it, it is there"))
                    }
                    (true, _) => (ViolationKind::Backwards, format!("older than transaction {made} left it")),
                    (false, true) => (ViolationKind::Torn, "part of a later transaction".to_owned()),
                    (false, false) => (ViolationKind::Wrong, "the source never had this row".to_owned()),
                }
            }
        }
    }

    /// Whether anything of a transaction beside its row in the journal can be seen.
    fn partly(&self, number: usize, seen: &Observation) -> bool {
        let Some(commit) = number.checked_sub(1).and_then(|i| self.commits.get(i)) else { return false };
        let data = commit.changes.iter().filter(|c| c.table != JOURNAL);
        data.filter_map(|c| c.new.as_ref().map(|row| (c.table, row)))
            .any(|(table, row)| seen.tables[table].iter().any(|there| there == row))
    }

    fn per_key(&mut self, seen: &Observation) {
        self.report.compared += 1;
        self.report.rows += seen.tables.iter().map(Vec::len).sum::<usize>();
        for table in (0..TABLES.len()).filter(|&t| !TABLES[t].key.is_empty()) {
            let rows: HashMap<Row, &Row> = seen.tables[table].iter().map(|row| (key_of(table, row), row)).collect();
            if rows.len() < seen.tables[table].len() {
                self.report.add(ViolationKind::Doubled, format!("{}: a key is there twice", TABLES[table].name));
            }
            let known = self.last.keys().filter(|(t, key)| *t == table && !rows.contains_key(key));
            let gone: Vec<Row> = known.map(|(_, key)| key.clone()).collect();
            let there = rows.into_iter().map(|(key, row)| (key, Some(row)));
            for (key, row) in there.chain(gone.into_iter().map(|key| (key, None))) {
                self.one_key(table, key, row);
            }
        }
    }

    /// The earliest version not before the last one seen that looks like this. More than one may;
    /// taking the earliest never accuses wrongly.
    fn one_key(&mut self, table: usize, key: Row, row: Option<&Row>) {
        let versions = self.index.of(table, &key);
        let last = self.last.get(&(table, key.clone())).copied().unwrap_or(0);
        let alike = |from: usize| (from..versions.len()).find(|&at| versions[at].1.as_ref() == row);
        match alike(last) {
            Some(at) => drop(self.last.insert((table, key), at)),
            None => {
                let kind = match (row, alike(0)) {
                    (None, _) => ViolationKind::Lost,
                    (_, Some(_)) => ViolationKind::Backwards,
                    (_, None) => ViolationKind::Wrong,
                };
                let what =
                    format!("{}: {row:?} under {key:?} after version {last} of {versions:?}", TABLES[table].name);
                self.report.add(kind, what);
            }
        }
    }
}
