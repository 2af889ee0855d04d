//! How the copy of a table is cut into chunks: kept in the checkpoint until the table is copied.

use anabranch_core::{Chunk, Error, Result, TableName};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::fingerprint::Fingerprint;
use super::{LEAVES, Pages, Part};
use crate::catalog::CatalogTable;
use crate::error::classify;
use crate::source::Postgres;
use crate::sql;

/// The plan of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Pages of a chunk.
    pages: u32,
    /// The table, or the leaf partitions that are published through it.
    pub(super) leaves: Vec<Leaf>,
    /// The history of the server: rows that were copied on one that was left may never have been.
    timeline: String,
    /// The columns and the key, hashed.
    schema: String,
    fingerprint: Fingerprint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaf {
    /// Quoted.
    pub(super) relation: String,
    pub(super) oid: u32,
    pub(super) file: u32,
    chunks: u32,
    /// Rows of a chunk, about; unknown before the first ANALYZE.
    rows: Option<u64>,
}

impl Plan {
    /// Plans the copy of a table as `client` sees it.
    pub(super) async fn new(client: &Client, source: &Postgres, table: &CatalogTable, timeline: &str) -> Result<Self> {
        let name = &table.schema.name;
        let fingerprint = Fingerprint::read(client, table.oid, &source.publication).await?;
        let rows = client
            .query(LEAVES, &[&table.oid])
            .await
            .map_err(|e| classify(e, &format!("cannot plan the copy of {name}")))?;
        let leaf = |row: &tokio_postgres::Row| {
            let relation = sql::table(&TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
            let (pages, rows): (i64, f32) = (row.get(2), row.get(3));
            let chunks = u32::try_from(pages).unwrap_or(u32::MAX).div_ceil(source.chunk_pages).max(1);
            let rows = (rows >= 0.0).then(|| (f64::from(rows) / f64::from(chunks)) as u64);
            Leaf { relation, oid: row.get(4), file: row.get(5), chunks, rows }
        };
        let leaves = rows.iter().map(leaf).collect();
        let (pages, timeline, schema) = (source.chunk_pages, timeline.to_owned(), table.schema.digest());
        Ok(Self { pages, leaves, timeline, schema, fingerprint })
    }

    pub(super) fn text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::fatal("a plan cannot be stored").because(e))
    }

    /// A stored plan; `None` for one of another version.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Why a copy by this plan cannot go on by `now`.
    pub(super) fn differs(&self, now: &Plan) -> Option<&'static str> {
        if self.timeline != now.timeline {
            return Some("the server is on another timeline");
        }
        if let Some(why) = self.fingerprint.differs(&now.fingerprint) {
            return Some(why);
        }
        if self.schema != now.schema {
            return Some("its columns or its key changed");
        }
        let files = |p: &Plan| p.leaves.iter().map(|l| (l.relation.clone(), l.oid, l.file)).collect::<Vec<_>>();
        (files(self) != files(now)).then_some("it or a partition of it was renamed")
    }

    /// Adds the chunks. The last of each leaf has no end, so that pages which came since are read too.
    pub(super) fn chunks(&self, table: &TableName, chunks: &mut Vec<Chunk>) -> Result<()> {
        let mut index = 0;
        for leaf in &self.leaves {
            for n in 0..leaf.chunks {
                let from = n.saturating_mul(self.pages);
                let to = (n + 1 < leaf.chunks).then(|| from.saturating_add(self.pages));
                let pages = Pages { relation: leaf.relation.clone(), oid: leaf.oid, file: leaf.file, from, to };
                let token = Part::Pages(pages).token()?;
                chunks.push(Chunk { table: table.clone(), index, token, rows: leaf.rows });
                index += 1;
            }
        }
        Ok(())
    }
}
