//! Dead letters in an SQLite file.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterClass, LetterState, Result};
use async_trait::async_trait;
use rusqlite::{OptionalExtension, params, params_from_iter, types::Value as Bound};

use crate::connection::Database;
use crate::progress::has_table;
use crate::sink::Shared;

const TABLE: &str = "anabranch_dead_letter";
const CREATE: &str = "CREATE TABLE IF NOT EXISTS main.anabranch_dead_letter (\
     pipeline TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, class TEXT NOT NULL, body TEXT NOT NULL, \
     PRIMARY KEY (pipeline, id)) STRICT";

/// Keeps dead letters in the table `anabranch_dead_letter`: state and class beside the letter as JSON.
#[derive(Clone)]
pub struct SqliteDeadLetters {
    shared: Arc<Shared>,
}

impl SqliteDeadLetters {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs a read where the table is there; without it there are no letters.
    async fn read<T: Default + Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.read(|db| if has_table(db, TABLE)? { job(db) } else { Ok(T::default()) }).await
    }
}

#[async_trait]
impl DeadLetterStore for SqliteDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let pipeline = pipeline.to_owned();
        let mut rows = Vec::with_capacity(letters.len());
        for letter in letters {
            rows.push(row(letter)?);
        }
        self.shared
            .write(move |db| {
                let doing = "cannot store dead letters";
                db.told(doing, db.conn.execute_batch(CREATE))?;
                let mut insert = db.told(
                    doing,
                    db.conn.prepare_cached(
                        "INSERT INTO main.anabranch_dead_letter (pipeline, id, state, class, body) \
                         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (pipeline, id) \
                         DO UPDATE SET state = excluded.state, class = excluded.class, body = excluded.body",
                    ),
                )?;
                for (id, state, class, body) in rows {
                    db.told(doing, insert.execute(params![pipeline, id, state, class, body]))?;
                }
                Ok(())
            })
            .await
    }

    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        if changed.is_empty() {
            return Ok(0);
        }
        let pipeline = pipeline.to_owned();
        let mut rows = Vec::with_capacity(changed.len());
        for (before, letter) in changed {
            rows.push((state_name(before.state), class_name(before.class), row(letter)?));
        }
        self.shared
            .write(move |db| {
                let doing = "cannot store dead letters";
                db.told(doing, db.conn.execute_batch(CREATE))?;
                let mut update = db.told(
                    doing,
                    db.conn.prepare_cached(
                        "UPDATE main.anabranch_dead_letter SET state = ?3, class = ?4, body = ?5 \
                         WHERE pipeline = ?1 AND id = ?2 AND state = ?6 AND class = ?7",
                    ),
                )?;
                let mut stored = 0;
                for (was_state, was_class, (id, state, class, body)) in rows {
                    let done = update.execute(params![pipeline, id, state, class, body, was_state, was_class]);
                    stored += db.told(doing, done)?;
                }
                Ok(stored)
            })
            .await
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let states: Vec<_> = states.iter().map(|s| format!("'{}'", state_name(*s))).collect();
        let mut values = vec![Bound::from(pipeline.to_owned()), Bound::from(i64::try_from(limit).unwrap_or(i64::MAX))];
        values.extend(after.map(|id| Bound::from(id.to_owned())));
        let sql = format!(
            "SELECT id, body FROM main.anabranch_dead_letter WHERE pipeline = ?1 AND state IN ({}) {} \
             ORDER BY id LIMIT ?2",
            states.join(", "),
            if after.is_some() { "AND id > ?3" } else { "" },
        );
        self.read(move |db| {
            let doing = "cannot read dead letters";
            let mut select = db.told(doing, db.conn.prepare_cached(&sql))?;
            let rows = select.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)));
            let rows: Vec<(String, String)> = db.told(doing, rows.and_then(Iterator::collect))?;
            rows.into_iter().map(|(id, body)| decoded(&id, &body)).collect()
        })
        .await
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let (pipeline, id) = (pipeline.to_owned(), id.to_owned());
        self.read(move |db| {
            let body: Option<String> = db.told(
                "cannot read a dead letter",
                db.conn
                    .query_row(
                        "SELECT body FROM main.anabranch_dead_letter WHERE pipeline = ?1 AND id = ?2",
                        params![pipeline, id],
                        |row| row.get(0),
                    )
                    .optional(),
            )?;
            body.map(|body| decoded(&id, &body)).transpose()
        })
        .await
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let pipeline = pipeline.to_owned();
        self.read(move |db| {
            let count: i64 = db.told(
                "cannot count dead letters",
                db.conn.query_row(
                    "SELECT count(*) FROM main.anabranch_dead_letter \
                     WHERE pipeline = ?1 AND state IN ('open', 'held')",
                    params![pipeline],
                    |row| row.get(0),
                ),
            )?;
            Ok(count as u64)
        })
        .await
    }
}

fn decoded(id: &str, body: &str) -> Result<DeadLetter> {
    serde_json::from_str(body)
        .map_err(|e| Error::fatal(format!("the dead letter {id} in the table {TABLE} is damaged")).because(e))
}

/// What is stored of a letter: its id, state, class and body.
fn row(letter: &DeadLetter) -> Result<(String, &'static str, &'static str, String)> {
    let body = serde_json::to_string(letter)
        .map_err(|e| Error::fatal(format!("cannot encode the dead letter {}", letter.id)).because(e))?;
    Ok((letter.id.clone(), state_name(letter.state), class_name(letter.class), body))
}

/// As serde writes it in the body.
fn state_name(state: LetterState) -> &'static str {
    match state {
        LetterState::Open => "open",
        LetterState::Held => "held",
        LetterState::Applied => "applied",
        LetterState::Skipped => "skipped",
    }
}

/// As serde writes it in the body.
fn class_name(class: LetterClass) -> &'static str {
    match class {
        LetterClass::Retry => "retry",
        LetterClass::Severe => "severe",
        LetterClass::Skip => "skip",
        LetterClass::Filtered => "filtered",
    }
}

impl fmt::Debug for SqliteDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteDeadLetters").field("path", &self.shared.settings.path).finish_non_exhaustive()
    }
}
