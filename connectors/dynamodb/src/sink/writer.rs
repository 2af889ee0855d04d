//! The writer of one lane.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{
    ChangeRef, Error, Lane, LanePurpose, Part, PartitionId, Progress, Result, SinkWriter, TableSchema, Unit, Written,
};
use async_trait::async_trait;
use tokio::time::{Duration, Instant};

use super::batch::Batch;
use super::fold::{self, Plans, Step};
use super::guarded::Guarded;
use super::item::Plan;
use super::progress::{self, LaneRow, transact};
use super::transactional::{Folded, Transactional, copy, not_done, progress_after, too_many_actions};
use super::version::Stamps;
use super::{Mode, Oversized, Shared};
use crate::calls::Stop;
use crate::types::Item;

/// How long a look at the epoch is relied on. A process that was paused finds out at its next call.
const LOOK: Duration = Duration::from_secs(5);

/// How often progress is stored while units follow each other. A crash replays so much at most.
const STORE: Duration = Duration::from_millis(250);

/// Positions that one transaction stores, beside the lane's row.
const POSITIONS: usize = 99;

/// Changes of one target transaction that are kept until its last part. A hundred items rarely
/// change more often within one.
const STAGED: u64 = 10_000;

/// A lane that is owned as long as its epoch is the newest.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lane: Lane,
    pub(crate) row: LaneRow,
    pub(crate) generation: u32,
    /// Writes that found themselves, or something newer, in the target.
    pub(crate) stale: AtomicU64,
    pub(crate) sidecar_ready: AtomicBool,
    looked: Mutex<Instant>,
}

impl Owned {
    /// Looks at the epoch, unless that was done a moment ago.
    pub(crate) async fn fresh(&self) -> Result<()> {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.elapsed() < LOOK {
                return Ok(());
            }
            // The others need not look too.
            *looked = Instant::now();
        }
        self.row.look(&self.shared).await
    }

    async fn look(&self) -> Result<()> {
        self.row.look(&self.shared).await?;
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }

    /// The item without what this library adds.
    pub(crate) fn without_marks(&self, mut item: Item) -> Item {
        let settings = &self.shared.settings;
        if settings.stamps_versions() {
            item.remove(&settings.version_attribute);
        }
        if let Some(origin) = &settings.origin_attribute {
            item.remove(origin);
        }
        item
    }
}

/// Writes the units of one lane.
pub(crate) struct Writer {
    owned: Owned,
    plans: Known,
    /// How far the lane is in each partition, as stored.
    done: HashMap<PartitionId, Progress>,
    pending: Pending,
    /// Parts of one target transaction, in the transactional mode.
    staged: Vec<Unit>,
    /// The open target transaction is too large, and its parts are applied as they come.
    streaming: bool,
}

/// Progress that the target has no row of yet.
#[derive(Debug, Default)]
struct Pending {
    progress: HashMap<PartitionId, Progress>,
    changes: u64,
    transactions: u64,
    since: Option<Instant>,
}

/// The plans of the schemas that were seen.
#[derive(Debug, Default)]
struct Known(Vec<(Arc<TableSchema>, Arc<Plan>)>);

impl Plans for Known {
    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let found = self.0.iter().rev().find(|(known, _)| Arc::ptr_eq(known, schema));
        let (_, plan) = found.ok_or_else(|| Error::fatal(format!("{} was not prepared", schema.name)))?;
        Ok(Arc::clone(plan))
    }
}

impl Writer {
    pub(crate) async fn open(shared: Arc<Shared>, lane: Lane) -> Result<Self> {
        let known = progress::known(&shared, &lane).await?;
        let owned = Owned {
            row: LaneRow::of(&lane),
            shared,
            lane,
            generation: known.generation,
            stale: AtomicU64::new(0),
            sidecar_ready: AtomicBool::new(false),
            looked: Mutex::new(Instant::now()),
        };
        let done = known.positions.into_iter().collect();
        let (plans, pending) = Default::default();
        Ok(Self { owned, plans, done, pending, staged: Vec::new(), streaming: false })
    }

    /// Describes the tables that a unit writes to.
    async fn prepare(&mut self, unit: &Unit) -> Result<()> {
        for schema in fold::schemas(unit) {
            let known = &self.plans.0;
            if known.iter().any(|(s, _)| Arc::ptr_eq(s, schema)) {
                continue;
            }
            let plan = match known.iter().find(|(_, plan)| plan.is_for(schema)) {
                Some((_, plan)) => Arc::clone(plan),
                None => {
                    let name = &schema.name.name;
                    let Some(table) = self.owned.shared.table(name).await? else {
                        return Err(Error::config(name, "the target has no such table")
                            .hint("create it, or set create_tables = true in [sink]"));
                    };
                    Arc::new(Plan::new(schema, &table, self.owned.shared.settings.nulls)?)
                }
            };
            // Each batch has schemas of its own: the old ones are no longer asked for.
            if self.plans.0.len() >= 256 {
                self.plans.0.drain(..128);
            }
            self.plans.0.push((Arc::clone(schema), plan));
        }
        Ok(())
    }

    fn fold(&self, unit: &Unit) -> Result<Vec<Step>> {
        let versions = Stamps::of(unit, self.owned.generation);
        fold::steps(unit.changes(), &versions, &self.plans)
    }

    /// The guarded and the batch mode, and rows of a copy: items now, progress soon after.
    async fn write_items(&mut self, unit: &Unit) -> Result<Written> {
        self.prepare(unit).await?;
        let steps = self.fold(unit)?;
        if !steps.is_empty() {
            self.owned.look().await?;
        }
        match (self.owned.shared.settings.mode, self.owned.lane.purpose) {
            (Mode::Batch, _) => Batch(&self.owned).apply(steps).await?,
            (Mode::Transactional, LanePurpose::Snapshot) => {
                for step in steps {
                    let Step::Writes(writes) = step else { continue };
                    copy(&self.owned, writes).await?;
                }
            }
            (Mode::Guarded | Mode::Transactional, _) => Guarded(&self.owned).apply(steps).await?,
        }
        if self.owned.lane.purpose == LanePurpose::Snapshot {
            return Ok(Written::durable());
        }
        self.pending.add(unit);
        // Progress within a transaction would have to name a place that no reader can resume from.
        if unit.part.ends() && self.pending.since.is_some_and(|since| since.elapsed() >= STORE) {
            self.store().await?;
            return Ok(Written::durable());
        }
        Ok(Written::accepted())
    }

    /// Stores what is pending. The items are durable by now: progress never runs ahead of them.
    async fn store(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.since.is_none() {
            return Ok(());
        }
        let row = &self.owned.row;
        let all: Vec<&Progress> = pending.progress.values().collect();
        let mut runs: Vec<&[&Progress]> = all.chunks(POSITIONS).collect();
        let last = runs.pop().unwrap_or_default();
        for run in runs {
            let mut actions = vec![row.check()?];
            for progress in run {
                actions.push(row.position(self.owned.lane.index, progress)?);
            }
            self.transact(actions).await?;
        }
        // Counted once, with the last of them.
        let mut actions = vec![row.count(pending.changes, pending.transactions)?];
        for progress in last {
            actions.push(row.position(self.owned.lane.index, progress)?);
        }
        self.transact(actions).await?;
        let stale = self.owned.stale.swap(0, Ordering::Relaxed);
        if stale > 0 {
            tracing::debug!(pipeline = %self.owned.lane.pipeline, lane = self.owned.lane.index, stale, "writes were there already");
        }
        self.done.extend(pending.progress);
        Ok(())
    }

    async fn transact(&self, actions: Vec<aws_sdk_dynamodb::types::TransactWriteItem>) -> Result<()> {
        match transact(&self.owned.shared, actions).await {
            Ok(()) => Ok(()),
            Err(Stop::Cancelled(_)) => Err(self.owned.row.fenced(&self.owned.shared).await),
            Err(stop) => Err(stop.into_error()),
        }
    }

    /// The transactional mode.
    async fn write_transactions(&mut self, unit: &Unit) -> Result<Written> {
        if self.streaming {
            let written = self.write_items(unit).await;
            if unit.part.ends() {
                self.streaming = false;
                self.store().await?;
                return written.map(|_| Written::durable());
            }
            return written;
        }
        match unit.part {
            Part::First => self.staged = vec![unit.clone()],
            Part::Middle | Part::Last if self.staged.is_empty() => {
                return Err(Error::fatal("a unit continues a transaction that was not begun"));
            }
            Part::Middle | Part::Last => self.staged.push(unit.clone()),
            Part::Whole => {}
        }
        if !unit.part.ends() {
            return self.stage().await;
        }
        let units = match unit.part {
            Part::Whole => unit.split_by_transaction(),
            _ => vec![joined(&std::mem::take(&mut self.staged), unit)],
        };
        let (folded, spare) = self.fold_transactions(units, unit).await?;
        Transactional::new(&self.owned, &mut self.done).apply(folded).await?;
        if !spare.is_empty() {
            // No row goes with these: every transaction of the unit has stored its own.
            self.pending.progress.extend(spare.into_iter().map(|p| (p.partition.clone(), p)));
            self.pending.since.get_or_insert_with(Instant::now);
            self.store().await?;
        }
        Ok(Written::durable())
    }

    /// Keeps parts, as long as they may still fit into one transaction.
    async fn stage(&mut self) -> Result<Written> {
        let staged: u64 = self.staged.iter().map(Unit::row_changes).sum();
        if staged <= STAGED {
            return Ok(Written::accepted());
        }
        let staged = std::mem::take(&mut self.staged);
        if self.owned.shared.settings.oversized == Oversized::Reject {
            return Err(Error::rejected(format!(
                "a source transaction has more than {STAGED} changes; DynamoDB's transactions take 100 items"
            ))
            .hint("set oversized = \"guarded\" in [sink] to apply it item by item, or mode = \"guarded\""));
        }
        self.streaming = true;
        for part in &staged {
            let _ = self.write_items(part).await?;
        }
        Ok(Written::accepted())
    }

    /// Each source transaction by itself, without what is applied already; and the progress in partitions
    /// that the last one has no change of, where there is too much of it to go with that.
    async fn fold_transactions(&mut self, units: Vec<Unit>, whole: &Unit) -> Result<(Vec<Folded>, Vec<Progress>)> {
        let mut all = Vec::with_capacity(units.len());
        let mut spare = Vec::new();
        let last = units.len().saturating_sub(1);
        for (at, unit) in units.into_iter().enumerate() {
            let fresh = not_done(&unit, &self.done);
            self.prepare(&fresh).await?;
            let steps = {
                // With the letters' ranks of the whole.
                let versions = Stamps::of(whole, self.owned.generation);
                fold::steps(fresh.changes(), &versions, &self.plans)?
            };
            let mut progress = unit.progress.clone();
            if at < last && progress.is_empty() {
                progress = progress_after(unit.changes(), &self.done);
            }
            let known = |p: &Progress| self.done.get(&p.partition).is_some_and(|d| d.position.rank > p.position.rank);
            progress.retain(|p| at == last || !known(p));
            if at == last && too_many_actions(&steps, progress.len()) {
                let of_changes: HashSet<&PartitionId> = unit.changes().map(ChangeRef::partition).collect();
                (progress, spare) = progress.into_iter().partition(|p| of_changes.contains(&p.partition));
            }
            let changes = fresh.row_changes();
            // One that was applied before a later one was refused is given again.
            let again = changes == 0 && unit.row_changes() > 0;
            let transactions = if again { 0 } else { unit.transactions };
            all.push(Folded { steps, progress, transactions, changes });
        }
        Ok((all, spare))
    }
}

/// Parts as one unit.
fn joined(parts: &[Unit], last: &Unit) -> Unit {
    let slices = parts.iter().flat_map(|p| p.slices.clone()).collect();
    Unit { part: Part::Whole, slices, ..last.clone() }
}

impl Pending {
    fn add(&mut self, unit: &Unit) {
        self.changes += unit.row_changes();
        self.transactions += unit.transactions;
        self.progress.extend(unit.progress.iter().map(|p| (p.partition.clone(), p.clone())));
        self.since.get_or_insert_with(Instant::now);
    }
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        let copies = self.owned.lane.purpose == LanePurpose::Snapshot;
        match self.owned.shared.settings.mode {
            Mode::Transactional if !copies => self.write_transactions(unit).await,
            _ => self.write_items(unit).await,
        }
    }

    async fn flush(&mut self) -> Result<()> {
        self.store().await
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.store().await
    }
}
