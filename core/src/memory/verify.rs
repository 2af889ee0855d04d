//! Reads the rows of a [`MemorySink`] back.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::sink::MemorySink;
use crate::error::{Error, Result};
use crate::model::{BatchBuilder, ChangeBatch, Op, PartitionId, Position, Rank, TableSchema, Transaction, Value};
use crate::verifier::{RowReader, Verifier};

#[async_trait]
impl Verifier for MemorySink {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let tables = self.tables();
        let Some(schema) = tables.schema(&table.name) else {
            return Err(Error::config(format!("target table {}", table.name), "does not exist"));
        };
        let missing = |name: &str| Error::config(format!("column {name} of {}", table.name), "does not exist");
        let places: Vec<usize> = (table.columns.iter())
            .map(|c| schema.index_of(&c.name).ok_or_else(|| missing(&c.name)))
            .collect::<Result<_>>()?;
        let rows: Vec<Vec<Value>> = (tables.rows(&table.name).iter())
            .map(|row| places.iter().map(|&i| row[i].clone()).collect::<Vec<_>>())
            .filter(|row| {
                let key: Vec<Value> = table.key.iter().map(|&k| row[usize::from(k)].clone()).collect();
                keys.is_none_or(|keys| keys.contains(&key))
            })
            .collect();
        Ok(Box::new(MemoryRows(Some(batch_of(table, &rows)?))))
    }
}

/// All at once.
struct MemoryRows(Option<ChangeBatch>);

#[async_trait]
impl RowReader for MemoryRows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        Ok(self.0.take())
    }
}

fn batch_of(table: &TableSchema, rows: &[Vec<Value>]) -> Result<ChangeBatch> {
    let mut builder = BatchBuilder::new(PartitionId::new("rows"));
    let schema = builder.schema(&Arc::new(table.clone()));
    builder.begin(Transaction { rank: Bytes::from_static(&[0; 8]), ..Transaction::default() }, 1);
    for row in rows {
        builder.change(Op::Insert, schema);
        builder.new_row();
        row.iter().for_each(|value| builder.push(value.as_ref()));
    }
    builder.finish(Position::new(Rank::of_end(&[0; 8]), Bytes::new()), None)
}
