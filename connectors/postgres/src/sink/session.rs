//! A connection that is set up for writing.

use std::sync::Arc;

use anabranch_core::{Error, Result};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::origin;
use super::params::Text;
use super::{Options, Privilege};
use crate::connect::Endpoint;
use crate::error::classify;

/// Settings of a session that writes. They fix what canonical text means, keep the server from
/// giving up on a session that waits for its source, notice a dead runner within a minute, and turn
/// silent filtering of rows into an error.
const SETTINGS: [(&str, &str); 22] = [
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("lc_monetary", "C"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    // Rows are found by key, a batch at a time. The planner may have last seen the table empty, and a
    // cached plan that scans it would become slower with every row: keep to the index.
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("client_min_messages", "error"),
];

/// A connection that is set up for writing.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Arc<Client>,
    /// Triggers and foreign keys of the target do not act.
    pub(crate) replica: bool,
}

impl Session {
    /// Connects and sets up the session. `name` is what the server shows in `pg_stat_activity`;
    /// `origin` the replication origin to write under.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        key: &str,
        options: &Options,
        name: &str,
        origin: Option<&str>,
    ) -> Result<Self> {
        let client = endpoint.connect(name).await?;
        apply_settings(&client).await?;
        check_writable(&client, key).await?;
        let replica = set_replica_role(&client, options.replica_role).await?;
        if let Some(origin) = origin {
            origin::set_up(&client, options.origin, origin, name).await?;
        }
        Ok(Self { client: Arc::new(client), replica })
    }
}

async fn apply_settings(client: &Client) -> Result<()> {
    let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = SETTINGS.iter().map(|(_, value)| *value).collect();
    // Joined with what the server knows: older ones lack a few.
    let known = "SELECT set_config(s.name, v.value, false) FROM unnest($1::text[], $2::text[]) AS v(name, value) \
                 JOIN pg_catalog.pg_settings s ON s.name = v.name";
    client.execute(known, &[&names, &values]).await.map_err(|e| classify(e, "cannot set up the session"))?;
    // A unit is reported durable when its commit returns. `remote_apply` promises more: it stays.
    let durable = "SELECT set_config('synchronous_commit', 'on', false) \
                   WHERE current_setting('synchronous_commit') <> 'remote_apply'";
    client.execute(durable, &[]).await.map_err(|e| classify(e, "cannot make commits durable"))?;
    Ok(())
}

async fn check_writable(client: &Client, key: &str) -> Result<()> {
    let row = client
        .query_one("SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()", &[])
        .await
        .map_err(|e| classify(e, "cannot read the state of the server"))?;
    if row.get::<_, bool>(1) {
        return Err(Error::config(key, "the server is a standby and takes no writes").hint("name the primary"));
    }
    if row.get::<_, bool>(0) {
        return Err(Error::config(key, "the database is read-only").hint(
            "default_transaction_read_only is on: the target may be fenced; \
             ALTER DATABASE ... RESET default_transaction_read_only if it should take writes",
        ));
    }
    Ok(())
}

async fn set_replica_role(client: &Client, wanted: Privilege) -> Result<bool> {
    if wanted == Privilege::Off {
        return Ok(false);
    }
    match client.batch_execute("SET session_replication_role = replica").await {
        Ok(()) => Ok(true),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => match wanted {
            Privilege::Required => {
                Err(Error::config("sink.replica_role", "the user may not set session_replication_role").hint(
                    "run as a superuser: GRANT SET ON PARAMETER session_replication_role TO <user> (PostgreSQL 15+)",
                ))
            }
            _ => Ok(false),
        },
        Err(e) => Err(classify(e, "cannot set session_replication_role")),
    }
}

/// How long to wait for a session to end, in milliseconds: it has to roll back first.
const END_TIMEOUT: u32 = 5_000;

/// Ends sessions of this user with this application name, and waits until they are gone: of a runner
/// that is gone but whose connection the server still holds, or that has been replaced.
pub(crate) async fn terminate(client: &Client, name: &str) -> Result<()> {
    // Application names are cut to 63 bytes.
    let sql = "SELECT pg_terminate_backend(pid, $2::bigint) FROM pg_stat_activity \
               WHERE application_name = left($1::text, 63) AND usename = current_user \
               AND datname = current_database() AND pid <> pg_backend_pid()";
    let what = |e| classify(e, "cannot end the previous session");
    let statement = client.prepare(sql).await.map_err(what)?;
    client.execute_raw(&statement, [Text::of(name), Text::of(END_TIMEOUT)]).await.map_err(what)?;
    Ok(())
}
