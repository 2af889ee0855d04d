//! What a run has written: one object, replaced by compare-and-set. What it does not name does not count.

use std::collections::BTreeMap;

use anabranch_core::{Counters, Error, PartitionId, Progress, Rank, Result, SourceIdentity, TableSchema, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::damaged;
use crate::names;
use crate::sink::Ranks;
use crate::store::{Store, Tag};

/// The version of the form of ledgers.
const FORMAT: u32 = 1;

/// The ledger of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) anabranch_run: u32,
    pub(crate) run: String,
    /// Tells this run from another one of its name.
    pub(crate) id: String,
    /// The pipeline that writes it, the epoch of its last run, and how often it has written since.
    pub(crate) pipeline: String,
    pub(crate) epoch: u64,
    pub(crate) version: u64,
    /// A new one for each write, so that no two writers write the same.
    pub(crate) nonce: u64,
    #[serde(default)]
    pub(crate) identity: SourceIdentity,
    pub(crate) ranks: Ranks,
    /// The length of a window, in microseconds.
    pub(crate) window_micros: i64,
    /// Every change that was committed at the source at or before this is in the files.
    #[serde(default)]
    pub(crate) safe_time: Option<Timestamp>,
    /// The end of the last window that is complete, for people: RFC 3339.
    #[serde(default)]
    pub(crate) created_upto: Option<String>,
    /// How far each partition of the source is, with every unit of the pipeline that was written whole.
    #[serde(default)]
    pub(crate) progress: BTreeMap<PartitionId, Progress>,
    /// The last change of each partition that is in a file, where that is behind its progress: of a unit
    /// that was not written whole.
    #[serde(default)]
    pub(crate) written: BTreeMap<PartitionId, Rank>,
    #[serde(default)]
    pub(crate) counters: Counters,
    /// The last transaction, unless it is known to have ended.
    #[serde(default)]
    pub(crate) open: Option<OpenTransaction>,
    #[serde(default)]
    pub(crate) shards: BTreeMap<String, ShardEntry>,
}

/// A transaction of which more may follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenTransaction {
    /// Its rank among those of its shards.
    #[serde(with = "crate::format::hex")]
    pub(crate) rank: Bytes,
    #[serde(default)]
    pub(crate) time: Option<Timestamp>,
    pub(crate) partition: PartitionId,
    /// Its rank at its source.
    #[serde(with = "crate::format::hex")]
    pub(crate) source_rank: Bytes,
}

/// What a shard has, by the name of its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardEntry {
    /// Its own name; `None` of changes without a shard.
    pub(crate) name: Option<String>,
    /// How many files it has had: their numbers go from 1 to this.
    pub(crate) files: u64,
    /// The name of the last one.
    pub(crate) last: String,
    /// The start of its last window, in microseconds since 1970, and the parts that that has.
    pub(crate) window: i64,
    pub(crate) parts: u32,
    /// The last transaction's rank among those of the shard, and the last change's number in it.
    #[serde(with = "crate::format::hex")]
    pub(crate) rank: Bytes,
    pub(crate) sequence: u64,
    /// Changes in all its files.
    pub(crate) records: u64,
    /// Of them, those that are of no row: the messages with which a source marks its present, for instance.
    #[serde(default)]
    pub(crate) messages: u64,
    /// Who wrote which files: from this number on the writer of this epoch. The first ones are left out
    /// where there are too many, and in the ledger of an older version of this library.
    #[serde(default)]
    pub(crate) epochs: Vec<(u64, u64)>,
}

/// How many writers of a shard are remembered: readers that are behind by more restarts than that are rare.
const WRITERS: usize = 256;

impl ShardEntry {
    /// The epoch of the writer of a file, if it is known.
    pub(crate) fn epoch_of(&self, number: u64) -> Option<u64> {
        self.epochs.iter().rev().find(|(first, _)| *first <= number).map(|(_, epoch)| *epoch)
    }

    /// The file of this number is written by the writer of this epoch.
    pub(crate) fn written_by(&mut self, number: u64, epoch: u64) {
        if self.epochs.last().is_some_and(|(_, last)| *last == epoch) {
            return;
        }
        self.epochs.push((number, epoch));
        if self.epochs.len() > WRITERS {
            self.epochs.remove(0);
        }
    }

    /// Whether it has changes of rows.
    pub(crate) fn has_rows(&self) -> bool {
        self.records > self.messages
    }
}

/// The tables of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tables {
    pub(crate) anabranch_tables: u32,
    pub(crate) tables: Vec<TableSchema>,
}

impl Ledger {
    pub(crate) fn new(run: &str, pipeline: &str, ranks: Ranks, window_micros: i64) -> Self {
        Self {
            anabranch_run: FORMAT,
            run: run.to_owned(),
            id: format!("{:016x}", rand::random::<u64>()),
            pipeline: pipeline.to_owned(),
            epoch: 0,
            version: 0,
            nonce: 0,
            identity: SourceIdentity::default(),
            ranks,
            window_micros,
            safe_time: None,
            created_upto: None,
            progress: BTreeMap::new(),
            written: BTreeMap::new(),
            counters: Counters::default(),
            open: None,
            shards: BTreeMap::new(),
        }
    }

    /// The stored one; `None` if the run has never been written.
    pub(crate) async fn load(store: &Store, run: &str) -> Result<Option<(Self, Tag)>> {
        let name = names::ledger(run);
        let Some((bytes, tag)) = store.get(&name).await? else { return Ok(None) };
        let shown = store.show(&name);
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&shown, e))?;
        let format = value.get("anabranch_run").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if format > u64::from(FORMAT) {
            let problem = format!("{shown} has format {format}, and this version of anabranch knows {FORMAT}");
            return Err(Error::config(store.key(), problem).hint("run the version that wrote it, or a later one"));
        }
        let ledger: Self = serde_json::from_value(value).map_err(|e| damaged(&shown, e))?;
        Ok(Some((ledger, tag)))
    }

    /// The last change of each partition that need not be written again.
    pub(crate) fn reached(&self) -> BTreeMap<PartitionId, Rank> {
        let mut reached = self.written.clone();
        for (id, progress) in &self.progress {
            let rank = reached.entry(id.clone()).or_default();
            if *rank < progress.position.rank {
                rank.clone_from(&progress.position.rank);
            }
        }
        reached
    }

    /// Stores it over `tag`; `None` if somebody else has stored meanwhile.
    pub(crate) async fn save(&mut self, store: &Store, tag: Option<&Tag>) -> Result<Option<Tag>> {
        self.version += 1;
        self.nonce = rand::random();
        let mut content = serde_json::to_vec(self)
            .map_err(|e| Error::fatal("cannot write the ledger of a run as JSON").because(e))?;
        content.push(b'\n');
        store.swap(&names::ledger(&self.run), tag, content.into()).await
    }
}

impl Tables {
    pub(crate) async fn load(store: &Store, run: &str) -> Result<Self> {
        let name = names::tables(run);
        match store.get(&name).await? {
            Some((bytes, _)) => serde_json::from_slice(&bytes).map_err(|e| damaged(&store.show(&name), e)),
            None => Ok(Self::default()),
        }
    }

    /// Whether they were ever stored.
    pub(crate) fn are_stored(&self) -> bool {
        self.anabranch_tables > 0
    }

    /// Takes these in, each over an earlier form of itself; true if that changed anything.
    pub(crate) fn merge<'a>(&mut self, tables: impl IntoIterator<Item = &'a TableSchema>) -> bool {
        let mut changed = false;
        for table in tables {
            match self.tables.iter_mut().find(|t| t.name == table.name) {
                Some(known) if known == table => continue,
                Some(known) => known.clone_from(table),
                None => self.tables.push(table.clone()),
            }
            changed = true;
        }
        changed
    }

    pub(crate) async fn save(&mut self, store: &Store, run: &str) -> Result<()> {
        self.anabranch_tables = FORMAT;
        let content = serde_json::to_vec(self)
            .map_err(|e| Error::fatal("cannot write the tables of a run as JSON").because(e))?;
        store.put(&names::tables(run), content.into()).await
    }
}
