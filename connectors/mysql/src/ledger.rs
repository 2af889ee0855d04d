//! The version of every row, in a table beside its own, written in the same transaction: an equal or
//! newer row wins, whoever wrote it.
//!
//! ```text
//! shadow_orders   order_id | anabranch_commit_time | anabranch_transaction | anabranch_sequence
//!                          | anabranch_deleted     | anabranch_slot
//! ```
//!
//! For many rows at a time: the ledger's rows are made where they are missing and locked, which two
//! writers of one row do one after another; read; and written with the new versions.

use std::collections::HashSet;

use anabranch_core::versions::{Fresh, RowVersion, Versions};
use anabranch_core::{Error, Lane, Result, TableSchema, Unit};
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Row, Value};

use crate::apply::Plans;
use crate::connection::{Connector, Link};
use crate::error::{Failure, Phase};
use crate::literal::{Rendered, push_sql, quote};
use crate::plan::Plan;
use crate::progress::update_lane;
use crate::script::{Expect, Script};
use crate::target::Target;

/// Rows that are locked, read and written together.
const TOGETHER: usize = 500;

/// Longest name of a table, of both servers.
const MAX_NAME: usize = 64;

/// The ledgers of one writer.
#[derive(Debug)]
pub(crate) struct Ledgers {
    prefix: String,
    /// Tables whose ledger is there.
    made: HashSet<String>,
}

impl Ledgers {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix, made: HashSet::new() }
    }

    fn name(&self, table: &str) -> Result<String> {
        let name = format!("{}{table}", self.prefix);
        if name.chars().count() > MAX_NAME {
            let problem =
                format!("the table of versions of {table} would have a name of more than {MAX_NAME} characters");
            return Err(Error::config("sink.versions_prefix", problem).hint("choose a shorter prefix"));
        }
        Ok(name)
    }

    /// Makes the ledgers of the unit's tables, on a connection of their own: to create a table ends a
    /// transaction.
    pub(crate) async fn prepare(&mut self, connector: &Connector, unit: &Unit) -> Result<()> {
        for change in unit.changes() {
            let Some(schema) = change.table() else { continue };
            let table = &schema.name.name;
            if schema.key.is_empty() || self.made.contains(table) {
                continue;
            }
            let name = self.name(table)?;
            let mut link = connector.connect().await?;
            create(&mut link, &name, schema).await.map_err(|f| f.into_error(Phase::Statement))?;
            let _ = link.conn.disconnect().await;
            self.made.insert(table.clone());
        }
        Ok(())
    }

    /// The unit without what is stale. The versions of what is left are written, and what is stale is
    /// counted, in the open transaction.
    pub(crate) async fn fresh(
        &self,
        script: &mut Script<'_>,
        plans: &Plans,
        lane: &Lane,
        unit: &Unit,
    ) -> Result<Fresh, Failure> {
        let mut versions = Versions::of(unit)?;
        let tables: Vec<_> = versions.tables().collect();
        for &(at, schema) in &tables {
            let plan = plans.of(schema)?;
            let ledger = quote(&self.name(&schema.name.name)?);
            self.read(script, &plan, &ledger, &mut versions, at).await?;
        }
        let fresh = versions.fresh()?;
        for (at, schema) in tables {
            let plan = plans.of(schema)?;
            let ledger = quote(&self.name(&schema.name.name)?);
            write(script, &plan, &ledger, &versions, at).await?;
        }
        if fresh.stale > 0 {
            update_lane(script, lane, &format!("stale=stale+{}", fresh.stale));
        }
        Ok(fresh)
    }

    /// Locks the ledger's rows and reads their versions.
    async fn read(
        &self,
        script: &mut Script<'_>,
        plan: &Plan,
        ledger: &str,
        versions: &mut Versions<'_>,
        table: usize,
    ) -> Result<(), Failure> {
        let rows: Vec<_> = versions.rows(table).collect();
        for (chunk, some) in rows.chunks(TOGETHER).enumerate() {
            script.settle().await?;
            script.begin(Some(plan), Expect::Any);
            script.sql.extend_from_slice(
                format!("INSERT INTO {ledger} ({},anabranch_slot) VALUES ", plan.key_names()).as_bytes(),
            );
            for (slot, row) in some.iter().enumerate() {
                script.sql.extend_from_slice(if slot == 0 { b"(" } else { b",(" });
                plan.push_key_values(row, &mut script.sql, &mut script.scratch)?;
                script.sql.extend_from_slice(format!(",{slot})").as_bytes());
            }
            script.sql.extend_from_slice(b" ON DUPLICATE KEY UPDATE anabranch_slot=VALUES(anabranch_slot)");
            script.end().await?;
            script.settle().await?;
            script.begin(Some(plan), Expect::Any);
            let select = format!("SELECT anabranch_slot,anabranch_transaction,anabranch_sequence FROM {ledger} WHERE ");
            script.sql.extend_from_slice(select.as_bytes());
            plan.push_keys(some, &mut script.sql, &mut script.scratch)?;
            let outcomes = script.outcomes().await?;
            let found = outcomes.last().map(|o| o.rows.as_slice()).unwrap_or_default();
            if found.len() != some.len() {
                let problem = "the keys of the source are not told apart by the target's key";
                return Err(Error::rejected(format!("table {}: {problem}", plan.name)).into());
            }
            for row in found {
                let (slot, version) = version_of(row)?;
                versions.know(table, chunk * TOGETHER + slot, version);
            }
        }
        Ok(())
    }
}

fn version_of(row: &Row) -> Result<(usize, RowVersion), Failure> {
    let damaged = || Failure::from(Error::fatal("a row of a table of versions is damaged"));
    let number = |at: usize| match row.as_ref(at) {
        Some(Value::Bytes(digits)) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Some(Value::Int(v)) => u64::try_from(*v).ok(),
        Some(Value::UInt(v)) => Some(*v),
        _ => None,
    };
    let Some(Value::Bytes(transaction)) = row.as_ref(1) else { return Err(damaged()) };
    let slot = number(0).and_then(|n| usize::try_from(n).ok()).ok_or_else(damaged)?;
    let sequence = number(2).ok_or_else(damaged)?;
    Ok((slot, RowVersion { transaction: Bytes::copy_from_slice(transaction), sequence }))
}

/// Writes the new versions.
async fn write(
    script: &mut Script<'_>,
    plan: &Plan,
    ledger: &str,
    versions: &Versions<'_>,
    table: usize,
) -> Result<(), Failure> {
    let changed: Vec<_> = versions.changed(table).collect();
    for some in changed.chunks(TOGETHER) {
        script.begin(Some(plan), Expect::Any);
        let names = "anabranch_commit_time,anabranch_transaction,anabranch_sequence,anabranch_deleted";
        let head = format!("INSERT INTO {ledger} ({},{names},anabranch_slot) VALUES ", plan.key_names());
        script.sql.extend_from_slice(head.as_bytes());
        for (n, (_, row, new)) in some.iter().enumerate() {
            script.sql.extend_from_slice(if n == 0 { b"(" } else { b",(" });
            plan.push_key_values(row, &mut script.sql, &mut script.scratch)?;
            let time = match new.commit_time {
                // Exact in microseconds; added to 1970 because FROM_UNIXTIME ends in 2038.
                Some(t) => format!("TIMESTAMPADD(MICROSECOND,{},'1970-01-01 00:00:00.000000')", t.as_micros()),
                None => "NULL".to_owned(),
            };
            script.sql.extend_from_slice(format!(",{time},").as_bytes());
            push_sql(Rendered::Bytes(&new.version.transaction), &mut script.sql);
            let rest = format!(",{},{},0)", new.version.sequence, u8::from(new.deleted));
            script.sql.extend_from_slice(rest.as_bytes());
        }
        let set: Vec<String> = names.split(',').map(|c| format!("{c}=VALUES({c})")).collect();
        script.sql.extend_from_slice(format!(" ON DUPLICATE KEY UPDATE {}", set.join(",")).as_bytes());
        script.end().await?;
    }
    Ok(())
}

/// Creates a ledger, with the key columns as the target's table has them.
async fn create(link: &mut Link, name: &str, schema: &TableSchema) -> Result<(), Failure> {
    let Some(target) = Target::describe(link, &schema.name.name).await? else { return Ok(()) };
    let mut sql = format!("CREATE TABLE IF NOT EXISTS {} (", quote(name));
    let mut key = Vec::new();
    for column in schema.key_columns() {
        let Some(there) = target.column(&column.name) else { return Ok(()) };
        sql.push_str(&format!("{} {} NOT NULL, ", quote(&column.name), there.definition()));
        key.push(quote(&column.name));
    }
    sql.push_str(&format!(
        "anabranch_commit_time datetime(6) NULL COMMENT 'in UTC', \
         anabranch_transaction varbinary(255) NOT NULL DEFAULT '', \
         anabranch_sequence bigint unsigned NOT NULL DEFAULT 0, \
         anabranch_deleted tinyint NOT NULL DEFAULT 0, \
         anabranch_slot int unsigned NOT NULL DEFAULT 0 COMMENT 'of the statement that reads it', \
         PRIMARY KEY ({})) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE={}",
        key.join(", "),
        link.server.collation
    ));
    link.conn.query_drop(sql).await?;
    Ok(())
}
