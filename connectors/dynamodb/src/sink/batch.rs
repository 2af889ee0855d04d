//! Writes by `BatchWriteItem`: no conditions, 25 items a call.
//!
//! Each key is in at most one call at a time (the unit was folded, and units follow each other), so
//! items go forward while one writer of a key is at work. What keeps it at one is the lease, and the
//! look at the fencing epoch before the calls: a process that is paused between look and call and
//! goes on after another one took over can set an item back. Choose the guarded mode where that
//! matters.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{Error, Result};
use aws_sdk_dynamodb::types::{DeleteRequest, PutRequest, WriteRequest};
use tokio::time::{Duration, Instant, sleep};

use super::fold::{Action, Move, Step, Write, missing, moved_item};
use super::guarded::{Expression, Scan, each, get};
use super::progress::incomplete;
use super::table::Table;
use super::version::Version;
use super::writer::Owned;
use crate::calls::{Stop, call};
use crate::limiter::backoff;

/// How many items a call takes, and how many bytes: developer guide, `BatchWriteItem`. Half of the
/// bytes, for they are counted by DynamoDB's own rule and not as they are sent.
const ITEMS: usize = 25;
const BYTES: usize = 8 * 1024 * 1024;

/// How long items are sent again that DynamoDB leaves unprocessed, as long as none of them is taken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Applies steps, for one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a>(pub(crate) &'a Owned);

impl Batch<'_> {
    pub(crate) async fn apply(self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            match step {
                Step::Writes(writes) => self.writes(writes).await?,
                Step::Truncate(table, version) => self.truncate(&table, &version).await?,
                Step::Move(moved) => self.moved(&moved).await?,
            }
        }
        Ok(())
    }

    async fn writes(self, writes: Vec<Write>) -> Result<()> {
        let (changes, whole): (Vec<_>, Vec<_>) =
            writes.into_iter().partition(|w| matches!(w.action, Action::Update { .. }));
        let most = self.0.shared.settings.concurrency;
        each(batches(whole), most, |batch| self.batch(batch)).await?;
        each(changes, most, |write| self.change(write)).await
    }

    /// Writes of one table.
    async fn batch(self, batch: Vec<Write>) -> Result<()> {
        let Some(table) = batch.first().map(|w| Arc::clone(&w.table)) else { return Ok(()) };
        let shared = &self.0.shared;
        let limiter = shared.limiter(&table.name);
        let mut left = batch.into_iter().map(|w| self.request(w)).collect::<Result<Vec<_>>>()?;
        let (mut failures, mut moved) = (0, Instant::now());
        while !left.is_empty() {
            self.0.fresh().await?;
            let cuts = limiter.cuts();
            let sent = left.len();
            let request = shared.client().await?.batch_write_item();
            let request = request.set_request_items(Some(HashMap::from([(table.name.clone(), left)])));
            let answer = call(&limiter, &table.name, || request.clone().send()).await.map_err(Stop::into_error)?;
            left = answer.unprocessed_items.and_then(|mut all| all.remove(&table.name)).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            // As good as a throttle: the table, or a partition of it, does not keep up.
            limiter.cut_since(cuts);
            if left.len() < sent {
                (failures, moved) = (0, Instant::now());
            }
            failures += 1;
            if moved.elapsed() > PATIENCE {
                return Err(Error::indeterminate(format!(
                    "{} leaves {} items unprocessed again and again",
                    table.name,
                    left.len()
                ))
                .hint("raise the capacity of the table"));
            }
            sleep(backoff(failures)).await;
        }
        Ok(())
    }

    fn request(self, write: Write) -> Result<WriteRequest> {
        let Owned { shared, lane, .. } = self.0;
        let request = WriteRequest::builder();
        Ok(match write.action {
            Action::Put(mut item) => {
                shared.settings.stamp(&mut item, &lane.pipeline, &write.version);
                request.put_request(PutRequest::builder().set_item(Some(item)).build().map_err(incomplete)?)
            }
            _ => request.delete_request(DeleteRequest::builder().set_key(Some(write.key)).build().map_err(incomplete)?),
        }
        .build())
    }

    /// A batch cannot change a part of an item.
    async fn change(self, write: Write) -> Result<()> {
        let Action::Update { mut set, remove } = write.action else { return Ok(()) };
        self.0.fresh().await?;
        let Owned { shared, lane, .. } = self.0;
        shared.settings.stamp(&mut set, &lane.pipeline, &write.version);
        let change = Expression::new(&set, &remove);
        let mut request = shared
            .client()
            .await?
            .update_item()
            .table_name(&write.table.name)
            .set_key(Some(write.key.clone()))
            .condition_expression("attribute_exists(#key)")
            .set_expression_attribute_names(Some(change.names))
            .expression_attribute_names("#key", &write.table.hash.name);
        if !change.text.is_empty() {
            request = request.update_expression(change.text);
        }
        if !change.values.is_empty() {
            request = request.set_expression_attribute_values(Some(change.values));
        }
        let limiter = shared.limiter(&write.table.name);
        match call(&limiter, &write.table.name, || request.clone().send()).await {
            Ok(_) => Ok(()),
            Err(Stop::Condition(_)) => Err(missing(&write.table, &write.key)),
            Err(stop) => Err(stop.into_error()),
        }
    }

    async fn truncate(self, table: &Arc<Table>, version: &Version) -> Result<()> {
        let limiter = self.0.shared.limiter(&table.name);
        let mut scan = Scan::keys(table, &self.0.shared.settings.deleted_attribute);
        while let Some(keys) = scan.next(self.0.shared.client().await?, &limiter).await? {
            let delete = |key| Write {
                table: Arc::clone(table),
                key,
                action: Action::Delete,
                version: version.clone(),
                size: 0,
            };
            self.writes(keys.into_iter().map(delete).collect()).await?;
        }
        Ok(())
    }

    async fn moved(self, moved: &Move) -> Result<()> {
        let Some(found) = get(self.0, &moved.table, &moved.from).await? else {
            // A replay finds it under its new key.
            return match get(self.0, &moved.table, &moved.to).await? {
                Some(_) => Ok(()),
                None => Err(missing(&moved.table, &moved.from)),
            };
        };
        let write = |key: &crate::types::Item, action| Write {
            table: Arc::clone(&moved.table),
            key: key.clone(),
            action,
            version: moved.version.clone(),
            size: 0,
        };
        self.writes(vec![write(&moved.to, Action::Put(moved_item(found, moved)))]).await?;
        self.writes(vec![write(&moved.from, Action::Delete)]).await
    }
}

/// Of one table each, as large as a call may be.
fn batches(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut by_table: HashMap<String, (Vec<Write>, usize)> = HashMap::new();
    let mut full = Vec::new();
    for write in writes {
        let (batch, size) = by_table.entry(write.table.name.clone()).or_default();
        if batch.len() == ITEMS || *size + write.size > BYTES {
            full.push(std::mem::take(batch));
            *size = 0;
        }
        *size += write.size;
        batch.push(write);
    }
    full.extend(by_table.into_values().map(|(batch, _)| batch));
    full
}
