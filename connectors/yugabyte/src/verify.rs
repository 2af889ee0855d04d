//! Reads rows for a comparison.

use std::sync::Arc;

use anabranch_core::{
    ChangeBatch, ChangeReader, Error, Next, PartitionId, Result, RowReader, TableSchema, Value, Verifier,
};
use anabranch_postgres::layer::{chunk, condition, ident, table_ident};
use async_trait::async_trait;

use crate::source::Yugabyte;

/// The rows that the publication has: its row filters hold.
#[async_trait]
impl Verifier for Yugabyte {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let published = self.published().await?.into_iter().find(|t| t.schema().name == table.name);
        let published =
            published.ok_or_else(|| Error::config("source.publication", format!("it has no table {}", table.name)))?;
        let mut conditions: Vec<String> = published.filter().map(|filter| format!("({filter})")).into_iter().collect();
        conditions.extend(keys.map(|keys| condition(published.schema(), keys)));
        let place = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        let columns: Vec<String> = table.columns.iter().map(|c| ident(&c.name)).collect();
        let copy = format!("COPY (SELECT {} FROM {}{place}) TO STDOUT", columns.join(", "), table_ident(&table.name));
        let client = self.server()?.own_client("anabranch verify").await?;
        let what = format!("cannot read {}", table.name);
        Ok(Box::new(Rows(chunk(client, &copy, &Arc::new(table.clone()), PartitionId::new("rows"), what).await?)))
    }
}

struct Rows(Box<dyn ChangeReader>);

#[async_trait]
impl RowReader for Rows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        match self.0.next().await? {
            Next::Batch(batch) => Ok(Some(batch)),
            Next::Closed { .. } | Next::Stopped => Ok(None),
        }
    }
}
