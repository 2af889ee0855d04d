//! Checkpoints in an SQLite file.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{Checkpoint, Checkpointer, Result, Saved, Version};
use async_trait::async_trait;
use rusqlite::{OptionalExtension, params};

use crate::progress::has_table;
use crate::sink::Shared;

const TABLE: &str = "anabranch_checkpoint";
const CREATE: &str = "CREATE TABLE IF NOT EXISTS main.anabranch_checkpoint (\
     pipeline TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) STRICT";

/// Keeps checkpoints in the table `anabranch_checkpoint`, one row a pipeline. Compare-and-set is one
/// statement in a transaction that holds the write lock, so it is exact between processes too.
#[derive(Clone)]
pub struct SqliteCheckpointer {
    shared: Arc<Shared>,
}

impl SqliteCheckpointer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Checkpointer for SqliteCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let pipeline = pipeline.to_owned();
        self.shared
            .read(move |db| {
                let doing = "cannot read the checkpoint";
                if !has_table(db, TABLE)? {
                    return Ok(None);
                }
                let row: Option<(i64, String)> = db.told(
                    doing,
                    db.conn
                        .query_row(
                            "SELECT version, body FROM main.anabranch_checkpoint WHERE pipeline = ?1",
                            params![pipeline],
                            |row| Ok((row.get(0)?, row.get(1)?)),
                        )
                        .optional(),
                )?;
                let Some((version, body)) = row else { return Ok(None) };
                let checkpoint = Checkpoint::from_json(&body)
                    .map_err(|e| e.context(format!("the checkpoint of {pipeline} in the table {TABLE}")))?;
                Ok(Some((Version(version as u64), checkpoint)))
            })
            .await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let pipeline = pipeline.to_owned();
        let body = next.to_json()?;
        self.shared
            .write(move |db| {
                let doing = "cannot save the checkpoint";
                db.told(doing, db.conn.execute_batch(CREATE))?;
                let (version, sql) = match expected {
                    None => (
                        0,
                        "INSERT INTO main.anabranch_checkpoint (pipeline, version, body) VALUES (?1, ?2 + 1, ?3) \
                         ON CONFLICT (pipeline) DO NOTHING",
                    ),
                    Some(version) => (
                        version.0 as i64,
                        "UPDATE main.anabranch_checkpoint SET version = version + 1, body = ?3 \
                         WHERE pipeline = ?1 AND version = ?2",
                    ),
                };
                let rows = db.told(doing, db.conn.execute(sql, params![pipeline, version, body]))?;
                Ok(if rows == 1 { Saved::Committed(Version(version as u64 + 1)) } else { Saved::Conflict })
            })
            .await
    }
}

impl fmt::Debug for SqliteCheckpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteCheckpointer").field("path", &self.shared.settings.path).finish_non_exhaustive()
    }
}
