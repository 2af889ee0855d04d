//! Dead letters in the target.

use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, LetterState, Result};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use mysql_async::{Params, params};

use crate::connection::{Connector, Kept, Link};
use crate::error::{Failure, Phase};
use crate::progress::{create_tables, from_json, is_missing_table, json};

/// The id is a partition's name, a rank and a place: with the pipeline's name it fits a key of 3072 bytes.
const TABLES: [&str; 1] = ["CREATE TABLE IF NOT EXISTS anabranch_dead_letter (
        pipeline varchar(191) NOT NULL,
        id varchar(560) NOT NULL,
        state varchar(16) NOT NULL,
        class varchar(16) NOT NULL,
        body longtext NOT NULL,
        PRIMARY KEY (pipeline, id)
    )"];

/// Keeps dead letters in the table `anabranch_dead_letter`.
#[derive(Debug)]
pub(crate) struct MySqlDeadLetters {
    connector: Arc<Connector>,
    kept: Kept,
}

impl MySqlDeadLetters {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, kept: Kept::default() }
    }

    /// Rows of a query; none if the table is not there yet.
    async fn select(&self, sql: String, params: Params) -> Result<Vec<String>> {
        let mut link = self.kept.take(&self.connector).await?;
        let rows = match link.conn.exec(sql, params).await {
            Err(e) if is_missing_table(&e) => Vec::new(),
            other => other.map_err(|e| Failure::driver(e).into_error(Phase::Statement))?,
        };
        self.kept.put(link).await;
        Ok(rows)
    }

    async fn store(&self, link: &mut Link, pipeline: &str, letters: &[DeadLetter]) -> Result<(), (Failure, Phase)> {
        let at = |f: Failure| (f, Phase::Statement);
        link.conn.query_drop("START TRANSACTION").await.map_err(|e| at(e.into()))?;
        for letter in letters {
            let body = json(letter).map_err(|e| at(e.into()))?;
            link.conn
                .exec_drop(
                    "INSERT INTO anabranch_dead_letter (pipeline, id, state, class, body) \
                     VALUES (:pipeline, :id, :state, :class, :body) \
                     ON DUPLICATE KEY UPDATE state = VALUES(state), class = VALUES(class), body = VALUES(body)",
                    params! {
                        pipeline, body, "id" => &letter.id,
                        "state" => word(&letter.state).map_err(|e| at(e.into()))?,
                        "class" => word(&letter.class).map_err(|e| at(e.into()))?,
                    },
                )
                .await
                .map_err(|e| at(e.into()))?;
        }
        link.conn.query_drop("COMMIT").await.map_err(|e| (e.into(), Phase::Commit))
    }
}

/// The JSON word of a plain enum, without its quotes.
fn word<T: serde::Serialize>(value: &T) -> Result<String> {
    Ok(json(value)?.trim_matches('"').to_owned())
}

fn words(states: &[LetterState]) -> Result<String> {
    let words: Vec<String> = states.iter().map(|s| Ok(format!("'{}'", word(s)?))).collect::<Result<_>>()?;
    Ok(words.join(","))
}

#[async_trait]
impl DeadLetterStore for MySqlDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut link = self.kept.take(&self.connector).await?;
        let mut stored = self.store(&mut link, pipeline, letters).await;
        if stored.as_ref().is_err_and(|(f, _)| f.code() == Some(1146)) {
            create_tables(&mut link, &TABLES).await.map_err(|f| f.into_error(Phase::Statement))?;
            stored = self.store(&mut link, pipeline, letters).await;
        }
        // After an error the connection is dropped, and the server rolls back.
        stored.map_err(|(f, phase)| f.into_error(phase))?;
        self.kept.put(link).await;
        Ok(())
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        if states.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT body FROM anabranch_dead_letter WHERE pipeline = :pipeline AND id > :after AND state IN ({}) \
             ORDER BY id LIMIT {limit}",
            words(states)?
        );
        // No id is empty, so every id is above the empty one.
        let bodies = self.select(sql, params! { pipeline, "after" => after.unwrap_or_default() }).await?;
        bodies.iter().map(|b| from_json(b, "a dead letter")).collect()
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let sql = "SELECT body FROM anabranch_dead_letter WHERE pipeline = :pipeline AND id = :id".to_owned();
        let bodies = self.select(sql, params! { pipeline, id }).await?;
        bodies.first().map(|b| from_json(b, "a dead letter")).transpose()
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let sql = format!(
            "SELECT CAST(COUNT(*) AS CHAR) FROM anabranch_dead_letter WHERE pipeline = :pipeline AND state IN ({})",
            words(&[LetterState::Open, LetterState::Held])?
        );
        let counts = self.select(sql, params! { pipeline }).await?;
        Ok(counts.first().and_then(|n| n.parse().ok()).unwrap_or(0))
    }
}
