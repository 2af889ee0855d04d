//! Reads one chunk with COPY.

use std::pin::Pin;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, ChangeReader, Error, Next, Op, PartitionId, Position, Rank, Result, TableSchema,
    Transaction, ValueRef,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio_postgres::{Client, CopyOutStream};

use crate::decode::DecodeError;
use crate::decode::copy_text::fields;
use crate::error::{classify, protocol};
use crate::reader::assemble::{BATCH_BYTES, BATCH_CHANGES};

/// A chunk has no place in the log: all its rows are one transaction of this rank.
const RANK: [u8; 8] = [0; 8];

/// Reads one chunk. Its rows are inserts, in one transaction.
pub(crate) struct ChunkReader {
    rows: Pin<Box<CopyOutStream>>,
    /// The statement ends with its connection.
    _client: Client,
    what: String,
    schema: Arc<TableSchema>,
    partition: PartitionId,
    batch: BatchBuilder,
    slot: usize,
    /// The number of the next row.
    sequence: u64,
    scratch: Vec<u8>,
    ended: bool,
}

impl ChunkReader {
    /// Runs `copy`, which must give the columns of `schema` in text form. `what` an error says was not possible.
    pub(crate) async fn start(
        client: Client,
        copy: &str,
        schema: &Arc<TableSchema>,
        partition: PartitionId,
        what: String,
    ) -> Result<Self> {
        let rows = client.copy_out(copy).await.map_err(|e| classify(e, &what))?;
        let mut reader = Self {
            rows: Box::pin(rows),
            _client: client,
            what,
            schema: Arc::clone(schema),
            batch: BatchBuilder::new(partition.clone()),
            partition,
            slot: 0,
            sequence: 1,
            scratch: Vec::new(),
            ended: false,
        };
        reader.begin();
        Ok(reader)
    }

    fn begin(&mut self) {
        self.slot = self.batch.schema(&self.schema);
        let transaction = Transaction { rank: Bytes::from_static(&RANK), ..Transaction::default() };
        self.batch.begin(transaction, self.sequence);
    }

    fn row(&mut self, line: &[u8]) -> Result<()> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.batch.change(Op::Insert, self.slot);
        self.batch.new_row();
        let (batch, schema) = (&mut self.batch, &self.schema);
        let width = schema.columns.len();
        // A table without columns has empty rows.
        if width > 0 {
            let mut count = 0;
            fields(line, &mut self.scratch, |value| {
                batch.push(match value {
                    None => ValueRef::Null,
                    Some(bytes) => ValueRef::Text(std::str::from_utf8(bytes).map_err(|_| Broken::Text(count))?),
                });
                count += 1;
                Ok::<_, Broken>(())
            })
            .and_then(|()| (count == width).then_some(()).ok_or(Broken::Width(count)))
            .map_err(|broken| broken.into_error(schema, &self.what))?;
        }
        self.sequence += 1;
        Ok(())
    }

    fn take(&mut self, last: bool) -> Result<ChangeBatch> {
        // Not after an extraordinarily large row.
        let next = match !last && self.batch.size() < 2 * BATCH_BYTES {
            true => BatchBuilder::new_like(self.partition.clone(), &self.batch),
            false => BatchBuilder::new(self.partition.clone()),
        };
        let mut batch = std::mem::replace(&mut self.batch, next);
        let end = if last {
            let end = Position::new(Rank::of_end(&RANK), Bytes::new());
            batch.commit(end.clone());
            end
        } else {
            self.begin();
            Position::new(Rank::of_change(&RANK, self.sequence - 1), Bytes::new())
        };
        batch.finish(end, None)
    }
}

#[async_trait]
impl ChangeReader for ChunkReader {
    /// Cancel safe: the statement and the rows read so far live in the struct.
    async fn next(&mut self) -> Result<Next> {
        if self.ended {
            return Ok(Next::Closed { children: Vec::new() });
        }
        while self.batch.size() < BATCH_BYTES && self.batch.len() < BATCH_CHANGES {
            match self.rows.next().await {
                Some(Ok(line)) => self.row(&line)?,
                Some(Err(e)) => return Err(classify(e, &self.what)),
                None => {
                    self.ended = true;
                    return self.take(true).map(Next::Batch);
                }
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

/// What is wrong with a row.
enum Broken {
    Row(DecodeError),
    Text(usize),
    Width(usize),
}

impl From<DecodeError> for Broken {
    fn from(e: DecodeError) -> Self {
        Self::Row(e)
    }
}

impl Broken {
    fn into_error(self, schema: &TableSchema, what: &str) -> Error {
        match self {
            Self::Row(e) => protocol(what.to_owned()).because(e),
            Self::Width(count) => protocol(format!("{what}: a row of {count} columns")),
            Self::Text(at) => {
                let column = schema.columns.get(at).map_or("?", |c| c.name.as_str());
                Error::fatal(format!("a value of column {column} of {} is not valid UTF-8", schema.name))
                    .hint("the database's encoding is probably SQL_ASCII; repair the value, or leave the column out")
            }
        }
    }
}
