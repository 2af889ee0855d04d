//! Leases in a DynamoDB table: which worker reads which shard.
//!
//! One item a lease, conditional on its counter, as the Kinesis client library has it. When a lease
//! has expired, who takes how many and when one is handed over is decided by the workers' runtime in
//! `core`, with each observer's own monotonic clock; this keeps the items.
//!
//! | attribute | what it is |
//! |---|---|
//! | `pipeline`, `lease` | key: the pipeline, and the partition |
//! | `owner` | the worker that has it; missing: nobody |
//! | `counter` | moves with every take, store and release |
//! | `released_by` | the worker that released it last |
//! | `wanted_by` | a worker that waits for it |
//! | `finished` | everything in it is durable, and its children have leases |
//! | `parents`, `start` | lineage, and where the partition starts |
//! | `checkpoint` | the partition's own checkpoint, as JSON |

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{Checkpoint, Counters, Error, Lease, Leases, Partition, PartitionId, Position, Result, Secret};
use async_trait::async_trait;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, ReturnValuesOnConditionCheckFailure, ScalarAttributeType, TransactWriteItem, Update,
};
use md5::{Digest, Md5};
use serde::Deserialize;

use crate::Access;
use crate::calls::{Stop, call};
use crate::error::code;
use crate::keys;
use crate::store::{Store, n, number, s, text};
use crate::types::Item;

/// The table, unless another one is named.
const TABLE: &str = "anabranch_lease";

/// The item with what forgotten leases had counted. No partition is called so.
const COUNTED: &str = "anabranch:counted";

/// The name of the task that copies one table to another, as awslabs' cross-region library makes it:
/// `DynamoDBCrossRegionReplication` and the MD5, in hexadecimal digits, of source region, source
/// table, destination region and destination table, one after the other. It names the lease table
/// there; the same command on several machines so shares the work.
///
/// ```
/// use anabranch_dynamodb::task_name;
/// assert_eq!(
///     task_name("us-east-1", "orders", "eu-west-1", "orders"),
///     "DynamoDBCrossRegionReplicationf79a0d1a87a261da4bc2b2c9a7660468",
/// );
/// ```
pub fn task_name(source_region: &str, source_table: &str, target_region: &str, target_table: &str) -> String {
    let text = [source_region, source_table, target_region, target_table].concat();
    let digest = Md5::digest(text.as_bytes());
    digest.iter().fold("DynamoDBCrossRegionReplication".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// Keeps leases in a DynamoDB table, which is created when it is first needed.
#[derive(Debug, Clone)]
#[must_use]
pub struct DynamoDbLeases {
    store: Arc<Store>,
    table: Arc<str>,
}

impl DynamoDbLeases {
    /// In the table `anabranch_lease` that is reached by `access`.
    pub fn new(access: Access) -> Self {
        Self { store: Arc::new(Store::new(access, "workers.leases")), table: TABLE.into() }
    }

    /// In another table: [`task_name`] makes a name for one.
    pub fn table(self, name: impl Into<Arc<str>>) -> Self {
        Self { table: name.into(), ..self }
    }

    async fn ensure(&self) -> Result<()> {
        let text = ScalarAttributeType::S;
        self.store.ensure(&self.table, ("pipeline", text.clone()), Some(("lease", text))).await
    }

    /// A change of a lease, with the item that is there if its condition fails.
    async fn update(&self, pipeline: &str, partition: &str) -> Result<UpdateItemFluentBuilder> {
        let client = self.store.client().await?;
        Ok(client
            .update_item()
            .table_name(&*self.table)
            .set_key(Some(key(pipeline, partition)))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld))
    }

    /// Adds the parents that a lease does not have yet, and the later of two places to start at: each
    /// parent of a merged partition may know others. A finished lease is left as it is.
    async fn complete(&self, pipeline: &str, partition: &Partition) -> Result<()> {
        loop {
            let items = self.items(pipeline).await?;
            let Some(item) = items.iter().find(|item| text(item, "lease") == Some(partition.id.as_str())) else {
                return Ok(());
            };
            let known = self.lease(item)?;
            let mut parents = known.partition.parents.clone();
            parents.extend(partition.parents.iter().filter(|p| !known.partition.parents.contains(p)).cloned());
            let rank = |at: &Option<Position>| at.as_ref().map(|at| at.rank.clone());
            let later = rank(&known.partition.start) < rank(&partition.start);
            if known.finished || (!later && parents.len() == known.partition.parents.len()) {
                return Ok(());
            }
            let list = |ids: &[PartitionId]| AttributeValue::L(ids.iter().map(|p| s(p.as_str())).collect());
            let mut change = "SET #parents = :parents".to_owned();
            let mut request = self
                .update(pipeline, partition.id.as_str())
                .await?
                .condition_expression("#parents = :known")
                .expression_attribute_names("#parents", "parents")
                .expression_attribute_values(":known", list(&known.partition.parents))
                .expression_attribute_values(":parents", list(&parents));
            if let Some(start) = partition.start.as_ref().filter(|_| later) {
                let start =
                    serde_json::to_string(start).map_err(|e| Error::fatal("cannot encode a position").because(e))?;
                change.push_str(", #start = :start");
                request = request
                    .expression_attribute_names("#start", "start")
                    .expression_attribute_values(":start", s(start));
            }
            match self.send(request.update_expression(change)).await {
                Ok(()) => return Ok(()),
                // Another parent's worker was first: look again.
                Err(Stop::Condition(_)) => {}
                Err(stop) => return Err(stop.into_error()),
            }
        }
    }

    async fn send(&self, request: UpdateItemFluentBuilder) -> Result<(), Stop> {
        call(&self.store.limiter, &self.table, || request.clone().send()).await.map(drop)
    }

    /// Writes what the owner has over the counter that it knows, or over one that an earlier call of
    /// its own has made, whose answer was lost. `None`: the lease was lost.
    async fn write_own(&self, pipeline: &str, held: &Lease, release: Option<bool>) -> Result<Option<u64>> {
        let Some(owner) = &held.owner else { return Ok(None) };
        let mut expected = held.counter;
        loop {
            let mut change = "SET #counter = :next, checkpoint = :checkpoint".to_owned();
            if release.is_some() {
                change.push_str(", finished = :finished, released_by = :owner REMOVE #owner");
            }
            let mut request = self
                .update(pipeline, held.id().as_str())
                .await?
                .update_expression(change)
                .condition_expression("#counter = :expected AND #owner = :owner")
                .expression_attribute_names("#counter", "counter")
                .expression_attribute_names("#owner", "owner")
                .expression_attribute_values(":expected", n(expected))
                .expression_attribute_values(":next", n(expected + 1))
                .expression_attribute_values(":owner", s(owner))
                .expression_attribute_values(":checkpoint", s(held.checkpoint.to_json()?));
            if let Some(finished) = release {
                request = request.expression_attribute_values(":finished", AttributeValue::Bool(finished));
            }
            match self.send(request).await {
                Ok(()) => return Ok(Some(expected + 1)),
                Err(Stop::Condition(found)) => {
                    let found = found.unwrap_or_default();
                    let counter = number(&found, "counter");
                    // Who took it since has a higher epoch, and may have the same name: a process that was started
                    // again while this one was frozen.
                    let epoch =
                        text(&found, "checkpoint").map(Checkpoint::from_json).transpose()?.map_or(0, |c| c.epoch);
                    if epoch > held.checkpoint.epoch {
                        return Ok(None);
                    }
                    if text(&found, "owner") == Some(owner) && counter != expected {
                        expected = counter;
                        continue;
                    }
                    let released = release.is_some()
                        && text(&found, "owner").is_none()
                        && text(&found, "released_by") == Some(owner)
                        && counter > held.counter;
                    return Ok(released.then_some(counter));
                }
                Err(stop) => return Err(stop.into_error()),
            }
        }
    }

    /// Every item of a pipeline; none if the table is missing.
    async fn items(&self, pipeline: &str) -> Result<Vec<Item>> {
        let request = self
            .store
            .client()
            .await?
            .query()
            .table_name(&*self.table)
            .consistent_read(true)
            .key_condition_expression("pipeline = :pipeline")
            .expression_attribute_values(":pipeline", s(pipeline));
        let mut all = Vec::new();
        let mut after: Option<Item> = None;
        loop {
            let request = request.clone().set_exclusive_start_key(after.take());
            let page = call(&self.store.limiter, &self.table, || {
                let request = request.clone();
                async move {
                    match request.send().await {
                        Err(e) if code(&e) == Some("ResourceNotFoundException") => Ok(None),
                        other => other.map(Some),
                    }
                }
            });
            let Some(page) = page.await.map_err(Stop::into_error)? else { return Ok(Vec::new()) };
            all.extend(page.items.unwrap_or_default());
            match page.last_evaluated_key.filter(|key| !key.is_empty()) {
                Some(key) => after = Some(key),
                None => return Ok(all),
            }
        }
    }

    /// Removes a finished lease, and counts what it had counted, both or none.
    async fn forget_one(&self, pipeline: &str, lease: &Lease) -> Result<()> {
        let incomplete = |e| Error::fatal("a request is incomplete").because(e);
        let delete = Delete::builder()
            .table_name(&*self.table)
            .set_key(Some(key(pipeline, lease.id().as_str())))
            .condition_expression("finished = :yes")
            .expression_attribute_values(":yes", AttributeValue::Bool(true))
            .build()
            .map_err(incomplete)?;
        let counters = lease.checkpoint.counters;
        let count = Update::builder()
            .table_name(&*self.table)
            .set_key(Some(key(pipeline, COUNTED)))
            .update_expression(
                "ADD changes :changes, transactions :transactions, snapshot_rows :rows, dead_letters :letters",
            )
            .expression_attribute_values(":changes", n(counters.changes))
            .expression_attribute_values(":transactions", n(counters.transactions))
            .expression_attribute_values(":rows", n(counters.snapshot_rows))
            .expression_attribute_values(":letters", n(counters.dead_letters))
            .build()
            .map_err(incomplete)?;
        let token = format!("{:032x}", rand::random::<u128>());
        let request = self
            .store
            .client()
            .await?
            .transact_write_items()
            .transact_items(TransactWriteItem::builder().delete(delete).build())
            .transact_items(TransactWriteItem::builder().update(count).build())
            .client_request_token(token);
        match call(&self.store.limiter, &self.table, || request.clone().send()).await {
            // Cancelled: somebody else was first.
            Ok(_) | Err(Stop::Cancelled(_)) => Ok(()),
            Err(stop) => Err(stop.into_error()),
        }
    }
}

#[async_trait]
impl Leases for DynamoDbLeases {
    async fn list(&self, pipeline: &str) -> Result<Vec<Lease>> {
        let items = self.items(pipeline).await?;
        items.iter().filter(|item| text(item, "lease") != Some(COUNTED)).map(|item| self.lease(item)).collect()
    }

    async fn create(&self, pipeline: &str, partitions: &[Partition]) -> Result<()> {
        self.ensure().await?;
        for partition in partitions {
            let mut item = key(pipeline, partition.id.as_str());
            let parents = partition.parents.iter().map(|p| s(p.as_str())).collect();
            item.insert("parents".to_owned(), AttributeValue::L(parents));
            item.insert("counter".to_owned(), n(0));
            if let Some(start) = &partition.start {
                let start =
                    serde_json::to_string(start).map_err(|e| Error::fatal("cannot encode a position").because(e))?;
                item.insert("start".to_owned(), s(start));
            }
            let client = self.store.client().await?;
            let request = client
                .put_item()
                .table_name(&*self.table)
                .set_item(Some(item))
                .condition_expression("attribute_not_exists(pipeline)");
            match call(&self.store.limiter, &self.table, || request.clone().send()).await {
                Ok(_) => {}
                Err(Stop::Condition(_)) => self.complete(pipeline, partition).await?,
                Err(stop) => return Err(stop.into_error()),
            }
        }
        Ok(())
    }

    async fn take(&self, pipeline: &str, seen: &Lease, worker: &str) -> Result<Option<Lease>> {
        let mut next =
            Lease { owner: Some(worker.to_owned()), wanted_by: None, counter: seen.counter + 1, ..seen.clone() };
        next.checkpoint.epoch += 1;
        let request = self
            .update(pipeline, seen.id().as_str())
            .await?
            .update_expression("SET #counter = :next, checkpoint = :checkpoint, #owner = :worker REMOVE wanted_by")
            .condition_expression("#counter = :expected")
            .expression_attribute_names("#counter", "counter")
            .expression_attribute_names("#owner", "owner")
            .expression_attribute_values(":expected", n(seen.counter))
            .expression_attribute_values(":next", n(next.counter))
            .expression_attribute_values(":worker", s(worker))
            .expression_attribute_values(":checkpoint", s(next.checkpoint.to_json()?));
        match self.send(request).await {
            Ok(()) => Ok(Some(next)),
            Err(Stop::Condition(found)) => {
                // A worker's name is never used twice: this call has happened, and its answer was lost.
                let mine = found.filter(|f| text(f, "owner") == Some(worker) && number(f, "counter") == next.counter);
                Ok(mine.filter(|_| seen.owner.as_deref() != Some(worker)).map(|_| next))
            }
            Err(stop) => Err(stop.into_error()),
        }
    }

    async fn store(&self, pipeline: &str, held: &Lease) -> Result<Option<u64>> {
        self.write_own(pipeline, held, None).await
    }

    async fn release(&self, pipeline: &str, held: &Lease, finished: bool) -> Result<bool> {
        Ok(self.write_own(pipeline, held, Some(finished)).await?.is_some())
    }

    async fn ask(&self, pipeline: &str, partition: &PartitionId, worker: &str) -> Result<()> {
        let request = self
            .update(pipeline, partition.as_str())
            .await?
            .update_expression("SET wanted_by = :worker")
            .condition_expression("attribute_exists(pipeline) AND attribute_not_exists(wanted_by)")
            .expression_attribute_values(":worker", s(worker));
        match self.send(request).await {
            Ok(()) | Err(Stop::Condition(_)) => Ok(()),
            Err(stop) => Err(stop.into_error()),
        }
    }

    async fn forget(&self, pipeline: &str, finished: &[PartitionId]) -> Result<()> {
        for lease in self.list(pipeline).await?.iter().filter(|l| l.finished && finished.contains(l.id())) {
            self.forget_one(pipeline, lease).await?;
        }
        Ok(())
    }

    async fn counted(&self, pipeline: &str) -> Result<Counters> {
        let items = self.items(pipeline).await?;
        let counted = items.iter().find(|item| text(item, "lease") == Some(COUNTED));
        Ok(counted.map_or_else(Counters::default, |item| Counters {
            changes: number(item, "changes"),
            transactions: number(item, "transactions"),
            snapshot_rows: number(item, "snapshot_rows"),
            dead_letters: number(item, "dead_letters"),
            ..Counters::default()
        }))
    }
}

impl DynamoDbLeases {
    fn lease(&self, item: &Item) -> Result<Lease> {
        let id = text(item, "lease").unwrap_or_default();
        let damaged = |e| Error::fatal(format!("the lease {id} in the table {} is damaged", self.table)).because(e);
        let parents = item.get("parents").and_then(|p| p.as_l().ok()).map(Vec::as_slice).unwrap_or_default();
        let start = text(item, "start").map(serde_json::from_str).transpose().map_err(damaged)?;
        let checkpoint = text(item, "checkpoint").map(Checkpoint::from_json).transpose();
        let parents = parents.iter().filter_map(|p| p.as_s().ok()).map(|p| PartitionId::new(p.as_str())).collect();
        Ok(Lease {
            partition: Partition { id: PartitionId::new(id), parents, start },
            owner: text(item, "owner").map(str::to_owned),
            counter: number(item, "counter"),
            wanted_by: text(item, "wanted_by").map(str::to_owned),
            finished: item.get("finished").and_then(|f| f.as_bool().ok()).copied().unwrap_or_default(),
            checkpoint: checkpoint.map_err(|e| e.context(format!("the lease {id}")))?.unwrap_or_default(),
        })
    }
}

fn key(pipeline: &str, partition: &str) -> HashMap<String, AttributeValue> {
    HashMap::from([("pipeline".to_owned(), s(pipeline)), ("lease".to_owned(), s(partition))])
}

/// The keys of `[workers.leases]` with `type = "dynamodb"`.
///
/// ```toml
/// [workers.leases]
/// type = "dynamodb"
/// region = "us-east-1"
/// table = "anabranch_lease"     # or the four below, which make the name that awslabs' library has
/// ```
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamoDbLeasesConfig {
    /// The region.
    pub region: Option<String>,
    /// A profile of the AWS configuration files.
    pub profile: Option<String>,
    /// The address, in place of the region's own.
    pub endpoint: Option<String>,
    /// An access key's id: plain, `env:NAME` or `file:PATH`.
    pub access_key_id: Option<Secret>,
    /// An access key's secret.
    pub secret_access_key: Option<Secret>,
    /// The session token of a temporary access key.
    pub session_token: Option<Secret>,
    /// The table; `anabranch_lease` if nothing makes another name.
    pub table: Option<String>,
    /// Of the task whose name the table gets: see [`task_name`].
    pub source_region: Option<String>,
    /// See there.
    pub source_table: Option<String>,
    /// See there.
    pub target_region: Option<String>,
    /// See there.
    pub target_table: Option<String>,
}

impl TryFrom<DynamoDbLeasesConfig> for DynamoDbLeases {
    type Error = Error;

    fn try_from(config: DynamoDbLeasesConfig) -> Result<Self> {
        let credentials = (config.access_key_id, config.secret_access_key, config.session_token);
        let access = keys::access("workers.leases", config.region, config.profile, config.endpoint, credentials)?;
        let leases = Self::new(access);
        let task = (config.source_region, config.source_table, config.target_region, config.target_table);
        match (config.table, task) {
            (Some(table), (None, None, None, None)) => Ok(leases.table(table)),
            (None, (None, None, None, None)) => Ok(leases),
            (None, (Some(from), Some(of), Some(to), Some(goal))) => Ok(leases.table(task_name(&from, &of, &to, &goal))),
            (Some(_), _) => Err(Error::config("workers.leases.table", "is set beside the keys that make its name")
                .hint("set table alone, or the other four")),
            (None, _) => Err(Error::config("workers.leases", "not all of what makes the table's name is set")
                .hint("set source_region, source_table, target_region and target_table, or table alone")),
        }
    }
}
