//! What each lane has committed, stored with the rows.

use std::collections::BTreeMap;

use anabranch_core::{
    Claim, Counters, Error, Lane, LaneProgress, PartitionId, Position, Progress, ProgressStore, Result, SourceIdentity,
    Timestamp, Unit,
};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, params};

use crate::connection::Link;
use crate::error::{Failure, Phase};
use crate::literal::push_text;
use crate::rights;
use crate::script::{Expect, Script};
use crate::sink::MySql;

/// Longest name of a pipeline and of a partition: both fit into one key of 3072 bytes.
const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS anabranch_lane (
        pipeline varchar(191) NOT NULL,
        lane int unsigned NOT NULL,
        lanes int unsigned NOT NULL COMMENT '0: nothing is stored yet',
        epoch bigint unsigned NOT NULL,
        identity longtext NOT NULL,
        changes bigint unsigned NOT NULL DEFAULT 0,
        transactions bigint unsigned NOT NULL DEFAULT 0,
        snapshot_rows bigint unsigned NOT NULL DEFAULT 0,
        dead_letters bigint unsigned NOT NULL DEFAULT 0,
        stale bigint unsigned NOT NULL DEFAULT 0,
        updated_at datetime(6) NOT NULL,
        PRIMARY KEY (pipeline, lane)
    )",
    "CREATE TABLE IF NOT EXISTS anabranch_position (
        pipeline varchar(191) NOT NULL,
        lane int unsigned NOT NULL,
        partition_id varchar(512) NOT NULL,
        position longtext NOT NULL,
        safe_time bigint NULL COMMENT 'microseconds since 1970',
        PRIMARY KEY (pipeline, lane, partition_id)
    )",
];

/// Creates tables of this connector.
pub(crate) async fn create_tables(link: &mut Link, tables: &[&str]) -> Result<(), Failure> {
    for table in tables {
        let collation = link.server.collation;
        let sql = format!("{table} ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE={collation}");
        link.conn.query_drop(sql).await?;
    }
    Ok(())
}

/// A table of this connector is not there yet.
pub(crate) fn is_missing_table(error: &mysql_async::Error) -> bool {
    matches!(error, mysql_async::Error::Server(e) if e.code == 1146)
}

fn quoted(text: &str) -> String {
    let mut sql = Vec::with_capacity(text.len() + 2);
    push_text(text.as_bytes(), &mut sql);
    String::from_utf8_lossy(&sql).into_owned()
}

/// Counts the unit's changes, which fails if the epoch is not the lane's any more.
pub(crate) fn count(script: &mut Script<'_>, lane: &Lane, unit: &Unit) {
    let (changes, transactions) = (unit.row_changes(), unit.transactions);
    let set = format!("changes=changes+{changes}, transactions=transactions+{transactions}");
    update_lane(script, lane, &format!("{set}, updated_at=UTC_TIMESTAMP(6)"));
}

/// Changes the lane's row, which fails if the epoch is not the lane's any more.
pub(crate) fn update_lane(script: &mut Script<'_>, lane: &Lane, set: &str) {
    let sql = format!(
        "UPDATE anabranch_lane SET {set} WHERE pipeline={} AND lane={} AND epoch={}",
        quoted(&lane.pipeline),
        lane.index,
        lane.epoch
    );
    script.add(&sql, Expect::Ours);
}

/// Fails if the epoch is not the pipeline's any more, and keeps it from changing until the
/// transaction ends: for lanes that store no progress.
pub(crate) async fn check_epoch(script: &mut Script<'_>, lane: &Lane) -> Result<(), Failure> {
    let sql = format!(
        "SELECT epoch FROM anabranch_lane WHERE pipeline={} AND lane=0 LOCK IN SHARE MODE",
        quoted(&lane.pipeline)
    );
    script.add(&sql, Expect::Any);
    let outcomes = script.outcomes().await?;
    let row = outcomes.last().and_then(|o| o.rows.first());
    match row.and_then(|r| r.get::<u64, _>(0)) {
        Some(epoch) if epoch == lane.epoch => Ok(()),
        _ => Err(Error::fenced("another runner has taken the pipeline over: the target has another epoch").into()),
    }
}

/// Stores the unit's progress, a row a partition.
pub(crate) fn store(script: &mut Script<'_>, lane: &Lane, unit: &Unit) -> Result<()> {
    if unit.progress.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(unit.progress.len());
    for p in &unit.progress {
        rows.push(format!(
            "({},{},{},{},{})",
            quoted(&lane.pipeline),
            lane.index,
            quoted(p.partition.as_str()),
            quoted(&json(&p.position)?),
            p.safe_time.map_or_else(|| "NULL".to_owned(), |t| t.as_micros().to_string())
        ));
    }
    let sql = format!(
        "INSERT INTO anabranch_position (pipeline,lane,partition_id,position,safe_time) VALUES {} \
         ON DUPLICATE KEY UPDATE position=VALUES(position),safe_time=VALUES(safe_time)",
        rows.join(",")
    );
    script.add(&sql, Expect::Any);
    Ok(())
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::fatal("cannot encode progress as JSON").because(e))
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::fatal(format!("{what} in the target is damaged, or of a newer version")).because(e))
}

#[derive(Debug)]
struct LaneRow {
    lane: u32,
    lanes: u32,
    epoch: u64,
    identity: String,
    counters: Counters,
}

async fn lane_rows(conn: &mut Conn, pipeline: &str, locking: &str) -> Result<Vec<LaneRow>, mysql_async::Error> {
    type Facts = (u32, u32, u64, String, u64, u64, u64, u64, u64);
    let select = |stale: &str| {
        format!(
            "SELECT lane, lanes, epoch, identity, changes, transactions, snapshot_rows, dead_letters, {stale} \
             FROM anabranch_lane WHERE pipeline = :pipeline ORDER BY lane {locking}"
        )
    };
    let rows: Vec<Facts> = match conn.exec(select("stale"), params! { pipeline }).await {
        // A table of a version that did not count them.
        Err(mysql_async::Error::Server(e)) if e.code == 1054 => conn.exec(select("0"), params! { pipeline }).await?,
        rows => rows?,
    };
    let row =
        |(lane, lanes, epoch, identity, changes, transactions, snapshot_rows, dead_letters, stale): Facts| LaneRow {
            lane,
            lanes,
            epoch,
            identity,
            counters: Counters { changes, transactions, snapshot_rows, dead_letters, stale, ..Counters::default() },
        };
    Ok(rows.into_iter().map(row).collect())
}

/// What is stored, from the lanes' rows and the positions'.
async fn progress(conn: &mut Conn, pipeline: &str, lanes: Vec<LaneRow>) -> Result<Vec<LaneProgress>, Failure> {
    let positions: Vec<(u32, String, String, Option<i64>)> = conn
        .exec(
            "SELECT lane, partition_id, position, safe_time FROM anabranch_position WHERE pipeline = :pipeline",
            params! { pipeline },
        )
        .await?;
    let mut partitions: BTreeMap<u32, BTreeMap<PartitionId, Progress>> = BTreeMap::new();
    for (lane, id, position, safe_time) in positions {
        let partition = PartitionId::new(id);
        let position: Position = from_json(&position, "a position")?;
        let progress =
            Progress { partition: partition.clone(), position, safe_time: safe_time.map(Timestamp::from_micros) };
        partitions.entry(lane).or_default().insert(partition, progress);
    }
    let mut all = Vec::with_capacity(lanes.len());
    for row in lanes.into_iter().filter(|r| r.lanes > 0) {
        let identity: SourceIdentity = from_json(&row.identity, "the source's identity")?;
        let partitions = partitions.remove(&row.lane).unwrap_or_default();
        all.push(LaneProgress { lane: row.lane, lanes: row.lanes, identity, partitions, counters: row.counters });
    }
    Ok(all)
}

async fn take_over(conn: &mut Conn, claim: &Claim) -> Result<Vec<LaneProgress>, Failure> {
    let pipeline = &*claim.pipeline;
    let identity = json(&claim.identity)?;
    conn.query_drop("START TRANSACTION").await?;
    // The rows must be there to be locked: of two claims that come first at once, one waits here.
    for lane in 0..claim.lanes {
        conn.exec_drop(
            "INSERT INTO anabranch_lane (pipeline, lane, lanes, epoch, identity, updated_at) \
             VALUES (:pipeline, :lane, 0, 0, '{}', UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE lane = lane",
            params! { pipeline, lane },
        )
        .await?;
    }
    let rows = lane_rows(conn, pipeline, "FOR UPDATE").await?;
    if let Some(newest) = rows.iter().map(|r| r.epoch).max().filter(|&epoch| epoch > claim.epoch) {
        let message = format!("another runner has taken the pipeline over: the target has seen epoch {newest}");
        return Err(Error::fenced(message).into());
    }
    let before = progress(conn, pipeline, rows).await?;
    conn.exec_drop(
        "UPDATE anabranch_lane SET epoch = :epoch, updated_at = UTC_TIMESTAMP(6) WHERE pipeline = :pipeline",
        params! { pipeline, "epoch" => claim.epoch },
    )
    .await?;
    conn.exec_drop(
        "UPDATE anabranch_lane SET lanes = :lanes, identity = :identity WHERE pipeline = :pipeline AND lane < :lanes",
        params! { pipeline, "lanes" => claim.lanes, identity },
    )
    .await?;
    Ok(before)
}

/// What is reported as durable must be: the server's default can be relaxed for the whole server only.
async fn check_durability(conn: &mut Conn, accept: bool) -> Result<(), Failure> {
    let settings: Option<(u32, u32, u32)> = conn
        .query_first("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.log_bin, @@GLOBAL.sync_binlog")
        .await?;
    let (flush, binlog, sync) = settings.unwrap_or((1, 0, 0));
    // 3 is MariaDB's: it flushes at prepare as well. With a binary log, recovery keeps only what is in it.
    let problem = match (flush, binlog, sync) {
        (0 | 2, ..) => format!("innodb_flush_log_at_trx_commit is {flush}"),
        (_, 1, sync) if sync != 1 => format!("the binary log is on and sync_binlog is {sync}"),
        _ => return Ok(()),
    };
    if accept {
        tracing::warn!("{problem} on the target: a crash of its machine may lose what is reported as durable");
        return Ok(());
    }
    Err(Error::config("sink", format!("{problem} on the server, so a commit may not survive a crash"))
        .hint("set it to 1 on the server, or set sink.accept_relaxed_durability = true")
        .into())
}

#[async_trait]
impl ProgressStore for MySql {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let mut link = self.connector().connect().await?;
        let at = |f: Failure| f.into_error(Phase::Statement);
        rights::check_writable(&mut link).await.map_err(at)?;
        check_durability(&mut link.conn, self.connector().config().accept_relaxed_durability).await.map_err(at)?;
        if let Err(e) = link.conn.query_drop("SELECT 1 FROM anabranch_lane, anabranch_position LIMIT 0").await {
            if !is_missing_table(&e) {
                return Err(at(e.into()));
            }
            create_tables(&mut link, &TABLES).await.map_err(at)?;
        }
        if self.connector().config().versions {
            let counted = link.conn.query_drop("SELECT stale FROM anabranch_lane LIMIT 0").await;
            if matches!(&counted, Err(mysql_async::Error::Server(e)) if e.code == 1054) {
                let add = "ALTER TABLE anabranch_lane ADD COLUMN stale bigint unsigned NOT NULL DEFAULT 0";
                link.conn.query_drop(add).await.map_err(|e| at(e.into()))?;
            }
        }
        // On an error the connection is dropped, and the server rolls back.
        let before = take_over(&mut link.conn, claim).await.map_err(at)?;
        link.conn.query_drop("COMMIT").await.map_err(|e| Failure::driver(e).into_error(Phase::Commit))?;
        let _ = link.conn.disconnect().await;
        Ok(before)
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let mut link = self.kept().take(self.connector()).await?;
        let rows = lane_rows(&mut link.conn, pipeline, "").await;
        let found = match rows {
            Err(e) if is_missing_table(&e) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
            // Of a run that was killed before it had created the other table, too.
            Ok(rows) if rows.is_empty() => Ok(Vec::new()),
            Ok(rows) => progress(&mut link.conn, pipeline, rows).await,
        };
        let found = found.map_err(|f| f.into_error(Phase::Statement))?;
        self.kept().put(link).await;
        Ok(found)
    }
}
