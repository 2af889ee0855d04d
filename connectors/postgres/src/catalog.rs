//! What the catalog says about published tables.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{Column, Result, TableName, TableSchema};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::error::classify;
use crate::setup::publication::split;
use crate::types::Types;

/// A published table as it is now.
#[derive(Debug, Clone)]
pub(crate) struct CatalogTable {
    pub(crate) oid: u32,
    pub(crate) schema: Arc<TableSchema>,
    /// Type and modifier of each column.
    pub(crate) types: Vec<(u32, i32)>,
    /// `pg_class.relreplident`.
    pub(crate) identity: u8,
    /// The publication's row filter, as SQL.
    pub(crate) filter: Option<String>,
    /// Its rows lie in its partitions.
    pub(crate) partitioned: bool,
}

impl CatalogTable {
    /// Whether UPDATE and DELETE of this table fail on the publisher.
    pub(crate) fn lacks_identity(&self) -> bool {
        match self.identity {
            b'f' => false,
            b'n' => true,
            _ => self.schema.key.is_empty(),
        }
    }
}

/// The tables of a publication, by name, and the types that they use.
pub(crate) async fn published(client: &Client, publication: &str) -> Result<(Vec<CatalogTable>, Types)> {
    read(client, &columns_of(PUBLISHED), &[&publication]).await
}

/// The tables that a publication of these would have, created as `setup/publication.rs` does; of
/// all tables, if none is named.
pub(crate) async fn planned(client: &Client, tables: &[TableName]) -> Result<Vec<CatalogTable>> {
    let (schemas, names) = split(tables);
    Ok(read(client, &columns_of(PLANNED), &[&schemas, &names]).await?.0)
}

async fn read(client: &Client, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<(Vec<CatalogTable>, Types)> {
    let what = |e| classify(e, "cannot read the published tables");
    let rows = client.query(query, parameters).await.map_err(what)?;
    let mut types = Types::default();
    types.load(client, rows.iter().map(|r| r.get::<_, u32>("atttypid"))).await?;
    let oids: Vec<u32> = rows.iter().map(|r| r.get("oid")).collect();
    let keys = client.query(KEYS, &[&oids]).await.map_err(what)?;
    let keys: HashMap<(u32, bool), Vec<i16>> = keys
        .iter()
        .flat_map(|r| {
            let key: Vec<i16> = r.get("key");
            let (oid, primary, identity): (u32, bool, bool) = (r.get("indrelid"), r.get(1), r.get(2));
            let primary = primary.then(|| ((oid, true), key.clone()));
            primary.into_iter().chain(identity.then_some(((oid, false), key)))
        })
        .collect();
    let tables = rows.chunk_by(|a, b| a.get::<_, u32>("oid") == b.get::<_, u32>("oid"));
    Ok((tables.map(|columns| table(columns, &keys, &types)).collect(), types))
}

fn table(columns: &[Row], keys: &HashMap<(u32, bool), Vec<i16>>, types: &Types) -> CatalogTable {
    let first = &columns[0];
    let (oid, identity): (u32, i8) = (first.get("oid"), first.get("relreplident"));
    let identity = identity as u8;
    // FULL sends whole old rows, but the primary key, if there is one, still tells rows apart.
    let key = keys.get(&(oid, identity != b'i')).filter(|_| identity != b'n');
    let places = |key: &Vec<i16>| -> Option<Vec<u16>> {
        key.iter()
            .map(|attribute| columns.iter().position(|c| c.get::<_, i16>("attnum") == *attribute).map(|p| p as u16))
            .collect()
    };
    CatalogTable {
        oid,
        schema: Arc::new(TableSchema {
            name: TableName::new(first.get::<_, String>("nspname"), first.get::<_, String>("relname")),
            columns: columns.iter().map(|c| column(c, types)).collect(),
            // A column list that leaves out a part of the key leaves no key.
            key: key.and_then(places).unwrap_or_default(),
        }),
        types: columns.iter().map(|c| (c.get("atttypid"), c.get("atttypmod"))).collect(),
        identity,
        filter: first.get("rowfilter"),
        partitioned: first.get::<_, i8>("relkind") as u8 == b'p',
    }
}

fn column(row: &Row, types: &Types) -> Column {
    Column {
        name: row.get("attname"),
        data_type: types.data_type(row.get("atttypid"), row.get("atttypmod")),
        native: row.get("native"),
        nullable: !row.get::<_, bool>("attnotnull"),
        generated: row.get::<_, i8>("attgenerated") != 0,
    }
}

/// The tables that this one is a partition of, at any depth.
pub(crate) async fn ancestors(client: &Client, oid: u32) -> Result<Vec<u32>> {
    let rows = client.query(ANCESTORS, &[&oid]).await.map_err(|e| classify(e, "cannot read pg_inherits"))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// `pg_partition_ancestors` would do, but not every database that speaks like PostgreSQL has it.
const ANCESTORS: &str = "
WITH RECURSIVE up(oid) AS (
  SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = $1::oid
  UNION
  SELECT i.inhparent FROM up u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid
)
SELECT oid FROM up";

/// The names of types by oid and modifier, for columns that a relation message describes.
pub(crate) async fn type_names(client: &Client, types: &[(u32, i32)]) -> Result<Vec<String>> {
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = types.iter().copied().unzip();
    let rows = client
        .query(
            "SELECT coalesce(pg_catalog.format_type(o, m), '???') \
             FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS t(o, m, n) ORDER BY n",
            &[&oids, &modifiers],
        )
        .await
        .map_err(|e| classify(e, "cannot read the names of types"))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// The columns of tables, which are given as rows of `oid`, `attnames` (NULL: all that are not
/// generated) and `rowfilter`. Before PostgreSQL 18 no generated column is ever sent, though the
/// view of version 15 lists them.
fn columns_of(tables: &str) -> String {
    format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident, c.relkind, p.rowfilter,
                a.attnum, a.attname::text, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated,
                pg_catalog.format_type(a.atttypid, a.atttypmod) AS native
         FROM ({tables}) AS p(oid, attnames, rowfilter)
         JOIN pg_catalog.pg_class c ON c.oid = p.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND (p.attnames IS NULL OR a.attname = ANY (p.attnames))
              AND (a.attgenerated = ''
                   OR p.attnames IS NOT NULL AND current_setting('server_version_num')::int4 >= 180000)
         ORDER BY n.nspname, c.relname, c.oid, a.attnum"
    )
}

/// The schema of a pipeline's own tables, where the database is a target too. A publication of all
/// tables has them, and the stream brings them: they are never passed on.
pub(crate) const OWN_SCHEMA: &str = "anabranch";

/// pg_publication_tables honours column lists, generated columns and publish_via_partition_root.
const PUBLISHED: &str = "
SELECT c.oid, p.attnames, p.rowfilter
FROM pg_catalog.pg_publication_tables p
JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE p.pubname = $1 AND p.schemaname <> 'anabranch'";

/// With publish_via_partition_root: of a partitioned table itself and not its partitions, and with
/// a table the tables that inherit from it (the manual's CREATE PUBLICATION). 16384 is the first oid
/// of a user's object.
const PLANNED: &str = "
WITH RECURSIVE listed(oid) AS (
  SELECT c.oid
  FROM unnest($1::text[], $2::text[]) AS w(schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
  UNION
  SELECT i.inhrelid
  FROM listed l
  JOIN pg_catalog.pg_class parent ON parent.oid = l.oid AND parent.relkind = 'r'
  JOIN pg_catalog.pg_inherits i ON i.inhparent = l.oid
)
SELECT c.oid, NULL::name[], NULL::text
FROM pg_catalog.pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
  AND CASE WHEN cardinality($1::text[]) = 0 THEN NOT c.relispartition AND c.relnamespace NOT IN
             (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'anabranch')
           ELSE c.oid IN (SELECT oid FROM listed) AND NOT EXISTS (
             SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) AS a
             WHERE a.relid <> c.oid AND a.relid IN (SELECT oid FROM listed)) END";

/// A deferrable key does not tell rows apart within a transaction: two rows that swap it have the same
/// one in between. PostgreSQL takes none for a replica identity either.
const KEYS: &str = "
SELECT i.indrelid, i.indisprimary, i.indisreplident,
       ARRAY(SELECT k FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS t(k, n)
             WHERE n <= i.indnkeyatts ORDER BY n) AS key
FROM pg_catalog.pg_index i
WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indimmediate AND (i.indisprimary OR i.indisreplident)";
