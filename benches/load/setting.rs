//! What a run is made of: its size, its servers, its table.

use anabranch_servers::{MariaOptions, MariaServer, PgOptions, PgServer, PgVersion, find};

use crate::Result;

/// A number from the environment.
pub(crate) fn size(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.replace('_', "").parse().map_err(|e| format!("{name}: {e}").into()),
        Err(_) => Ok(default),
    }
}

/// Whether `BENCH_ONLY` has this contender, or is not there.
pub(crate) fn wanted(contender: &str) -> bool {
    std::env::var("BENCH_ONLY").map_or(true, |only| only.split(',').any(|name| name == contender))
}

/// A source and a target, of PostgreSQL 18 where it is installed. `None`, said why, if there is none.
pub(crate) fn servers() -> Result<Option<(PgServer, PgServer)>> {
    let version = if find::postgres(PgVersion::V18).is_some() { PgVersion::V18 } else { PgVersion::Any };
    let start = || {
        // Large enough that no checkpoint falls into a run, and the table stays in memory.
        let options = PgOptions::new(version).setting("shared_buffers", "512MB").setting("max_wal_size", "64GB");
        let options = options.setting("checkpoint_timeout", "1h").setting("autovacuum", "off");
        options.setting("max_sync_workers_per_subscription", "4").setting("max_worker_processes", "16").start()
    };
    match (start()?, start()?) {
        (Some(source), Some(target)) => Ok(Some((source, target))),
        _ => Ok(None),
    }
}

/// A MariaDB with one database, if it is installed.
pub(crate) fn mariadb() -> Result<Option<MariaServer>> {
    let options = MariaOptions::new().setting("innodb-buffer-pool-size", "512M");
    let Some(server) = options.setting("innodb-log-file-size", "1G").start()? else { return Ok(None) };
    server.exec("", "CREATE DATABASE bench")?;
    Ok(Some(server))
}

/// `PostgreSQL 18.1`
pub(crate) fn version(server: &PgServer) -> Result<String> {
    let version = server.value("postgres", "SHOW server_version")?.unwrap_or_default();
    Ok(format!("PostgreSQL {version}"))
}

/// Rows of about 90 bytes, as an application writes them.
pub(crate) const TABLE: &str = "CREATE TABLE bench (
    id bigint PRIMARY KEY, account integer NOT NULL, amount numeric(12, 2) NOT NULL,
    note text NOT NULL, changed_at timestamptz NOT NULL)";

/// The columns of a row whose id is `id`, as a select list.
pub(crate) const ROW: &str = "id, (id % 100000)::int, (id % 1000000) / 100.0, \
    'order ' || md5(id::text), timestamptz '2024-01-01 00:00:00Z' + id * interval '1 second'";

/// A publication, and a slot for each contender.
pub(crate) fn publish(source: &PgServer, db: &str, slots: &[&str]) -> Result<()> {
    source.exec(db, "CREATE PUBLICATION bench FOR ALL TABLES")?;
    for slot in slots {
        source.exec(db, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"))?;
    }
    Ok(())
}

/// Lets a slot, and the log that it keeps, go.
pub(crate) fn drop_slot(source: &PgServer, slot: &str) -> Result<()> {
    // The server's side of a connection that ended may take a moment to notice.
    let held = format!(
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
    );
    source.exec("postgres", &held)?;
    source.exec("postgres", &format!("SELECT pg_drop_replication_slot('{slot}')"))?;
    Ok(())
}
