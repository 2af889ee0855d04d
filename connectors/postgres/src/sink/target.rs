//! The target's tables: described, created, emptied.

use std::sync::Arc;

use anabranch_core::{
    Column, Contract, DataType, Error, Fidelity, Result, TableName, TableSchema, TargetSchema, TargetTable,
};
use async_trait::async_trait;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Shared;
use super::contract::contract;
use super::rights;
use super::session::Session;
use super::table::{self, Identity, Table};
use crate::error::classify;
use crate::sql::ident;

/// The target's tables.
#[derive(Debug)]
pub(crate) struct Target {
    shared: Arc<Shared>,
    session: tokio::sync::Mutex<Option<Session>>,
}

impl Target {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, session: tokio::sync::Mutex::new(None) }
    }

    /// A session of its own; held while it is used, for its search path changes on the way.
    async fn session(&self) -> Result<tokio::sync::MutexGuard<'_, Option<Session>>> {
        let mut session = self.session.lock().await;
        if session.as_ref().is_none_or(|s| s.client.is_closed()) {
            let (endpoint, key) = (self.shared.store.endpoint()?, self.shared.store.key());
            let opened = Session::open(&endpoint, key, &self.shared.options, "anabranch-sink/target", None);
            *session = Some(opened.await?);
        }
        Ok(session)
    }

    async fn table(&self, client: &Client, name: &TableName) -> Result<Table> {
        table::read_qualified(client, name).await?.ok_or_else(|| table::missing(name))
    }
}

/// What `session()` has just made sure of.
fn client(session: &Option<Session>) -> Result<(&Client, bool)> {
    session.as_ref().map(|s| (&*s.client, s.replica)).ok_or_else(|| Error::transient("the connection is gone"))
}

/// Triggers on DELETE, whose type has the bit 8 (`pg_trigger.h`), of a table and its partitions; those of
/// foreign keys, which belong to the table that is referred to, among them.
const ACTING_ON_DELETE: &str = "
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_trigger t
  WHERE (t.tgrelid = $1::text::regclass
         OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::text::regclass)))
    AND t.tgtype & 8 <> 0 AND t.tgenabled::text = ANY ($2))";

#[async_trait]
impl TargetSchema for Target {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        let session = self.session().await?;
        let (client, replica) = client(&session)?;
        self.shared.store.check_rights(client).await?;
        let found = table::read_qualified(client, name).await?;
        if let Some(table) = &found {
            rights::check(client, self.shared.store.key(), table).await?;
            keeps_rows(table)?;
        }
        Ok(found.map(|t| described(&t, replica)))
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        contract(column, existing)
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        create_table(table)
    }

    async fn may_create(&self, table: &TableSchema) -> Result<()> {
        let session = self.session().await?;
        let (client, _) = client(&session)?;
        rights::check_create(client, self.shared.store.key(), table).await
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let statement = create_table(table)?;
        let session = self.session().await?;
        let (client, _) = client(&session)?;
        let mut sql = String::from("BEGIN;");
        sql.push_str(&missing_schema(client, &ident(&table.name.schema)).await?);
        let mut enums: Vec<&str> = Vec::new();
        for column in &table.columns {
            let native = column.native.trim_end_matches("[]");
            if !enums.contains(&native) {
                sql.push_str(&missing_enum(client, column).await?);
                enums.push(native);
            }
        }
        sql.push_str(&statement);
        sql.push_str(";COMMIT");
        let Err(error) = client.batch_execute(&sql).await else { return Ok(()) };
        _ = client.batch_execute("ROLLBACK").await;
        let denied = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        let error = classify(error, &format!("cannot create target table {}", table.name));
        Err(if denied { error.hint(format!("run as a user who may: {statement}")) } else { error })
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        let session = self.session().await?;
        let (client, _) = client(&session)?;
        let table = self.table(client, name).await?.rows();
        let Err(error) = client.batch_execute(&format!("TRUNCATE {table}")).await else { return Ok(()) };
        // Another table refers to it, the right is missing, or it is a view.
        let code = error.code().cloned();
        let refused = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INSUFFICIENT_PRIVILEGE, SqlState::WRONG_OBJECT_TYPE];
        if !code.is_some_and(|c| refused.contains(&c)) {
            return Err(classify(error, &format!("cannot empty target table {name}")));
        }
        client
            .batch_execute(&format!("DELETE FROM {table}"))
            .await
            .map_err(|e| classify(e, &format!("cannot empty target table {name}")))
    }

    /// No foreign key that refers to the table, and no trigger, may act on a delete.
    async fn resumes_copies(&self, name: &TableName) -> Result<bool> {
        let session = self.session().await?;
        let (client, replica) = client(&session)?;
        let table = self.table(client, name).await?.sql();
        let acts = if replica { ["R", "A"] } else { ["O", "A"] };
        let what = |e| classify(e, &format!("cannot read the triggers of target table {name}"));
        let row = client.query_one(ACTING_ON_DELETE, &[&table, &acts.as_slice()]).await.map_err(what)?;
        Ok(!row.get::<_, bool>(0))
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        let session = self.session().await?;
        let (client, _) = client(&session)?;
        let table = self.table(client, name).await?.rows();
        let row = client
            .query_one(&format!("SELECT NOT EXISTS (SELECT FROM {table})"), &[])
            .await
            .map_err(|e| classify(e, &format!("cannot read target table {name}")))?;
        Ok(row.get(0))
    }
}

/// What is reported as durable must outlive a crash.
fn keeps_rows(table: &Table) -> Result<()> {
    if !table.unlogged {
        return Ok(());
    }
    let problem =
        "is UNLOGGED, or has a partition that is: a crash of the server empties it, and its rows do not come again";
    Err(Error::config(format!("target table {}", table.name), problem)
        .hint(format!("run on the target: ALTER TABLE {} SET LOGGED; and on such partitions", table.sql())))
}

fn described(table: &Table, replica: bool) -> TargetTable {
    let key = table.unique.iter().find(|u| u.primary);
    let columns = table
        .columns
        .iter()
        .map(|c| Column {
            name: c.name.clone(),
            data_type: c.data_type.clone(),
            native: c.native.clone(),
            nullable: !c.not_null,
            generated: c.generated,
        })
        .collect();
    let key: Vec<u16> =
        key.map(|k| k.columns.iter().filter_map(|c| table.index_of(c)).map(|i| i as u16).collect()).unwrap_or_default();
    TargetTable {
        warnings: warnings(table, &key, replica),
        schema: TableSchema { name: table.name.clone(), columns, key },
        unique: table.unique.iter().filter(|u| !u.primary).map(|u| u.columns.clone()).collect(),
        references: table.references.iter().map(|(_, name)| name.clone()).collect(),
        required: table.columns.iter().filter(|c| c.is_required()).map(|c| c.name.clone()).collect(),
    }
}

fn warnings(table: &Table, key: &[u16], replica: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    for trigger in table.triggers.iter().filter(|t| if replica { t.on_replica } else { t.on_origin }) {
        warnings.push(match replica {
            true => format!("trigger {} is ENABLE REPLICA or ALWAYS and will fire for replicated rows", trigger.name),
            false => format!(
                "trigger {} will fire for replicated rows: the user may not set session_replication_role",
                trigger.name
            ),
        });
    }
    for rule in &table.rules {
        warnings.push(format!("rule {rule} may rewrite replicated changes"));
    }
    if !replica && (!table.references.is_empty() || table.referenced) {
        warnings.push(
            "foreign keys are checked for replicated rows: the user may not set session_replication_role".to_owned(),
        );
    }
    let in_key = |name: &String| table.unique.iter().any(|index| index.columns.contains(name));
    for column in table.columns.iter().filter(|c| c.loose && in_key(&c.name)) {
        warnings.push(format!(
            "key column {} ({}) takes some different texts for equal: rows that it does not tell apart are refused",
            column.name, column.native
        ));
    }
    for (i, column) in table.columns.iter().enumerate() {
        if column.identity == Some(Identity::Always) && !key.contains(&(i as u16)) {
            warnings.push(format!(
                "column {} is GENERATED ALWAYS AS IDENTITY and outside the key: a change of its value is not replicated",
                column.name
            ));
        }
    }
    warnings
}

fn create_table(table: &TableSchema) -> Result<String> {
    let name = match table.name.schema.as_str() {
        "" => ident(&table.name.name),
        schema => format!("{}.{}", ident(schema), ident(&table.name.name)),
    };
    let mut lines = Vec::with_capacity(table.columns.len() + 1);
    // What computes a generated column is not known here: it is left out, and not replicated.
    for (i, column) in table.columns.iter().enumerate().filter(|(_, c)| !c.generated) {
        let contract = contract(column, None);
        if contract.fidelity == Fidelity::Unsupported {
            return Err(Error::config(
                format!("column {} of source table {}", column.name, table.name),
                format!("PostgreSQL has no type for {}", column.native),
            ));
        }
        let null = if !column.nullable || table.is_key(i) { " NOT NULL" } else { "" };
        lines.push(format!("    {} {}{null}", ident(&column.name), contract.native));
    }
    if !table.key.is_empty() {
        let key: Vec<String> = table.key_columns().map(|c| ident(&c.name)).collect();
        lines.push(format!("    PRIMARY KEY ({})", key.join(", ")));
    }
    Ok(format!("CREATE TABLE {name} (\n{}\n)", lines.join(",\n")))
}

/// The statement that creates the schema with this quoted name, if the target does not have it.
async fn missing_schema(client: &Client, schema: &str) -> Result<String> {
    if schema == "\"\"" {
        return Ok(String::new());
    }
    let row = client
        .query_one("SELECT to_regnamespace($1) IS NULL", &[&schema])
        .await
        .map_err(|e| classify(e, "cannot read the target's catalog"))?;
    Ok(if row.get(0) { format!("CREATE SCHEMA IF NOT EXISTS {schema};") } else { String::new() })
}

/// The statement that creates a column's enumeration, if the target does not have it.
async fn missing_enum(client: &Client, column: &Column) -> Result<String> {
    let mut data_type = &column.data_type;
    while let DataType::Array(of) = data_type {
        data_type = of;
    }
    let DataType::Enum { labels } = data_type else { return Ok(String::new()) };
    let native = contract(column, None).native.trim_end_matches("[]").to_owned();
    if native == "text" || labels.is_empty() {
        return Ok(String::new());
    }
    let row = client
        .query_one("SELECT to_regtype($1) IS NULL", &[&native])
        .await
        .map_err(|e| classify(e, "cannot read the target's catalog"))?;
    if !row.get::<_, bool>(0) {
        return Ok(String::new());
    }
    let schema = match native.rsplit_once('.') {
        Some((schema, _)) => missing_schema(client, schema).await?,
        None => String::new(),
    };
    let labels: Vec<String> = labels.iter().map(|l| format!("'{}'", l.replace('\'', "''"))).collect();
    Ok(format!("{schema}CREATE TYPE {native} AS ENUM ({});", labels.join(", ")))
}
