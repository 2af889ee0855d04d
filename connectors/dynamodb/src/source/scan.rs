//! Copies tables: segments of a scan, in parallel, at a limited rate.
//!
//! The rows of a scan have no place in the stream, so the stream is replayed over them from before
//! the scan's beginning: the last image of each item wins, and an item that was deleted meanwhile is
//! deleted again. So it does not matter when a segment was read, and a copy that was interrupted goes
//! on with the segments that are left.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeReader, Chunk, Error, Next, Op, PartitionId, Position, Rank, Result, Snapshot, Snapshotter,
    TableName, TableSchema, TableSnapshot, Timestamp, Transaction,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::operation::scan::ScanError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity};
use tokio::time::{Instant, sleep_until};

use super::pace::Pace;
use super::setup::Table;
use super::spool::{self, Spooling};
use super::{Connected, DynamoDb, RETENTION};
use crate::answer::{self, Call};
use crate::bookkeeping::{DELETED, MARKER};
use crate::decode::attribute::Item as _;
use crate::decode::wire::{Item, Scanned};
use crate::error::{classify, code, is_throttle};

/// The stream is replayed from this long before the scan: eventually consistent reads are behind by
/// less than that.
const MARGIN: i64 = 60_000_000;

/// A stream that is younger than this may not hold what an eventually consistent read does not see
/// yet: then the scan reads consistently, at twice the price.
const YOUNG: i64 = 5 * 60 * 1_000_000;

/// Bytes of a table for each segment, if their number is not set.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Segments of a table, if their number is not set.
const SEGMENTS: std::ops::RangeInclusive<u64> = 4..=1000;

/// A scan that would take longer than this needs a spool: what it leaves of the day is for the replay,
/// and for what goes slower than expected.
const LONG: Duration = Duration::from_secs(18 * 3600);

/// Bytes that one read unit gives, eventually consistent (developer guide, "Read/write capacity mode").
const UNIT_BYTES: f64 = 8192.0;

/// The copy, among those that need what the streams keep. No partition is called so.
pub(super) const COPY: &str = "anabranch:copy";

/// Calls that fail one after another before the copy is interrupted.
const MAX_FAILURES: u32 = 6;

/// A scan of tables.
struct Scan {
    connected: Connected,
    tables: Vec<Arc<Table>>,
    begun: Timestamp,
    chunks: Vec<Chunk>,
    capacity: BTreeMap<String, Arc<Capacity>>,
    guard: PartitionId,
    /// Reads the streams to disk meanwhile.
    spooling: Option<Arc<Spooling>>,
}

/// The point of a copy that began then: below every rank, so that nothing of the stream is left out.
pub(super) fn point(begun: Timestamp) -> Position {
    Position::new(Rank::default(), format!("scan {}", begun.as_micros()))
}

/// When the copy began that a snapshot's point stands for.
pub(super) fn begun(point: &Position) -> Option<Timestamp> {
    let text = std::str::from_utf8(&point.token).ok()?;
    text.strip_prefix("scan ")?.parse().ok().map(Timestamp::from_micros)
}

#[async_trait]
impl Snapshotter for DynamoDb {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Scan::plan(self.connected(), tables, &BTreeMap::new()).await?))
    }

    async fn resume(
        &self,
        tables: &[TableSchema],
        before: &BTreeMap<TableName, TableSnapshot>,
    ) -> Result<Option<Box<dyn Snapshot>>> {
        let connected = self.connected();
        let oldest = tables.iter().filter_map(|t| begun(&before.get(&t.name)?.point)).min();
        let Some(oldest) = oldest else { return Ok(None) };
        let spooled = |t: &TableSchema| {
            let all = connected.tables().unwrap_or_default();
            let table = all.iter().find(|table| table.layout.schema().name == t.name);
            table.is_some_and(|table| spool::holds(connected.settings.spool.as_ref(), oldest, table))
        };
        let old = connected.now().micros_since(oldest) >= RETENTION.as_micros() as i64;
        if old && !tables.iter().all(spooled) {
            tracing::warn!(since = %oldest, "the copy took longer than the stream keeps changes: it begins again");
            return Ok(None);
        }
        Ok(Some(Box::new(Scan::plan(connected, tables, before).await?)))
    }
}

impl Scan {
    async fn plan(
        connected: Connected,
        tables: &[TableSchema],
        before: &BTreeMap<TableName, TableSnapshot>,
    ) -> Result<Self> {
        let all = connected.tables()?;
        let of = |schema: &TableSchema| all.iter().find(|t| t.layout.schema().name == schema.name).cloned();
        let tables: Vec<Arc<Table>> = tables.iter().filter_map(of).collect();
        let begun_before = before.values().filter(|t| !t.finished).filter_map(|t| begun(&t.point)).min();
        let begun = begun_before.unwrap_or_else(|| connected.now().minus_micros(MARGIN));
        let mut chunks = Vec::new();
        let mut capacity = BTreeMap::new();
        for table in &tables {
            let name = &table.layout.schema().name;
            let planned = before.get(name).map(|t| t.chunks).filter(|n| *n > 0);
            let by_size = || (table.bytes / SEGMENT_BYTES).clamp(*SEGMENTS.start(), *SEGMENTS.end()) as u32;
            let segments = planned.or(connected.settings.scan_segments).unwrap_or_else(by_size);
            let rows = table.items.map(|n| n / u64::from(segments));
            chunks.extend((0..segments).map(|index| Chunk {
                table: name.clone(),
                index,
                token: format!("{index}/{segments}"),
                rows,
            }));
            let limit = connected.settings.scan_capacity;
            capacity.insert(table.name.clone(), Arc::new(Capacity::new(limit)));
        }
        let guard = PartitionId::new(COPY);
        let spooling = match &connected.settings.spool {
            Some(settings) => {
                // No stream is read before all tables are copied: those that are wait for the others.
                let waits = |t: &&Arc<Table>| {
                    let copy = before.get(&t.layout.schema().name).filter(|copy| copy.finished);
                    copy.is_some_and(|copy| self::begun(&copy.point) == Some(begun))
                        && spool::holds(Some(settings), begun, t)
                };
                let spooled: Vec<_> = tables.iter().chain(all.iter().filter(waits)).cloned().collect();
                Some(Arc::new(Spooling::start(&connected, settings, &spooled, begun).await?))
            }
            None => {
                check_time(&connected, &tables)?;
                // The stream has to keep what comes from here on until the copy is done.
                connected.needed().opened(&guard, Some(begun));
                None
            }
        };
        Ok(Self { connected, tables, begun, chunks, capacity, guard, spooling })
    }
}

/// Whether the scan will be through before the stream drops what it began with.
fn check_time(connected: &Connected, tables: &[Arc<Table>]) -> Result<()> {
    let Some(units) = connected.settings.scan_capacity else { return Ok(()) };
    for table in tables {
        let seconds = table.bytes as f64 / UNIT_BYTES / units;
        if seconds > LONG.as_secs_f64() {
            let problem = format!(
                "the scan of {} takes about {:.0} hours at {units} read units a second, and its stream keeps 24",
                table.name,
                seconds / 3600.0
            );
            return Err(Error::config("source.spool", problem)
                .hint("set spool to a folder on a local disk, or raise scan_capacity"));
        }
    }
    Ok(())
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.connected.needed().closed(&self.guard);
    }
}

#[async_trait]
impl Snapshot for Scan {
    fn point(&self) -> Position {
        point(self.begun)
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let strange = || Error::fatal(format!("{:?} is not a segment of a scan", chunk.token));
        let (segment, segments) = chunk.token.split_once('/').ok_or_else(strange)?;
        let segment = segment.parse().map_err(|_| strange())?;
        let segments = segments.parse().map_err(|_| strange())?;
        let table = self.tables.iter().find(|t| t.layout.schema().name == chunk.table).ok_or_else(strange)?;
        let capacity = self.capacity.get(&table.name).ok_or_else(strange)?;
        let enabled = Timestamp::from_micros(i64::try_from(table.stream()?.epoch * 1000).unwrap_or(i64::MAX));
        Ok(Box::new(SegmentReader {
            connected: self.connected.clone(),
            table: Arc::clone(table),
            capacity: Arc::clone(capacity),
            segment,
            segments,
            consistent: self.connected.now().micros_since(enabled) < YOUNG,
            after: None,
            call: None,
            done: false,
            pace: Pace::new(self.connected.settings.poll),
            failures: 0,
            spooling: self.spooling.clone(),
        }))
    }
}

/// Reads a segment.
struct SegmentReader {
    connected: Connected,
    table: Arc<Table>,
    capacity: Arc<Capacity>,
    segment: i32,
    segments: i32,
    consistent: bool,
    /// The last key of the page before.
    after: Option<HashMap<String, AttributeValue>>,
    /// The call for the page behind it, if it is under way.
    call: Option<Call<ScanError>>,
    done: bool,
    pace: Pace,
    failures: u32,
    spooling: Option<Arc<Spooling>>,
}

impl SegmentReader {
    /// A page; `None`: ask again.
    async fn page(&mut self) -> Result<Option<Next>> {
        if let Some(error) = self.spooling.as_ref().and_then(|s| s.failure()) {
            return Err(error.context("the spool of the copy"));
        }
        let mut call = match self.call.take() {
            Some(call) => call,
            None => {
                self.pace.wait().await;
                self.capacity.wait().await;
                self.call()?
            }
        };
        let answer = call.answer().await.map_err(|e| Error::fatal("a scan panicked").because(e))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) if code(&e).is_some_and(is_throttle) => {
                self.pace.throttled();
                return Ok(None);
            }
            Err(e) => return self.failed(classify("dynamodb:Scan", format!("the table {}", self.table.name), e)),
        };
        let mut page = match Scanned::read(&answer) {
            Ok(page) => page,
            // Of something on the way, perhaps.
            Err(e) => {
                let name = &self.table.name;
                let strange = format!("dynamodb:Scan on the table {name}: the answer is not as documented");
                return self.failed(Error::transient(strange).because(e));
            }
        };
        self.failures = 0;
        self.pace.busy();
        self.capacity.consumed(page.capacity());
        self.after = page.last_key();
        self.done = self.after.is_none();
        if !self.done && self.capacity.is_unlimited() {
            // Read while this page is decoded and applied.
            self.call = Some(self.call()?);
        }
        self.batch(page.items()).map(Some)
    }

    /// Asks for the page behind the last.
    fn call(&self) -> Result<Call<ScanError>> {
        let call = self.connected.connected()?.tables.scan().table_name(&self.table.name);
        let call = call.segment(self.segment).total_segments(self.segments);
        let call = call.set_exclusive_start_key(self.after.clone()).consistent_read(self.consistent);
        let call = call.return_consumed_capacity(ReturnConsumedCapacity::Total);
        Ok(Call::start(async move { answer::body(Box::pin(call.send())).await }))
    }

    /// The same page is asked for a few times before the copy is interrupted.
    fn failed(&mut self, error: Error) -> Result<Option<Next>> {
        self.failures += 1;
        if error.kind() != anabranch_core::ErrorKind::Transient || self.failures >= MAX_FAILURES {
            return Err(error);
        }
        self.pace.throttled();
        Ok(None)
    }

    fn batch(&self, items: &[Item<'_>]) -> Result<Next> {
        let mut batch = BatchBuilder::new(PartitionId::new(self.table.name.as_str()));
        let mut scratch = String::new();
        let schema = batch.schema(self.table.layout.schema());
        batch.begin(Transaction::default(), 1);
        // Tombstones and markers are no rows.
        for item in items.iter().filter(|i| i.attribute(DELETED).is_none() && i.attribute(MARKER).is_none()) {
            batch.change(Op::Insert, schema);
            batch.new_row();
            self.table.layout.row(item, &mut batch, &mut scratch)?;
        }
        batch.commit(Position::default());
        batch.finish(Position::default(), None).map(Next::Batch)
    }
}

#[async_trait]
impl ChangeReader for SegmentReader {
    async fn next(&mut self) -> Result<Next> {
        if self.done {
            return Ok(Next::Closed { children: Vec::new() });
        }
        match self.page().await? {
            Some(next) => Ok(next),
            // Throttled: a sign of life, so that a copy that is to stop does.
            None => self.batch(&[]),
        }
    }

    async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What the segments of a table may consume together.
#[derive(Debug)]
struct Capacity {
    per_second: Option<f64>,
    /// When what was consumed is paid off.
    free_at: Mutex<Instant>,
}

impl Capacity {
    fn new(per_second: Option<f64>) -> Self {
        Self { per_second, free_at: Mutex::new(Instant::now()) }
    }

    fn is_unlimited(&self) -> bool {
        self.per_second.is_none()
    }

    fn free_at(&self) -> Instant {
        *self.free_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the pages before are paid off: what a page costs is known only afterwards.
    async fn wait(&self) {
        if self.per_second.is_some() {
            sleep_until(self.free_at()).await;
        }
    }

    fn consumed(&self, units: Option<f64>) {
        let Some(per_second) = self.per_second else { return };
        let cost = Duration::from_secs_f64((units.unwrap_or(1.0) / per_second).clamp(0.0, 3600.0));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(Instant::now()) + cost;
    }
}
