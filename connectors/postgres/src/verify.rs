//! Reads rows, of a source and of a target, for a comparison.

use std::sync::Arc;

use anabranch_core::{
    ChangeBatch, ChangeReader, Error, Next, PartitionId, Result, RowReader, TableSchema, Value, Verifier,
};
use async_trait::async_trait;
use tokio_postgres::Client;

use crate::error::classify;
use crate::session;
use crate::sink::{PostgresSink, table};
use crate::snapshot::LEAVES;
use crate::snapshot::chunk::ChunkReader;
use crate::source::Postgres;
use crate::sql;

/// The rows that the publication has: its row filters hold, and a partitioned table is its leaves.
#[async_trait]
impl Verifier for Postgres {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let published = self.catalog().await?.into_iter().find(|t| t.schema.name == table.name);
        let published =
            published.ok_or_else(|| Error::config("source.publication", format!("it has no table {}", table.name)))?;
        let client = session::open(self.session()?.endpoint(), "anabranch verify").await?;
        let leaves = client
            .query(LEAVES, &[&published.oid])
            .await
            .map_err(|e| classify(e, &format!("cannot read {}", table.name)))?;
        let mut conditions: Vec<String> = published.filter.iter().map(|filter| format!("({filter})")).collect();
        let native = |name: &str| {
            let column = published.schema.columns.iter().find(|c| c.name == name);
            column.map_or_else(|| "text".to_owned(), |c| c.native.clone())
        };
        conditions.extend(keys.map(|keys| condition(table, keys, native)));
        let place = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        let columns = columns(table);
        let each: Vec<String> = leaves
            .iter()
            .map(|row| {
                let leaf = anabranch_core::TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
                format!("SELECT {columns} FROM ONLY {}{place}", sql::table(&leaf))
            })
            .collect();
        read(client, table, &each.join(" UNION ALL ")).await
    }
}

#[async_trait]
impl Verifier for PostgresSink {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let endpoint = self.endpoint()?;
        // Found as the writers find it, by the user's own search path.
        let found = {
            let client = endpoint.connect("anabranch verify").await?;
            table::Table::read(&client, &table.name).await?.ok_or_else(|| table::missing(&table.name))?
        };
        let client = session::open(&endpoint, "anabranch verify").await?;
        let native = |name: &str| {
            let column = found.columns.iter().find(|c| c.name == name);
            column.map_or_else(|| "text".to_owned(), |c| c.base.clone())
        };
        let place = keys.map_or_else(String::new, |keys| format!(" WHERE {}", condition(table, keys, native)));
        read(client, table, &format!("SELECT {} FROM {}{place}", columns(table), found.rows())).await
    }
}

fn columns(table: &TableSchema) -> String {
    let columns: Vec<String> = table.columns.iter().map(|c| sql::ident(&c.name)).collect();
    columns.join(", ")
}

/// One statement: it reads under one snapshot.
async fn read(client: Client, table: &TableSchema, select: &str) -> Result<Box<dyn RowReader>> {
    let what = format!("cannot read {}", table.name);
    let copy = format!("COPY ({select}) TO STDOUT");
    let schema = Arc::new(table.clone());
    Ok(Box::new(Rows(ChunkReader::start(client, &copy, &schema, PartitionId::new("rows"), what).await?)))
}

struct Rows(ChunkReader);

#[async_trait]
impl RowReader for Rows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        match self.0.next().await? {
            Next::Batch(batch) => Ok(Some(batch)),
            Next::Closed { .. } | Next::Stopped => Ok(None),
        }
    }
}

/// The rows with one of these keys, whose columns have the types that `native` tells.
pub(crate) fn condition(table: &TableSchema, keys: &[Vec<Value>], native: impl Fn(&str) -> String) -> String {
    if keys.is_empty() {
        return "false".to_owned();
    }
    let names: Vec<String> = table.key_columns().map(|c| sql::ident(&c.name)).collect();
    let types: Vec<String> = table.key_columns().map(|c| native(&c.name)).collect();
    let row = |key: &Vec<Value>| {
        let values: Vec<String> = key.iter().zip(&types).map(|(v, native)| literal(v, native)).collect();
        format!("({})", values.join(", "))
    };
    let rows: Vec<String> = keys.iter().map(row).collect();
    format!("({}) IN (VALUES {})", names.join(", "), rows.join(", "))
}

fn literal(value: &Value, native: &str) -> String {
    let text = match value {
        Value::Null | Value::Unchanged => return format!("NULL::{native}"),
        Value::Bool(v) => v.to_string(),
        Value::Int(v) => v.to_string(),
        Value::Float(v) => v.to_string(),
        Value::Text(v) => v.clone(),
        Value::Bytes(v) => v.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    };
    format!("{}::{native}", sql::literal(&text))
}
