//! Checkpoints in the target.

use std::sync::Arc;

use anabranch_core::{Checkpoint, Checkpointer, Result, Saved, Version};
use async_trait::async_trait;
use mysql_async::params;
use mysql_async::prelude::Queryable;

use crate::connection::{Connector, Kept, Link};
use crate::error::{Failure, Phase};
use crate::progress::{create_tables, is_missing_table};

const TABLES: [&str; 1] = ["CREATE TABLE IF NOT EXISTS anabranch_checkpoint (
        pipeline varchar(191) NOT NULL,
        version bigint unsigned NOT NULL,
        body longtext NOT NULL,
        PRIMARY KEY (pipeline)
    )"];

/// Keeps checkpoints in the table `anabranch_checkpoint`.
#[derive(Debug)]
pub(crate) struct MySqlCheckpointer {
    connector: Arc<Connector>,
    kept: Kept,
}

impl MySqlCheckpointer {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, kept: Kept::default() }
    }

    async fn store(
        &self,
        link: &mut Link,
        pipeline: &str,
        expected: Option<Version>,
        body: &str,
    ) -> Result<Saved, Failure> {
        let Some(Version(version)) = expected else {
            let inserted = link
                .conn
                .exec_drop(
                    "INSERT INTO anabranch_checkpoint (pipeline, version, body) VALUES (:pipeline, 1, :body)",
                    params! { pipeline, body },
                )
                .await
                .map_err(Failure::driver);
            return match inserted {
                Err(f) if f.is_duplicate() => Ok(Saved::Conflict),
                other => other.map(|()| Saved::Committed(Version(1))),
            };
        };
        link.conn
            .exec_drop(
                "UPDATE anabranch_checkpoint SET version = version + 1, body = :body \
                 WHERE pipeline = :pipeline AND version = :version",
                params! { pipeline, version, body },
            )
            .await?;
        let saved = link.conn.affected_rows() == 1;
        Ok(if saved { Saved::Committed(Version(version + 1)) } else { Saved::Conflict })
    }
}

#[async_trait]
impl Checkpointer for MySqlCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let mut link = self.kept.take(&self.connector).await?;
        let sql = "SELECT version, body FROM anabranch_checkpoint WHERE pipeline = :pipeline";
        let found: Option<(u64, String)> = match link.conn.exec_first(sql, params! { pipeline }).await {
            Err(e) if is_missing_table(&e) => None,
            other => other.map_err(|e| Failure::driver(e).into_error(Phase::Statement))?,
        };
        self.kept.put(link).await;
        let Some((version, body)) = found else { return Ok(None) };
        let context = || format!("the checkpoint of {pipeline} in the table anabranch_checkpoint");
        Ok(Some((Version(version), Checkpoint::from_json(&body).map_err(|e| e.context(context()))?)))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let body = next.to_json()?;
        let mut link = self.kept.take(&self.connector).await?;
        let mut saved = self.store(&mut link, pipeline, expected, &body).await;
        if saved.as_ref().is_err_and(|f| f.code() == Some(1146)) {
            create_tables(&mut link, &TABLES).await.map_err(|f| f.into_error(Phase::Statement))?;
            saved = self.store(&mut link, pipeline, expected, &body).await;
        }
        // The statement commits itself: a lost connection leaves open whether it did.
        let saved = saved.map_err(|f| f.into_error(Phase::Commit))?;
        self.kept.put(link).await;
        Ok(saved)
    }
}
