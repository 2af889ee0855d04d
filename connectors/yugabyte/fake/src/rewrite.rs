//! Statements: passed on, answered in YugabyteDB's stead, or refused as it refuses them.

use crate::slots::{Slot, State};
use crate::{Shared, walsender};

/// What YSQL does not have, or not by default (YugabyteDB's manual, "PostgreSQL compatibility", "CDC: limitations",
/// and the issues of its repository), and what it says then.
const LACKING: [(&str, &str); 14] = [
    ("pg_logical_emit_message", "pg_logical_emit_message is not supported"),
    ("pg_current_wal", "pg_current_wal_lsn is not supported"),
    ("pg_last_wal", "pg_last_wal_replay_lsn is not supported"),
    ("pg_wal_lsn_diff", "pg_wal_lsn_diff is not supported"),
    ("pg_logical_slot_", "pg_logical_slot_get_changes is not supported"),
    ("pg_replication_slot_advance", "pg_replication_slot_advance is not supported"),
    ("pg_create_logical_replication_slot", "slots are created by the walsender in these tests"),
    ("txid_current", "txid_current is not supported"),
    ("pg_advisory", "advisory locks feature is currently in preview"),
    ("lock table", "ROW EXCLUSIVE not supported yet"),
    ("pg_export_snapshot", "pg_export_snapshot is not supported"),
    ("set transaction snapshot", "SET TRANSACTION SNAPSHOT is not supported"),
    ("pg_replication_origin", "replication origins are not asked for"),
    ("savepoint truncating", "TRUNCATE is not undone with its transaction"),
];

/// The statement for PostgreSQL.
pub(crate) async fn rewrite(shared: &Shared, database: &str, application: &str, sql: &str) -> String {
    let small = sql.to_ascii_lowercase();
    if let Some((_, message)) = LACKING.iter().find(|(text, _)| small.contains(text)) {
        return refuse(shared, sql, message);
    }
    if names_ctid(&small) {
        return refuse(shared, sql, "System column \"ctid\" is not supported yet");
    }
    let writes = ["anabranch-sink/stream", "anabranch-sink/snapshot"].iter().any(|a| application.starts_with(a));
    // BEGIN asks the storage layer for nothing, and cannot fail there; a transaction that is going back
    // has failed already.
    if writes
        && !["begin", "rollback"].iter().any(|s| small.starts_with(s))
        && let Some(refusal) = shared.state().inject(shared.options.refuse_one_of)
    {
        // A commit that fails ends the transaction all the same.
        return if small == "commit" { format!("ROLLBACK; {refusal}") } else { refusal };
    }
    let mut sql = sql
        .replace("SELECT version()", &format!("SELECT '{}'::text", shared.options.version))
        .replace("c.relreplident", "pg_catalog.relreplident(c.oid)")
        .replace("ybctid", "ctid");
    if sql.contains("pg_replication_slots s") {
        sql = sql.replace("pg_replication_slots s", &format!("({}) s", slots(&shared.state())));
    }
    if sql.contains("yb_get_current_hybrid_time_lsn()") {
        let now = match walsender::present(shared, database).await {
            Ok(now) => now,
            Err(e) => return refuse(shared, &sql, &e.to_string()),
        };
        sql = sql.replace("yb_get_current_hybrid_time_lsn()", &format!("({now})::bigint"));
    }
    match sql.trim().strip_prefix("SET LOCAL yb_read_time TO '").and_then(|rest| rest.strip_suffix(" ht'")) {
        Some(time) => read_time(shared, &sql, time),
        None => sql,
    }
}

fn refuse(shared: &Shared, sql: &str, message: &str) -> String {
    let mut state = shared.state();
    state.refused.push(sql.to_owned());
    state.refusal("0A000", message)
}

fn read_time(shared: &Shared, sql: &str, time: &str) -> String {
    let mut state = shared.state();
    let snapshot = time.parse::<u64>().ok().and_then(|time| state.snapshots.get(&(time >> 12)));
    match snapshot {
        Some(snapshot) => {
            format!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", snapshot.name)
        }
        None => {
            state.refused.push(sql.to_owned());
            state.refusal("72000", &format!("Snapshot too old. Read point: {time}"))
        }
    }
}

/// Without its prefix `yb`.
fn names_ctid(sql: &str) -> bool {
    let bytes = sql.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    sql.match_indices("ctid").any(|(at, _)| {
        let before = at.checked_sub(1).is_some_and(|i| is_word(bytes[i]));
        let after = bytes.get(at + 4).is_some_and(|b| is_word(*b));
        !before && !after
    })
}

/// The columns of `pg_replication_slots` in version 2025.2.
fn slots(state: &State) -> String {
    let row = |(name, slot): (&String, &Slot)| {
        let (high, low) = (slot.confirmed >> 32, slot.confirmed & 0xffff_ffff);
        format!(
            "SELECT '{name}'::name AS slot_name, '{}'::name AS plugin, 'logical'::text AS slot_type, \
             '{}'::name AS database, false AS temporary, true AS active, NULL::int4 AS active_pid, \
             '{high:X}/{low:X}'::pg_lsn AS confirmed_flush_lsn, '{high:X}/{low:X}'::pg_lsn AS restart_lsn, \
             '{}'::text AS wal_status, 'stream {}'::text AS yb_stream_id, {}::int8 AS yb_restart_commit_ht, \
             '{}'::text AS yb_lsn_type",
            slot.plugin,
            slot.database,
            if slot.expired { "lost" } else { "reserved" },
            slot.stream,
            slot.restart,
            if slot.hybrid { "HYBRID_TIME" } else { "SEQUENCE" },
        )
    };
    let rows: Vec<String> = state.slots.iter().map(row).collect();
    match rows.is_empty() {
        true => "SELECT NULL::name AS slot_name WHERE false".to_owned(),
        false => rows.join(" UNION ALL "),
    }
}

#[cfg(test)]
mod tests {
    use super::names_ctid;

    #[test]
    fn only_the_system_column_is_found() {
        assert!(names_ctid("select t.ctid from t"));
        assert!(names_ctid("ctid"));
        assert!(!names_ctid("select t.ybctid, my_ctid, ctids from t"));
    }
}
