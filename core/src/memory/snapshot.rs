//! Copies the tables of a [`MemorySource`].

use std::sync::Arc;

use async_trait::async_trait;

use super::source::{MemorySource, position, prefix};
use super::tables::{MemoryTables, Row};
use crate::error::{Error, Result};
use crate::model::{BatchBuilder, Op, PartitionId, Position, TableSchema, Transaction};
use crate::source::{ChangeReader, Chunk, Next, Snapshot, Snapshotter};

#[async_trait]
impl Snapshotter for MemorySource {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let log = self.log();
        let copy = log.tables.clone();
        let point = position(log.transactions.len() as u64);
        drop(log);
        let mut chunks = Vec::new();
        for table in tables {
            let rows = copy.rows(&table.name).len();
            // An empty table has one empty chunk, so that it counts as copied.
            for (index, from) in (0..rows.max(1)).step_by(self.chunk_rows).enumerate() {
                let token = from.to_string();
                let rows = Some((rows - from).min(self.chunk_rows) as u64);
                chunks.push(Chunk { table: table.name.clone(), index: index as u32, token, rows });
            }
        }
        Ok(Box::new(MemorySnapshot { copy, point, chunks, source: self.clone() }))
    }
}

struct MemorySnapshot {
    copy: MemoryTables,
    point: Position,
    chunks: Vec<Chunk>,
    source: MemorySource,
}

#[async_trait]
impl Snapshot for MemorySnapshot {
    fn point(&self) -> Position {
        self.point.clone()
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let table = self.copy.table(&chunk.table).filter(|_| self.chunks.contains(chunk));
        let table = table.ok_or_else(|| Error::fatal(format!("{chunk:?} is no chunk of this snapshot")))?;
        let from = chunk.token.parse().map_err(|e| Error::fatal("the chunk is damaged").because(e))?;
        let rows: Vec<Row> = table.rows.values().skip(from).take(self.source.chunk_rows).cloned().collect();
        Ok(Box::new(ChunkReader {
            partition: PartitionId::new(format!("{}#{}", chunk.table, chunk.index)),
            schema: Arc::clone(&table.schema),
            rows,
            given: 0,
            batch_rows: self.source.batch_changes,
        }))
    }
}

struct ChunkReader {
    partition: PartitionId,
    schema: Arc<TableSchema>,
    rows: Vec<Row>,
    given: usize,
    batch_rows: usize,
}

#[async_trait]
impl ChangeReader for ChunkReader {
    async fn next(&mut self) -> Result<Next> {
        if self.given == self.rows.len() {
            return Ok(Next::Closed { children: Vec::new() });
        }
        let rows = self.rows.iter().skip(self.given).take(self.batch_rows);
        let mut batch = BatchBuilder::new(self.partition.clone());
        let number = self.given as u64 + 1;
        batch.begin(Transaction { rank: prefix(number).to_vec().into(), ..Transaction::default() }, 1);
        let schema = batch.schema(&self.schema);
        for row in rows {
            batch.change(Op::Insert, schema);
            batch.new_row();
            row.iter().for_each(|value| batch.push(value.as_ref()));
        }
        self.given += batch.len();
        batch.commit(position(number));
        batch.finish(position(number), None).map(Next::Batch)
    }

    async fn acknowledge(&mut self, _through: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
