//! Progress and fencing: what is stored with the rows, in their transaction.

use std::collections::BTreeMap;

use anabranch_core::{
    Claim, Counters, Error, Lane, LaneProgress, LanePurpose, PartitionId, Progress, ProgressStore, Result, Timestamp,
};
use async_trait::async_trait;

use super::dialect::{Dialect, int64, string};
use super::run::Stop;
use super::{SpannerSink, failure};
use crate::client::{
    Code, Mutation, Row, SpannerError, SpannerResult, SpannerValue, Statement, Transaction, Work, Write,
};

const LANE: &str = "anabranch_lane";
const POSITION: &str = "anabranch_position";

const LANE_COLUMNS: [(&str, &str); 10] = [
    ("pipeline", "STRING(MAX) NOT NULL"),
    ("lane", "INT64 NOT NULL"),
    ("lanes", "INT64 NOT NULL"),
    ("epoch", "INT64 NOT NULL"),
    ("identity", "STRING(MAX) NOT NULL"),
    ("changes", "INT64 NOT NULL"),
    ("transactions", "INT64 NOT NULL"),
    ("snapshot_rows", "INT64 NOT NULL"),
    ("dead_letters", "INT64 NOT NULL"),
    ("updated_at", "TIMESTAMP NOT NULL"),
];

const POSITION_COLUMNS: [(&str, &str); 5] = [
    ("pipeline", "STRING(MAX) NOT NULL"),
    ("lane", "INT64 NOT NULL"),
    ("partition_id", "STRING(MAX) NOT NULL"),
    ("position", "STRING(MAX) NOT NULL"),
    ("safe_time", "INT64"),
];

const READ_LANES: &str = "SELECT lane, lanes, epoch, identity, changes, transactions, snapshot_rows, dead_letters \
     FROM anabranch_lane WHERE pipeline = ? ORDER BY lane";
const READ_POSITIONS: &str =
    "SELECT lane, partition_id, position, safe_time FROM anabranch_position WHERE pipeline = ?";
const FENCE: &str = "SELECT epoch, changes, transactions FROM anabranch_lane WHERE pipeline = ? AND lane = ?";

#[async_trait]
impl ProgressStore for SpannerSink {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let shared = &self.shared;
        let dialect = shared.dialect().await?;
        shared.create_missing(&[(LANE, &LANE_COLUMNS, 2), (POSITION, &POSITION_COLUMNS, 3)]).await?;
        let mut work = TakeOver { dialect, claim, stored: Vec::new(), stopped: None };
        match shared.transact(&claim.pipeline, &mut work).await {
            Ok(_) => Ok(work.stored),
            Err(error) => {
                let doing = "cannot take the pipeline over";
                Err(work.stopped.unwrap_or_else(|| failure::of_write(error, doing)))
            }
        }
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        if !self.shared.has(LANE).await? || !self.shared.has(POSITION).await? {
            return Ok(Vec::new());
        }
        let [lanes, positions] = reads(self.shared.dialect().await?, pipeline);
        let doing = "cannot read the progress";
        let lanes = self.shared.query(lanes, doing).await?;
        decoded(pipeline, &lanes, &self.shared.query(positions, doing).await?)
    }
}

fn reads(dialect: Dialect, pipeline: &str) -> [Statement; 2] {
    [READ_LANES, READ_POSITIONS].map(|sql| dialect.statement(sql, vec![string(pipeline)]))
}

struct TakeOver<'a> {
    dialect: Dialect,
    claim: &'a Claim,
    stored: Vec<LaneProgress>,
    stopped: Option<Error>,
}

#[async_trait]
impl Work for TakeOver<'_> {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        self.stopped = None;
        match self.steps(transaction).await {
            Ok(()) => Ok(()),
            Err(Stop::Spanner(error)) => Err(error),
            Err(Stop::Own(error)) => {
                let reason = SpannerError::new(Code::FailedPrecondition, error.to_string());
                self.stopped = Some(error);
                Err(reason)
            }
        }
    }
}

impl TakeOver<'_> {
    async fn steps(&mut self, transaction: &dyn Transaction) -> Result<(), Stop> {
        let [lanes, positions] = reads(self.dialect, &self.claim.pipeline);
        let lanes = transaction.query(lanes).await?;
        let claim = self.claim;
        let newest = lanes.iter().map(|row| whole(row, 2)).max();
        if let Some(newest) = newest.filter(|newest| *newest > signed(claim.epoch)) {
            return Err(Error::fenced(format!(
                "the target has seen epoch {newest} of the pipeline {}; this run has {}",
                claim.pipeline, claim.epoch
            ))
            .into());
        }
        self.stored = decoded(&claim.pipeline, &lanes, &transaction.query(positions).await?)?;
        let identity = serde_json::to_string(&claim.identity)
            .map_err(|e| Error::fatal("cannot encode the source's identity").because(e))?;
        let mut mutations = Vec::new();
        let count = self.stored.iter().map(|l| l.lane + 1).max().unwrap_or(0).max(claim.lanes);
        for lane in 0..count {
            let there = lanes.iter().any(|row| whole(row, 0) == i64::from(lane));
            if lane >= claim.lanes && !there {
                continue;
            }
            let mut values = key(&claim.pipeline, lane);
            values.push(("epoch".to_owned(), signed(claim.epoch).into()));
            values.push(now());
            if lane < claim.lanes {
                values.push(("lanes".to_owned(), i64::from(claim.lanes).into()));
                // A run that lost its checkpoint claims without an identity, to learn it from here:
                // what is stored stays bound to its source.
                if !there || identity != "{}" {
                    values.push(("identity".to_owned(), identity.as_str().into()));
                }
            }
            if !there {
                let zero = |name: &str| (name.to_owned(), SpannerValue::from(0));
                values.extend(["changes", "transactions", "snapshot_rows", "dead_letters"].map(zero));
            }
            // To insert or update, Spanner wants every column that must not be NULL, also of a row that is there.
            let write = Write { table: LANE.to_owned(), values };
            mutations.push(if there { Mutation::Update(write) } else { Mutation::Insert(write) });
        }
        transaction.buffer(mutations)?;
        Ok(())
    }
}

/// The first thing in a target transaction: finds out whether this run still owns the lane, and
/// gives the mutation that counts what will be applied. Spanner holds what was read until the commit.
pub(crate) async fn fence(
    dialect: Dialect,
    lane: &Lane,
    changes: u64,
    transactions: u64,
    transaction: &dyn Transaction,
) -> Result<Option<Mutation>, Stop> {
    let stream = lane.purpose == LanePurpose::Stream;
    let index = if stream { lane.index } else { 0 };
    let values = vec![string(&lane.pipeline), int64(i64::from(index))];
    let rows = transaction.query(dialect.statement(FENCE, values)).await?;
    let Some(row) = rows.first() else {
        let problem = format!("the target has no progress of lane {index} of {}", lane.pipeline);
        return Err(Error::fenced(problem).into());
    };
    if whole(row, 0) != signed(lane.epoch) {
        return Err(Error::fenced(format!(
            "epoch {} has taken over the pipeline {}; this run has {}",
            whole(row, 0),
            lane.pipeline,
            lane.epoch
        ))
        .into());
    }
    if !stream {
        return Ok(None);
    }
    let mut values = key(&lane.pipeline, index);
    values.push(("changes".to_owned(), (whole(row, 1) + signed(changes)).into()));
    values.push(("transactions".to_owned(), (whole(row, 2) + signed(transactions)).into()));
    values.push(now());
    Ok(Some(Mutation::Update(Write { table: LANE.to_owned(), values })))
}

/// The last thing in a target transaction: how far each partition is with it.
pub(crate) fn positions(lane: &Lane, progress: &[Progress]) -> Result<Vec<Mutation>> {
    if lane.purpose != LanePurpose::Stream {
        return Ok(Vec::new());
    }
    let one = |p: &Progress| {
        let position =
            serde_json::to_string(&p.position).map_err(|e| Error::fatal("cannot encode a position").because(e))?;
        let mut values = key(&lane.pipeline, lane.index);
        values.push(("partition_id".to_owned(), p.partition.as_str().into()));
        values.push(("position".to_owned(), position.into()));
        values.push(("safe_time".to_owned(), p.safe_time.map(Timestamp::as_micros).into()));
        Ok(Mutation::InsertOrUpdate(Write { table: POSITION.to_owned(), values }))
    };
    progress.iter().map(one).collect()
}

fn key(pipeline: &str, lane: u32) -> Vec<(String, SpannerValue)> {
    vec![("pipeline".to_owned(), pipeline.into()), ("lane".to_owned(), i64::from(lane).into())]
}

fn now() -> (String, SpannerValue) {
    ("updated_at".to_owned(), Timestamp::now().to_string().into())
}

fn decoded(pipeline: &str, lanes: &[Row], positions: &[Row]) -> Result<Vec<LaneProgress>> {
    let damaged =
        |lane: i64| Error::fatal(format!("the progress of lane {lane} of {pipeline} in the target is damaged"));
    let mut found: BTreeMap<i64, LaneProgress> = BTreeMap::new();
    for row in lanes {
        let lane = whole(row, 0);
        let identity = row.get(3).and_then(SpannerValue::as_text).unwrap_or_default();
        let count = |at| u64::try_from(whole(row, at)).unwrap_or_default();
        let stored = LaneProgress {
            lane: u32::try_from(lane).map_err(|_| damaged(lane))?,
            lanes: u32::try_from(whole(row, 1)).map_err(|_| damaged(lane))?,
            identity: serde_json::from_str(identity).map_err(|e| damaged(lane).because(e))?,
            partitions: BTreeMap::new(),
            counters: Counters {
                changes: count(4),
                transactions: count(5),
                snapshot_rows: count(6),
                dead_letters: count(7),
                ..Counters::default()
            },
        };
        found.insert(lane, stored);
    }
    for row in positions {
        let lane = whole(row, 0);
        let Some(stored) = found.get_mut(&lane) else { continue };
        let text = |at: usize| row.get(at).and_then(SpannerValue::as_text);
        let partition = PartitionId::new(text(1).ok_or_else(|| damaged(lane))?);
        let progress = Progress {
            partition: partition.clone(),
            position: serde_json::from_str(text(2).unwrap_or_default()).map_err(|e| damaged(lane).because(e))?,
            safe_time: text(3).and_then(|t| t.parse().ok()).map(Timestamp::from_micros),
        };
        stored.partitions.insert(partition, progress);
    }
    Ok(found.into_values().collect())
}

/// A whole number of a row.
fn whole(row: &Row, at: usize) -> i64 {
    row.get(at).and_then(SpannerValue::as_text).and_then(|t| t.parse().ok()).unwrap_or_default()
}

/// Spanner's whole numbers are signed; counters and epochs stay far below.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
