//! What the proxy remembers: slots, and which transaction has which LSN and hybrid time.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::upstream::Raw;

/// Errors that ask for another try, as YugabyteDB writes them.
const RETRYABLE: [(&str, &str); 6] = [
    ("40001", "Restart read required at: { read: { physical: 1 } local_limit: { physical: 2 } }"),
    ("40001", "could not serialize access due to concurrent update"),
    ("40001", "Operation expired: Transaction 6ef7eb63 expired or aborted by a conflict: 40001"),
    ("40P01", "deadlock detected"),
    ("XX000", "Catalog Version Mismatch: A DDL occurred while processing this query. Try again."),
    ("XX000", "Illegal state: Tablet 04dd056e79a14f48 not the leader"),
];

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) slots: BTreeMap<String, Slot>,
    /// Errors that wait to be shown in place of PostgreSQL's, by number.
    errors: Vec<(String, String)>,
    pub(crate) refused: Vec<String>,
    pub(crate) injected: u64,
    /// Whether that is over.
    pub(crate) calm: bool,
    random: StdRng,
    streams: u64,
    /// From this place in PostgreSQL's log on, commits are later than this hybrid time.
    floors: BTreeMap<u64, u64>,
    /// Snapshots by the microsecond at whose end they were taken.
    pub(crate) snapshots: BTreeMap<u64, Snapshot>,
}

/// An exported snapshot; it lives as long as its connection.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) _keeper: Raw,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) database: String,
    pub(crate) plugin: String,
    pub(crate) hybrid: bool,
    pub(crate) stream: u64,
    /// The hybrid time after which it has every transaction.
    pub(crate) restart: u64,
    pub(crate) confirmed: u64,
    pub(crate) expired: bool,
    /// By the place of its commit in PostgreSQL's log.
    assigned: BTreeMap<u64, Assigned>,
}

/// What a transaction got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assigned {
    pub(crate) lsn: u64,
    pub(crate) hybrid_time: u64,
    /// Its end in PostgreSQL's log.
    pub(crate) end: u64,
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            errors: Vec::new(),
            refused: Vec::new(),
            injected: 0,
            calm: false,
            random: StdRng::seed_from_u64(seed),
            streams: 0,
            floors: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        }
    }

    /// A statement that PostgreSQL refuses, and whose error is shown as this one.
    pub(crate) fn refusal(&mut self, code: &str, message: &str) -> String {
        self.errors.push((code.to_owned(), message.to_owned()));
        format!("SELECT \"yb:{}\"", self.errors.len() - 1)
    }

    /// The error that is shown in place of PostgreSQL's, if it is one of a refusal.
    pub(crate) fn shown(&self, message: &str) -> Option<&(String, String)> {
        let number = message.split_once("\"yb:")?.1.split('"').next()?;
        self.errors.get(number.parse::<usize>().ok()?)
    }

    /// At random: a statement that is refused for now.
    pub(crate) fn inject(&mut self, one_of: u32) -> Option<String> {
        if one_of == 0 || self.calm || !self.random.random_ratio(1, one_of) {
            return None;
        }
        let (code, message) = RETRYABLE[self.random.random_range(0..RETRYABLE.len())];
        self.injected += 1;
        Some(self.refusal(code, message))
    }

    /// From this place on commits are later than the end of this microsecond.
    pub(crate) fn floor(&mut self, place: u64, micros: u64) {
        self.floors.insert(place, ((micros + 1) << 12) - 1);
    }

    pub(crate) fn create(&mut self, name: &str, slot: Slot) {
        self.streams += 1;
        let stream = self.streams;
        self.slots.insert(name.to_owned(), Slot { stream, ..slot });
    }

    /// What the transaction has that committed at this place and time with so many records.
    pub(crate) fn assign(&mut self, slot: &str, commit: u64, end: u64, micros: u64, records: u64) -> Option<Assigned> {
        let floor = self.floors.range(..=commit).next_back().map_or(0, |(_, floor)| floor + 1);
        let slot = self.slots.get_mut(slot)?;
        if let Some(known) = slot.assigned.get(&commit) {
            return Some(*known);
        }
        let (last_lsn, last_time) = slot.last();
        let hybrid_time = (micros << 12).max(floor).max(last_time + 1);
        // BEGIN, each row and COMMIT count.
        let lsn = if slot.hybrid { hybrid_time } else { last_lsn + records + 2 };
        let assigned = Assigned { lsn, hybrid_time, end };
        slot.assigned.insert(commit, assigned);
        Some(assigned)
    }
}

impl Slot {
    pub(crate) fn new(database: &str, plugin: &str, hybrid: bool, restart: u64) -> Self {
        Self {
            database: database.to_owned(),
            plugin: plugin.to_owned(),
            hybrid,
            stream: 0,
            restart,
            confirmed: if hybrid { restart } else { 2 },
            expired: false,
            assigned: BTreeMap::new(),
        }
    }

    /// LSN and hybrid time of the last transaction.
    pub(crate) fn last(&self) -> (u64, u64) {
        let first = (if self.hybrid { self.restart } else { 2 }, self.restart);
        self.assigned.last_key_value().map_or(first, |(_, a)| (a.lsn, a.hybrid_time.max(first.1)))
    }

    /// Every transaction at or before this LSN is not needed again: `CalculateRestartLSN`. Gives what
    /// PostgreSQL may forget.
    pub(crate) fn confirm(&mut self, through: u64) -> Option<u64> {
        if through > self.confirmed {
            self.confirmed = through;
        }
        let done = self.assigned.values().take_while(|a| a.lsn <= self.confirmed).last().copied()?;
        self.restart = self.restart.max(done.hybrid_time);
        Some(done.end)
    }
}
