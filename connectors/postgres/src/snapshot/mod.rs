//! Copies tables under one exported snapshot, in chunks of pages.
//!
//! A temporary slot gives the snapshot and its place in the log: transactions that committed before
//! that place are in it, and no others. The slot that the stream reads is older, so the stream has
//! every later change and leaves out, table by table, the earlier ones. How an interrupted copy goes on
//! is told in [`resume`].

mod changed;
pub(crate) mod chunk;
mod fingerprint;
mod keys;
mod plan;
mod resume;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use anabranch_core::{
    ChangeReader, ChangedRows, Chunk, Error, GoesOn, PartitionId, Position, Result, Snapshot, Snapshotter, TableName,
    TableSchema, TableSnapshot,
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
use keys::KeyReader;
use plan::{Leaf, Plan};

/// An exported snapshot and its chunks.
struct PostgresSnapshot {
    exported: Exported,
    chunks: Vec<Chunk>,
    tables: HashMap<TableName, CatalogTable>,
    plans: HashMap<TableName, String>,
    /// Tables whose copies go on.
    changed: HashMap<TableName, Changed>,
}

/// What changed in a table whose copy goes on.
struct Changed {
    keys: Arc<keys::Keys>,
    /// How each column of the key is compared.
    operators: Vec<String>,
    /// Where its rows lie.
    leaves: Vec<Leaf>,
    chunks: ChangedRows,
}

/// A snapshot that several connections can read.
struct Exported {
    endpoint: Endpoint,
    /// Its name for SET TRANSACTION SNAPSHOT.
    name: String,
    point: Lsn,
    /// The history of the server that it is of.
    timeline: String,
    /// The snapshot lives as long as this connection, on which no other command may be run.
    _keeper: Connection,
}

impl Exported {
    async fn new(source: &Postgres) -> Result<Self> {
        let endpoint = source.session()?.endpoint().clone();
        let mut keeper = Connection::open(&endpoint, "anabranch snapshot").await?;
        let system = keeper.query("IDENTIFY_SYSTEM", "cannot identify the server").await?;
        let timeline = system.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten()).unwrap_or_default();
        let command = format!(
            "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')",
            sql::ident(&temporary_name(&source.slot))
        );
        let what = "cannot export a snapshot";
        let rows = keeper.query(&command, what).await.map_err(no_slots_left)?;
        match rows.into_iter().next().as_deref() {
            Some([_, Some(point), Some(name), ..]) => {
                let (point, name) = (point.parse()?, name.clone());
                Ok(Self { endpoint, name, point, timeline, _keeper: keeper })
            }
            _ => Err(Error::fatal(format!("{what}: the server named none"))),
        }
    }

    /// A connection in a transaction that sees what the snapshot does.
    async fn transaction(&self, application_name: &str) -> Result<Client> {
        let client = session::open(&self.endpoint, application_name).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            sql::literal(&self.name)
        );
        client.batch_execute(&begin).await.map_err(|e| {
            Error::transient("the snapshot is gone: the connection that held it was lost, and the copy begins again")
                .because(classify(e, "SET TRANSACTION SNAPSHOT"))
        })?;
        Ok(client)
    }
}

/// [`Chunk::token`]: what to read of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    /// Pages of the table or of a partition.
    Pages(Pages),
    /// Deletes of changed keys: those with these numbers.
    Keys(usize, usize),
    /// The rows that have these keys.
    Rows(usize, usize),
}

/// Which pages of which table or partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pages {
    /// The table or leaf partition, quoted.
    relation: String,
    oid: u32,
    /// The file that the pages lie in: in another they are others.
    file: u32,
    from: u32,
    /// `None`: to the end, wherever it is when the chunk is read.
    to: Option<u32>,
}

impl Part {
    fn token(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::fatal("a chunk has no token").because(e))
    }
}

#[async_trait]
impl Snapshotter for Postgres {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let exported = Exported::new(self).await?;
        let found = published(self, tables).await?;
        let planning = exported.transaction("anabranch snapshot plan").await?;
        let mut snapshot = PostgresSnapshot::new(exported);
        for table in found {
            let plan = Plan::new(&planning, self, &table, &snapshot.exported.timeline).await?;
            snapshot.add(table, &plan)?;
        }
        let (chunks, tables) = (snapshot.chunks.len(), snapshot.tables.len());
        tracing::info!(point = %snapshot.exported.point, chunks, tables, "snapshot planned");
        Ok(Box::new(snapshot))
    }

    async fn resume(
        &self,
        tables: &[TableSchema],
        before: &BTreeMap<TableName, TableSnapshot>,
    ) -> Result<Option<Box<dyn Snapshot>>> {
        let resumed = resume::resume(self, tables, before).await?;
        Ok(resumed.map(|snapshot| Box::new(snapshot) as Box<dyn Snapshot>))
    }
}

/// The tables as they are published, which must be as the pipeline knows them.
async fn published(source: &Postgres, tables: &[TableSchema]) -> Result<Vec<CatalogTable>> {
    let mut published: HashMap<_, _> =
        source.catalog().await?.into_iter().map(|t| (t.schema.name.clone(), t)).collect();
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        let Some(found) = published.remove(&table.name) else {
            return Err(Error::config("source.publication", format!("it has no table {}", table.name)));
        };
        if *found.schema != *table {
            return Err(Error::transient(format!("the table {} changes just now", table.name)));
        }
        all.push(found);
    }
    Ok(all)
}

impl PostgresSnapshot {
    fn new(exported: Exported) -> Self {
        let (chunks, tables, plans, changed) = Default::default();
        Self { exported, chunks, tables, plans, changed }
    }

    /// Adds a table that is copied by this plan.
    fn add(&mut self, table: CatalogTable, plan: &Plan) -> Result<()> {
        plan.chunks(&table.schema.name, &mut self.chunks)?;
        self.plans.insert(table.schema.name.clone(), plan.text()?);
        self.tables.insert(table.schema.name.clone(), table);
        Ok(())
    }

    async fn pages(&self, table: &CatalogTable, pages: &Pages, what: &str) -> Result<(Client, String)> {
        let client = self.exported.transaction("anabranch copy").await?;
        let leaf = (pages.relation.as_str(), pages.oid, pages.file);
        in_their_files(&client, table, [leaf].into_iter(), what).await?;
        Ok((client, pages_statement(table, pages)))
    }

    async fn rows(
        &self,
        table: &CatalogTable,
        changed: &Changed,
        keys: (usize, usize),
        what: &str,
    ) -> Result<(Client, String)> {
        let client = self.exported.transaction("anabranch copy").await?;
        let leaves = changed.leaves.iter().map(|l| (l.relation.as_str(), l.oid, l.file));
        in_their_files(&client, table, leaves, what).await?;
        // The planner may never have seen the table: keep to the index of its key.
        let settings = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                        SET LOCAL enable_mergejoin = off; SET LOCAL jit = off";
        client.batch_execute(settings).await.map_err(|e| classify(e, "cannot set up the session"))?;
        Ok((client, rows_statement(table, changed, keys)))
    }
}

/// Locks these (name, oid, file) against being written anew until the transaction ends: whatever does that
/// locks out everybody who reads. Done since the plan, it has moved rows from pages that are not read yet
/// to such that are; and after a TRUNCATE, or an ALTER TABLE that rewrites, an older snapshot sees a table
/// without any row (the manual's chapter on MVCC, "Caveats").
async fn in_their_files<'a>(
    client: &Client,
    table: &CatalogTable,
    leaves: impl Iterator<Item = (&'a str, u32, u32)>,
    what: &str,
) -> Result<()> {
    let columns = columns(table);
    let (mut locks, mut names, mut oids, mut files) = (String::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, oid, file) in leaves {
        locks.push_str(&format!("SELECT {columns} FROM ONLY {name} WHERE false;"));
        names.push(name);
        oids.push(oid);
        files.push(file);
    }
    client.batch_execute(&locks).await.map_err(|e| classify(e, what))?;
    let other = client.query_opt(IN_ANOTHER_FILE, &[&names, &oids, &files]).await.map_err(|e| classify(e, what))?;
    match other {
        None => Ok(()),
        Some(row) => Err(Error::transient(format!(
            "{} was written anew while it was copied (VACUUM FULL, CLUSTER, TRUNCATE, ALTER TABLE): its copy \
             begins again",
            row.get::<_, &str>(0)
        ))),
    }
}

const IN_ANOTHER_FILE: &str = "
SELECT l.name FROM unnest($1::text[], $2::oid[], $3::oid[]) AS l(name, oid, file)
WHERE pg_catalog.pg_relation_filenode(l.oid) IS DISTINCT FROM l.file LIMIT 1";

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn point(&self) -> Position {
        self.exported.point.as_position()
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let foreign = || Error::fatal(format!("chunk {} of {} is of another snapshot", chunk.index, chunk.table));
        let table = self.tables.get(&chunk.table).ok_or_else(foreign)?;
        let changed = self.changed.get(&chunk.table);
        let of_changed = |c: &Changed| c.chunks.keys.contains(chunk) || c.chunks.rows.contains(chunk);
        if !self.chunks.contains(chunk) && !changed.is_some_and(of_changed) {
            return Err(foreign());
        }
        let part: Part =
            serde_json::from_str(&chunk.token).map_err(|e| Error::fatal("a chunk's token is damaged").because(e))?;
        let what = format!("cannot copy chunk {} of {}", chunk.index, chunk.table);
        let partition = PartitionId::new(format!("{}#{}", chunk.table, chunk.index));
        let (client, copy) = match (part, changed) {
            (Part::Pages(pages), _) => self.pages(table, &pages, &what).await?,
            (Part::Rows(from, to), Some(changed)) => self.rows(table, changed, (from, to), &what).await?,
            (Part::Keys(from, to), Some(changed)) => {
                let keys = Arc::clone(&changed.keys);
                return Ok(Box::new(KeyReader::new(keys, from..to, &table.schema, partition)));
            }
            (_, None) => return Err(foreign()),
        };
        Ok(Box::new(ChunkReader::start(client, &copy, &table.schema, partition, what).await?))
    }

    fn plan(&self, table: &TableName) -> Option<String> {
        self.plans.get(table).cloned()
    }

    fn goes_on(&self, table: &TableName) -> GoesOn {
        match self.changed.get(table) {
            Some(changed) => GoesOn::But(changed.chunks.clone()),
            None => GoesOn::Anew,
        }
    }
}

/// A table that is not partitioned is its own and only leaf.
pub(crate) const LEAVES: &str = "
SELECT n.nspname::text, c.relname::text,
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8, c.reltuples, c.oid, c.relfilenode
FROM (SELECT relid::oid AS oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf
      UNION SELECT $1::oid WHERE NOT EXISTS (SELECT FROM pg_partition_tree($1::oid::regclass))) leaf
JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
ORDER BY 1, 2";

fn columns(table: &CatalogTable) -> String {
    let columns: Vec<_> = table.schema.columns.iter().map(|c| sql::ident(&c.name)).collect();
    columns.join(", ")
}

fn pages_statement(table: &CatalogTable, pages: &Pages) -> String {
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
    format!("COPY (SELECT {} FROM ONLY {}{condition}) TO STDOUT", columns(table), pages.relation)
}

/// The rows with these keys, wherever they lie.
fn rows_statement(table: &CatalogTable, changed: &Changed, (from, to): (usize, usize)) -> String {
    let schema = &table.schema;
    let name = |n: usize| format!("anabranch_key_{n}");
    let mut values = Vec::with_capacity(to - from);
    for key in (from..to).map(|n| changed.keys.get(n)) {
        let key: Vec<String> = key.iter().map(|value| sql::literal(value)).collect();
        values.push(format!("({})", key.join(",")));
    }
    let names: Vec<String> = (0..changed.operators.len()).map(name).collect();
    let same: Vec<String> = schema
        .key_columns()
        .zip(&changed.operators)
        .enumerate()
        .map(|(n, (column, operator))| {
            format!("anabranch_row.{} {operator} {}::{}", sql::ident(&column.name), name(n), column.native)
        })
        .collect();
    let filter = table.filter.as_ref().map(|f| format!(" AND ({f})")).unwrap_or_default();
    let only = if table.partitioned { "" } else { "ONLY " };
    format!(
        "COPY (SELECT {} FROM {only}{} AS anabranch_row WHERE EXISTS (SELECT FROM (VALUES {}) AS anabranch_keys({}) \
         WHERE {}){filter}) TO STDOUT",
        columns(table),
        sql::table(&schema.name),
        values.join(","),
        names.join(", "),
        same.join(" AND ")
    )
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
