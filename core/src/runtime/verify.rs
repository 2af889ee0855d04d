//! Compares both sides: reads, marks and waits for [`crate::control::verify`], and repairs.

mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::rows::{Keys, Side};
use super::reader::Transforms;
use super::session::{Session, transformed};
use crate::control::drain::Drain;
use crate::control::verify::{
    Difference, DifferenceKind, Digester, Found, Seen, Sums, Suspects, TableVerified, Verified, VerifyOptions,
    differing_keys,
};
use crate::error::{Error, ErrorKind, Result};
use crate::mapping::Fidelity;
use crate::model::{
    BatchBuilder, Checkpoint, OldImage, Op, Part, PartitionId, PartitionStatus, Position, Rank, Selection, TableName,
    TableSchema, Timestamp, Transaction, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use crate::pipeline::{Shared, Spec, stored};
use crate::sink::LanePurpose;

/// Rows of one table that are kept to find the keys that differ: their keys take about 100 bytes each.
const KEPT: u64 = 200_000;

/// Keys that are looked at in rounds at a time, with their rows in memory.
const SUSPECTS: usize = 10_000;

/// How often the target's progress is asked while a mark is waited for.
const ASK: Duration = Duration::from_millis(200);

/// Compares every table; `tell` hears of each when it is done.
pub(crate) async fn verify(
    spec: &Arc<Spec>,
    transforms: &Transforms,
    options: &VerifyOptions,
    tell: &mut (dyn FnMut(&TableVerified) + Send),
) -> Result<Verified> {
    let sink = spec.sink.info().name;
    if spec.sink.verifier().is_none() {
        return Err(Error::config("sink.type", format!("the rows of {sink} cannot be read back")));
    }
    if options.repair && options.wait.is_none() {
        return Err(Error::config("repair", "needs a wait: rows on their way would be taken for differences"));
    }
    let stored = stored::checked(spec, stored::load(spec).await?).await?.map(|stored| stored.checkpoint);
    let tables = transformed(spec.source.tables().await?, transforms)?;
    let unknown = options.tables.iter().find(|name| !tables.iter().any(|(source, _)| is_called(&source.name, name)));
    if let Some(unknown) = unknown {
        return Err(Error::config("tables", format!("the source does not send a table {unknown}")));
    }
    let began = Timestamp::now();
    let target_from = positions(spec, stored.as_ref());
    let mut done = Vec::new();
    for (source, target) in tables {
        let chosen = options.tables.is_empty() || options.tables.iter().any(|name| is_called(&source.name, name));
        if chosen && !options.skip.contains(&source.name) {
            let compared = Comparison::new(spec, transforms, options, source, target).await?.run().await?;
            tell(&compared.report());
            done.push(compared);
        }
    }
    // Last, for it ends a runner that is alive: nothing passes a mark of the source after that.
    if let Some(patience) = options.wait.filter(|_| options.repair && done.iter().any(|c| !c.confirmed.is_empty())) {
        repair(spec, transforms, patience, &mut done).await?;
    }
    let done: Vec<TableVerified> = done.iter().map(Comparison::report).collect();
    Ok(Verified {
        pipeline: spec.name.to_string(),
        equal: done.iter().all(|t| t.equal),
        began,
        ended: Timestamp::now(),
        target_from,
        target_to: positions(spec, self::stored(spec).await?.as_ref()),
        tables: done,
    })
}

/// Whether a table has this name as somebody writes it: where there are no schemas its dot is the table's.
fn is_called(table: &TableName, name: &TableName) -> bool {
    table == name || table.to_string() == name.to_string()
}

/// The comparison of one table.
struct Comparison<'a> {
    spec: &'a Arc<Spec>,
    options: &'a VerifyOptions,
    source: Side,
    target: Side,
    /// As the sink gets it.
    table: TableSchema,
    /// What differs for sure, by the fingerprints of keys, and the keys' values.
    confirmed: HashMap<u128, Found>,
    keys: HashMap<u128, Vec<Value>>,
    repaired: HashSet<u128>,
    result: TableVerified,
}

impl<'a> Comparison<'a> {
    async fn new(
        spec: &'a Arc<Spec>,
        transforms: &'a Transforms,
        options: &'a VerifyOptions,
        source: TableSchema,
        mut table: TableSchema,
    ) -> Result<Self> {
        let not_compared = not_compared(spec, &table).await?;
        let name = source.name.clone();
        // A generated column is the target's own business, unless it is all there is to tell rows apart.
        let wanted: HashSet<String> = (table.columns.iter().enumerate())
            .filter(|(i, c)| table.is_key(*i) || (!c.generated && !not_compared.contains_key(&c.name)))
            .map(|(_, c)| c.name.clone())
            .collect();
        table = only(table, &wanted);
        let digester = Digester::new(rand::random(), &table, |_| true);
        let side = |of: &TableSchema, is_source: bool| Side {
            spec: Arc::clone(spec),
            transforms: is_source.then(|| transforms.clone()),
            table: of.clone(),
            digester: digester.clone(),
            rows_per_second: options.rows_per_second,
        };
        Ok(Self {
            spec,
            options,
            source: side(&source, true),
            target: side(&table, false),
            table,
            confirmed: HashMap::new(),
            keys: HashMap::new(),
            repaired: HashSet::new(),
            result: TableVerified {
                table: name,
                equal: false,
                source_rows: 0,
                target_rows: 0,
                missing: 0,
                extra: 0,
                changed: 0,
                unsettled: 0,
                repaired: 0,
                more: false,
                confirmed_at: BTreeMap::new(),
                not_compared,
                differences: Vec::new(),
            },
        })
    }

    async fn run(mut self) -> Result<Self> {
        let (mut source, mut target) = both(self.source.clone().sums(), self.target.clone().sums()).await?;
        (self.result.source_rows, self.result.target_rows) = (source.rows, target.rows);
        let mut open = Sums::all_buckets();
        loop {
            let (buckets, others) = source.differing(&target, &open, KEPT);
            if !buckets.contains(&true) {
                return Ok(self);
            }
            let buckets = Arc::new(buckets);
            let found =
                both(self.source.clone().keys(Arc::clone(&buckets)), self.target.clone().keys(Arc::clone(&buckets)));
            let (of_source, of_target) = found.await?;
            (source, target) = self.buckets(of_source, of_target).await?;
            // Of the other buckets those may be equal by now whose rows were on their way.
            open = others;
            if self.differs() && source.differing(&target, &open, KEPT).0.contains(&true) {
                self.result.more = true;
                return Ok(self);
            }
        }
    }

    /// Whether it is known that the sides differ.
    fn differs(&self) -> bool {
        self.result.unsettled > 0 || !self.confirmed.is_empty()
    }

    /// Looks at all rows of some buckets, until some that differ are confirmed. Gives back the sums.
    async fn buckets(&mut self, source: Keys, target: Keys) -> Result<(Sums, Sums)> {
        let keys = differing_keys(&source.rows, &target.rows);
        for (n, some) in keys.chunks(SUSPECTS).enumerate() {
            if n > 0 && self.differs() {
                self.result.more = true;
                break;
            }
            let values: HashMap<u128, Vec<Value>> = some
                .iter()
                .filter_map(|key| Some((*key, source.keys.get(key).or_else(|| target.keys.get(key))?.clone())))
                .collect();
            self.suspects(some, values).await?;
        }
        Ok((source.sums, target.sums))
    }

    async fn suspects(&mut self, keys: &[u128], mut values: HashMap<u128, Vec<Value>>) -> Result<()> {
        let mut suspects = Suspects::new(keys.iter().copied());
        match self.options.wait {
            None => {
                let at = self.look(&suspects, &values).await?;
                suspects.at_rest(&at.0, &at.1);
            }
            Some(patience) => self.rounds(&mut suspects, &values, patience).await?,
        }
        self.result.unsettled += suspects.unsettled();
        let confirmed = suspects.into_confirmed();
        values.retain(|key, _| confirmed.contains_key(key));
        self.confirmed.extend(confirmed);
        self.keys.extend(values);
        Ok(())
    }

    /// The suspects on both sides, as they are now.
    async fn look(
        &self,
        suspects: &Suspects,
        values: &HashMap<u128, Vec<Value>>,
    ) -> Result<(HashMap<u128, Seen>, HashMap<u128, Seen>)> {
        let open: HashSet<u128> = suspects.open().collect();
        Ok((self.source.seen(&open, values).await?, self.target.seen(&open, values).await?))
    }

    async fn rounds(
        &mut self,
        suspects: &mut Suspects,
        values: &HashMap<u128, Vec<Value>>,
        patience: Duration,
    ) -> Result<()> {
        for _ in 0..self.options.rounds.max(2) {
            if suspects.is_settled() {
                break;
            }
            let open: HashSet<u128> = suspects.open().collect();
            let before = self.source.seen(&open, values).await?;
            let mark = mark(self.spec).await?;
            wait_until_applied(self.spec, &mark, patience).await?;
            let target = self.target.seen(&open, values).await?;
            let after = self.source.seen(&open, values).await?;
            suspects.round(&before, &target, &after);
            let words = |(id, at): (&PartitionId, &Position)| (id.clone(), self.spec.source.describe(at));
            self.result.confirmed_at = mark.iter().map(words).collect();
        }
        Ok(())
    }

    /// The result, with what was confirmed and repaired.
    fn report(&self) -> TableVerified {
        let mut result = self.result.clone();
        for (key, found) in &self.confirmed {
            let kind = found.kind();
            let rows = found.source.count.abs_diff(found.target.count).max(1);
            match kind {
                DifferenceKind::Missing => result.missing += rows,
                DifferenceKind::Extra => result.extra += rows,
                DifferenceKind::Changed => result.changed += rows,
            }
            let repaired = self.repaired.contains(key);
            result.repaired += if repaired { rows } else { 0 };
            result.differences.push(difference(&self.table, kind, found, repaired));
        }
        result.differences.sort_by(|a, b| a.key.cmp(&b.key));
        result.differences.truncate(self.options.list);
        result.equal = !result.more && result.unsettled == 0 && result.differing() == result.repaired;
        result
    }

    /// Puts the source's rows into the target. A row that either side has changed since it was
    /// confirmed is left to the stream.
    async fn repair(&mut self, session: &Session) -> Result<()> {
        let keys: HashSet<u128> = self.confirmed.keys().copied().collect();
        // Before the source is read: what is committed later has a later rank.
        let rank = rank_now(self.spec).await?;
        let source = self.source.seen(&keys, &self.keys).await?;
        let target = self.target.seen(&keys, &self.keys).await?;
        let still = |key: &&u128| {
            let found = &self.confirmed[*key];
            let same = |seen: &HashMap<u128, Seen>, then: &Seen| seen.get(*key).map_or(0, |s| s.sum) == then.sum;
            same(&source, &found.source) && same(&target, &found.target)
        };
        let chosen: HashSet<u128> = keys.iter().filter(still).copied().collect();
        let Some(unit) = repair_unit(&self.table, rank, chosen.iter().map(|key| &self.confirmed[key]))? else {
            return Ok(());
        };
        // A letter of the row would be tried again on what was repaired, and take it back to what it was.
        let rows = unit.len();
        let unit = unit.retain(|change| !session.letters.has_letter(change));
        if unit.len() < rows {
            let (table, left) = (&self.table.name, rows - unit.len());
            tracing::warn!(pipeline = %self.spec.name, %table, left, "rows with open dead letters are left to those");
        }
        let mut writer = self.spec.sink.open(session.lane(0, LanePurpose::Stream)).await?;
        let written = writer.write(&unit).await?;
        if let Some(rejected) = written.rejected.into_iter().next() {
            return Err(rejected.error.context("the target refuses a repair"));
        }
        writer.flush().await?;
        writer.close().await?;
        // Seen, not believed: a target that goes by versions leaves a row alone whose version is later.
        let now = self.target.seen(&chosen, &self.keys).await?;
        let is_as_source = |key: &u128| {
            let (sum, count) = now.get(key).map_or((0, 0), |s| (s.sum, s.count));
            (sum, count) == (self.confirmed[key].source.sum, self.confirmed[key].source.count)
        };
        self.repaired = chosen.into_iter().filter(is_as_source).collect();
        let rows = self.repaired.len();
        tracing::warn!(pipeline = %self.spec.name, table = %self.table.name, rows, "rows repaired");
        Ok(())
    }
}

/// Repairs what differs. The pipeline is taken over first, so that nobody else writes: a runner that
/// is alive ends, fenced.
async fn repair(
    spec: &Arc<Spec>,
    transforms: &Transforms,
    patience: Duration,
    tables: &mut [Comparison<'_>],
) -> Result<()> {
    let session = taken_over(spec, transforms, patience).await?;
    // Rows without a key cannot be told apart: which of them to change is not known.
    for table in tables.iter_mut().filter(|t| !t.confirmed.is_empty() && !t.table.key.is_empty()) {
        table.repair(&session).await?;
    }
    Ok(())
}

/// A runner that is alive holds its place at the source until it notices that it is fenced, which it
/// does with its next write.
async fn taken_over(spec: &Arc<Spec>, transforms: &Transforms, patience: Duration) -> Result<Session> {
    let began = Instant::now();
    loop {
        match Session::open(spec, transforms, &Shared::new(&spec.name).part()).await {
            Err(e) if e.kind() == ErrorKind::Transient && began.elapsed() < patience => sleep(ASK).await,
            other => return other,
        }
    }
}

/// The columns that cannot be compared, with the reason.
async fn not_compared(spec: &Spec, table: &TableSchema) -> Result<BTreeMap<String, String>> {
    let Some(target) = spec.sink.target() else { return Ok(BTreeMap::new()) };
    let described = target.describe(&table.name).await?.ok_or_else(|| {
        Error::config(format!("target table {}", table.name), "does not exist").hint("the pipeline has not run yet")
    })?;
    let mut left_out = BTreeMap::new();
    for column in &table.columns {
        let existing = described.schema.columns.iter().find(|c| c.name == column.name);
        let existing = existing.or_else(|| {
            // A target that stores names in its own case.
            described.schema.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&column.name))
        });
        let contract = target.contract(column, existing);
        if contract.fidelity == Fidelity::Lossy {
            left_out.insert(column.name.clone(), format!("it is stored with a loss: {}", contract.note));
        }
    }
    Ok(left_out)
}

/// The table with these columns alone.
fn only(table: TableSchema, wanted: &HashSet<String>) -> TableSchema {
    let key: Vec<String> = table.key_columns().map(|c| c.name.clone()).collect();
    let columns: Vec<_> = table.columns.into_iter().filter(|c| wanted.contains(&c.name)).collect();
    let place = |name: &String| columns.iter().position(|c| c.name == *name).map(|i| i as u16);
    TableSchema { name: table.name, key: key.iter().filter_map(place).collect(), columns }
}

/// Runs both to their ends, each on a task of its own: fingerprints take a processor.
async fn both<A: Send + 'static, B: Send + 'static>(
    a: impl Future<Output = Result<A>> + Send + 'static,
    b: impl Future<Output = Result<B>> + Send + 'static,
) -> Result<(A, B)> {
    let (mut a, mut b) = (Owned(tokio::spawn(a)), Owned(tokio::spawn(b)));
    let panicked = |e| Error::fatal("the reading of a side panicked").because(e);
    let (a, b) = tokio::join!(&mut a.0, &mut b.0);
    Ok((a.map_err(panicked)??, b.map_err(panicked)??))
}

/// Ends its task when it is dropped.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn difference(table: &TableSchema, kind: DifferenceKind, found: &Found, repaired: bool) -> Difference {
    let row = found.source.row.as_ref().or(found.target.row.as_ref());
    let (mut key, mut columns) = (Vec::new(), Vec::new());
    for (i, column) in table.columns.iter().enumerate() {
        if let Some(row) = row.filter(|_| table.is_key(i) || table.key.is_empty()) {
            key.push((column.name.clone(), show(&row[i])));
        }
        if let (Some(source), Some(target)) = (&found.source.row, &found.target.row) {
            let normal = |value: &Value| Digester::normal(&column.data_type, value.as_ref());
            if normal(&source[i]) != normal(&target[i]) {
                columns.push(column.name.clone());
            }
        }
    }
    Difference { kind, key, columns, repaired }
}

fn show(value: &Value) -> String {
    match value {
        Value::Text(text) => text.chars().take(64).collect(),
        Value::Int(v) => v.to_string(),
        Value::Float(v) => v.to_string(),
        Value::Null => "NULL".to_owned(),
        other => format!("{other:?}").chars().take(64).collect(),
    }
}

/// The rank of a transaction that is after everything that was applied of a row up to now, and before
/// everything that is still to come, for targets that keep a version of each row. Of several
/// partitions the earliest counts: it is behind what is to come in each of them.
async fn rank_now(spec: &Spec) -> Result<bytes::Bytes> {
    let mark = mark(spec).await?;
    let of_change = |at: &Position| {
        let rank = at.rank.as_bytes();
        bytes::Bytes::copy_from_slice(&rank[..rank.len().saturating_sub(8)])
    };
    Ok(mark.values().map(of_change).min().filter(|prefix| !prefix.is_empty()).unwrap_or_else(|| vec![0; 8].into()))
}

/// Inserts, updates and deletes that give the target the source's rows.
fn repair_unit<'f>(
    table: &TableSchema,
    rank: bytes::Bytes,
    rows: impl Iterator<Item = &'f Found>,
) -> Result<Option<Unit>> {
    let partition = PartitionId::new("verify");
    let schema = Arc::new(table.clone());
    let mut builder = BatchBuilder::new(partition);
    let end = Position::new(Rank::of_end(&rank), bytes::Bytes::new());
    builder.begin(Transaction { rank, ..Transaction::default() }, 1);
    let at = builder.schema(&schema);
    for found in rows {
        let op = match found.kind() {
            DifferenceKind::Missing => Op::Insert,
            DifferenceKind::Extra => Op::Delete,
            DifferenceKind::Changed => Op::Update,
        };
        builder.change(op, at);
        if let (Op::Update | Op::Delete, Some(old)) = (op, &found.target.row) {
            builder.old_row(OldImage::Full);
            old.iter().for_each(|value| builder.push(value.as_ref()));
        }
        if let (Op::Insert | Op::Update, Some(new)) = (op, &found.source.row) {
            builder.new_row();
            new.iter().for_each(|value| builder.push(value.as_ref()));
        }
    }
    if builder.is_empty() {
        return Ok(None);
    }
    builder.commit(end.clone());
    let batch = Arc::new(builder.finish(end, None)?);
    let changes = Selection::Range(0..batch.len() as u32);
    let slices = vec![UnitSlice { batch, changes }];
    let (kind, part) = (UnitKind::Stream, Part::Whole);
    Ok(Some(Unit { id: UnitId(u64::MAX), kind, part, slices, transactions: 0, progress: Vec::new() }))
}

/// What the stores know of the pipeline.
async fn stored(spec: &Spec) -> Result<Option<Checkpoint>> {
    Ok(stored::load(spec).await?.map(|stored| stored.checkpoint))
}

fn positions(spec: &Spec, stored: Option<&Checkpoint>) -> BTreeMap<PartitionId, String> {
    let partitions = stored.into_iter().flat_map(|c| &c.partitions);
    let open = partitions.filter(|(_, p)| p.status != PartitionStatus::Finished);
    open.filter_map(|(id, p)| Some((id.clone(), spec.source.describe(p.position.as_ref()?)))).collect()
}

async fn mark(spec: &Spec) -> Result<BTreeMap<PartitionId, Position>> {
    let name = spec.source.info().name;
    let marker = spec.source.marker().ok_or_else(|| {
        Error::config("source.type", format!("the source {name} cannot mark its present"))
            .hint("compare databases at rest, without waiting")
    })?;
    marker.mark().await
}

/// Returns when everything up to the mark is durable in the target.
async fn wait_until_applied(spec: &Spec, mark: &BTreeMap<PartitionId, Position>, patience: Duration) -> Result<()> {
    let began = Instant::now();
    let mut drain = Drain::new(mark.clone(), spec.source.info().order);
    loop {
        if let Some(stored) = stored::load(spec).await?
            && drain.see(stored.durable(0))
        {
            return Ok(());
        }
        if began.elapsed() >= patience {
            let waited = format!("the target did not reach the source's present within {} s", patience.as_secs());
            return Err(Error::transient(waited).hint(
                "rows differ, and may be on their way: let the pipeline run beside, or compare databases at rest, \
                 without waiting",
            ));
        }
        sleep(ASK).await;
    }
}
