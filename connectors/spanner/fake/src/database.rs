//! What the server holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use googleapis_tonic_google_spanner_v1::google::spanner::v1::Mutation;
use prost_types::Value;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::encode::Dialect;
use crate::query::StreamQuery;
use crate::rows::{Effect, Row, Tables};
use crate::stream::{Mode, Stream};
use crate::time::{Clock, Time};
use crate::transaction::Committed;

/// A query of a change stream that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The stream.
    pub stream: String,
    /// The partition; `None` asks for the first ones.
    pub token: Option<String>,
    /// From when, inclusive.
    pub start: Option<Time>,
    /// Until when, inclusive.
    pub end: Option<Time>,
    /// The client went on with it after a break, by its resume token.
    pub resumed: bool,
}

/// A transaction that a client committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// When.
    pub at: Time,
    /// Its tag.
    pub tag: String,
    /// Whether it asked to be left out of change streams.
    pub excluded: bool,
    /// Its mutations, in order.
    pub mutations: Vec<Mutation>,
    /// Its statements of DML, which the fake notes and does not run.
    pub statements: Vec<String>,
}

/// A fixed answer to queries that contain a text.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) contains: String,
    pub(crate) columns: Vec<(String, String)>,
    pub(crate) rows: Vec<Vec<Json>>,
}

/// A read-write transaction that is open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Open {
    pub(crate) tag: String,
    pub(crate) excluded: bool,
    pub(crate) statements: Vec<String>,
    /// How many commits there were when it first read; another one since then aborts it.
    pub(crate) read_at: Option<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) streams: BTreeMap<String, Stream>,
    pub(crate) tables: Tables,
    pub(crate) answers: Vec<Answer>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) commits: Vec<Commit>,
    pub(crate) open: HashMap<Vec<u8>, Open>,
    pub(crate) commit_failures: Vec<CommitFailure>,
    /// Sessions, transactions.
    pub(crate) counter: u64,
    /// The latest time that a commit or a heartbeat had: the next commit is later.
    last: Time,
}

/// A commit that does not go as it should.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommitFailure {
    pub(crate) code: Code,
    pub(crate) takes_effect: bool,
}

/// The database: shared by the server and the test.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) dialect: Dialect,
    pub(crate) clock: Clock,
    /// Whether each row has a resume token of its own. If not, all have the same, and a query that is
    /// resumed begins anew, as with the emulator.
    pub(crate) resumable: bool,
    /// Values are cut into pieces of so many bytes.
    pub(crate) chunk: Option<usize>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Database {
    pub(crate) fn new(
        dialect: Dialect,
        clock: Clock,
        resumable: bool,
        chunk: Option<usize>,
        state: State,
    ) -> Arc<Self> {
        let (state, changed) = (Mutex::new(state), watch::Sender::new(0));
        Arc::new(Self { dialect, clock, resumable, chunk, state, changed })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the queries that wait for more.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The query of a change stream in `sql`, if it is one.
    pub(crate) fn stream_query(
        &self,
        sql: &str,
        params: Option<&prost_types::Struct>,
    ) -> Result<Option<StreamQuery>, Status> {
        let modes: BTreeMap<String, Mode> =
            self.lock().streams.iter().map(|(name, s)| (name.clone(), s.mode)).collect();
        StreamQuery::parse(sql, params, self.dialect, &modes)
    }

    /// Commits: rows change, and streams that watch the tables get a record.
    pub(crate) fn commit(&self, id: &[u8], mutations: Vec<Mutation>) -> Result<Time, Status> {
        let now = self.clock.now();
        self.update(|state| {
            let open = state.open.remove(id).unwrap_or_default();
            let failure = (!state.commit_failures.is_empty()).then(|| state.commit_failures.remove(0));
            if let Some(failure) = failure.filter(|f| !f.takes_effect) {
                return Err(Status::new(failure.code, "as the script says, before the commit"));
            }
            if open.read_at.is_some_and(|seen| seen != state.commits.len()) {
                return Err(Status::aborted("Transaction was aborted: another one has committed since it read."));
            }
            let effects = state.tables.apply(&mutations)?;
            let at = state.stamp(now);
            state.record(at, &open, effects);
            let Open { tag, excluded, statements, .. } = open;
            state.commits.push(Commit { at, tag, excluded, mutations, statements });
            match failure {
                Some(failure) => Err(Status::new(failure.code, "as the script says, after the commit")),
                None => Ok(at),
            }
        })
    }
}

impl State {
    /// A time that is later than every heartbeat and commit before.
    pub(crate) fn stamp(&mut self, now: Time) -> Time {
        self.last = now.max(self.last.plus_nanos(1));
        self.last
    }

    /// A time for a heartbeat: no commit will have it, or an earlier one.
    pub(crate) fn heartbeat(&mut self, now: Time) -> Time {
        self.last = self.last.max(now);
        now
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Gives the streams that have open partitions and know the tables what a client committed.
    fn record(&mut self, at: Time, open: &Open, effects: Vec<Effect>) {
        let schemas = &self.tables.schemas;
        for stream in self.streams.values_mut().filter(|s| !(open.excluded && s.allow_exclusion)) {
            let live: Vec<String> = stream.live(at).into_iter().map(str::to_owned).collect();
            if live.is_empty() || !stream.records_commits {
                continue;
            }
            let mut transaction = Committed::at(at).tag(&open.tag);
            for effect in &effects {
                let Some(table) = schemas.get(&effect.table) else { continue };
                let table = Arc::new(table.clone());
                let row =
                    |row: &Option<Row>| Json::Object(row.iter().flatten().map(|(n, v)| (n.clone(), json(v))).collect());
                let (old, new) = (row(&effect.before), row(&effect.after));
                let partition = &live[place(&table, if effect.after.is_some() { &new } else { &old }, live.len())];
                transaction = match (&effect.before, &effect.after) {
                    (None, Some(_)) => transaction.insert(partition, &table, new),
                    (Some(_), Some(_)) => transaction.update(partition, &table, new, old),
                    (Some(_), None) => transaction.delete(partition, &table, old),
                    (None, None) => transaction,
                };
            }
            stream.commit(transaction);
        }
    }
}

/// The partition of a key: always the same one of as many.
fn place(table: &crate::table::Table, row: &Json, count: usize) -> usize {
    let keys = table.columns.iter().filter(|c| c.key).map(|c| row[c.name.as_str()].to_string());
    let sum =
        keys.flat_map(String::into_bytes).fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    (sum % count as u64) as usize
}

/// A value of the protocol as the JSON of a change record: it is the same, but for JSON columns,
/// whose text is a string in both.
fn json(value: &Value) -> Json {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(v)) => Json::Bool(*v),
        Some(Kind::NumberValue(v)) => serde_json::Number::from_f64(*v).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(v)) => Json::String(v.clone()),
        Some(Kind::ListValue(v)) => Json::Array(v.values.iter().map(json).collect()),
        Some(Kind::StructValue(v)) => {
            Json::Object(v.fields.iter().map(|(n, v)| (n.clone(), json(v))).collect::<Map<_, _>>())
        }
    }
}
