//! Reads the rows of one side.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::super::reader::Transforms;
use crate::control::verify::{ByKey, Digester, Seen, Sums, count};
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, ChangeRef, Op, RowRef, TableSchema, Value};
use crate::pipeline::Spec;
use crate::source::{ChangeReader, Next, Snapshot};
use crate::verifier::{MAX_KEYS, RowReader};

/// One side of the comparison of a table.
#[derive(Clone)]
pub(super) struct Side {
    pub(super) spec: Arc<Spec>,
    /// Of the source; the target has none.
    pub(super) transforms: Option<Transforms>,
    /// As this side calls it.
    pub(super) table: TableSchema,
    pub(super) digester: Digester,
    pub(super) rows_per_second: Option<u64>,
}

/// The rows of some buckets, by key.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) rows: ByKey,
    /// The key's values, as [`crate::Verifier::rows`] takes them.
    pub(super) keys: HashMap<u128, Vec<Value>>,
    /// The sums of all rows, as they are by now.
    pub(super) sums: Sums,
}

impl Side {
    /// The sums of all rows.
    pub(super) async fn sums(mut self) -> Result<Sums> {
        let mut sums = Sums::default();
        self.each(None, |digester, change, row| {
            sums.add(digester.digest(change.schema(), row)?);
            Ok(())
        })
        .await?;
        Ok(sums)
    }

    /// The rows of these buckets.
    pub(super) async fn keys(mut self, buckets: Arc<Vec<bool>>) -> Result<Keys> {
        let mut found = Keys::default();
        self.each(None, |digester, change, row| {
            let digest = digester.digest(change.schema(), row)?;
            found.sums.add(digest);
            if buckets[digest.bucket()] {
                count(&mut found.rows, digest);
                let key = change.schema().key.iter().map(|&k| row.get(usize::from(k)).to_owned());
                found.keys.entry(digest.key).or_insert_with(|| key.collect());
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// The rows with these keys: looked up where that is possible, else found by reading all.
    pub(super) async fn seen(
        &self,
        wanted: &HashSet<u128>,
        values: &HashMap<u128, Vec<Value>>,
    ) -> Result<HashMap<u128, Seen>> {
        let mut side = self.clone();
        let mut seen: HashMap<u128, Seen> = HashMap::new();
        let order: Vec<String> = self.digester.names();
        let mut take = |digester: &mut Digester, change: ChangeRef<'_>, row: RowRef<'_>| {
            let digest = digester.digest(change.schema(), row)?;
            if wanted.contains(&digest.key) {
                let value =
                    |name: &String| change.schema().index_of(name).map_or(Value::Null, |i| row.get(i).to_owned());
                seen.entry(digest.key).or_default().add(digest.row, order.iter().map(value).collect());
            }
            Ok(())
        };
        if !self.looks_up() {
            side.each(None, take).await?;
            return Ok(seen);
        }
        let keys: Vec<Vec<Value>> = wanted.iter().filter_map(|key| values.get(key).cloned()).collect();
        for some in keys.chunks(MAX_KEYS) {
            side.each(Some(some), &mut take).await?;
        }
        Ok(seen)
    }

    /// Whether rows can be asked for by the keys that both sides have: without a transform, which may
    /// have changed them, and with a key.
    fn looks_up(&self) -> bool {
        let readable = match &self.transforms {
            Some(transforms) => transforms.is_empty() && self.spec.source.verifier().is_some(),
            None => true,
        };
        readable && !self.table.key.is_empty()
    }

    /// Shows `see` every row, as the sink gets it.
    async fn each(
        &mut self,
        keys: Option<&[Vec<Value>]>,
        mut see: impl FnMut(&mut Digester, ChangeRef<'_>, RowRef<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        let began = Instant::now();
        let mut rows = 0;
        let mut reader = self.reader(keys).await?;
        while let Some(batch) = reader.next().await? {
            let batch = match &self.transforms {
                Some(transforms) => transforms.apply(batch)?,
                None => batch,
            };
            for change in batch.changes().filter(|c| c.op() == Op::Insert) {
                if let Some(row) = change.new_row() {
                    see(&mut self.digester, change, row)?;
                    rows += 1;
                }
            }
            if let Some(rate) = self.rows_per_second.filter(|rate| *rate > 0) {
                sleep_until(began + Duration::from_secs_f64(rows as f64 / rate as f64)).await;
            }
        }
        Ok(())
    }

    async fn reader(&self, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let (source, sink) = (&self.spec.source, &self.spec.sink);
        let verifier = if self.transforms.is_some() { source.verifier() } else { sink.verifier() };
        if let Some(verifier) = verifier {
            return verifier.rows(&self.table, keys).await;
        }
        let snapshotter = source.snapshotter().ok_or_else(|| {
            Error::config("source.type", format!("the rows of {} cannot be read", source.info().name))
        })?;
        let snapshot = snapshotter.begin(std::slice::from_ref(&self.table)).await?;
        Ok(Box::new(SnapshotRows { snapshot, next: 0, chunk: None }))
    }
}

/// All chunks of a snapshot, one after another.
struct SnapshotRows {
    snapshot: Box<dyn Snapshot>,
    next: usize,
    chunk: Option<Box<dyn ChangeReader>>,
}

#[async_trait]
impl RowReader for SnapshotRows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        loop {
            let reader = match &mut self.chunk {
                Some(reader) => reader,
                None => {
                    let Some(chunk) = self.snapshot.chunks().get(self.next) else { return Ok(None) };
                    self.next += 1;
                    self.chunk.insert(self.snapshot.open(chunk).await?)
                }
            };
            match reader.next().await? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::Closed { .. } => self.chunk = None,
                Next::Stopped => return Err(Error::transient("the reading of a snapshot chunk stopped early")),
            }
        }
    }
}
