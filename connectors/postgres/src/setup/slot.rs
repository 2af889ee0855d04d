//! The replication slot: what it is, whether it still has what is needed, and how much is left.

use anabranch_core::{Error, Result, RetentionLeft, Timestamp};
use serde::Deserialize;
use tokio_postgres::Client;

use crate::error::classify;
use crate::lsn::Lsn;
use crate::sql;

/// A row of `pg_replication_slots`. Columns that a version does not have are absent.
#[derive(Debug, Clone, Deserialize)]
struct SlotRow {
    plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    /// PostgreSQL 17 and later.
    invalidation_reason: Option<String>,
    /// PostgreSQL 16 and later.
    conflicting: Option<bool>,
    /// PostgreSQL 17 and later: kept in step with a primary's, by a standby.
    synced: Option<bool>,
}

/// A logical slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    name: String,
    plugin: String,
    database: String,
    pub(crate) active_pid: Option<i32>,
    /// Transactions that committed before this are not given any more.
    pub(crate) confirmed_flush: Lsn,
    /// Why it cannot be read any more.
    invalid: Option<String>,
    /// The end of the server's log when it was asked.
    end: Lsn,
}

const SLOT: &str = "
SELECT to_jsonb(s)::text,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text
FROM pg_replication_slots s WHERE slot_name = $1";

/// Reads a slot; `None` if there is none of this name.
pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<Slot>> {
    let what = "cannot read pg_replication_slots";
    let row = client.query_opt(SLOT, &[&name]).await.map_err(|e| classify(e, what))?;
    let Some(row) = row else { return Ok(None) };
    let end = row.get::<_, Option<&str>>(1).map(str::parse).transpose()?.unwrap_or_default();
    let row: SlotRow = serde_json::from_str(row.get(0)).map_err(|e| Error::fatal(what).because(e))?;
    let lost = row.wal_status.as_deref() == Some("lost") || row.conflicting == Some(true);
    let invalid = row.invalidation_reason.clone().or_else(|| lost.then(|| "wal_removed".to_owned()));
    if row.synced == Some(true) {
        return Err(Error::config("source.url", format!("the slot {name} is a standby's copy of the primary's"))
            .hint("connect to the primary, or promote this standby"));
    }
    Ok(Some(Slot {
        name: name.to_owned(),
        plugin: row.plugin.unwrap_or_default(),
        database: row.database.unwrap_or_default(),
        active_pid: row.active_pid,
        confirmed_flush: match (row.confirmed_flush_lsn, &invalid) {
            (Some(lsn), _) => lsn.parse()?,
            (None, Some(_)) => Lsn::default(),
            (None, None) => return Err(Error::transient(format!("the slot {name} is being created"))),
        },
        invalid,
        end,
    }))
}

/// Why the server has invalidated a slot.
fn why_invalid(reason: &str) -> String {
    match reason {
        "wal_removed" => "it held back more log than max_slot_wal_keep_size allows".to_owned(),
        "idle_timeout" => "it was idle for longer than idle_replication_slot_timeout".to_owned(),
        "rows_removed" => "rows of the catalog that it needs were removed".to_owned(),
        "wal_level_insufficient" => "wal_level was set below logical".to_owned(),
        other => other.to_owned(),
    }
}

impl Slot {
    /// Whether it is ours to read, and readable. `reached`: what the pipeline has applied.
    pub(crate) fn check(&self, database: &str, reached: Option<Lsn>) -> Result<()> {
        let name = &self.name;
        if let Some(reason) = &self.invalid {
            let why = why_invalid(reason);
            let lost = match reached {
                Some(reached) => format!(
                    "this pipeline has applied the changes through {reached}; what was committed after that, through \
                     {}, is lost to it",
                    self.end
                ),
                None => "the changes that it had not given yet are lost to it".to_owned(),
            };
            return Err(Error::fatal(format!("the server has invalidated the slot {name}: {why}. {lost}")).hint(
                format!(
                    "raise the limit, and drop the slot: SELECT pg_drop_replication_slot({}); then give the pipeline \
                 another pipeline.name, and either set source.snapshot = \"never\", run it, and let `anabranch verify \
                 FILE --repair` put what was missed into the target; or empty the target's tables and copy them again",
                    sql::literal(name)
                ),
            ));
        }
        if self.plugin != "pgoutput" {
            return Err(Error::config(
                "source.slot",
                format!("{name} uses the plugin {:?}, not pgoutput", self.plugin),
            )
            .hint("name another slot: it is created"));
        }
        if self.database != database {
            return Err(Error::config(
                "source.slot",
                format!("{name} belongs to the database {}, and source.url names {database}", self.database),
            )
            .hint("name another slot, or the slot's database"));
        }
        Ok(())
    }

    /// Whether everything after `from` is still to come.
    pub(crate) fn check_reaches(&self, from: Option<Lsn>) -> Result<()> {
        let Some(from) = from.filter(|from| self.confirmed_flush > *from) else { return Ok(()) };
        Err(Error::fatal(format!(
            "the slot {} begins at {}, and this pipeline has applied the changes through {from}: those between were \
             consumed by somebody else, or the slot was created anew. They cannot be read any more",
            self.name, self.confirmed_flush
        ))
        .hint("find out who else reads this slot; then copy the tables again with a fresh checkpoint, or compare and repair"))
    }
}

/// What to do when every slot is in use.
pub(crate) const FREE_A_SLOT: &str = "drop unused slots (SELECT slot_name FROM pg_replication_slots WHERE NOT active), \
     or ALTER SYSTEM SET max_replication_slots = 20; and restart the server";

/// Whether the server has room for one more slot.
pub(crate) async fn check_free(client: &Client) -> Result<()> {
    let row = client
        .query_one(
            "SELECT count(*) < current_setting('max_replication_slots')::int8, count(*) FROM pg_replication_slots",
            &[],
        )
        .await
        .map_err(|e| classify(e, "cannot read pg_replication_slots"))?;
    if row.get(0) {
        return Ok(());
    }
    let count: i64 = row.get(1);
    Err(Error::config("source.slot", format!("all {count} slots that max_replication_slots allows are in use"))
        .hint(FREE_A_SLOT))
}

/// There is no such slot, though there should be.
pub(crate) fn missing(name: &str, from: Option<Lsn>) -> Error {
    match from {
        Some(from) => Error::fatal(format!(
            "the slot {name} does not exist any more. This pipeline has applied the changes through {from}; later ones \
             that were made while there was no slot cannot be read"
        ))
        .hint("it was dropped, or a standby without it was promoted; copy the tables again with a fresh checkpoint"),
        None => Error::config("source.slot", format!("there is no slot {name}"))
            .hint(format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput');", sql::literal(name))),
    }
}

/// Held, safe, now, unread; and the seconds left to a slot that nobody reads, from PostgreSQL 18 on
/// (`idle_replication_slot_timeout`).
const RETENTION: &str = "
SELECT pg_wal_lsn_diff(e.lsn, s.restart_lsn)::int8, s.safe_wal_size,
       (extract(epoch FROM clock_timestamp()) * 1000000)::int8, pg_wal_lsn_diff(e.lsn, s.confirmed_flush_lsn)::int8,
       (SELECT g.setting::float8 * CASE g.unit WHEN 'min' THEN 60 WHEN 'ms' THEN 0.001 ELSE 1 END
               - extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8
        FROM pg_settings g WHERE g.name = 'idle_replication_slot_timeout' AND g.setting <> '0' AND NOT s.active)
FROM pg_replication_slots s,
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END) e(lsn)
WHERE s.slot_name = $1";

/// How much log the server keeps for the slot, and how much more it would.
pub(crate) async fn retention(client: &Client, name: &str) -> Result<RetentionLeft> {
    let row = client
        .query_opt(RETENTION, &[&name])
        .await
        .map_err(|e| classify(e, "cannot read pg_replication_slots"))?
        .ok_or_else(|| missing(name, None))?;
    let bytes = |at: usize| row.get::<_, Option<i64>>(at).map(|v| u64::try_from(v).unwrap_or(0));
    let lost = read(client, name).await?.and_then(|slot| slot.invalid);
    Ok(RetentionLeft {
        held_bytes: bytes(0),
        bytes: if lost.is_some() { Some(0) } else { bytes(1) },
        seconds: row.get::<_, Option<f64>>(4).map(|left| left.max(0.0)),
        unread_bytes: bytes(3),
        lost: lost.map(|reason| format!("the slot {name}: {}", why_invalid(&reason))),
        at: Some(Timestamp::from_micros(row.get(2))),
        ..RetentionLeft::default()
    })
}
