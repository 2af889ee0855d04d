//! Rows that the target refuses: find the one at fault, stop or set it aside, hold what follows it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::in_order::InOrder;
use crate::dead_letter::{Classes, DeadLetter, DeadLetterStore, LetterClass, LetterState, Parked};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    BatchBuilder, ChangeRef, Counters, Op, Part, PartitionId, Position, Progress, Rank, RowRef, Selection, TableName,
    TableSchema, Timestamp, Transaction, Unit, UnitId, UnitKind, UnitSlice,
};
use crate::net_effect::key_bytes;
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

/// The shard, where each is a database of its own, the table and the key.
pub(super) type HeldKey = (Option<Arc<str>>, TableName, Box<[u8]>);

#[derive(Debug, Default)]
struct Held {
    /// Each shard is a database of its own: one key is another row in each.
    sharded: bool,
    keys: HashSet<HeldKey>,
    shards: HashSet<String>,
    /// Open letters by shard; of none: an empty name.
    open: BTreeMap<String, OpenLetters>,
}

/// Letters that wait, of one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OpenLetters {
    pub(crate) retryable: u64,
    pub(crate) severe: u64,
    /// The commit time of the oldest.
    pub(crate) oldest: Option<Timestamp>,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.shards.is_empty()
    }

    fn touches(&self, change: ChangeRef<'_>) -> bool {
        change.shard().is_some_and(|s| self.shards.contains(&**s))
            || keys_of(change, self.sharded).iter().any(|k| self.keys.contains(k))
    }

    fn count(&mut self, letter: &DeadLetter) {
        self.open.entry(letter.shard.clone().unwrap_or_default()).or_default().add(letter);
    }
}

impl OpenLetters {
    pub(crate) fn add(&mut self, letter: &DeadLetter) {
        match letter.class {
            LetterClass::Severe => self.severe += 1,
            LetterClass::Retry => self.retryable += 1,
            LetterClass::Skip | LetterClass::Filtered => return,
        }
        self.oldest = match (self.oldest, letter.commit_time) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
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
            let letters: Vec<_> = unit.changes().filter(|c| is_row(*c)).map(|c| held_letter(c, &reason)).collect();
            self.put(&letters).await?;
            let mut passed = unit.retain(|_| false);
            passed.transactions = 0;
            return Ok(passed);
        }
        if unit.part != Part::Whole {
            return self.refuse_to_overtake(&unit).map(|()| unit);
        }
        self.refuse_to_truncate(&unit)?;
        let mut waiting: HashSet<(PartitionId, Rank)> = HashSet::new();
        let mut letters = Vec::new();
        for transaction in unit.split_by_transaction() {
            let all = self.whole_transactions && self.with_held(|held| transaction.changes().any(|c| held.touches(c)));
            for change in transaction.changes().filter(|c| is_row(*c)) {
                if all || self.with_held(|held| held.touches(change)) {
                    self.with_held(|held| held.keys.extend(keys_of(change, held.sharded)));
                    waiting.insert((change.partition().clone(), change.rank()));
                    letters.push(held_letter(change, "waits behind an earlier dead letter of its key"));
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
        tokens: &HashMap<PartitionId, Bytes>,
    ) -> Result<(Durability, Counters)> {
        let error = match self.write(writer, unit).await {
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
                None => match self.write(writer, &unit).await {
                    Err(e) if e.kind() == ErrorKind::Rejected => e,
                    other => {
                        let (written, counters) = other?;
                        durability = written;
                        applied += counters;
                        continue;
                    }
                },
            };
            let mut smaller = self.split(&unit, tokens);
            if smaller.len() > 1 {
                smaller.reverse();
                rest.append(&mut smaller);
            } else {
                durability = self.refuse(writer, &unit, error).await?;
            }
        }
        Ok((durability, applied))
    }

    async fn write(&self, writer: &mut dyn SinkWriter, unit: &Unit) -> Result<(Durability, Counters)> {
        let written = writer.write(unit).await?;
        let changes = unit.row_changes().saturating_sub(written.rejected.len() as u64);
        let (transactions, stale) = (unit.transactions, written.stale);
        let counters = Counters { changes, transactions, stale, ..Counters::default() };
        for rejected in written.rejected {
            let Some(change) = unit.changes().nth(rejected.index) else { continue };
            if self.policy.on_rejected == OnRejected::Stop {
                return Err(self.stopped_at(change, 1, rejected.error));
            }
            self.set_aside(&[change], &rejected.error).await?;
        }
        Ok((written.durability, counters))
    }

    /// Smaller units that together are this one; one alone if it cannot be divided.
    fn split(&self, unit: &Unit, tokens: &HashMap<PartitionId, Bytes>) -> Vec<Unit> {
        let transactions = unit.split_by_transaction();
        if transactions.len() > 1 || self.whole_transactions || unit.len() < 2 {
            return transactions;
        }
        let (middle, all) = (unit.len() / 2, unit.len());
        let mut first = unit.part_of(0..middle, Vec::new());
        let last_rank = first.changes().last().map(|c| (c.partition().clone(), c.rank()));
        if let Some((partition, rank)) = last_rank
            && let Some(token) = tokens.get(&partition)
        {
            let position = Position::new(rank, token.clone());
            first.progress = vec![Progress { partition, position, safe_time: None }];
        }
        let mut second = unit.part_of(middle..all, unit.progress.clone());
        second.transactions = unit.transactions;
        vec![first, second]
    }

    /// Treats a transaction, or a change, that the target refuses by itself.
    async fn refuse(&self, writer: &mut dyn SinkWriter, unit: &Unit, error: Error) -> Result<Durability> {
        let changes: Vec<_> = unit.changes().filter(|c| is_row(*c)).collect();
        let Some(&first) = changes.first() else { return Err(error) };
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
        self.set_aside(&changes, &error).await?;
        // The letters are durable: the progress may pass them.
        let mut passed = unit.retain(|_| false);
        passed.transactions = 0;
        Ok(writer.write(&passed).await?.durability)
    }

    async fn set_aside(&self, changes: &[ChangeRef<'_>], error: &Error) -> Result<()> {
        let reason = error.report();
        let class = self.policy.classes.of(&reason);
        let letters: Vec<_> =
            changes.iter().map(|c| DeadLetter::from_change(*c, class, LetterState::Open, &reason)).collect();
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

    /// Tries the open letters again, in source order. A letter that is refused again blocks those
    /// behind it. Called while every lane is idle, so that no change of a held key is under way.
    pub(crate) async fn retry(&self, writer: &mut dyn SinkWriter) -> Result<Counters> {
        let mut applied = Counters::default();
        let mut blocked = Held::default();
        let waiting = if self.retries { self.waiting(PASS).await? } else { Vec::new() };
        for group in self.groups(&waiting) {
            let unit = unit_of(group)?;
            let is_blocked = unit.changes().any(|c| blocked.touches(c));
            let wanted = group.iter().all(|l| self.is_due(l));
            if is_blocked || !wanted || !self.try_group(writer, &unit, group).await? {
                blocked.keys.extend(unit.changes().flat_map(|c| keys_of(c, false)));
            } else {
                applied.changes += unit.row_changes();
            }
        }
        self.reload().await.map(|()| applied)
    }

    /// Whether it may be tried again by itself, and it is time to. An operator who asks for another
    /// try sets its attempts to 0.
    pub(super) fn is_due(&self, letter: &DeadLetter) -> bool {
        // The ticks that ask are this far apart.
        let always = self.policy.retry_after <= LetterPolicy::default().retry_after;
        let wait = i64::try_from(self.policy.retry_after.as_micros()).unwrap_or(i64::MAX);
        let waited = |at: Timestamp| always || Timestamp::now().micros_since(at) >= wait;
        letter.class != LetterClass::Severe && (letter.attempts == 0 || letter.last_attempt.is_none_or(waited))
    }

    /// Marks a letter that an earlier run had applied when it died before it could mark it.
    pub(crate) async fn finish_interrupted_retry(&self, last_applied: &[u8]) -> Result<()> {
        let (Some(store), Ok(id)) = (&self.store, std::str::from_utf8(last_applied)) else { return Ok(()) };
        let Some(letter) = store.get(&self.pipeline, id).await? else { return Ok(()) };
        if letter.state.is_open() {
            // In `transaction` order its transaction was applied with it; of a sharded target each
            // shard applies its own part, and of the others nothing is known.
            let together = |l: &DeadLetter| self.shards.is_none() || l.shard == letter.shard;
            let waiting = if self.whole_transactions { self.waiting(usize::MAX).await? } else { vec![letter.clone()] };
            let done = self.groups(&waiting).into_iter().find(|g| g.iter().any(|l| l.id == id)).unwrap_or_default();
            let done = done.iter().filter(|l| together(l));
            let applied: Vec<_> = done.map(|l| marked(l, LetterState::Applied)).collect();
            store.put(&self.pipeline, &applied).await?;
        }
        Ok(())
    }

    pub(super) async fn try_group(
        &self,
        writer: &mut dyn SinkWriter,
        unit: &Unit,
        group: &[DeadLetter],
    ) -> Result<bool> {
        let Some(store) = &self.store else { return Ok(false) };
        let outcome = match writer.write(unit).await {
            Ok(written) if written.rejected.is_empty() => writer.flush().await.map(|()| None)?,
            Ok(mut written) => Some(written.rejected.swap_remove(0).error),
            Err(e) if e.kind() == ErrorKind::Rejected => Some(e),
            Err(e) => return Err(e),
        };
        let marked: Vec<_> = group
            .iter()
            .map(|letter| match &outcome {
                None => marked(letter, LetterState::Applied),
                Some(error) => {
                    let mut letter = marked(letter, LetterState::Open);
                    letter.reason = error.report();
                    if letter.attempts >= self.policy.max_attempts {
                        letter.class = LetterClass::Severe;
                    }
                    letter
                }
            })
            .collect();
        store.put(&self.pipeline, &marked).await?;
        Ok(outcome.is_none())
    }

    /// The letters that are tried together: a transaction's in `transaction` order, else one.
    pub(super) fn groups<'a>(&self, letters: &'a [DeadLetter]) -> Vec<&'a [DeadLetter]> {
        let same = |a: &DeadLetter, b: &DeadLetter| {
            // Of a transaction that is spread over partitions the prefix is the same in each.
            self.whole_transactions && a.commit_time == b.commit_time && transaction_of(a) == transaction_of(b)
        };
        letters.chunk_by(same).collect()
    }

    async fn waiting(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let mut reading = InOrder::begin(Arc::clone(store), Arc::clone(&self.pipeline)).await?;
        let mut all: Vec<DeadLetter> = Vec::new();
        while all.len() < limit
            && let Some(letter) = reading.next().await?
        {
            all.push(letter);
        }
        // Ids begin with the partition, but a key that moved to a child partition goes on with higher
        // ranks there. Letters of one transaction and partition stay together.
        all.sort_by(|a, b| transaction_of(a).cmp(transaction_of(b)).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
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

/// The rank prefix that is the transaction's.
fn transaction_of(letter: &DeadLetter) -> &[u8] {
    let rank = letter.position.rank.as_bytes();
    &rank[..rank.len().saturating_sub(8)]
}

fn held_letter(change: ChangeRef<'_>, reason: &str) -> DeadLetter {
    DeadLetter::from_change(change, LetterClass::Retry, LetterState::Held, reason)
}

/// Not left out on purpose.
pub(super) fn is_open_class(letter: &DeadLetter) -> bool {
    matches!(letter.class, LetterClass::Retry | LetterClass::Severe)
}

pub(super) fn is_row(change: ChangeRef<'_>) -> bool {
    matches!(change.op(), Op::Insert | Op::Update | Op::Delete)
}

/// The keys that a change touches: of the row before and of the row after.
pub(super) fn keys_of(change: ChangeRef<'_>, sharded: bool) -> BTreeSet<HeldKey> {
    let Some(schema) = change.table().filter(|t| is_row(change) && !t.key.is_empty()) else { return BTreeSet::new() };
    let key = |row: RowRef<'_>| {
        let mut bytes = Vec::new();
        key_bytes(schema, row, &mut bytes);
        (change.shard().filter(|_| sharded).cloned(), schema.name.clone(), bytes.into_boxed_slice())
    };
    [change.old_row(), change.new_row()].into_iter().flatten().map(key).collect()
}

fn show(row: RowRef<'_>, index: usize) -> String {
    match row.get(index) {
        crate::ValueRef::Text(text) => text.chars().take(64).collect(),
        other => format!("{other:?}"),
    }
}

pub(super) fn marked(letter: &DeadLetter, state: LetterState) -> DeadLetter {
    let mut letter = letter.clone();
    letter.state = state;
    letter.attempts += 1;
    letter.last_attempt = Some(Timestamp::now());
    letter
}

/// A unit that applies these letters, in one target transaction, and stores that it did.
pub(super) fn unit_of(letters: &[DeadLetter]) -> Result<Unit> {
    let mut builder = BatchBuilder::new(PartitionId::new(RETRIED));
    let mut schemas: Vec<Arc<TableSchema>> = Vec::new();
    for letter in letters {
        // Under its own rank: a sink may keep versions of rows.
        let rank = letter.position.rank.as_bytes();
        let (prefix, number) = rank.split_at(rank.len().saturating_sub(8));
        let sequence = number.try_into().map_or(1, u64::from_be_bytes);
        let rank = Bytes::copy_from_slice(prefix);
        builder.begin(Transaction { rank, commit_time: letter.commit_time, ..Transaction::default() }, sequence);
        let schema = match schemas.iter().find(|s| ***s == letter.schema) {
            Some(schema) => Arc::clone(schema),
            None => {
                schemas.push(Arc::new(letter.schema.clone()));
                Arc::clone(&schemas[schemas.len() - 1])
            }
        };
        let index = builder.schema(&schema);
        builder.change(letter.op, index);
        if let Some(old) = &letter.old {
            let full = old.iter().all(|v| !v.as_ref().is_unchanged());
            builder.old_row(if full { crate::OldImage::Full } else { crate::OldImage::Key });
            old.iter().for_each(|v| builder.push(v.as_ref()));
        }
        if let Some(new) = &letter.new {
            builder.new_row();
            new.iter().for_each(|v| builder.push(v.as_ref()));
        }
        if let Some(shard) = &letter.shard {
            builder.shard(shard);
        }
    }
    let last = letters.last().map_or_else(String::new, |l| l.id.clone());
    let end = Position::new(Rank::of_end(&[0; 8]), last);
    builder.commit(end.clone());
    let batch = Arc::new(builder.finish(end.clone(), None)?);
    let changes = Selection::Range(0..batch.len() as u32);
    Ok(Unit {
        id: UnitId(u64::MAX),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { batch, changes }],
        transactions: 0,
        progress: vec![Progress { partition: PartitionId::new(RETRIED), position: end, safe_time: None }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::MemoryDeadLetters;
    use crate::memory::MemorySource;
    use crate::model::{Column, DataType, Value};

    fn letter(sequence: i64, shard: &str) -> DeadLetter {
        let schema = TableSchema {
            name: TableName::new("public", "orders"),
            columns: vec![Column::new("id", DataType::Int64)],
            key: vec![0],
        };
        DeadLetter {
            id: format!("memory:9-{sequence}"),
            class: LetterClass::Retry,
            state: LetterState::Held,
            reason: "parked".to_owned(),
            op: Op::Insert,
            schema,
            old: None,
            new: Some(vec![Value::Int(sequence)]),
            shard: Some(shard.to_owned()),
            partition: PartitionId::new("memory"),
            position: Position::new(Rank::of_change(&[9; 8], sequence as u64), Bytes::new()),
            commit_time: Some(Timestamp::from_micros(9)),
            attempts: 0,
            last_attempt: None,
            parked: None,
        }
    }

    /// A transaction over two shards is tried in each by itself: when the process dies after one of
    /// them, the letters of the other have not been applied.
    #[tokio::test]
    async fn what_one_shard_had_applied_is_not_marked_for_the_others() {
        for (sharded, of_the_other) in [(true, LetterState::Held), (false, LetterState::Applied)] {
            let (store, source) = (MemoryDeadLetters::new(), MemorySource::new("db"));
            let shards = sharded.then(|| ["north", "south"].map(Arc::from).to_vec().into());
            store.put("p", &[letter(1, "north"), letter(2, "south"), letter(3, "north")]).await.unwrap();
            let (policy, store) = (LetterPolicy::default(), Arc::new(store));
            let letters = Letters::load("p".into(), Arc::new(source), Some(store.clone()), policy, true, true, shards);
            letters.await.unwrap().finish_interrupted_retry(b"memory:9-3").await.unwrap();
            let mut states = Vec::new();
            for sequence in 1..=3 {
                states.push(store.get("p", &format!("memory:9-{sequence}")).await.unwrap().unwrap().state);
            }
            assert_eq!(states, [LetterState::Applied, of_the_other, LetterState::Applied], "sharded: {sharded}");
        }
    }
}
