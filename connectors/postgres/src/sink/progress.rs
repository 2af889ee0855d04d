//! Progress in the target, and the epoch that fences older runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    Claim, Counters, Error, LaneProgress, PartitionId, ProgressStore, Result, SourceIdentity, Timestamp,
};
use async_trait::async_trait;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::Shared;
use super::session::terminate;
use crate::error::classify;

/// Progress in the target.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
}

impl Progress {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn stored(&self, client: &Client, pipeline: &str, lock: &str) -> Result<(i64, Vec<LaneProgress>)> {
        let what = |e| classify(e, "cannot read the progress stored in the target");
        let lanes = format!(
            // A table of a version that did not count what is stale has no such column.
            "SELECT lane, lanes, epoch, identity, changes, transactions, snapshot_rows, dead_letters, \
             coalesce((to_jsonb(l) ->> 'stale')::bigint, 0) FROM {} AS l WHERE pipeline = $1 ORDER BY lane {lock}",
            self.shared.store.table("lane")
        );
        let positions = format!(
            "SELECT lane, partition_id, position, safe_time FROM {} WHERE pipeline = $1",
            self.shared.store.table("position")
        );
        let rows = client.query(&lanes, &[&pipeline]).await.map_err(what)?;
        let mut by_lane: BTreeMap<i32, LaneProgress> = BTreeMap::new();
        for row in &rows {
            by_lane.insert(row.get(0), lane(row)?);
        }
        for row in client.query(&positions, &[&pipeline]).await.map_err(what)? {
            if let Some(lane) = by_lane.get_mut(&row.get(0)) {
                let progress = position(&row)?;
                lane.partitions.insert(progress.partition.clone(), progress);
            }
        }
        let epoch = rows.iter().map(|r| r.get::<_, i64>(2)).max().unwrap_or(0);
        Ok((epoch, by_lane.into_values().collect()))
    }

    async fn claim(&self, client: &Client, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let what = |e| classify(e, "cannot take over the pipeline in the target");
        // Two runs that claim a new pipeline at once would both find nothing.
        if self.shared.store.lacks().advisory_locks {
            let lock = "SELECT pg_advisory_xact_lock(hashtextextended('anabranch ' || $1::text, 0))";
            client.execute(lock, &[&&*claim.pipeline]).await.map_err(what)?;
        }
        // FOR UPDATE waits for every open transaction of a writer, and of a snapshot.
        let (epoch, before) = self.stored(client, &claim.pipeline, "FOR UPDATE").await?;
        let ours = claim.epoch as i64;
        let fenced = |epoch: i64| {
            Error::fenced(format!(
                "the target has seen epoch {epoch} of pipeline {}, this run has epoch {ours}",
                claim.pipeline
            ))
        };
        if epoch > ours {
            return Err(fenced(epoch));
        }
        let identity = serde_json::to_string(&claim.identity)
            .map_err(|e| Error::fatal("cannot write the source's identity as JSON").because(e))?;
        // Lanes that hold positions keep the number of lanes and the identity that those belong to,
        // until a writer stores new ones.
        let (table, positions) = (self.shared.store.table("lane"), self.shared.store.table("position"));
        let sql = format!(
            "INSERT INTO {table} AS l (pipeline, lane, lanes, epoch, identity) \
             SELECT $1, n, $2, $3, $4 FROM generate_series(0, $2 - 1) AS n \
             ON CONFLICT (pipeline, lane) DO UPDATE SET lanes = EXCLUDED.lanes, identity = EXCLUDED.identity \
             WHERE NOT EXISTS (SELECT FROM {positions} AS p WHERE p.pipeline = l.pipeline AND p.lane = l.lane)"
        );
        client.execute(&sql, &[&&*claim.pipeline, &(claim.lanes as i32), &ours, &identity]).await.map_err(what)?;
        // Without the lock another run may have claimed a new pipeline since; its rows are seen now, by
        // the conflict that the insertion has met.
        let sql = format!("UPDATE {table} SET epoch = $2, updated_at = now() WHERE pipeline = $1 AND epoch <= $2");
        client.execute(&sql, &[&&*claim.pipeline, &ours]).await.map_err(what)?;
        let sql = format!("SELECT max(epoch) FROM {table} WHERE pipeline = $1");
        let newest: Option<i64> = client.query_one(&sql, &[&&*claim.pipeline]).await.map_err(what)?.get(0);
        if let Some(newest) = newest.filter(|newest| *newest > ours) {
            return Err(fenced(newest));
        }
        client.batch_execute("COMMIT").await.map_err(what)?;
        Ok(before)
    }
}

#[async_trait]
impl ProgressStore for Progress {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let client = self.shared.store.connect("claim").await?;
        self.shared.store.ensure(&client).await?;
        if self.shared.versions.is_some() {
            let lane = self.shared.store.table("lane");
            let what = |e| classify(e, "cannot add the column stale to the table of lanes");
            // Looked for first: to add it locks out every writer.
            let there = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1::text::regclass \
                         AND attname = 'stale' AND NOT attisdropped)";
            if !client.query_one(there, &[&lane]).await.map_err(what)?.get::<_, bool>(0) {
                let add = format!("ALTER TABLE {lane} ADD COLUMN IF NOT EXISTS stale bigint NOT NULL DEFAULT 0");
                client.batch_execute(&add).await.map_err(what)?;
            }
        }
        client.batch_execute("BEGIN").await.map_err(|e| classify(e, "cannot take over the pipeline in the target"))?;
        let result = self.claim(&client, claim).await;
        if let Err(error) = result {
            _ = client.batch_execute("ROLLBACK").await;
            return Err(self.blocked(&client, claim, error).await);
        }
        self.shared.claimed(&claim.pipeline, &claim.identity);
        result
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let client = self.shared.store.client().await?;
        if !self.shared.store.exists(&client).await? {
            return Ok(Vec::new());
        }
        Ok(self.stored(&client, pipeline, "").await?.1)
    }
}

impl Progress {
    /// A claim that waited in vain was held up by an older run's transaction, whose process may be
    /// gone or cut off. It is fenced in any case: end its sessions, so that the next try succeeds.
    async fn blocked(&self, client: &Client, claim: &Claim, error: Error) -> Error {
        let timed_out = std::error::Error::source(&error)
            .and_then(|e| e.downcast_ref::<tokio_postgres::Error>())
            .is_some_and(|e| e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE));
        if timed_out || error.report().contains("lock timeout") {
            for kind in ["stream", "snapshot"] {
                for lane in 0..claim.lanes.max(1) {
                    _ = terminate(client, &format!("anabranch-sink/{kind}/{lane}/{}", claim.pipeline)).await;
                }
            }
        }
        error
    }
}

fn lane(row: &Row) -> Result<LaneProgress> {
    let identity: String = row.get(3);
    let identity: SourceIdentity = serde_json::from_str(&identity)
        .map_err(|e| Error::fatal("the source's identity stored in the target is damaged").because(e))?;
    let count = |i: usize| row.get::<_, i64>(i) as u64;
    Ok(LaneProgress {
        lane: row.get::<_, i32>(0) as u32,
        lanes: row.get::<_, i32>(1) as u32,
        identity,
        partitions: BTreeMap::new(),
        counters: Counters {
            changes: count(4),
            transactions: count(5),
            snapshot_rows: count(6),
            dead_letters: count(7),
            stale: count(8),
            ..Counters::default()
        },
    })
}

fn position(row: &Row) -> Result<anabranch_core::Progress> {
    let text: String = row.get(2);
    let position = serde_json::from_str(&text)
        .map_err(|e| Error::fatal("a position stored in the target is damaged").because(e))?;
    Ok(anabranch_core::Progress {
        partition: PartitionId::new(row.get::<_, String>(1)),
        position,
        safe_time: row.get::<_, Option<i64>>(3).map(Timestamp::from_micros),
    })
}
