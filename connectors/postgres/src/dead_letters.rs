//! Dead letters in a PostgreSQL database.

use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterState, Result, Secret};
use async_trait::async_trait;
use serde::Serialize;

use crate::error::classify;
use crate::store::Store;

/// Letters stored by one statement.
const MAX_LETTERS: usize = 500;

/// Dead letters in a PostgreSQL database: of its own, or the sink's.
#[derive(Debug)]
pub struct PostgresDeadLetters {
    store: Arc<Store>,
    url: Secret,
}

impl PostgresDeadLetters {
    /// In the database at `url`, in the schema `anabranch`, which is created if it is missing.
    pub fn new(url: impl Into<Secret>) -> Self {
        let url = url.into();
        Self { store: Arc::new(Store::new("dead_letters.url", url.clone(), "anabranch".to_owned())), url }
    }

    /// The schema to keep them in.
    #[must_use]
    pub fn schema(self, schema: impl Into<String>) -> Self {
        let store = Arc::new(Store::new(self.store.key(), self.url.clone(), schema.into()));
        Self { store, ..self }
    }

    pub(crate) fn in_store(store: Arc<Store>) -> Self {
        Self { url: Secret::new(""), store }
    }

    async fn ready(&self) -> Result<Option<Arc<tokio_postgres::Client>>> {
        let client = self.store.client().await?;
        Ok(self.store.exists(&client).await?.then_some(client))
    }
}

#[async_trait]
impl DeadLetterStore for PostgresDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let client = self.store.client().await?;
        self.store.ensure(&client).await?;
        // A letter that stands twice counts as it stands last; one statement may not touch a row twice.
        let mut last: Vec<&DeadLetter> = Vec::with_capacity(letters.len());
        for letter in letters.iter().rev() {
            if !last.iter().any(|l| l.id == letter.id) {
                last.push(letter);
            }
        }
        let sql = format!(
            "INSERT INTO {} (pipeline, id, state, class, body) \
             SELECT $1::text, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) \
             ON CONFLICT (pipeline, id) DO UPDATE SET state = EXCLUDED.state, class = EXCLUDED.class, body = EXCLUDED.body",
            self.store.table("dead_letter")
        );
        for chunk in last.chunks(MAX_LETTERS) {
            let (mut ids, mut states, mut classes, mut bodies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for letter in chunk {
                ids.push(letter.id.as_str());
                states.push(name_of(&letter.state)?);
                classes.push(name_of(&letter.class)?);
                bodies.push(body(letter)?);
            }
            client
                .execute(&sql, &[&pipeline, &ids, &states, &classes, &bodies])
                .await
                .map_err(|e| classify(e, "cannot store dead letters"))?;
        }
        Ok(())
    }

    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        if changed.is_empty() {
            return Ok(0);
        }
        let Some(client) = self.ready().await? else { return Ok(0) };
        let sql = format!(
            "UPDATE {} AS l SET state = n.state, class = n.class, body = n.body \
             FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) \
             AS n (id, was_state, was_class, state, class, body) \
             WHERE l.pipeline = $1 AND l.id = n.id AND l.state = n.was_state AND l.class = n.was_class",
            self.store.table("dead_letter")
        );
        let mut stored = 0;
        for chunk in changed.chunks(MAX_LETTERS) {
            let (mut ids, mut bodies) = (Vec::new(), Vec::new());
            let mut words: [Vec<String>; 4] = Default::default();
            for (before, letter) in chunk {
                ids.push(letter.id.as_str());
                words[0].push(name_of(&before.state)?);
                words[1].push(name_of(&before.class)?);
                words[2].push(name_of(&letter.state)?);
                words[3].push(name_of(&letter.class)?);
                bodies.push(body(letter)?);
            }
            let [was_states, was_classes, states, classes] = &words;
            stored += client
                .execute(&sql, &[&pipeline, &ids, was_states, was_classes, states, classes, &bodies])
                .await
                .map_err(|e| classify(e, "cannot store dead letters"))?;
        }
        Ok(usize::try_from(stored).unwrap_or(usize::MAX))
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let Some(client) = self.ready().await? else { return Ok(Vec::new()) };
        let states: Vec<String> = states.iter().map(name_of).collect::<Result<_>>()?;
        let sql = format!(
            "SELECT body FROM {} WHERE pipeline = $1 AND state = ANY ($2) AND ($3::text IS NULL OR id > $3) \
             ORDER BY id LIMIT $4",
            self.store.table("dead_letter")
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = client
            .query(&sql, &[&pipeline, &states, &after, &limit])
            .await
            .map_err(|e| classify(e, "cannot list dead letters"))?;
        rows.iter().map(|r| letter(r.get(0))).collect()
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let Some(client) = self.ready().await? else { return Ok(None) };
        let sql = format!("SELECT body FROM {} WHERE pipeline = $1 AND id = $2", self.store.table("dead_letter"));
        let row =
            client.query_opt(&sql, &[&pipeline, &id]).await.map_err(|e| classify(e, "cannot read a dead letter"))?;
        row.map(|r| letter(r.get(0))).transpose()
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let Some(client) = self.ready().await? else { return Ok(0) };
        let sql = format!(
            "SELECT count(*) FROM {} WHERE pipeline = $1 AND state NOT IN ('applied', 'skipped')",
            self.store.table("dead_letter")
        );
        let row = client.query_one(&sql, &[&pipeline]).await.map_err(|e| classify(e, "cannot count dead letters"))?;
        Ok(row.get::<_, i64>(0) as u64)
    }
}

fn letter(body: String) -> Result<DeadLetter> {
    serde_json::from_str(&body).map_err(|e| Error::fatal("a stored dead letter is damaged").because(e))
}

fn body(letter: &DeadLetter) -> Result<String> {
    serde_json::to_string(letter).map_err(|e| Error::fatal("cannot write a dead letter as JSON").because(e))
}

/// The name of a state or a class, as it stands in the body.
fn name_of(value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => Ok(name),
        _ => Err(Error::fatal("a dead letter's state has no name")),
    }
}
