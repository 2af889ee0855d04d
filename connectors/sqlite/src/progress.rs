//! Progress and fencing: what is stored with the rows, in their transaction.

use std::collections::BTreeMap;

use anabranch_core::{
    Claim, Counters, Error, Lane, LaneProgress, LanePurpose, Progress, ProgressStore, Result, Timestamp,
};
use async_trait::async_trait;
use rusqlite::{OptionalExtension, params};

use crate::Sqlite;
use crate::connection::Database;

const CREATE: &str = "\
CREATE TABLE IF NOT EXISTS main.anabranch_lane (\
 pipeline TEXT NOT NULL, lane INTEGER NOT NULL, lanes INTEGER NOT NULL, epoch INTEGER NOT NULL, \
 identity TEXT NOT NULL, changes INTEGER NOT NULL DEFAULT 0, transactions INTEGER NOT NULL DEFAULT 0, \
 snapshot_rows INTEGER NOT NULL DEFAULT 0, dead_letters INTEGER NOT NULL DEFAULT 0, \
 updated_at INTEGER NOT NULL, PRIMARY KEY (pipeline, lane)) STRICT; \
CREATE TABLE IF NOT EXISTS main.anabranch_position (\
 pipeline TEXT NOT NULL, lane INTEGER NOT NULL, partition_id TEXT NOT NULL, position TEXT NOT NULL, \
 safe_time INTEGER, PRIMARY KEY (pipeline, lane, partition_id)) STRICT";

#[async_trait]
impl ProgressStore for Sqlite {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let claim = claim.clone();
        self.shared
            .write(move |db| {
                db.told("cannot create the progress tables", db.conn.execute_batch(CREATE))?;
                check_epoch(db, &claim)?;
                let stored = read(db, &claim.pipeline)?;
                store_claim(db, &claim)?;
                Ok(stored)
            })
            .await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let pipeline = pipeline.to_owned();
        self.shared
            .read(move |db| {
                if !has_table(db, "anabranch_lane")? {
                    return Ok(Vec::new());
                }
                // One read transaction: lanes and positions of one moment.
                let begun = db.told("cannot read the progress", db.conn.unchecked_transaction())?;
                let progress = read(db, &pipeline)?;
                drop(begun);
                Ok(progress)
            })
            .await
    }
}

/// The first thing in a target transaction: counts what it will apply, and finds out whether this
/// run still owns the lane. The write lock is held, so it stays true until the commit.
pub(crate) fn fence(db: &Database, lane: &Lane, changes: u64, transactions: u64) -> Result<()> {
    let doing = "cannot check the epoch";
    let epoch = whole(lane.epoch)?;
    let found = match lane.purpose {
        LanePurpose::Stream => {
            let mut update = db.told(
                doing,
                db.conn.prepare_cached(
                    "UPDATE main.anabranch_lane SET changes = changes + ?4, transactions = transactions + ?5, \
                     updated_at = ?6 WHERE pipeline = ?1 AND lane = ?2 AND epoch = ?3",
                ),
            )?;
            let now = Timestamp::now().as_micros();
            let values = params![&*lane.pipeline, lane.index, epoch, whole(changes)?, whole(transactions)?, now];
            db.told(doing, update.execute(values))? == 1
        }
        LanePurpose::Snapshot => db.told(
            doing,
            db.conn
                .prepare_cached("SELECT 1 FROM main.anabranch_lane WHERE pipeline = ?1 AND lane = 0 AND epoch = ?2")
                .and_then(|mut select| select.exists(params![&*lane.pipeline, epoch])),
        )?,
    };
    if found { Ok(()) } else { Err(fenced(db, lane)?) }
}

/// The last thing in a target transaction: how far each partition is with it.
pub(crate) fn store(db: &Database, lane: &Lane, progress: &[Progress]) -> Result<()> {
    let doing = "cannot store the progress";
    let mut upsert = db.told(
        doing,
        db.conn.prepare_cached(
            "INSERT INTO main.anabranch_position (pipeline, lane, partition_id, position, safe_time) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (pipeline, lane, partition_id) \
             DO UPDATE SET position = excluded.position, safe_time = excluded.safe_time",
        ),
    )?;
    for p in progress {
        let position =
            serde_json::to_string(&p.position).map_err(|e| Error::fatal("cannot encode a position").because(e))?;
        let safe_time = p.safe_time.map(Timestamp::as_micros);
        let values = params![&*lane.pipeline, lane.index, p.partition.as_str(), position, safe_time];
        db.told(doing, upsert.execute(values))?;
    }
    Ok(())
}

/// Whether the file has this table.
pub(crate) fn has_table(db: &Database, name: &str) -> Result<bool> {
    db.told(
        "cannot read the schema",
        db.conn
            .prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1")
            .and_then(|mut select| select.exists(params![name])),
    )
}

fn check_epoch(db: &Database, claim: &Claim) -> Result<()> {
    let newest: Option<i64> = db.told(
        "cannot read the epoch",
        db.conn.query_row(
            "SELECT max(epoch) FROM main.anabranch_lane WHERE pipeline = ?1",
            params![&*claim.pipeline],
            |row| row.get(0),
        ),
    )?;
    match newest {
        Some(newest) if newest > whole(claim.epoch)? => Err(Error::fenced(format!(
            "the target has seen epoch {newest} of the pipeline {}; this run has {}",
            claim.pipeline, claim.epoch
        ))),
        _ => Ok(()),
    }
}

fn store_claim(db: &Database, claim: &Claim) -> Result<()> {
    let doing = "cannot take the pipeline over";
    let identity = serde_json::to_string(&claim.identity)
        .map_err(|e| Error::fatal("cannot encode the source's identity").because(e))?;
    let (epoch, now) = (whole(claim.epoch)?, Timestamp::now().as_micros());
    for lane in 0..claim.lanes {
        // A run that lost its checkpoint claims without an identity, to learn it from here: should it
        // die before it claims again, what is stored must still be bound to its source.
        let upsert = db.conn.execute(
            "INSERT INTO main.anabranch_lane (pipeline, lane, lanes, epoch, identity, updated_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (pipeline, lane) DO UPDATE SET \
             lanes = excluded.lanes, epoch = excluded.epoch, \
             identity = CASE excluded.identity WHEN '{}' THEN identity ELSE excluded.identity END, \
             updated_at = excluded.updated_at",
            params![&*claim.pipeline, lane, claim.lanes, epoch, identity, now],
        );
        db.told(doing, upsert)?;
    }
    let update = db
        .conn
        .execute("UPDATE main.anabranch_lane SET epoch = ?2 WHERE pipeline = ?1", params![&*claim.pipeline, epoch]);
    db.told(doing, update).map(drop)
}

fn read(db: &Database, pipeline: &str) -> Result<Vec<LaneProgress>> {
    let doing = "cannot read the progress";
    let mut lanes: BTreeMap<u32, LaneProgress> = BTreeMap::new();
    let mut select = db.told(
        doing,
        db.conn.prepare_cached(
            "SELECT lane, lanes, identity, changes, transactions, snapshot_rows, dead_letters \
             FROM main.anabranch_lane WHERE pipeline = ?1 ORDER BY lane",
        ),
    )?;
    let mut rows = db.told(doing, select.query(params![pipeline]))?;
    while let Some(row) = db.told(doing, rows.next())? {
        let get = |i: usize| db.told(doing, row.get::<_, i64>(i));
        let lane = get(0)? as u32;
        let identity: String = db.told(doing, row.get(2))?;
        let stored = LaneProgress {
            lane,
            lanes: get(1)? as u32,
            identity: serde_json::from_str(&identity).map_err(|e| damaged(pipeline, lane).because(e))?,
            partitions: BTreeMap::new(),
            counters: Counters {
                changes: get(3)? as u64,
                transactions: get(4)? as u64,
                snapshot_rows: get(5)? as u64,
                dead_letters: get(6)? as u64,
                ..Counters::default()
            },
        };
        lanes.insert(lane, stored);
    }
    drop(rows);
    read_positions(db, pipeline, &mut lanes)?;
    Ok(lanes.into_values().collect())
}

fn read_positions(db: &Database, pipeline: &str, lanes: &mut BTreeMap<u32, LaneProgress>) -> Result<()> {
    let doing = "cannot read the progress";
    let mut select = db.told(
        doing,
        db.conn.prepare_cached(
            "SELECT lane, partition_id, position, safe_time FROM main.anabranch_position WHERE pipeline = ?1",
        ),
    )?;
    let rows = select.query_map(params![pipeline], |row| {
        Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, Option<i64>>(3)?))
    });
    let rows: Vec<_> = db.told(doing, rows.and_then(Iterator::collect))?;
    for (lane, partition, position, safe_time) in rows {
        let Some(stored) = lanes.get_mut(&lane) else { continue };
        let partition = anabranch_core::PartitionId::new(partition);
        let progress = Progress {
            partition: partition.clone(),
            position: serde_json::from_str(&position).map_err(|e| damaged(pipeline, lane).because(e))?,
            safe_time: safe_time.map(Timestamp::from_micros),
        };
        stored.partitions.insert(partition, progress);
    }
    Ok(())
}

fn fenced(db: &Database, lane: &Lane) -> Result<Error> {
    let newest: Option<i64> = db.told(
        "cannot read the epoch",
        db.conn
            .query_row(
                "SELECT epoch FROM main.anabranch_lane WHERE pipeline = ?1 AND lane = ?2",
                params![&*lane.pipeline, if lane.purpose == LanePurpose::Stream { lane.index } else { 0 }],
                |row| row.get(0),
            )
            .optional(),
    )?;
    Ok(match newest {
        Some(newest) => Error::fenced(format!(
            "epoch {newest} has taken over the pipeline {}; this run has {}",
            lane.pipeline, lane.epoch
        )),
        None => Error::fenced(format!("the target has no progress of lane {} of {}", lane.index, lane.pipeline)),
    })
}

fn damaged(pipeline: &str, lane: u32) -> Error {
    Error::fatal(format!("the progress of lane {lane} of {pipeline} in the target is damaged"))
}

/// SQLite's whole numbers are signed; counters and epochs stay far below.
fn whole(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::fatal(format!("{n} does not fit into an INTEGER")))
}
