//! The version of every row, in a table beside its own, written in the same transaction: an equal or
//! newer row wins, whoever wrote it.
//!
//! For many rows at a time: the ledger's rows are made where they are missing and locked, which two
//! writers of one row do one after another; read; and written with the new versions.

use std::collections::HashSet;
use std::sync::Arc;

use anabranch_core::versions::{Fresh, RowVersion, Versions};
use anabranch_core::{Error, Lane, Result, Unit};
use bytes::Bytes;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::Shared;
use super::apply::{Applier, Values};
use super::failure::Failure;
use super::params::{ArrayLiteral, Text};
use super::plan::Plan;
use crate::error::classify;
use crate::sql::ident;

/// Rows that are locked, read and written by one statement.
const TOGETHER: usize = 2_000;

/// Longest name of a table, in bytes: the server cuts what is longer (its manual, "Identifiers").
const MAX_NAME: usize = 63;

/// The ledgers of one writer.
#[derive(Debug)]
pub(crate) struct Ledgers {
    prefix: String,
    /// Tables whose ledger is there.
    made: HashSet<u32>,
}

impl Ledgers {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix, made: HashSet::new() }
    }

    /// The ledger's name, quoted: in the schema of the table.
    fn table(&self, plan: &Plan) -> Result<String> {
        let target = &plan.target.name;
        let name = format!("{}{}", self.prefix, target.name);
        if name.len() > MAX_NAME {
            let problem = format!("the table of versions of {target} would have a name of more than {MAX_NAME} bytes");
            return Err(Error::config("sink.versions_prefix", problem).hint("choose a shorter prefix"));
        }
        Ok(format!("{}.{}", ident(&target.schema), ident(&name)))
    }

    async fn create(&mut self, client: &Client, plan: &Plan) -> Result<(), Failure> {
        if self.made.contains(&plan.target.oid) {
            return Ok(());
        }
        let ledger = self.table(plan).map_err(Failure::Broken)?;
        let key = plan.key_columns();
        let columns: Vec<String> = key.iter().map(|c| format!("{} {} NOT NULL", ident(&c.name), c.native)).collect();
        let names: Vec<String> = key.iter().map(|c| ident(&c.name)).collect();
        let sql = format!(
            "SELECT pg_advisory_xact_lock(hashtext('anabranch ledger')); \
             CREATE TABLE IF NOT EXISTS {ledger} ({}, anabranch_commit_time timestamptz, \
             anabranch_transaction bytea NOT NULL DEFAULT '', anabranch_sequence bigint NOT NULL DEFAULT 0, \
             anabranch_deleted boolean NOT NULL DEFAULT false, PRIMARY KEY ({}))",
            columns.join(", "),
            names.join(", ")
        );
        client
            .batch_execute(&sql)
            .await
            .map_err(|e| Failure::Broken(classify(e, &format!("cannot create {ledger}, the table of versions"))))?;
        self.made.insert(plan.target.oid);
        Ok(())
    }

    /// Forgets which ledgers are there: one may have been made in a transaction that was rolled back.
    pub(crate) fn forget(&mut self) {
        self.made.clear();
    }

    /// The unit without what is stale. The versions of what is left are written, and what is stale is
    /// counted, in the open transaction.
    pub(crate) async fn fresh(
        &mut self,
        applier: &mut Applier<'_>,
        shared: &Shared,
        lane: &Lane,
        unit: &Unit,
    ) -> Result<Fresh, Failure> {
        // What was sent before, the fence above all, comes first.
        applier.settle().await?;
        let client = Arc::clone(applier.client);
        let mut versions = Versions::of(unit).map_err(Failure::Broken)?;
        let tables: Vec<_> = versions.tables().collect();
        for &(at, schema) in &tables {
            let plan = applier.plan(schema)?;
            self.create(&client, &plan).await?;
            self.read(&client, &plan, &mut versions, at).await?;
        }
        let fresh = versions.fresh().map_err(Failure::Broken)?;
        for (at, schema) in tables {
            let plan = applier.plan(schema)?;
            self.write(&client, &plan, &versions, at).await?;
        }
        if fresh.stale > 0 {
            let table = shared.store.table("lane");
            let sql = format!("UPDATE {table} SET stale = stale + $3 WHERE pipeline = $1 AND lane = $2");
            let parameters: [&(dyn ToSql + Sync); 3] = [&&*lane.pipeline, &(lane.index as i32), &(fresh.stale as i64)];
            client.execute(&sql, &parameters).await.map_err(|error| Failure::Refused { error, plan: None })?;
        }
        Ok(fresh)
    }

    async fn read(
        &self,
        client: &Client,
        plan: &Arc<Plan>,
        versions: &mut Versions<'_>,
        table: usize,
    ) -> Result<(), Failure> {
        let refused = |error| Failure::Refused { error, plan: Some(Arc::clone(plan)) };
        let ledger = self.table(plan).map_err(Failure::Broken)?;
        let key = plan.key_rows();
        let lock = format!(
            "INSERT INTO {ledger} AS t ({0}) SELECT {1} FROM unnest({2}) AS s({3}) \
             ON CONFLICT ({0}) DO UPDATE SET anabranch_sequence = t.anabranch_sequence",
            key.names, key.values, key.arrays, key.aliases
        );
        let select = format!(
            "SELECT s.n, t.anabranch_transaction, t.anabranch_sequence FROM {ledger} AS t, \
             unnest({}) WITH ORDINALITY AS s({}, n) WHERE {}",
            key.arrays, key.aliases, key.matches
        );
        let rows: Vec<_> = versions.rows(table).collect();
        for (chunk, some) in rows.chunks(TOGETHER).enumerate() {
            let parameters = keys(plan, some.iter());
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as _).collect();
            let statement = client.prepare(&lock).await.map_err(refused)?;
            client.execute(&statement, &parameters).await.map_err(refused)?;
            let statement = client.prepare(&select).await.map_err(refused)?;
            for row in client.query(&statement, &parameters).await.map_err(refused)? {
                let (n, transaction, sequence): (i64, Vec<u8>, i64) = (row.get(0), row.get(1), row.get(2));
                let version = RowVersion { transaction: Bytes::from(transaction), sequence: sequence as u64 };
                versions.know(table, chunk * TOGETHER + n as usize - 1, version);
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        client: &Client,
        plan: &Arc<Plan>,
        versions: &Versions<'_>,
        table: usize,
    ) -> Result<(), Failure> {
        let refused = |error| Failure::Refused { error, plan: Some(Arc::clone(plan)) };
        let ledger = self.table(plan).map_err(Failure::Broken)?;
        let key = plan.key_rows();
        let first = plan.source.key.len() + 1;
        let sql = format!(
            "INSERT INTO {ledger} AS t ({0}, anabranch_commit_time, anabranch_transaction, anabranch_sequence, \
             anabranch_deleted) \
             SELECT {1}, timestamptz 'epoch' + s.time * interval '1 microsecond', decode(s.rank, 'hex'), s.number, s.gone \
             FROM unnest({2}, ${first}::bigint[], ${3}::text[], ${4}::bigint[], ${5}::boolean[]) \
             AS s({6}, time, rank, number, gone) \
             ON CONFLICT ({0}) DO UPDATE SET anabranch_commit_time = EXCLUDED.anabranch_commit_time, \
             anabranch_transaction = EXCLUDED.anabranch_transaction, \
             anabranch_sequence = EXCLUDED.anabranch_sequence, anabranch_deleted = EXCLUDED.anabranch_deleted",
            key.names,
            key.values,
            key.arrays,
            first + 1,
            first + 2,
            first + 3,
            key.aliases
        );
        let changed: Vec<_> = versions.changed(table).collect();
        for some in changed.chunks(TOGETHER) {
            let mut parameters = keys(plan, some.iter().map(|(_, row, _)| row));
            let times: Vec<Option<i64>> = some.iter().map(|(.., new)| new.commit_time.map(|t| t.as_micros())).collect();
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let array = |texts: Vec<Option<String>>| {
                let mut array = ArrayLiteral::new();
                texts.iter().for_each(|t| array.push_text(t.as_deref(), false));
                array.finish()
            };
            parameters.push(array(times.iter().map(|t| t.map(|t| t.to_string())).collect()));
            parameters.push(array(some.iter().map(|(.., new)| Some(hex(&new.version.transaction))).collect()));
            parameters.push(array(some.iter().map(|(.., new)| Some(new.version.sequence.to_string())).collect()));
            parameters.push(array(some.iter().map(|(.., new)| Some(new.deleted.to_string())).collect()));
            let statement = client.prepare(&sql).await.map_err(refused)?;
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as _).collect();
            client.execute(&statement, &parameters).await.map_err(refused)?;
        }
        Ok(())
    }
}

/// One array for each key column.
fn keys<'r, R: Values + 'r>(plan: &Plan, rows: impl Iterator<Item = &'r R> + Clone) -> Vec<Text> {
    let mut scratch = String::new();
    let of_column = |k: &u16| {
        let mut array = ArrayLiteral::new();
        rows.clone().for_each(|row| array.push(row.value(*k), plan.encoding(*k), &mut scratch));
        array.finish()
    };
    plan.source.key.iter().map(of_column).collect()
}
