//! What a table and its publication are, so that it can be seen whether they changed.
//!
//! Rows of the catalog are told apart by `xmin`: a row that was changed, or removed and made again, has
//! another one, though all else may be as it was. Read under the snapshot of a copy, and later under that
//! of another one, what is the same was the same all the time between them: so no change of the table
//! went unpublished in between, and none moved its rows without the stream saying so. Values of an enum
//! and attributes of a composite type are among them: their changes change what rows that stay look like.

use anabranch_core::Result;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::error::classify;

/// Hashes of what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    /// Which files the rows lie in.
    storage: String,
    /// Partitions, and what it is a partition of.
    partitions: String,
    /// What the publication says about it, its row filter and its column list with it.
    publication: String,
    /// The table, its columns with their types, and its keys.
    definition: String,
    /// Whether inserts, updates and deletes are published, so that no changed row goes unnoticed. A
    /// truncate writes the table anew.
    whole: bool,
}

impl Fingerprint {
    pub(super) async fn read(client: &Client, table: u32, publication: &str) -> Result<Self> {
        let row = client
            .query_one(FINGERPRINT, &[&table, &publication])
            .await
            .map_err(|e| classify(e, "cannot read the definition of a table"))?;
        let text = |at: usize| row.get::<_, Option<i64>>(at).unwrap_or_default().to_string();
        let whole = row.get::<_, Option<bool>>(4).unwrap_or_default();
        Ok(Self { storage: text(0), partitions: text(1), publication: text(2), definition: text(3), whole })
    }

    /// Whether and why what was copied under `self` is of no use under `now`.
    pub(super) fn differs(&self, now: &Self) -> Option<&'static str> {
        if !now.whole {
            return Some("the publication leaves out inserts, updates or deletes");
        }
        if self.partitions != now.partitions {
            return Some("partitions were attached or detached");
        }
        if self.storage != now.storage {
            return Some("it was truncated or written anew (VACUUM FULL, CLUSTER, ALTER TABLE)");
        }
        if self.publication != now.publication {
            return Some("the publication changed");
        }
        (self.definition != now.definition || self.whole != now.whole).then_some("its definition changed")
    }
}

/// Statistics that VACUUM, ANALYZE and CREATE INDEX store are written in place and leave `xmin` alone.
const FINGERPRINT: &str = r#"
WITH RECURSIVE down(oid) AS (
  SELECT $1::oid
  UNION
  SELECT i.inhrelid FROM down d
  JOIN pg_catalog.pg_class p ON p.oid = d.oid AND p.relkind = 'p'
  JOIN pg_catalog.pg_inherits i ON i.inhparent = d.oid
), up(oid) AS (
  SELECT $1::oid
  UNION
  SELECT i.inhparent FROM up u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid
), every(oid) AS (SELECT oid FROM down UNION SELECT oid FROM up),
types(oid, relation) AS (
  SELECT t.oid, t.typrelid
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  WHERE a.attrelid = $1::oid AND a.attnum > 0
  UNION
  SELECT t.oid, t.typrelid
  FROM types y
  CROSS JOIN LATERAL (
    SELECT p.typelem FROM pg_catalog.pg_type p WHERE p.oid = y.oid
    UNION ALL SELECT p.typbasetype FROM pg_catalog.pg_type p WHERE p.oid = y.oid
    UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE y.oid IN (r.rngtypid, r.rngmultitypid)
    UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = y.relation AND a.attnum > 0
  ) AS part(oid)
  JOIN pg_catalog.pg_type t ON t.oid = part.oid
),
facts(kind, fact) AS (
  SELECT 1, format('%s %s', c.oid, c.relfilenode) FROM pg_catalog.pg_class c WHERE c.oid IN (SELECT oid FROM down)
  UNION ALL
  SELECT 2, format('%s %s %s', i.inhrelid, i.inhparent, i.xmin)
  FROM pg_catalog.pg_inherits i WHERE i.inhrelid IN (SELECT oid FROM every)
  UNION ALL
  SELECT 3, format('p %s %s', p.oid, p.xmin) FROM pg_catalog.pg_publication p WHERE p.pubname = $2
  UNION ALL
  SELECT 3, format('r %s %s', r.oid, r.xmin)
  FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  WHERE p.pubname = $2 AND r.prrelid IN (SELECT oid FROM every)
  UNION ALL
  SELECT 3, format('n %s %s', s.oid, s.xmin)
  FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = p.oid
  WHERE p.pubname = $2
  UNION ALL
  SELECT 4, format('c %s %s', c.oid, c.xmin) FROM pg_catalog.pg_class c WHERE c.oid IN (SELECT oid FROM every)
  UNION ALL
  SELECT 4, format('a %s %s', a.attnum, a.xmin)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0
  UNION ALL
  SELECT 4, format('i %s %s', i.indexrelid, i.xmin)
  FROM pg_catalog.pg_index i WHERE i.indrelid = $1::oid AND (i.indisprimary OR i.indisreplident)
  UNION ALL
  SELECT 4, format('t %s %s', a.attrelid || '.' || a.attnum, a.xmin)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid IN (SELECT relation FROM types WHERE relation <> 0) AND a.attnum > 0
  UNION ALL
  SELECT 4, format('e %s %s', e.oid, e.xmin)
  FROM pg_catalog.pg_enum e WHERE e.enumtypid IN (SELECT oid FROM types)
), hashed(kind, hash) AS (
  SELECT kind, hashtextextended(string_agg(fact COLLATE "C", ',' ORDER BY fact COLLATE "C") COLLATE "C", 0)
  FROM facts GROUP BY kind
)
SELECT (SELECT hash FROM hashed WHERE kind = 1), (SELECT hash FROM hashed WHERE kind = 2),
       (SELECT hash FROM hashed WHERE kind = 3), (SELECT hash FROM hashed WHERE kind = 4),
       (SELECT pubinsert AND pubupdate AND pubdelete FROM pg_catalog.pg_publication WHERE pubname = $2)"#;
