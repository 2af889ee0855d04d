//! Writes the changes of one run into files.
//!
//! Changes are gathered by shard. A commit writes at most one file for each shard and then the
//! ledger, which names them all at once: what it does not name was never written. A writer that dies
//! in between leaves at most one file for a shard that does not count. Its successor is given the same
//! changes in the same order, so its next file has the same name and replaces that one.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    ChangeRef, Counters, Error, Op, PartitionId, Progress, Rank, Result, SinkWriter, TableSchema, Timestamp, Unit,
    Written,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::format::{Body, FORMAT, Header};
use crate::ledger::{Ledger, OpenTransaction, ShardEntry};
use crate::names::{self, Window};
use crate::relay::write_manifest;
use crate::sink::{Ranks, Shared, Taken};

/// How many files are written at a time.
const AT_A_TIME: usize = 16;

/// How often a file that is in the way is replaced against somebody who writes it too.
const TRIES: usize = 5;

/// The files of all shards that are not written yet have at most this many times the size of one.
const FILES_IN_MEMORY: usize = 4;

/// The partition of dead letters that are tried again.
const RETRIED: &str = "dead-letters";

/// The writer of a run.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    epoch: u64,
    /// What an earlier writer had written, also of a unit that it did not finish.
    replayed: BTreeMap<PartitionId, Rank>,
    pending: Pending,
    /// Each shard as it is with what is pending; of the ledger where it has no entry here.
    shards: BTreeMap<String, ShardEntry>,
}

/// What the next commit stores.
#[derive(Default)]
struct Pending {
    files: BTreeMap<String, Gathered>,
    size: usize,
    written: BTreeMap<PartitionId, Rank>,
    /// The transaction of the last change.
    last: Option<OpenTransaction>,
    /// Of whole units.
    progress: BTreeMap<PartitionId, Progress>,
    counters: Counters,
    /// Of a unit that goes on.
    in_parts: Counters,
    any: bool,
}

/// The next file of a shard.
struct Gathered {
    body: Body,
    window: Window,
    part: u32,
    /// The file before it.
    previous: Option<String>,
    number: u64,
    shard: Option<String>,
}

impl Writer {
    pub(crate) async fn open(shared: Arc<Shared>, epoch: u64) -> Result<Self> {
        let (replayed, shards) = {
            let taken = shared.taken().await;
            match taken.as_ref() {
                Some(taken) if taken.ledger.epoch == epoch => (taken.ledger.reached(), taken.ledger.shards.clone()),
                _ => return Err(Error::fenced(format!("epoch {epoch} does not own the run any more"))),
            }
        };
        Ok(Self { shared, epoch, replayed, pending: Pending::default(), shards })
    }

    /// What cannot be written, before anything of the unit is.
    fn acceptable(&self, unit: &Unit) -> Result<()> {
        let named = |c: ChangeRef<'_>| c.shard().is_some_and(|s| !s.is_empty());
        let mut truncated = None;
        let mut sharded = self.shards.values().any(|s| s.name.is_some());
        for change in unit.changes() {
            if change.partition().as_str() == RETRIED {
                return Err(Error::rejected("window files take changes in their order, and no dead letters later"));
            }
            sharded |= named(change);
            if matches!(change.op(), Op::Truncate(_)) && !named(change) {
                truncated = change.table();
            }
        }
        match truncated {
            Some(table) if sharded => Err(Error::rejected(format!("{} was truncated: in which shard?", table.name))
                .hint("truncate the shards by hand, and leave truncates out of what the source sends")),
            _ => Ok(()),
        }
    }

    /// Gathers a change; commits what is gathered before it, if it cannot go into the same file.
    async fn add(&mut self, change: ChangeRef<'_>) -> Result<()> {
        let (partition, rank) = (change.partition(), change.rank());
        if self.replayed.get(partition).is_some_and(|through| rank <= *through) {
            return Ok(());
        }
        let name = change.shard().filter(|s| !s.is_empty()).map(|s| s.to_string());
        let folder = names::shard(name.as_deref());
        let order = self.order_of(change)?;
        let window = self.window_of(&folder, change.piece().transaction.commit_time);
        self.in_order(&folder, order.as_ref(), change)?;
        self.goes_on(&folder, order.as_ref(), change).await?;
        let settings = &self.shared.settings;
        let other_file = self
            .pending
            .files
            .get(&folder)
            .is_some_and(|file| file.window != window || file.body.size() >= settings.max_file);
        if other_file || self.pending.size >= FILES_IN_MEMORY * settings.max_file {
            let ended = self.pending.last.as_ref().is_some_and(|l| l.source_rank != change.piece().transaction.rank);
            self.commit(ended).await?;
        }
        self.gather(change, folder, name, window, order)?;
        self.pending.written.insert(partition.clone(), rank);
        Ok(())
    }

    /// The rank of the change's transaction in its shard, where that is not its own.
    fn order_of(&self, change: ChangeRef<'_>) -> Result<Option<Bytes>> {
        let transaction = &change.piece().transaction;
        match (self.shared.settings.ranks, transaction.commit_time) {
            (Ranks::Source, _) => Ok(None),
            (Ranks::CommitTime, Some(time)) => {
                // Bytes sort as unsigned numbers do.
                let mut order = ((time.as_micros() as u64) ^ (1 << 63)).to_be_bytes().to_vec();
                order.extend_from_slice(&transaction.rank);
                Ok(Some(order.into()))
            }
            (Ranks::CommitTime, None) => Err(Error::config("sink.ranks", "the source gives no commit times")
                .hint("set ranks = \"source\" for a new run")),
        }
    }

    /// The window of a change: that of its commit time, or the shard's last one if that is later. So
    /// the files of a shard are in the order of its changes, whatever clock stamped them.
    fn window_of(&self, folder: &str, time: Option<Timestamp>) -> Window {
        let length = self.shared.settings.window_micros();
        let own = time.map(|time| Window::of(time, length));
        let last = self.shards.get(folder).map(|entry| Window { start: entry.window, length });
        let first = Window { start: 0, length };
        match (own, last) {
            (Some(own), Some(last)) if last.start > own.start => last,
            (own, last) => own.or(last).unwrap_or(first),
        }
    }

    /// Readers of a shard tell its changes apart, and what they have had, by their ranks.
    fn in_order(&self, folder: &str, order: Option<&Bytes>, change: ChangeRef<'_>) -> Result<()> {
        let Some(entry) = self.shards.get(folder) else { return Ok(()) };
        let rank = order.unwrap_or(&change.piece().transaction.rank);
        if (rank.as_ref(), change.sequence()) > (entry.rank.as_ref(), entry.sequence) {
            return Ok(());
        }
        let shown = Rank::of_change(rank, change.sequence());
        let last = Rank::of_change(&entry.rank, entry.sequence);
        Err(Error::fatal(format!("the source gave {shown:?} of {folder} after {last:?}: its ranks do not grow")).hint(
            "use the order window, with ranks = \"commit_time\" in [sink] if its partitions number their changes \
             apart, and a new run",
        ))
    }

    /// A shard's last transaction goes on only as long as the ledger has it as the one that is open: else
    /// readers were told that it has ended, and would take what follows of it for what they have had.
    async fn goes_on(&self, folder: &str, order: Option<&Bytes>, change: ChangeRef<'_>) -> Result<()> {
        let rank = order.unwrap_or(&change.piece().transaction.rank);
        let same = self.shards.get(folder).is_some_and(|entry| entry.rank == *rank);
        if !same || self.pending.files.contains_key(folder) {
            return Ok(());
        }
        let taken = self.shared.taken().await;
        if taken.as_ref().and_then(|t| t.ledger.open.as_ref()).is_some_and(|open| open.rank == *rank) {
            return Ok(());
        }
        let shown = Rank::of_change(rank, change.sequence());
        Err(Error::fatal(format!(
            "the source gave {shown:?} of {folder} after changes of another transaction: what is left of one comes too late"
        ))
        .hint("use the order window (or transaction), and a new run"))
    }

    fn gather(
        &mut self,
        change: ChangeRef<'_>,
        folder: String,
        shard: Option<String>,
        window: Window,
        order: Option<Bytes>,
    ) -> Result<()> {
        let transaction = &change.piece().transaction;
        let rank = order.clone().unwrap_or_else(|| transaction.rank.clone());
        if !self.pending.files.contains_key(&folder) {
            let entry = self.shards.get(&folder);
            let part = entry.filter(|e| e.window == window.start).map_or(0, |e| e.parts);
            let file = Gathered {
                body: Body::default(),
                window,
                part,
                previous: entry.map(|e| e.last.clone()),
                number: entry.map_or(0, |e| e.files) + 1,
                shard: shard.clone(),
            };
            let mut entry = ShardEntry {
                name: shard,
                files: file.number,
                last: window.file(part)?,
                window: window.start,
                parts: part + 1,
                rank: Bytes::new(),
                sequence: 0,
                records: entry.map_or(0, |e| e.records),
                messages: entry.map_or(0, |e| e.messages),
                epochs: entry.map(|e| e.epochs.clone()).unwrap_or_default(),
            };
            entry.written_by(file.number, self.epoch);
            self.shards.insert(folder.clone(), entry);
            self.pending.files.insert(folder.clone(), file);
        }
        if let (Some(file), Some(entry)) = (self.pending.files.get_mut(&folder), self.shards.get_mut(&folder)) {
            let before = file.body.size();
            file.body.add(change, order.as_ref())?;
            self.pending.size += file.body.size() - before;
            (entry.rank, entry.sequence, entry.records) = (rank.clone(), change.sequence(), entry.records + 1);
            entry.messages += u64::from(matches!(change.op(), Op::Message | Op::Schema));
        }
        self.pending.any = true;
        if self.pending.last.as_ref().is_none_or(|last| last.source_rank != transaction.rank) {
            self.pending.last = Some(OpenTransaction {
                rank,
                time: transaction.commit_time,
                partition: change.partition().clone(),
                source_rank: transaction.rank.clone(),
            });
        }
        Ok(())
    }

    /// Writes the files and then the ledger. `ended`: nothing more of the last transaction follows.
    async fn commit(&mut self, ended: bool) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.pending.in_parts = pending.in_parts;
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.taken().await;
        let taken = guard.as_mut().ok_or_else(|| Error::fenced("this run was taken over"))?;
        write_files(taken, self.epoch, pending.files).await?;
        let before = taken.ledger.shards.clone();
        let shards = &self.shards;
        taken
            .commit(self.epoch, |ledger| {
                ledger.shards.clone_from(shards);
                ledger.written.extend(pending.written);
                ledger.progress.extend(pending.progress);
                ledger.counters += pending.counters;
                ledger.open = pending.last.or(ledger.open.take()).filter(|open| !ended && !has_ended(ledger, open));
                // Of a unit that is whole its progress says as much.
                let Ledger { written, progress, .. } = ledger;
                written.retain(|id, rank| progress.get(id).is_none_or(|p| p.position.rank < *rank));
            })
            .await?;
        // The ledger has gone on to another window: what it had of the one before is complete.
        for (folder, entry) in before {
            if self.shards.get(&folder).is_some_and(|now| now.window != entry.window) {
                write_manifest(&taken.store, &taken.ledger, &entry).await?;
            }
        }
        Ok(())
    }
}

/// Whether the progress tells that a transaction is whole. Of one that may be spread over partitions
/// only a later one tells, or the safe time.
fn has_ended(ledger: &Ledger, open: &OpenTransaction) -> bool {
    let past = |p: &Progress| p.position.rank >= Rank::of_end(&open.source_rank);
    let alone = ledger.progress.keys().chain(ledger.written.keys()).all(|id| *id == open.partition);
    alone && ledger.progress.get(&open.partition).is_some_and(past)
}

/// Writes the files: whole and durable on return, and not there for any reader yet.
async fn write_files(taken: &mut Taken, epoch: u64, files: BTreeMap<String, Gathered>) -> Result<()> {
    let run = taken.ledger.run.clone();
    let mut ready = Vec::with_capacity(files.len());
    let mut schemas: Vec<Arc<TableSchema>> = Vec::new();
    for (folder, mut file) in files {
        schemas.extend(file.body.schemas().iter().cloned());
        let header = Header {
            anabranch_window: FORMAT,
            run: run.clone(),
            shard: file.shard.take(),
            start: Timestamp::from_micros(file.window.start).to_string(),
            end: Timestamp::from_micros(file.window.end()).to_string(),
            part: file.part,
            number: file.number,
            previous: file.previous.take(),
            pipeline: taken.ledger.pipeline.clone(),
            epoch,
        };
        let name = format!("{}/{}", names::folder(&run, &folder), file.window.file(file.part)?);
        tracing::debug!(file = %name, records = file.body.records(), "writing a window file");
        ready.push((name, file.body.finish(&header)?));
    }
    if taken.tables.merge(schemas.iter().map(|s| &**s)) {
        taken.tables.save(&taken.store, &run).await?;
    }
    let taken = &*taken;
    let puts = stream::iter(ready).map(|(name, content)| put_file(taken, epoch, name, content));
    puts.buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await.map(drop)
}

/// Puts a file where none is, or where one is that a writer left who died before its commit.
///
/// Never blindly: a writer that was thought dead must not replace what its successor has committed. What
/// is there is looked at first, then whether the run is still this writer's; so it was not committed
/// by another when it was looked at, and it is replaced only if it is still the same.
async fn put_file(taken: &Taken, epoch: u64, name: String, content: Bytes) -> Result<()> {
    if taken.store.create(&name, content.clone()).await? {
        return Ok(());
    }
    for _ in 0..TRIES {
        let found = taken.store.get(&name).await?;
        taken.still_mine(epoch).await?;
        if taken.store.swap(&name, found.as_ref().map(|(_, tag)| tag), content.clone()).await?.is_some() {
            return Ok(());
        }
    }
    Err(Error::transient(format!("{} is written by another all the while", taken.store.show(&name))))
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        self.acceptable(unit)?;
        let whole = unit.part.ends();
        for change in unit.changes() {
            self.add(change).await?;
        }
        self.pending.in_parts +=
            Counters { changes: unit.row_changes(), transactions: unit.transactions, ..Counters::default() };
        if whole {
            self.pending.counters += std::mem::take(&mut self.pending.in_parts);
            for progress in &unit.progress {
                self.pending.progress.insert(progress.partition.clone(), progress.clone());
            }
            self.pending.any = true;
        }
        Ok(Written::accepted())
    }

    async fn flush(&mut self) -> Result<()> {
        if self.pending.any { self.commit(false).await } else { Ok(()) }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
