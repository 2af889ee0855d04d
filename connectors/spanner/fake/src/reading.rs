//! The answer to a query of a change stream, row by row, as the clock goes on.

use std::sync::Arc;
use std::time::Duration;

use googleapis_tonic_google_spanner_v1::google::spanner::v1::{PartialResultSet, ResultSetMetadata, StructType};
use prost_types::Value;
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tonic::Status;

use crate::database::{Asked, Database, State};
use crate::encode::{self, of_kind};
use crate::query::StreamQuery;
use crate::record::{Entry, Record};
use crate::stream::{Failure, Mode};
use crate::time::Time;

type Out = mpsc::Sender<Result<PartialResultSet, Status>>;

/// The constant resume token of the emulator.
const DUMMY_TOKEN: &[u8] = b"dummy_resume_token_for_change_streams";

/// The longest window of a query on a mutable stream.
const MUTABLE_WINDOW: Duration = Duration::from_secs(30 * 60);

/// A query of one partition, or of the list of first ones.
pub(crate) struct Reading {
    database: Arc<Database>,
    query: StreamQuery,
    token: String,
    start: Time,
    /// The place of the next record of the partition.
    next: usize,
    rows: usize,
    failures: Vec<Failure>,
    /// What the reader knows: the last record's or heartbeat's time.
    known: Time,
    metadata: Option<ResultSetMetadata>,
    out: Out,
}

impl Reading {
    /// Checks the query as Spanner does, and notes that it was asked.
    pub(crate) fn begin(database: &Arc<Database>, query: StreamQuery, resume: &[u8], out: Out) -> Result<Self, Status> {
        let now = database.clock.now();
        let dialect = database.dialect;
        database.update(|state| {
            let resumed = !resume.is_empty();
            state.asked.push(Asked {
                stream: query.stream.clone(),
                token: query.token.clone(),
                start: query.start,
                end: query.end,
                resumed,
            });
            let start = check(state, &query, now)?;
            let stream = state.streams.get_mut(&query.stream).ok_or_else(|| Status::not_found("the stream"))?;
            let row_type = StructType { fields: vec![encode::column(dialect, stream)] };
            let token = query.token.clone().unwrap_or_default();
            let (mut next, mut failures) = (0, Vec::new());
            if let Some(partition) = stream.partitions.get_mut(&token) {
                partition.queries += 1;
                let number = partition.queries;
                next = partition.records.partition_point(|r| r.at < start);
                let mine = |f: &&Failure| f.token == token && f.query.is_none_or(|q| q == number);
                failures = stream.failures.iter().filter(mine).cloned().collect();
            }
            if let Some(place) = std::str::from_utf8(resume).ok().and_then(|t| t.strip_prefix("after-")?.parse().ok()) {
                next = place;
            }
            let metadata = Some(ResultSetMetadata { row_type: Some(row_type), ..ResultSetMetadata::default() });
            let database = Arc::clone(database);
            Ok(Self { database, query, token, start, next, rows: 0, failures, known: start, metadata, out })
        })
    }

    /// Sends everything until the query ends, or nobody listens any more.
    pub(crate) async fn run(mut self) {
        let result = if self.query.token.is_none() { self.first_partitions().await } else { self.partition().await };
        if let Err(Some(status)) = result {
            let _ = self.out.send(Err(status)).await;
        }
    }

    /// The partitions that are open at the start: one record for each, as the emulator does.
    async fn first_partitions(&mut self) -> Result<(), Option<Status>> {
        let (start, mode) = (self.start, self.query.mode);
        let tokens: Vec<String> = {
            let state = self.database.lock();
            let stream = state.streams.get(&self.query.stream);
            stream.map(|s| s.live(start).into_iter().map(str::to_owned).collect()).unwrap_or_default()
        };
        for (at, token) in tokens.into_iter().enumerate() {
            let sequence = at as u64;
            let entry = match mode {
                Mode::Immutable => Entry::Children { sequence, children: vec![(token, Vec::new())] },
                Mode::MutableKeyRange => Entry::Start { sequence, tokens: vec![token] },
            };
            self.send(Record { at: start, entry }).await?;
        }
        Ok(())
    }

    async fn partition(&mut self) -> Result<(), Option<Status>> {
        let mut changes = self.database.changes();
        let heartbeat = Duration::from_millis(u64::try_from(self.query.heartbeat_ms).unwrap_or(1_000));
        let until = self.query.end.unwrap_or(Time::END);
        loop {
            changes.borrow_and_update();
            let now = self.database.clock.now();
            let (records, end) = self.due(now.min(until));
            let next_at = records.1;
            for record in records.0 {
                self.next += 1;
                self.send(record).await?;
            }
            let over = end.unwrap_or(Time::END).min(until);
            self.break_off()?;
            if self.known.plus(heartbeat) <= now.min(over) {
                let at = self.database.lock().heartbeat(now.min(over));
                self.send(Record { at, entry: Entry::Heartbeat }).await?;
            }
            if over <= now {
                return Ok(());
            }
            let wake = next_at.unwrap_or(Time::END).min(over).min(self.known.plus(heartbeat));
            tokio::select! {
                biased;
                () = self.out.closed() => return Err(None),
                changed = changes.changed() => changed.map_err(|_| None)?,
                () = self.database.clock.reached(wake) => {}
            }
        }
    }

    /// The records that are due, when the one after them will be, and when the partition ends.
    fn due(&self, now: Time) -> ((Vec<Record>, Option<Time>), Option<Time>) {
        let state = self.database.lock();
        let partition = state.streams.get(&self.query.stream).and_then(|s| s.partitions.get(&self.token));
        let Some(partition) = partition else { return ((Vec::new(), None), Some(now)) };
        let rest = partition.records.get(self.next..).unwrap_or_default();
        let due = rest.iter().take_while(|r| r.at <= now).cloned().collect::<Vec<_>>();
        let next = rest.get(due.len()).map(|r| r.at);
        ((due, next), partition.end)
    }

    async fn send(&mut self, record: Record) -> Result<(), Option<Status>> {
        self.break_off()?;
        self.known = self.known.max(record.at);
        let value = encode::value(self.database.dialect, self.query.mode, &self.token, &record);
        let token = match self.database.resumable {
            // A heartbeat that no script holds has no place of its own: the one before is good for it.
            true => format!("after-{}", self.next).into_bytes(),
            false => DUMMY_TOKEN.to_vec(),
        };
        let pieces = cut(value, self.database.chunk);
        let last = pieces.len() - 1;
        for (at, piece) in pieces.into_iter().enumerate() {
            let set = PartialResultSet {
                metadata: self.metadata.take(),
                values: vec![piece],
                chunked_value: at < last,
                resume_token: if at == last { token.clone() } else { Vec::new() },
                ..PartialResultSet::default()
            };
            self.out.send(Ok(set)).await.map_err(|_| None)?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Fails, or ends, if the script says so at this place.
    fn break_off(&self) -> Result<(), Option<Status>> {
        match self.failures.iter().find(|f| f.after == self.rows) {
            None => Ok(()),
            Some(failure) => Err(failure.with.map(|code| Status::new(code, "as the script says"))),
        }
    }
}

/// Spanner's checks, with the emulator's words.
fn check(state: &State, query: &StreamQuery, now: Time) -> Result<Time, Status> {
    let stream = state.streams.get(&query.stream).ok_or_else(|| Status::not_found("the stream"))?;
    let Some(start) = query.start else {
        return Err(Status::invalid_argument("start_timestamp must not be null"));
    };
    if let Some(oldest) = stream.oldest.filter(|oldest| start < *oldest) {
        let problem = "Specified start_timestamp is too far in the past. Please specify a start_timestamp within the earliest read timestamp";
        return Err(Status::out_of_range(format!("{problem}: {oldest}. Received start_timestamp: {start}.")));
    }
    if start > now.plus(Duration::from_secs(600)) {
        let problem = "Specified start_timestamp is too far in the future";
        return Err(Status::out_of_range(format!("{problem}. Received start_timestamp: {start}.")));
    }
    if let Some(end) = query.end.filter(|end| *end < start) {
        let problem = "If end_timestamp is specified, start_timestamp must be <= end_timestamp";
        return Err(Status::invalid_argument(format!(
            "{problem}. Received start_timestamp: {start}, end_timestamp: {end}."
        )));
    }
    if query.mode == Mode::MutableKeyRange && query.end.is_none_or(|end| end > now.plus(MUTABLE_WINDOW)) {
        let problem = "end_timestamp must be specified, and at most 30 minutes ahead, for MUTABLE_KEY_RANGE";
        return Err(Status::invalid_argument(problem));
    }
    let Some(token) = &query.token else { return Ok(start) };
    let Some(partition) = stream.partitions.get(token) else {
        let problem =
            "Specified partition_token is invalid, as it does not belong to the Change Stream associated with the TVF";
        return Err(Status::invalid_argument(format!("{problem}. Received partition_token: {token}.")));
    };
    if start < partition.start || partition.end.is_some_and(|end| start > end) {
        let end = partition.end.map_or_else(|| "infinite-future".to_owned(), Time::with_offset);
        let problem = "Specified start_timestamp is invalid for the partition. Please specify a start_timestamp within";
        let (from, start) = (partition.start.with_offset(), start.with_offset());
        return Err(Status::out_of_range(format!("{problem} {from} and {end}. Received start_timestamp: {start}.")));
    }
    Ok(start)
}

/// A text in pieces: each but the last is told to go on. Lists stay whole.
fn cut(value: Value, chunk: Option<usize>) -> Vec<Value> {
    let (Some(size), Some(Kind::StringValue(text))) = (chunk, &value.kind) else { return vec![value] };
    let mut pieces = vec![String::new()];
    for letter in text.chars() {
        if pieces.last().is_some_and(|p| p.len() >= size) {
            pieces.push(String::new());
        }
        if let Some(last) = pieces.last_mut() {
            last.push(letter);
        }
    }
    pieces.into_iter().map(|piece| of_kind(Kind::StringValue(piece))).collect()
}
