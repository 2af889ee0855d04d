//! The replication slot: what it is, whether it still has what is needed, and how much time is left.

use std::time::Duration;

use anabranch_core::{Error, Result, RetentionLeft, Timestamp};
use anabranch_postgres::Lsn;
use anabranch_postgres::layer::{classify, literal};
use serde::Deserialize;
use tokio_postgres::Client;

use crate::config::{LsnType, Plugin};

/// A row of `pg_replication_slots`. Columns that a version does not have are absent.
#[derive(Debug, Clone, Deserialize)]
struct SlotRow {
    plugin: Option<String>,
    database: Option<String>,
    confirmed_flush_lsn: Option<String>,
    /// `lost` once the slot has expired.
    wal_status: Option<String>,
    yb_stream_id: Option<String>,
    yb_restart_commit_ht: Option<u64>,
    yb_lsn_type: Option<String>,
    yb_ordering_mode: Option<String>,
}

/// A logical slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    name: String,
    plugin: String,
    database: String,
    pub(crate) lsn_type: LsnType,
    /// The slot's incarnation.
    pub(crate) stream: String,
    /// Transactions that committed up to here are not given any more.
    pub(crate) confirmed: Lsn,
    /// The hybrid time after which it has every transaction: microseconds since 1970, shifted by 12 bits.
    pub(crate) restart: u64,
    /// The server's clock when it was asked.
    now: Timestamp,
    expired: bool,
    by_row: bool,
}

/// Reads a slot; `None` if there is none of this name.
pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<Slot>> {
    let what = "cannot read pg_replication_slots";
    let row = client
        .query_opt(
            "SELECT to_jsonb(s)::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8 \
             FROM pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(|e| classify(e, what))?;
    let Some(row) = row else { return Ok(None) };
    let now = Timestamp::from_micros(row.get(1));
    let row: SlotRow = serde_json::from_str(row.get(0)).map_err(|e| Error::fatal(what).because(e))?;
    let unknown = |column: &str| Error::fatal(format!("{what}: the slot {name} has no {column}"));
    Ok(Some(Slot {
        name: name.to_owned(),
        plugin: row.plugin.unwrap_or_default(),
        database: row.database.unwrap_or_default(),
        lsn_type: match row.yb_lsn_type.as_deref() {
            None | Some("" | "SEQUENCE") => LsnType::Sequence,
            Some("HYBRID_TIME") => LsnType::HybridTime,
            Some(other) => return Err(Error::fatal(format!("the slot {name} has the unknown LSN type {other}"))),
        },
        stream: row.yb_stream_id.ok_or_else(|| unknown("yb_stream_id"))?,
        confirmed: row.confirmed_flush_lsn.as_deref().map_or(Ok(Lsn::default()), str::parse)?,
        restart: row.yb_restart_commit_ht.ok_or_else(|| unknown("yb_restart_commit_ht"))?,
        now,
        expired: row.wal_status.as_deref() == Some("lost"),
        by_row: row.yb_ordering_mode.is_some_and(|mode| mode == "ROW"),
    }))
}

/// The time of a hybrid time.
pub(crate) fn time_of(hybrid: u64) -> Timestamp {
    Timestamp::from_micros(i64::try_from(hybrid >> 12).unwrap_or(i64::MAX))
}

/// What a source wants its slot to be.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) database: &'a str,
    pub(crate) plugin: Plugin,
    pub(crate) lsn_type: Option<LsnType>,
    pub(crate) retention: Duration,
}

impl Slot {
    /// Whether it is ours to read, and readable.
    pub(crate) fn check(&self, wanted: &Wanted<'_>, reached: Option<Timestamp>) -> Result<()> {
        let name = &self.name;
        if self.plugin != wanted.plugin.name() {
            return Err(Error::config("source.plugin", format!("the slot {name} uses {}", self.plugin))
                .hint("yboutput or pgoutput, as the slot does; or name another slot: it is created"));
        }
        if self.database != wanted.database {
            return Err(Error::config(
                "source.slot",
                format!("{name} belongs to the database {}, and source.url names {}", self.database, wanted.database),
            )
            .hint("name another slot, or the slot's database; names of slots are unique over all databases"));
        }
        if let Some(lsn_type) = wanted.lsn_type.filter(|t| *t != self.lsn_type) {
            return Err(Error::config(
                "source.lsn_type",
                format!("is {lsn_type}, and the slot {name} was created with {}", self.lsn_type),
            )
            .hint("leave the key out, or name another slot: it is created"));
        }
        if self.by_row {
            return Err(Error::config("source.slot", format!("{name} orders by row and not by transaction"))
                .hint("name another slot: it is created with the order by transaction"));
        }
        if self.expired { Err(self.lapsed(wanted.retention, reached)) } else { Ok(()) }
    }

    /// What was lost, and how to repair it.
    fn lapsed(&self, retention: Duration, reached: Option<Timestamp>) -> Error {
        let lost = match reached {
            Some(reached) => format!("the changes committed after {reached}, of which this pipeline has applied none,"),
            None => format!("the changes committed after {}", time_of(self.restart)),
        };
        Error::fatal(format!(
            "the server has let the slot {} lapse: it kept what the slot needs for {:.1} hours, and {lost} are lost to it",
            self.name,
            retention.as_secs_f64() / 3600.0
        ))
        .hint(format!(
            "drop it with SELECT pg_drop_replication_slot({}); then start the pipeline anew with a fresh checkpoint and \
             a fresh copy. Or, to keep the target: start with a fresh checkpoint, a new slot and snapshot = \"never\", and \
             then run `anabranch verify --repair`. Raise cdc_intent_retention_ms and cdc_wal_retention_time_secs (24 \
             hours at most), and source.retention_hours with them",
            literal(&self.name)
        ))
    }

    /// Whether everything after `from` is still to come.
    pub(crate) fn check_reaches(&self, from: Option<Lsn>) -> Result<()> {
        let Some(from) = from.filter(|from| self.confirmed > *from) else { return Ok(()) };
        Err(Error::fatal(format!(
            "the slot {} was confirmed through {}, and this pipeline has applied the changes through {from}: those between \
             were consumed by somebody else, for YugabyteDB lets two read one slot. They cannot be read any more",
            self.name, self.confirmed
        ))
        .hint(
            "find out who else reads this slot; then copy the tables again with a fresh checkpoint, or compare and \
             repair: anabranch verify --repair",
        ))
    }

    /// How long the server still keeps what was not confirmed.
    pub(crate) fn left(&self, retention: Duration) -> RetentionLeft {
        let behind = self.now.micros_since(time_of(self.restart)) as f64 / 1e6;
        let seconds = if self.expired { 0.0 } else { (retention.as_secs_f64() - behind.max(0.0)).max(0.0) };
        let lost = self.expired.then(|| "the slot was not read within the retention of its changes".to_owned());
        RetentionLeft { seconds: Some(seconds), at: Some(self.now), lost, ..RetentionLeft::default() }
    }
}

/// There is no such slot, though there should be.
pub(crate) fn missing(name: &str, plugin: Plugin, reached: Option<Timestamp>) -> Error {
    match reached {
        Some(reached) => Error::fatal(format!(
            "the slot {name} is gone, and with it the changes committed after {reached} that were not applied yet"
        ))
        .hint(
            "start the pipeline anew with a fresh checkpoint and a fresh copy; or compare and repair: anabranch verify --repair",
        ),
        None => Error::config("source.slot", format!("there is no slot {name}")).hint(format!(
            "on a replication connection: CREATE_REPLICATION_SLOT {name} LOGICAL {}; or set source.create = true",
            plugin.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::ErrorKind;

    fn slot() -> Slot {
        Slot {
            name: "s".into(),
            plugin: "yboutput".into(),
            database: "d".into(),
            lsn_type: LsnType::Sequence,
            stream: "1".into(),
            confirmed: Lsn(10),
            restart: 1_000_000_000 << 12,
            now: Timestamp::from_micros(4_600_000_000),
            expired: false,
            by_row: false,
        }
    }

    const HOURS: Duration = Duration::from_secs(8 * 3600);

    fn wanted() -> Wanted<'static> {
        Wanted { database: "d", plugin: Plugin::Yboutput, lsn_type: None, retention: HOURS }
    }

    #[test]
    fn retention_is_counted_down() {
        assert_eq!(slot().left(HOURS).seconds, Some(7.0 * 3600.0));
        let late = Slot { now: Timestamp::from_micros(i64::MAX), ..slot() };
        assert_eq!(late.left(HOURS).seconds, Some(0.0));
        // Clocks may differ by a little.
        let early = Slot { now: Timestamp::from_micros(1), ..slot() };
        assert_eq!(early.left(HOURS).seconds, Some(8.0 * 3600.0));
    }

    #[test]
    fn what_is_wrong_with_a_slot_is_said() {
        assert!(slot().check(&wanted(), None).is_ok());
        let kind = |slot: Slot| slot.check(&wanted(), None).unwrap_err();
        assert_eq!(kind(Slot { plugin: "wal2json".into(), ..slot() }).kind(), ErrorKind::Config);
        assert_eq!(kind(Slot { database: "e".into(), ..slot() }).kind(), ErrorKind::Config);
        assert_eq!(kind(Slot { by_row: true, ..slot() }).kind(), ErrorKind::Config);
        let lapsed = kind(Slot { expired: true, ..slot() });
        assert_eq!(lapsed.kind(), ErrorKind::Fatal);
        for part in ["8.0 hours", "1970-01-01T00:16:40", "pg_drop_replication_slot('s')", "verify --repair"] {
            assert!(lapsed.to_string().contains(part), "{lapsed}");
        }
        let other = Wanted { lsn_type: Some(LsnType::HybridTime), ..wanted() };
        assert!(slot().check(&other, None).unwrap_err().to_string().contains("source.lsn_type"));
        assert!(slot().check_reaches(Some(Lsn(10))).is_ok());
        assert!(slot().check_reaches(Some(Lsn(9))).unwrap_err().to_string().contains("0/9"));
    }
}
