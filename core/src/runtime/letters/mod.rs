//! Rows that the target refuses: find the one at fault, stop or set it aside, hold what follows it.

mod held;
mod lanes;
mod retry;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use held::Held;
pub(crate) use held::OpenLetters;
pub(super) use held::keys_of;
pub(super) use retry::unit_of;

use super::in_order::InOrder;
use crate::dead_letter::{Classes, DeadLetter, DeadLetterStore, LetterClass, LetterLane, LetterState, Parked};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ChangeRef, Counters, Op, Part, PartitionId, Position, Progress, Rank, RowRef, Unit};
use crate::sink::{Durability, SinkWriter};
use crate::source::Source;

/// What to do with a row that the target refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRejected {
    /// Stop the pipeline at the exact position. Nothing is left out.
    #[default]
    Stop,
    /// Park the shard of the row: its changes go to the dead-letter store, in order, and the other
    /// shards go on. Without a shard it stops.
    HaltShard,
    /// Put the row (in `transaction` order its transaction) into the dead-letter store and hold
    /// later changes of the same keys behind it.
    DeadLetter,
}

/// How a pipeline treats what the target refuses, and what transforms leave out.
#[derive(Debug, Clone)]
pub(crate) struct LetterPolicy {
    pub(crate) on_rejected: OnRejected,
    /// How often a letter is tried by itself before it needs a person.
    pub(crate) max_attempts: u32,
    /// How long a letter waits between two tries.
    pub(crate) retry_after: Duration,
    pub(crate) classes: Classes,
    /// Whether changes that a filter, or a mapping, left out are kept as letters. They are always counted.
    pub(crate) keep_filtered: bool,
    pub(crate) keep_skipped: bool,
}

impl Default for LetterPolicy {
    fn default() -> Self {
        Self {
            on_rejected: OnRejected::Stop,
            max_attempts: 500,
            retry_after: Duration::from_secs(10),
            classes: Classes::default(),
            keep_filtered: true,
            keep_skipped: true,
        }
    }
}

/// The partition name under which a sink stores which letter was applied last, so that a crash
/// between applying a letter and marking it applies nothing twice.
pub(crate) const RETRIED: &str = "dead-letters";

/// How many letters are read from the store at a time.
pub(super) const PAGE: usize = 500;

/// How many letters are tried again in one pass. The stream waits meanwhile.
const PASS: usize = 5_000;

/// Who writes: the shard of a lane and the lane's place in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneName {
    /// `None` where the target is one database.
    pub(crate) shard: Option<Arc<str>>,
    pub(crate) lane: u32,
}

impl LaneName {
    pub(super) fn parked(&self) -> Option<Parked> {
        self.shard.as_ref().map(|shard| Parked { shard: shard.to_string(), lane: self.lane })
    }

    pub(super) fn of_letter(&self) -> LetterLane {
        LetterLane { shard: self.shard.as_ref().map(|shard| shard.to_string()), lane: self.lane }
    }
}

/// The dead letters of a pipeline, and the keys that wait behind them. Shared by its lanes.
#[derive(Debug)]
pub(crate) struct Letters {
    pub(crate) pipeline: Arc<str>,
    /// Puts positions into the words of its users.
    pub(crate) source: Arc<dyn Source>,
    pub(crate) store: Option<Arc<dyn DeadLetterStore>>,
    pub(crate) policy: LetterPolicy,
    /// In `transaction` order a row takes its whole transaction along.
    pub(crate) whole_transactions: bool,
    /// Whether this run tries letters again itself. Else another one does, and this one only looks
    /// which are left.
    pub(crate) retries: bool,
    /// The shards of a sharded target.
    pub(crate) shards: Option<Arc<[Arc<str>]>>,
    held: Mutex<Held>,
    put: AtomicU64,
}

impl Letters {
    /// Reads what is open in the store.
    pub(crate) async fn load(
        pipeline: Arc<str>,
        source: Arc<dyn Source>,
        store: Option<Arc<dyn DeadLetterStore>>,
        policy: LetterPolicy,
        whole_transactions: bool,
        retries: bool,
        shards: Option<Arc<[Arc<str>]>>,
    ) -> Result<Self> {
        let sharded = shards.is_some();
        let letters = Self {
            pipeline,
            source,
            store,
            policy,
            whole_transactions,
            retries,
            shards,
            held: Mutex::new(Held { sharded, ..Held::default() }),
            put: AtomicU64::new(0),
        };
        letters.reload().await?;
        Ok(letters)
    }

    /// Letters that are open or held.
    pub(crate) fn open(&self) -> u64 {
        self.with_held(|held| held.open.values().map(|o| o.retryable + o.severe).sum())
    }

    /// Letters that are open or held, by shard.
    pub(crate) fn open_by_shard(&self) -> BTreeMap<String, OpenLetters> {
        self.with_held(|held| held.open.clone())
    }

    /// Whether changes of this shard wait behind letters of it.
    pub(crate) fn is_halted(&self, shard: &str) -> bool {
        self.with_held(|held| held.shards.contains(shard))
    }

    /// Whether an open letter has a row of this change, or its shard.
    pub(crate) fn has_letter(&self, change: ChangeRef<'_>) -> bool {
        self.with_held(|held| held.touches(change))
    }

    /// Letters that this run has put.
    pub(crate) fn put_count(&self) -> u64 {
        self.put.load(Ordering::Relaxed)
    }

    /// The unit without the changes that must wait behind a letter; those are durable in the store on return.
    pub(crate) async fn hold(&self, unit: Unit, lane: &LaneName) -> Result<Unit> {
        if self.with_held(|held| held.is_empty()) {
            return Ok(unit);
        }
        if let Some(shard) = &lane.shard
            && self.is_halted(shard)
        {
            let reason = format!("waits behind an earlier dead letter of shard {shard}");
            let rows = unit.changes().filter(|c| is_row(*c));
            let letters: Vec<_> = rows.map(|c| held_letter(c, lane, &reason)).collect();
            self.put(&letters).await?;
            return Ok(passed(&unit));
        }
        if unit.part != Part::Whole {
            return self.refuse_to_overtake(&unit).map(|()| unit);
        }
        let mut waiting: HashSet<(PartitionId, Rank)> = HashSet::new();
        let mut letters = Vec::new();
        for transaction in unit.split_by_transaction() {
            // One by one: those before it in the unit may have come to wait just now.
            self.refuse_to_truncate(&transaction)?;
            let all = self.whole_transactions && self.with_held(|held| transaction.changes().any(|c| held.touches(c)));
            if let Some(other) = transaction.changes().find(|c| all && is_no_letter(*c)) {
                let error = Error::rejected("an earlier change of one of its keys is a dead letter");
                return Err(self.stopped_at(other, transaction.len(), no_letter(other, error)));
            }
            for change in transaction.changes().filter(|c| is_row(*c)) {
                if all || self.with_held(|held| held.touches(change)) {
                    self.with_held(|held| held.keys.extend(keys_of(change, held.sharded)));
                    waiting.insert((change.partition().clone(), change.rank()));
                    letters.push(held_letter(change, lane, "waits behind an earlier dead letter of its key"));
                }
            }
        }
        self.put(&letters).await?;
        Ok(unit.retain(|c| !waiting.contains(&(c.partition().clone(), c.rank()))))
    }

    /// An error if a part of a transaction larger than the budget touches a held key: it cannot be
    /// set aside, and must not be applied before what it waits for.
    fn refuse_to_overtake(&self, unit: &Unit) -> Result<()> {
        self.refuse_to_truncate(unit)?;
        match unit.changes().find(|c| self.with_held(|held| held.touches(*c))) {
            Some(change) => {
                Err(self.stopped_at(change, 1, Error::rejected("an earlier change of this key is a dead letter")))
            }
            None => Ok(()),
        }
    }

    /// A letter that is applied after the truncate of its table would bring back a row.
    fn refuse_to_truncate(&self, unit: &Unit) -> Result<()> {
        let truncated = unit.changes().filter(|c| matches!(c.op(), Op::Truncate(_))).filter_map(|c| c.table());
        for table in truncated {
            if self.with_held(|held| held.keys.iter().any(|(_, name, _)| *name == table.name)) {
                return Err(Error::rejected(format!(
                    "{} is to be truncated while dead letters of it are open",
                    table.name
                ))
                .hint("retry or skip them first"));
            }
        }
        Ok(())
    }

    /// Writes the unit. What the target refuses is narrowed down to one transaction, or one change,
    /// and treated by the policy; everything before it is applied then.
    pub(crate) async fn apply(
        &self,
        writer: &mut dyn SinkWriter,
        unit: &Unit,
        lane: &LaneName,
    ) -> Result<(Durability, Counters)> {
        let error = match self.write(writer, unit, lane).await {
            Err(e) if e.kind() == ErrorKind::Rejected => e,
            other => return other,
        };
        if unit.part != Part::Whole {
            return Err(error
                .context("a transaction larger than the byte budget was refused")
                .hint("it cannot be set aside: mend the target, or raise pipeline.memory_mib"));
        }
        let (mut durability, mut applied) = (Durability::Durable, Counters::default());
        let mut rest = vec![unit.clone()];
        let mut known = Some(error);
        while let Some(unit) = rest.pop() {
            // A letter that was set aside just now holds what follows it in the same unit too.
            let unit = self.hold(unit, lane).await?;
            let error = match known.take() {
                Some(error) => error,
                None => match self.write(writer, &unit, lane).await {
                    Err(e) if e.kind() == ErrorKind::Rejected => e,
                    other => {
                        let (written, counters) = other?;
                        durability = written;
                        applied += counters;
                        continue;
                    }
                },
            };
            let mut smaller = self.split(&unit);
            if smaller.len() > 1 {
                smaller.reverse();
                rest.append(&mut smaller);
            } else {
                durability = self.refuse(writer, &unit, lane, error).await?;
            }
        }
        Ok((durability, applied))
    }

    async fn write(&self, writer: &mut dyn SinkWriter, unit: &Unit, lane: &LaneName) -> Result<(Durability, Counters)> {
        let written = writer.write(unit).await?;
        let changes = unit.row_changes().saturating_sub(written.rejected.len() as u64);
        let (transactions, stale) = (unit.transactions, written.stale);
        let counters = Counters { changes, transactions, stale, ..Counters::default() };
        for rejected in written.rejected {
            // Left alone, the change that is meant would be lost.
            let change = unit.changes().nth(rejected.index).ok_or_else(|| {
                let (index, changes) = (rejected.index, unit.len());
                Error::fatal(format!("the sink refuses the change {index}, from 0, of a unit of {changes}"))
            })?;
            if self.policy.on_rejected == OnRejected::Stop {
                return Err(self.stopped_at(change, 1, rejected.error));
            }
            self.set_aside(&[change], lane, &rejected.error).await?;
        }
        Ok((written.durability, counters))
    }

    /// Smaller units that together are this one; one alone if it cannot be divided.
    fn split(&self, unit: &Unit) -> Vec<Unit> {
        let mut units = unit.split_by_transaction();
        if units.len() < 2 && !self.whole_transactions && unit.len() > 1 {
            let (middle, all) = (unit.len() / 2, unit.len());
            let mut second = unit.part_of(middle..all, unit.progress.clone());
            second.transactions = unit.transactions;
            units = vec![unit.part_of(0..middle, Vec::new()), second];
        }
        // The last one has the progress of the whole.
        if let Some((_, before)) = units.split_last_mut() {
            before.iter_mut().for_each(pass_all);
        }
        units
    }

    /// Treats a transaction, or a change, that the target refuses by itself.
    async fn refuse(
        &self,
        writer: &mut dyn SinkWriter,
        unit: &Unit,
        lane: &LaneName,
        error: Error,
    ) -> Result<Durability> {
        let changes: Vec<_> = unit.changes().filter(|c| is_row(*c)).collect();
        let Some(&first) = changes.first() else { return Err(error) };
        if let Some(other) = unit.changes().find(|c| is_no_letter(*c)) {
            return Err(self.stopped_at(other, changes.len() + 1, no_letter(other, error)));
        }
        match self.policy.on_rejected {
            OnRejected::Stop => return Err(self.stopped_at(first, changes.len(), error)),
            OnRejected::HaltShard if first.shard().is_none() => {
                return Err(self.stopped_at(first, changes.len(), error).context("the row has no shard to halt"));
            }
            OnRejected::HaltShard => self.with_held(|held| {
                held.shards.extend(changes.iter().filter_map(|c| c.shard()).map(|s| s.to_string()));
            }),
            OnRejected::DeadLetter => {}
        }
        self.set_aside(&changes, lane, &error).await?;
        // The letters are durable: the progress may pass them.
        Ok(writer.write(&passed(unit)).await?.durability)
    }

    async fn set_aside(&self, changes: &[ChangeRef<'_>], lane: &LaneName, error: &Error) -> Result<()> {
        let reason = error.report();
        let class = self.policy.classes.of(&reason);
        let letter = |change: &ChangeRef<'_>| {
            let letter = DeadLetter::from_change(*change, class, LetterState::Open, &reason);
            DeadLetter { lane: Some(lane.of_letter()), ..letter }
        };
        let letters: Vec<_> = changes.iter().map(letter).collect();
        self.put(&letters).await?;
        self.with_held(|held| held.keys.extend(changes.iter().flat_map(|c| keys_of(*c, held.sharded))));
        tracing::warn!(pipeline = %self.pipeline, letters = letters.len(), %reason, "put into the dead-letter store");
        Ok(())
    }

    pub(super) async fn put(&self, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let store = self.store.as_ref().ok_or_else(|| {
            Error::config("dead_letters.type", "rows are to be set aside, but there is no store for them")
        })?;
        store.put(&self.pipeline, letters).await?;
        let open = letters.iter().filter(|l| l.state.is_open() && is_open_class(l));
        self.put.fetch_add(open.clone().count() as u64, Ordering::Relaxed);
        self.with_held(|held| open.for_each(|letter| held.count(letter)));
        Ok(())
    }

    /// Finds anew what is open, and what waits behind it.
    pub(super) async fn reload(&self) -> Result<()> {
        let mut held = Held { sharded: self.shards.is_some(), ..Held::default() };
        if let Some(store) = &self.store {
            let mut reading = InOrder::begin(Arc::clone(store), Arc::clone(&self.pipeline)).await?;
            while let Some(letter) = reading.next().await? {
                held.count(&letter);
                let halts = letter.state == LetterState::Open || letter.parked.is_some() || self.shards.is_none();
                if self.policy.on_rejected == OnRejected::HaltShard && halts {
                    held.shards.extend(letter.shard.clone());
                }
                if !letter.shard.as_ref().is_some_and(|s| self.shards.is_some() && held.shards.contains(s)) {
                    let unit = unit_of(std::slice::from_ref(&letter))?;
                    held.keys.extend(unit.changes().flat_map(|c| keys_of(c, self.shards.is_some())));
                }
            }
        }
        self.with_held(|now| *now = held);
        Ok(())
    }

    /// Everything of this shard is applied: its changes need not wait any more.
    pub(super) fn resume(&self, shard: &str) {
        self.with_held(|held| {
            held.shards.remove(shard);
            held.open.remove(shard);
        });
    }

    pub(super) fn applied(&self, shard: &str, letters: u64) {
        self.with_held(|held| {
            if let Some(open) = held.open.get_mut(shard) {
                open.retryable = open.retryable.saturating_sub(letters);
            }
        });
    }

    pub(super) fn hold_keys(&self, changes: &[ChangeRef<'_>]) {
        self.with_held(|held| held.keys.extend(changes.iter().flat_map(|c| keys_of(*c, held.sharded))));
    }

    /// `count`: how many changes were refused together, of which this is the first.
    pub(super) fn stopped_at(&self, change: ChangeRef<'_>, count: usize, error: Error) -> Error {
        let what = if count == 1 { "a change" } else { "the transaction that begins with a change" };
        let table = change.table().map_or_else(String::new, |t| t.name.to_string());
        let keys: Vec<String> = change.identity_row().map_or_else(Vec::new, |row| {
            let schema = change.schema();
            schema
                .key
                .iter()
                .map(|&k| format!("{}={}", schema.columns[usize::from(k)].name, show(row, usize::from(k))))
                .collect()
        });
        let place = self.source.describe(&Position::new(change.rank(), Bytes::new()));
        error
            .context(format!("the target refuses {what} of {table} [{}] at {place}", keys.join(", ")))
            .hint("mend the target and start again, or set dead_letters.on_rejected = \"dead_letter\"")
    }

    fn with_held<T>(&self, f: impl FnOnce(&mut Held) -> T) -> T {
        // A panic under the lock leaves whole entries behind: the sets stay usable.
        f(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is left of a unit whose rows are letters: its progress, and its messages, which are no letters.
fn passed(unit: &Unit) -> Unit {
    let mut passed = unit.retain(|c| c.op() == Op::Message);
    passed.transactions = 0;
    passed
}

/// Has the unit store, for every partition that it has changes of, that it has them: it may be the last that
/// is written before a crash.
fn pass_all(unit: &mut Unit) {
    let mut passed: BTreeMap<PartitionId, Position> = BTreeMap::new();
    for slice in &unit.slices {
        let Some(last) = slice.changes.iter().last() else { continue };
        let change = slice.batch.change(last as usize);
        let at = Position::new(change.rank(), slice.batch.token_before(last).clone());
        let known = passed.entry(change.partition().clone()).or_default();
        if known.rank < at.rank {
            *known = at;
        }
    }
    for (partition, position) in passed {
        if unit.progress.iter().any(|p| p.partition == partition && p.position.rank >= position.rank) {
            continue;
        }
        unit.progress.retain(|p| p.partition != partition);
        unit.progress.push(Progress { partition, position, safe_time: None });
    }
}

pub(super) fn held_letter(change: ChangeRef<'_>, lane: &LaneName, reason: &str) -> DeadLetter {
    let letter = DeadLetter::from_change(change, LetterClass::Retry, LetterState::Held, reason);
    DeadLetter { lane: Some(lane.of_letter()), ..letter }
}

/// Not left out on purpose.
pub(super) fn is_open_class(letter: &DeadLetter) -> bool {
    matches!(letter.class, LetterClass::Retry | LetterClass::Severe)
}

/// It has no rows, and a transaction that is set aside must not be without it.
pub(super) fn is_no_letter(change: ChangeRef<'_>) -> bool {
    matches!(change.op(), Op::Truncate(_) | Op::Schema)
}

fn no_letter(change: ChangeRef<'_>, error: Error) -> Error {
    let what = if change.op() == Op::Schema { "a change of a table's schema" } else { "a truncate" };
    error.context(format!("its transaction has {what}, which cannot be set aside with it"))
}

pub(super) fn is_row(change: ChangeRef<'_>) -> bool {
    matches!(change.op(), Op::Insert | Op::Update | Op::Delete)
}

fn show(row: RowRef<'_>, index: usize) -> String {
    match row.get(index) {
        crate::ValueRef::Text(text) => text.chars().take(64).collect(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests;
