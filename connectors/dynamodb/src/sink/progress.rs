//! Progress and fencing: rows in the tables `anabranch_lane` and `anabranch_position`.
//!
//! | table | key | holds |
//! |---|---|---|
//! | `anabranch_lane` | `pipeline`, `lane`: `stream/00000` | the fencing epoch, the number of lanes, the source's identity, counters |
//! | | `pipeline`, `lane`: `snapshot/00000` | the epoch, for writers of a copy |
//! | | `anabranch:generation`, MD5 of an identity | the generation that its versions begin with |
//! | `anabranch_position` | `pipeline`, `place`: `00000/PARTITION` | position and safe time |
//!
//! Every write of them is conditional on the epoch, in one transaction with the lane's row.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    Claim, Counters, Error, Lane, LaneProgress, LanePurpose, PartitionId, Progress, ProgressStore, Result,
    SourceIdentity, Timestamp,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Put, ReturnValue, ScalarAttributeType, TransactWriteItem, Update,
};
use md5::{Digest, Md5};

use super::{DynamoDbSink, Shared};
use crate::calls::{Stop, call};
use crate::error::code;
use crate::store::{n, number, s, text};
use crate::types::Item;

const LANES: &str = "anabranch_lane";
const POSITIONS: &str = "anabranch_position";
/// The pipeline in whose name generations are kept. No pipeline is called so.
const GENERATIONS: &str = "anabranch:generation";
/// The row with the generation that was given out last. No identity has this hash.
const LATEST: &str = "latest";

/// A row of `anabranch_lane` that a writer has to own.
#[derive(Debug, Clone)]
pub(crate) struct LaneRow {
    pub(crate) pipeline: Arc<str>,
    row: String,
    epoch: u64,
}

impl LaneRow {
    pub(crate) fn of(lane: &Lane) -> Self {
        let row = match lane.purpose {
            LanePurpose::Stream => stream_row(lane.index),
            LanePurpose::Snapshot => format!("snapshot/{:05}", lane.index),
        };
        Self { pipeline: Arc::clone(&lane.pipeline), row, epoch: lane.epoch }
    }

    /// An action of a transaction: it fails unless this epoch owns the lane.
    pub(crate) fn check(&self) -> Result<TransactWriteItem> {
        let check = ConditionCheck::builder()
            .table_name(LANES)
            .set_key(Some(key(&self.pipeline, &self.row)))
            .condition_expression("epoch = :epoch")
            .expression_attribute_values(":epoch", n(self.epoch));
        let check = check.build().map_err(incomplete)?;
        Ok(TransactWriteItem::builder().condition_check(check).build())
    }

    /// An action of a transaction: counts, and fails unless this epoch owns the lane.
    pub(crate) fn count(&self, changes: u64, transactions: u64) -> Result<TransactWriteItem> {
        let update = Update::builder()
            .table_name(LANES)
            .set_key(Some(key(&self.pipeline, &self.row)))
            .update_expression("SET updated_at = :now ADD changes :changes, transactions :transactions")
            .condition_expression("epoch = :epoch")
            .expression_attribute_values(":epoch", n(self.epoch))
            .expression_attribute_values(":now", n(Timestamp::now().as_micros()))
            .expression_attribute_values(":changes", n(changes))
            .expression_attribute_values(":transactions", n(transactions));
        Ok(TransactWriteItem::builder().update(update.build().map_err(incomplete)?).build())
    }

    /// An action of a transaction: how far the lane is in a partition.
    pub(crate) fn position(&self, lane: u32, progress: &Progress) -> Result<TransactWriteItem> {
        let position = serde_json::to_string(&progress.position)
            .map_err(|e| Error::fatal("cannot encode a position").because(e))?;
        let mut put = Put::builder()
            .table_name(POSITIONS)
            .item("pipeline", s(&*self.pipeline))
            .item("place", s(place(lane, &progress.partition)))
            .item("position", s(position));
        if let Some(time) = progress.safe_time {
            put = put.item("safe_time", n(time.as_micros()));
        }
        Ok(TransactWriteItem::builder().put(put.build().map_err(incomplete)?).build())
    }

    /// The error for a transaction whose condition on this row failed.
    pub(crate) async fn fenced(&self, shared: &Shared) -> Error {
        match get(shared, &self.pipeline, &self.row).await {
            Ok(Some(row)) => Error::fenced(format!(
                "epoch {} has taken over the pipeline {}; this run has {}",
                number(&row, "epoch"),
                self.pipeline,
                self.epoch
            )),
            _ => Error::fenced(format!("the target has no progress of {} of {}", self.row, self.pipeline)),
        }
    }

    /// Looks whether this epoch owns the lane, now.
    pub(crate) async fn look(&self, shared: &Shared) -> Result<()> {
        match get(shared, &self.pipeline, &self.row).await? {
            Some(row) if number(&row, "epoch") == self.epoch => Ok(()),
            _ => Err(self.fenced(shared).await),
        }
    }

    /// Makes the row of a writer of a copy, if this epoch still owns the pipeline.
    pub(crate) async fn begin_copy(&self, shared: &Shared) -> Result<()> {
        let owner = Self { row: stream_row(0), ..self.clone() };
        let mine = key(&self.pipeline, &self.row);
        let put = Put::builder().table_name(LANES).set_item(Some(mine)).item("epoch", n(self.epoch));
        let put = TransactWriteItem::builder().put(put.build().map_err(incomplete)?).build();
        match transact(shared, vec![owner.check()?, put]).await {
            Ok(()) => Ok(()),
            Err(Stop::Cancelled(_)) => Err(owner.fenced(shared).await),
            Err(stop) => Err(stop.into_error()),
        }
    }
}

/// Makes one transaction of these actions, once, however often it has to be sent.
pub(crate) async fn transact(shared: &Shared, actions: Vec<TransactWriteItem>) -> Result<(), Stop> {
    transact_by(shared, &shared.store.limiter, "the bookkeeping", actions).await
}

/// The same, with the limiter of another table.
pub(crate) async fn transact_by(
    shared: &Shared,
    limiter: &Arc<crate::limiter::Limiter>,
    object: &str,
    actions: Vec<TransactWriteItem>,
) -> Result<(), Stop> {
    let client = shared.client().await.map_err(Stop::Failed)?;
    // The service takes a transaction with a known token for the same one, for ten minutes.
    let token = format!("{:032x}", rand::random::<u128>());
    let request = client.transact_write_items().set_transact_items(Some(actions)).client_request_token(token);
    call(limiter, object, || request.clone().send()).await.map(drop)
}

#[async_trait]
impl ProgressStore for DynamoDbSink {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let shared = &self.shared;
        let text = ScalarAttributeType::S;
        shared.store.ensure(LANES, ("pipeline", text.clone()), Some(("lane", text.clone()))).await?;
        shared.store.ensure(POSITIONS, ("pipeline", text.clone()), Some(("place", text))).await?;
        shared.claim(&claim.identity);
        let mut rows: Vec<String> = (0..claim.lanes).map(stream_row).collect();
        for row in rows_of(shared, &claim.pipeline).await? {
            rows.extend(row_name(&row).filter(|name| !rows.iter().any(|r| r == name)).map(str::to_owned));
        }
        let mut before = BTreeMap::new();
        // The first row first: it alone decides who wins. Positions are read when no older epoch can
        // move them any more.
        for row in rows {
            let old = claim_row(shared, claim, &row).await?;
            before.extend(old.and_then(|old| lane_progress(&old).transpose()).transpose()?.map(|l| (l.lane, l)));
        }
        read_positions(shared, &claim.pipeline, &mut before).await?;
        Ok(before.into_values().collect())
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let mut lanes = BTreeMap::new();
        for row in rows_of(&self.shared, pipeline).await? {
            lanes.extend(lane_progress(&row)?.map(|l| (l.lane, l)));
        }
        read_positions(&self.shared, pipeline, &mut lanes).await?;
        Ok(lanes.into_values().collect())
    }
}

/// Raises the epoch of a row, and gives what it was before.
async fn claim_row(shared: &Shared, claim: &Claim, row: &str) -> Result<Option<Item>> {
    let identity = serde_json::to_string(&claim.identity)
        .map_err(|e| Error::fatal("cannot encode the source's identity").because(e))?;
    let mut set = "SET epoch = :epoch, updated_at = :now".to_owned();
    let mut request = shared
        .client()
        .await?
        .update_item()
        .table_name(LANES)
        .set_key(Some(key(&claim.pipeline, row)))
        .condition_expression("attribute_not_exists(epoch) OR epoch <= :epoch")
        .expression_attribute_values(":epoch", n(claim.epoch))
        .expression_attribute_values(":now", n(Timestamp::now().as_micros()))
        .return_values(ReturnValue::AllOld);
    if lane_of(row).is_some_and(|lane| lane < claim.lanes) {
        // A run that lost its checkpoint claims without an identity, to learn it from here: should
        // it die before it claims again, what is stored must still be bound to its source.
        let known = !claim.identity.0.is_empty();
        set.push_str(", lanes = :lanes, #identity = ");
        set.push_str(if known { ":identity" } else { "if_not_exists(#identity, :identity)" });
        request = request
            .expression_attribute_names("#identity", "identity")
            .expression_attribute_values(":identity", s(identity))
            .expression_attribute_values(":lanes", n(claim.lanes));
    }
    let request = request.update_expression(set);
    match call(&shared.store.limiter, "the bookkeeping", || request.clone().send()).await {
        Ok(answer) => Ok(answer.attributes),
        Err(Stop::Condition(_)) => {
            let newest = get(shared, &claim.pipeline, row).await?.map_or(0, |row| number(&row, "epoch"));
            Err(Error::fenced(format!(
                "the target has seen epoch {newest} of the pipeline {}; this run has {}",
                claim.pipeline, claim.epoch
            )))
        }
        Err(stop) => Err(stop.into_error()),
    }
}

async fn rows_of(shared: &Shared, pipeline: &str) -> Result<Vec<Item>> {
    query(shared, LANES, pipeline).await
}

/// Every item of a pipeline; none if the table is missing.
async fn query(shared: &Shared, table: &str, pipeline: &str) -> Result<Vec<Item>> {
    let request = shared
        .client()
        .await?
        .query()
        .table_name(table)
        .consistent_read(true)
        .key_condition_expression("pipeline = :pipeline")
        .expression_attribute_values(":pipeline", s(pipeline));
    let mut all = Vec::new();
    let mut after: Option<Item> = None;
    loop {
        let request = request.clone().set_exclusive_start_key(after.take());
        let page = call(&shared.store.limiter, "the bookkeeping", || {
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

async fn get(shared: &Shared, pipeline: &str, row: &str) -> Result<Option<Item>> {
    let request =
        shared.client().await?.get_item().table_name(LANES).set_key(Some(key(pipeline, row))).consistent_read(true);
    let answer = call(&shared.store.limiter, "the bookkeeping", || request.clone().send()).await;
    Ok(answer.map_err(Stop::into_error)?.item)
}

/// What a row says of a lane of the stream; `None` for another row.
fn lane_progress(row: &Item) -> Result<Option<LaneProgress>> {
    let Some(lane) = row_name(row).and_then(lane_of) else { return Ok(None) };
    let identity = text(row, "identity").unwrap_or("{}");
    Ok(Some(LaneProgress {
        lane,
        lanes: number(row, "lanes") as u32,
        identity: serde_json::from_str(identity).map_err(|e| damaged(lane).because(e))?,
        partitions: BTreeMap::new(),
        counters: Counters {
            changes: number(row, "changes"),
            transactions: number(row, "transactions"),
            snapshot_rows: number(row, "snapshot_rows"),
            dead_letters: number(row, "dead_letters"),
            ..Counters::default()
        },
    }))
}

async fn read_positions(shared: &Shared, pipeline: &str, lanes: &mut BTreeMap<u32, LaneProgress>) -> Result<()> {
    for row in query(shared, POSITIONS, pipeline).await? {
        let place = text(&row, "place").and_then(|p| p.split_once('/'));
        let Some((lane, partition)) = place.and_then(|(l, p)| Some((l.parse().ok()?, p))) else { continue };
        let Some(stored) = lanes.get_mut(&lane) else { continue };
        let partition = PartitionId::new(partition);
        let position = text(&row, "position").unwrap_or_default();
        let progress = Progress {
            partition: partition.clone(),
            position: serde_json::from_str(position).map_err(|e| damaged(lane).because(e))?,
            safe_time: row.contains_key("safe_time").then(|| micros(&row, "safe_time")),
        };
        stored.partitions.insert(partition, progress);
    }
    Ok(())
}

fn micros(row: &Item, name: &str) -> Timestamp {
    let number = row.get(name).and_then(|v| v.as_n().ok()).and_then(|v| v.parse().ok());
    Timestamp::from_micros(number.unwrap_or_default())
}

/// What lane `index` of a run knows when it begins to write.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) generation: u32,
    /// How far the lane is in each partition.
    pub(crate) positions: BTreeMap<PartitionId, Progress>,
}

/// What a writer starts from.
///
/// # Errors
/// [`Fenced`](anabranch_core::ErrorKind::Fenced) if another epoch owns the lane.
pub(crate) async fn known(shared: &Shared, lane: &Lane) -> Result<Known> {
    let row = LaneRow::of(lane);
    let owner = match lane.purpose {
        LanePurpose::Stream => row.clone(),
        LanePurpose::Snapshot => LaneRow { row: stream_row(0), ..row.clone() },
    };
    let found = get(shared, &lane.pipeline, &owner.row).await?;
    let Some(found) = found.filter(|f| number(f, "epoch") == lane.epoch) else {
        return Err(owner.fenced(shared).await);
    };
    if lane.purpose == LanePurpose::Snapshot {
        row.begin_copy(shared).await?;
    }
    let identity = text(&found, "identity").unwrap_or("{}");
    let generation = generation(shared, identity, None).await?;
    let mut lanes = BTreeMap::from([(lane.index, LaneProgress::default())]);
    read_positions(shared, &lane.pipeline, &mut lanes).await?;
    let positions = lanes.remove(&lane.index).map(|l| l.partitions).unwrap_or_default();
    Ok(Known { generation, positions })
}

/// Lets the versions of a source begin anew, above all that there were: for a copy that is done again.
pub(crate) async fn begin_anew(shared: &Shared, identity: &SourceIdentity) -> Result<()> {
    let identity =
        serde_json::to_string(identity).map_err(|e| Error::fatal("cannot encode the source's identity").because(e))?;
    let now = generation(shared, &identity, None).await?;
    generation(shared, &identity, Some(now)).await.map(drop)
}

/// The generation of a source: given out when it is seen first, and again to replace `old`.
async fn generation(shared: &Shared, identity: &str, old: Option<u32>) -> Result<u32> {
    let hash: String = Md5::digest(identity.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    loop {
        let found = get(shared, GENERATIONS, &hash).await?.map(|row| number(&row, "generation") as u32);
        if let Some(found) = found.filter(|f| old.is_none_or(|old| *f > old)) {
            return Ok(found);
        }
        let latest = get(shared, GENERATIONS, LATEST).await?.map(|row| number(&row, "generation") as u32);
        let seconds = u32::try_from(Timestamp::now().as_micros() / 1_000_000).unwrap_or(u32::MAX);
        let next = seconds.max(latest.unwrap_or(0).saturating_add(1));
        // Both or none, so that no two sources get the same.
        let actions =
            vec![generation_row(LATEST, next, latest, None)?, generation_row(&hash, next, found, Some(identity))?];
        match transact(shared, actions).await {
            Ok(()) => return Ok(next),
            Err(Stop::Cancelled(_)) => {} // Another run was first: see what it stored.
            Err(stop) => return Err(stop.into_error()),
        }
    }
}

/// Stores a generation over `expected`.
fn generation_row(row: &str, next: u32, expected: Option<u32>, source: Option<&str>) -> Result<TransactWriteItem> {
    let mut put = Put::builder()
        .table_name(LANES)
        .set_item(Some(key(GENERATIONS, row)))
        .item("generation", n(next))
        .expression_attribute_names("#g", "generation");
    if let Some(source) = source {
        put = put.item("identity", s(source));
    }
    put = match expected {
        None => put.condition_expression("attribute_not_exists(#g)"),
        Some(value) => put.condition_expression("#g = :g").expression_attribute_values(":g", n(value)),
    };
    Ok(TransactWriteItem::builder().put(put.build().map_err(incomplete)?).build())
}

fn key(pipeline: &str, row: &str) -> Item {
    Item::from([("pipeline".to_owned(), s(pipeline)), ("lane".to_owned(), s(row))])
}

fn row_name(row: &Item) -> Option<&str> {
    row.get("lane").and_then(|v: &AttributeValue| v.as_s().ok()).map(String::as_str)
}

fn stream_row(lane: u32) -> String {
    format!("stream/{lane:05}")
}

fn lane_of(row: &str) -> Option<u32> {
    row.strip_prefix("stream/")?.parse().ok()
}

fn place(lane: u32, partition: &PartitionId) -> String {
    format!("{lane:05}/{partition}")
}

fn damaged(lane: u32) -> Error {
    Error::fatal(format!("the progress of lane {lane} in the target is damaged"))
}

/// Of a request that this crate builds itself.
pub(crate) fn incomplete(e: aws_sdk_dynamodb::error::BuildError) -> Error {
    Error::fatal("a request is incomplete").because(e)
}
