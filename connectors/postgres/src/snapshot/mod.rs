//! Copies tables under one exported snapshot, in chunks of pages.
//!
//! A temporary slot gives the snapshot and its place in the log: transactions that committed before
//! that place are in it, and no others. The slot that the stream reads is older, so the stream has
//! every later change and leaves out, table by table, the earlier ones.

pub(crate) mod chunk;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use anabranch_core::{
    ChangeReader, Chunk, Error, PartitionId, Position, Result, Snapshot, Snapshotter, TableName, TableSchema,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::catalog::CatalogTable;
use crate::connect::Endpoint;
use crate::error::classify;
use crate::lsn::Lsn;
use crate::session;
use crate::setup::no_slots_left;
use crate::source::Postgres;
use crate::sql;
use crate::wire::Connection;
use chunk::ChunkReader;

/// An exported snapshot and its chunks.
struct PostgresSnapshot {
    endpoint: Endpoint,
    /// Its name for SET TRANSACTION SNAPSHOT.
    name: String,
    point: Lsn,
    chunks: Vec<Chunk>,
    tables: HashMap<TableName, CatalogTable>,
    /// The snapshot lives as long as this connection, on which no other command may be run.
    _keeper: Connection,
}

/// [`Chunk::token`]: which pages of which table or partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pages {
    /// The table or leaf partition, quoted.
    relation: String,
    from: u32,
    /// `None`: to the end, wherever it is when the chunk is read.
    to: Option<u32>,
}

#[async_trait]
impl Snapshotter for Postgres {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let endpoint = self.session()?.endpoint().clone();
        let mut keeper = Connection::open(&endpoint, "anabranch snapshot").await?;
        let command = format!(
            "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')",
            sql::ident(&temporary_name(&self.slot))
        );
        let what = "cannot export a snapshot";
        let rows = keeper.query(&command, what).await.map_err(no_slots_left)?;
        let (point, name) = match rows.into_iter().next().as_deref() {
            Some([_, Some(point), Some(name), ..]) => (point.parse()?, name.clone()),
            _ => return Err(Error::fatal(format!("{what}: the server named none"))),
        };
        let client = self.session()?.client().await?;
        let mut published: HashMap<_, _> =
            self.catalog().await?.into_iter().map(|t| (t.schema.name.clone(), t)).collect();
        let (mut chunks, mut copied) = (Vec::new(), HashMap::new());
        for table in tables {
            let Some(found) = published.remove(&table.name) else {
                return Err(Error::config("source.publication", format!("it has no table {}", table.name)));
            };
            if *found.schema != *table {
                return Err(Error::transient(format!("the table {} changes just now", table.name)));
            }
            plan(&client, &found, self.chunk_pages, &mut chunks).await?;
            copied.insert(table.name.clone(), found);
        }
        tracing::info!(%point, chunks = chunks.len(), tables = copied.len(), "snapshot planned");
        Ok(Box::new(PostgresSnapshot { endpoint, name, point, chunks, tables: copied, _keeper: keeper }))
    }
}

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn point(&self) -> Position {
        self.point.as_position()
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let table = self.tables.get(&chunk.table);
        let (Some(table), true) = (table, self.chunks.contains(chunk)) else {
            return Err(Error::fatal(format!("chunk {} of {} is of another snapshot", chunk.index, chunk.table)));
        };
        let pages: Pages =
            serde_json::from_str(&chunk.token).map_err(|e| Error::fatal("a chunk's token is damaged").because(e))?;
        let client = session::open(&self.endpoint, "anabranch copy").await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            sql::literal(&self.name)
        );
        client.batch_execute(&begin).await.map_err(|e| {
            Error::transient("the snapshot is gone: the connection that held it was lost, and the copy begins again")
                .because(classify(e, "SET TRANSACTION SNAPSHOT"))
        })?;
        let copy = copy_statement(table, &pages);
        let partition = PartitionId::new(format!("{}#{}", chunk.table, chunk.index));
        let what = format!("cannot copy chunk {} of {}", chunk.index, chunk.table);
        Ok(Box::new(ChunkReader::start(client, &copy, &table.schema, partition, what).await?))
    }
}

/// Adds the chunks of a table: of itself, or of the leaf partitions that are published through it.
async fn plan(client: &Client, table: &CatalogTable, pages_each: u32, chunks: &mut Vec<Chunk>) -> Result<()> {
    let rows = client
        .query(LEAVES, &[&table.oid])
        .await
        .map_err(|e| classify(e, &format!("cannot plan the copy of {}", table.schema.name)))?;
    let mut index = 0;
    for row in rows {
        let relation = sql::table(&TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
        let (pages, rows): (i64, f32) = (row.get(2), row.get(3));
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let count = pages.div_ceil(pages_each).max(1);
        for n in 0..count {
            let from = n * pages_each;
            let last = n + 1 == count;
            let token = Pages { relation: relation.clone(), from, to: (!last).then(|| from + pages_each) };
            // Unknown before the first ANALYZE.
            let share = (rows >= 0.0).then(|| (f64::from(rows) / f64::from(count)) as u64);
            chunks.push(Chunk {
                table: table.schema.name.clone(),
                index,
                token: serde_json::to_string(&token).map_err(|e| Error::fatal("a chunk has no token").because(e))?,
                rows: share,
            });
            index += 1;
        }
    }
    Ok(())
}

/// A table that is not partitioned is its own and only leaf.
pub(crate) const LEAVES: &str = "
SELECT n.nspname::text, c.relname::text,
       pg_relation_size(c.oid) / current_setting('block_size')::int8, c.reltuples
FROM (SELECT relid::oid AS oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf
      UNION SELECT $1::oid WHERE NOT EXISTS (SELECT FROM pg_partition_tree($1::oid::regclass))) leaf
JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
ORDER BY 1, 2";

fn copy_statement(table: &CatalogTable, pages: &Pages) -> String {
    let columns: Vec<_> = table.schema.columns.iter().map(|c| sql::ident(&c.name)).collect();
    let mut conditions = Vec::new();
    if pages.from > 0 {
        conditions.push(format!("ctid >= '({},0)'", pages.from));
    }
    if let Some(to) = pages.to {
        conditions.push(format!("ctid < '({to},0)'"));
    }
    if let Some(filter) = &table.filter {
        conditions.push(format!("({filter})"));
    }
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    // ONLY: children of an inherited table are published, and copied, by themselves.
    format!("COPY (SELECT {} FROM ONLY {}{condition}) TO STDOUT", columns.join(", "), pages.relation)
}

/// Unique among the runners that share a slot's name; a slot's name has 63 bytes at most.
fn temporary_name(slot: &str) -> String {
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{}_snap_{random:08x}", &slot[..slot.len().min(48)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_temporary_slots_are_valid() {
        let name = temporary_name(&"a".repeat(63));
        assert!(name.len() <= 63, "{name}");
        assert_ne!(temporary_name("s"), temporary_name("s"));
    }
}
