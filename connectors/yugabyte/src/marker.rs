//! The table that stands in for logical messages, which YugabyteDB does not have: one row a slot.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_core::{Marker, PartitionId, Position, Result, TableName, Timestamp};
use anabranch_postgres::Lsn;
use anabranch_postgres::layer::{before_time, classify, literal, table_ident};
use async_trait::async_trait;

use crate::slot;
use crate::source::Yugabyte;

/// The statement that creates the table.
pub(crate) fn create(table: &TableName) -> String {
    format!("CREATE TABLE IF NOT EXISTS {} (slot text PRIMARY KEY, beats bigint NOT NULL);", table_ident(table))
}

/// The statement that commits a change of the slot's row, without waiting for a quorum to read first.
pub(crate) fn beat(table: &TableName, slot: &str) -> String {
    format!(
        "INSERT INTO {} AS m (slot, beats) VALUES ({}, 1) ON CONFLICT (slot) DO UPDATE SET beats = m.beats + 1",
        table_ident(table),
        literal(slot)
    )
}

#[async_trait]
impl Marker for Yugabyte {
    /// Asks a server for its hybrid time, and waits until every other server's clock has passed it; then
    /// writes the marker, which the stream brings behind everything that was committed before the call.
    ///
    /// Commit times of different servers are in their order only up to the clock skew that the servers
    /// allow each other (YugabyteDB's manual, "Transactional I/O path", "Hybrid time").
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let client = self.server()?.client().await?;
        let what = |e| classify(e, "cannot write a marker to the source");
        let now = slot::time_of(self.hybrid_time().await?);
        let skew = self.skew();
        let latest = later(now, skew);
        let pause = (skew + Duration::from_millis(1)).as_secs_f64();
        client.execute("SELECT pg_sleep($1)", &[&pause]).await.map_err(what)?;
        client.batch_execute(&beat(&self.marker_table_name()?, self.slot_name())).await.map_err(what)?;
        let position = before_time(later(latest, Duration::from_micros(1)), Lsn(0));
        Ok(BTreeMap::from([(self.partition(), position)]))
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.minus_micros(-i64::try_from(by.as_micros()).unwrap_or(i64::MAX))
}
