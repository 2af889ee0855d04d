//! Copies tables as they were at one time, in the parts that Spanner cuts them into.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, ChangeReader, Chunk, Error, Next, Op, PartitionId, Position, Rank, Result, Snapshot,
    Snapshotter, TableSchema, Transaction,
};
use async_trait::async_trait;
use bytes::Bytes;

use crate::client::{BatchRead, Code, Instant, ReadAt, Row, Rows, SpannerError, Statement};
use crate::source::{Prepared, Spanner, through};
use crate::types;

/// A batch is handed on once it holds about this much, in bytes, or this many rows: what a sink writes at once.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 4096;

/// The rank of a chunk's only transaction: a reader of chunks is no partition of the stream.
const RANK: [u8; 8] = [0; 8];

#[async_trait]
impl Snapshotter for Spanner {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let prepared = self.prepared()?;
        let read = prepared.client.batch_read(ReadAt::Strong).await;
        let read = read.map_err(|e| e.into_core("cannot fix a time for the snapshot"))?;
        if read.at() < prepared.start {
            // The stream begins at the time of a server's clock, which may be ahead: what is committed between
            // this copy and that time would be in neither.
            return Err(Error::transient(format!(
                "a copy would be of {}, and the change stream is read from {} on: it is begun again",
                read.at(),
                prepared.start
            )));
        }
        let mut chunks = Vec::new();
        for table in tables {
            let statement = Statement::new(select(&prepared, table));
            let parts = read.partition(statement, prepared.chunks).await;
            let parts = parts.map_err(|e| e.into_core(format!("cannot cut the table {} into parts", table.name)))?;
            chunks.extend((0..).zip(parts).map(|(index, token)| Chunk {
                table: table.name.clone(),
                index,
                token,
                rows: None,
            }));
        }
        Ok(Box::new(PointInTime { at: read.at(), prepared, read, chunks }))
    }
}

fn select(prepared: &Prepared, table: &TableSchema) -> String {
    let columns: Vec<String> = table.columns.iter().map(|c| prepared.dialect.quoted(&c.name)).collect();
    format!("SELECT {} FROM {}", columns.join(", "), prepared.dialect.table(&table.name))
}

/// A time under which the tables are read.
struct PointInTime {
    at: Instant,
    prepared: Arc<Prepared>,
    read: Arc<dyn BatchRead>,
    chunks: Vec<Chunk>,
}

#[async_trait]
impl Snapshot for PointInTime {
    fn point(&self) -> Position {
        through(self.at)
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let table = self.prepared.tables.get(&chunk.table);
        let table = table.ok_or_else(|| Error::fatal(format!("the table {} is not watched", chunk.table)))?;
        let what = format!("cannot copy part {} of {}", chunk.index, chunk.table);
        let rows = self.read.read(&chunk.token).await.map_err(|e| refused(e, &what, self.at))?;
        let partition = PartitionId::new(format!("{}#{}", chunk.table, chunk.index));
        Ok(Box::new(ChunkReader {
            rows,
            what,
            at: self.at,
            table: table.clone(),
            batch: None,
            partition,
            sequence: 1,
            ended: false,
        }))
    }
}

fn refused(e: SpannerError, what: &str, at: Instant) -> Error {
    let old = matches!(e.code, Code::FailedPrecondition | Code::OutOfRange);
    let error = e.into_core(what.to_owned());
    match old {
        true => error.with_kind(anabranch_core::ErrorKind::Transient).context(format!(
            "the database no longer has the rows as they were at {at}: they are copied again; a longer \
             version_retention_period of the database (ALTER DATABASE), or fewer tables at once, prevents it"
        )),
        false => error,
    }
}

/// Reads one part of a table. What was read lives in the struct.
struct ChunkReader {
    rows: Box<dyn Rows>,
    what: String,
    at: Instant,
    table: crate::source::Table,
    batch: Option<(BatchBuilder, usize)>,
    partition: PartitionId,
    /// The number of the next row.
    sequence: u64,
    ended: bool,
}

impl fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkReader").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl ChunkReader {
    fn batch(&mut self) -> &mut (BatchBuilder, usize) {
        self.batch.get_or_insert_with(|| {
            let mut batch = BatchBuilder::new(self.partition.clone());
            let schema = batch.schema(&self.table.schema);
            let transaction = Transaction { rank: Bytes::from_static(&RANK), ..Transaction::default() };
            batch.begin(transaction, self.sequence);
            (batch, schema)
        })
    }

    fn row(&mut self, row: &Row) -> Result<()> {
        let (kinds, schema) = (Arc::clone(&self.table.kinds), Arc::clone(&self.table.schema));
        let broken = |problem: String, what: &str| Error::fatal(format!("{what}: {problem}"));
        if row.len() != kinds.len() {
            return Err(broken(format!("a row of {} columns, not {}", row.len(), kinds.len()), &self.what));
        }
        let what = self.what.clone();
        let (batch, at) = self.batch();
        batch.change(Op::Insert, *at);
        batch.new_row();
        for (n, (kind, value)) in kinds.iter().zip(row).enumerate() {
            types::push(batch, kind, value)
                .map_err(|e| broken(format!("the column {}: {e}", schema.columns[n].name), &what))?;
        }
        self.sequence += 1;
        Ok(())
    }

    fn take(&mut self, last: bool) -> Result<ChangeBatch> {
        self.batch();
        let Some((mut batch, _)) = self.batch.take() else { return Err(Error::fatal("no batch was begun")) };
        let end = if last {
            let end = Position::new(Rank::of_end(&RANK), Bytes::new());
            batch.commit(end.clone());
            end
        } else {
            Position::new(Rank::of_change(&RANK, self.sequence - 1), Bytes::new())
        };
        batch.finish(end, None)
    }
}

#[async_trait]
impl ChangeReader for ChunkReader {
    async fn next(&mut self) -> Result<Next> {
        if self.ended {
            return Ok(Next::Closed { children: Vec::new() });
        }
        while self.batch.as_ref().is_none_or(|(b, _)| b.size() < BATCH_BYTES && b.len() < BATCH_ROWS) {
            match self.rows.next().await {
                Ok(Some(row)) => self.row(&row)?,
                Ok(None) => {
                    self.ended = true;
                    return self.take(true).map(Next::Batch);
                }
                Err(e) => return Err(refused(e, &self.what, self.at)),
            }
        }
        self.take(false).map(Next::Batch)
    }

    /// Nothing to tell: what is copied is in the pipeline's checkpoint.
    async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
