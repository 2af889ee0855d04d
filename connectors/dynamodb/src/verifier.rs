//! Reads items for a comparison: all of a table by a parallel scan, or those with some keys.
//!
//! DynamoDB adds nothing up by itself, and has no reads as of one time over many items: each item is as it
//! was when its page was read, consistently, after the call. What differs is looked at again by its key.
//! A page is 1 MB at most; as many of them as there are segments, twice, are in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Error, Op, PartitionId, Position, Rank, Result, RowReader, TableSchema, Transaction,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{KeysAndAttributes, ReturnConsumedCapacity};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::calls::{Stop, call};
use crate::limiter::{Limiter, backoff};
use crate::types::Item;

/// Segments of a scan: a page takes a round trip, in which others are on their way.
const SEGMENTS: i32 = 4;

/// Keys that `BatchGetItem` takes.
const KEYS: usize = 100;

/// The rank of the rows: a reader of rows is no partition of a stream.
const RANK: [u8; 8] = [0; 8];

/// What of an item goes into a row.
pub(crate) trait ItemForm: Send + Sync {
    /// The schema of the rows.
    fn schema(&self) -> &Arc<TableSchema>;

    /// Whether it is a row at all: neither a tombstone nor a marker.
    fn is_row(&self, item: &Item) -> bool;

    /// Pushes the values of a row.
    fn push(&self, item: &Item, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()>;
}

/// What is read, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) client: Client,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) table: String,
    /// Capacity units a second that a scan may consume.
    pub(crate) capacity: Option<f64>,
}

type Pages = mpsc::Sender<Result<Vec<Item>>>;

impl Reading {
    /// All items.
    pub(crate) fn all(self, form: impl ItemForm + 'static) -> Box<dyn RowReader> {
        self.start(form, |reading, pages, tasks| {
            for segment in 0..SEGMENTS {
                let (reading, pages) = (reading.clone(), pages.clone());
                tasks.spawn(async move {
                    if let Err(e) = reading.scan(segment, &pages).await {
                        let _ = pages.send(Err(e)).await;
                    }
                });
            }
        })
    }

    /// The items that have one of these keys, which must be different ones.
    pub(crate) fn with_keys(self, keys: Vec<Item>, form: impl ItemForm + 'static) -> Box<dyn RowReader> {
        self.start(form, |reading, pages, tasks| {
            tasks.spawn(async move {
                for some in keys.chunks(KEYS) {
                    if let Err(e) = reading.get(some.to_vec(), &pages).await {
                        let _ = pages.send(Err(e)).await;
                        return;
                    }
                }
            });
        })
    }

    fn start(
        self,
        form: impl ItemForm + 'static,
        spawn: impl FnOnce(Self, Pages, &mut JoinSet<()>),
    ) -> Box<dyn RowReader> {
        let (pages, inbox) = mpsc::channel(SEGMENTS as usize);
        let mut tasks = JoinSet::new();
        spawn(self, pages, &mut tasks);
        Box::new(Reader { inbox, _tasks: tasks, form: Box::new(form) })
    }

    async fn scan(&self, segment: i32, pages: &Pages) -> Result<()> {
        let request = self.client.scan().table_name(&self.table).consistent_read(true);
        let request = request.segment(segment).total_segments(SEGMENTS);
        let request = request.return_consumed_capacity(ReturnConsumedCapacity::Total);
        let mut after = None;
        loop {
            let request = request.clone().set_exclusive_start_key(after.take());
            let page = call(&self.limiter, &self.table, || request.clone().send()).await.map_err(Stop::into_error)?;
            let units = page.consumed_capacity().and_then(|c| c.capacity_units());
            if pages.send(Ok(page.items.unwrap_or_default())).await.is_err() {
                return Ok(());
            }
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => after = Some(key),
                None => return Ok(()),
            }
            if let Some(capacity) = self.capacity {
                // What a page costs is known only afterwards; each segment has its share.
                let seconds = units.unwrap_or(1.0) * f64::from(SEGMENTS) / capacity;
                sleep(Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))).await;
            }
        }
    }

    async fn get(&self, keys: Vec<Item>, pages: &Pages) -> Result<()> {
        let (mut left, mut failures) = (keys, 0);
        while !left.is_empty() {
            let incomplete = |e| Error::fatal("a request for items is incomplete").because(e);
            let wanted = KeysAndAttributes::builder().set_keys(Some(left)).consistent_read(true);
            let wanted = HashMap::from([(self.table.clone(), wanted.build().map_err(incomplete)?)]);
            let request = self.client.batch_get_item().set_request_items(Some(wanted));
            let cuts = self.limiter.cuts();
            let answer = call(&self.limiter, &self.table, || request.clone().send()).await.map_err(Stop::into_error)?;
            let items = answer.responses.and_then(|mut all| all.remove(&self.table)).unwrap_or_default();
            if pages.send(Ok(items)).await.is_err() {
                return Ok(());
            }
            left = answer.unprocessed_keys.and_then(|mut all| all.remove(&self.table)).map_or(Vec::new(), |k| k.keys);
            if !left.is_empty() {
                self.limiter.cut_since(cuts);
                failures += 1;
                sleep(backoff(failures)).await;
            }
        }
        Ok(())
    }
}

/// The rows of the pages that the tasks read; they end with this.
struct Reader {
    inbox: mpsc::Receiver<Result<Vec<Item>>>,
    _tasks: JoinSet<()>,
    form: Box<dyn ItemForm>,
}

#[async_trait]
impl RowReader for Reader {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        let Some(page) = self.inbox.recv().await else { return Ok(None) };
        let mut batch = BatchBuilder::new(PartitionId::new("rows"));
        let schema = batch.schema(self.form.schema());
        batch.begin(Transaction { rank: RANK.to_vec().into(), ..Transaction::default() }, 1);
        let mut scratch = String::new();
        for item in page?.iter().filter(|item| self.form.is_row(item)) {
            batch.change(Op::Insert, schema);
            batch.new_row();
            self.form.push(item, &mut batch, &mut scratch)?;
        }
        batch.finish(Position::new(Rank::of_end(&RANK), ""), None).map(Some)
    }
}
