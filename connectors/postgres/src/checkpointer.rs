//! Checkpoints in a PostgreSQL database, saved by compare-and-set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{Checkpoint, Checkpointer, Result, Saved, Secret, Version};
use async_trait::async_trait;
use tokio_postgres::Client;

use crate::error::classify;
use crate::store::Store;

/// Checkpoints in a PostgreSQL database: of its own, or the sink's.
///
/// ```
/// use anabranch_postgres::PostgresCheckpointer;
/// let checkpointer = PostgresCheckpointer::new("postgresql://app@db3/state").schema("replication");
/// ```
#[derive(Debug)]
pub struct PostgresCheckpointer {
    store: Arc<Store>,
    url: Secret,
    /// By pipeline, a save whose answer was lost: the version it would have, and its text.
    unsure: Mutex<HashMap<String, (u64, String)>>,
}

impl PostgresCheckpointer {
    /// In the database at `url`, in the schema `anabranch`, which is created if it is missing.
    pub fn new(url: impl Into<Secret>) -> Self {
        let url = url.into();
        let store = Arc::new(Store::new("checkpoint.url", url.clone(), "anabranch".to_owned()));
        Self { store, url, unsure: Mutex::default() }
    }

    /// The schema to keep them in.
    #[must_use]
    pub fn schema(self, schema: impl Into<String>) -> Self {
        let store = Arc::new(Store::new(self.store.key(), self.url.clone(), schema.into()));
        Self { store, ..self }
    }

    pub(crate) fn in_store(store: Arc<Store>) -> Self {
        Self { url: Secret::new(""), store, unsure: Mutex::default() }
    }

    async fn read(&self, client: &Client, pipeline: &str) -> Result<Option<(u64, String)>> {
        let sql = format!("SELECT version, body FROM {} WHERE pipeline = $1", self.store.table("checkpoint"));
        let row = client.query_opt(&sql, &[&pipeline]).await.map_err(|e| classify(e, "cannot read the checkpoint"))?;
        Ok(row.map(|r| (r.get::<_, i64>(0) as u64, r.get(1))))
    }

    /// The version to save over: a save that we were not told of may have been ours.
    async fn expected(&self, client: &Client, pipeline: &str, expected: Option<Version>) -> Result<u64> {
        let expected = expected.map_or(0, |v| v.0);
        let unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner).get(pipeline).cloned();
        if let Some((version, body)) = unsure
            && version == expected + 1
            && self.read(client, pipeline).await? == Some((version, body))
        {
            return Ok(version);
        }
        Ok(expected)
    }
}

#[async_trait]
impl Checkpointer for PostgresCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let client = self.store.client().await?;
        if !self.store.exists(&client).await? {
            return Ok(None);
        }
        let Some((version, body)) = self.read(&client, pipeline).await? else { return Ok(None) };
        Ok(Some((Version(version), Checkpoint::from_json(&body)?)))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let body = next.to_json()?;
        let client = self.store.client().await?;
        self.store.ensure(&client).await?;
        let expected = self.expected(&client, pipeline, expected).await?;
        let (table, version) = (self.store.table("checkpoint"), expected + 1);
        let sql = if expected == 0 {
            format!(
                "INSERT INTO {table} (version, pipeline, body) SELECT $1::bigint + 1, $2, $3 ON CONFLICT DO NOTHING"
            )
        } else {
            format!("UPDATE {table} SET version = $1::bigint + 1, body = $3 WHERE pipeline = $2 AND version = $1")
        };
        let done = client.execute(&sql, &[&(expected as i64), &pipeline, &body]).await;
        let mut unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(saved) => {
                unsure.remove(pipeline);
                Ok(if saved == 1 { Saved::Committed(Version(version)) } else { Saved::Conflict })
            }
            Err(e) => {
                if e.as_db_error().is_none() {
                    unsure.insert(pipeline.to_owned(), (version, body));
                }
                Err(classify(e, "cannot save the checkpoint"))
            }
        }
    }
}
