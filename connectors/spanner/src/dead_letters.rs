//! Dead letters in a Spanner database.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterClass, LetterState, Result};
use async_trait::async_trait;

use crate::client::{Mutation, SpannerResult, SpannerValue, Transaction, Work, Write};
use crate::sink::{Bookkeeping, Shared, int64, string};

const TABLE: &str = "anabranch_dead_letter";
const COLUMNS: [(&str, &str); 5] = [
    ("pipeline", "STRING(MAX) NOT NULL"),
    ("id", "STRING(MAX) NOT NULL"),
    ("state", "STRING(MAX) NOT NULL"),
    ("class", "STRING(MAX) NOT NULL"),
    ("body", "STRING(MAX) NOT NULL"),
];
const BOOKKEEPING: Bookkeeping<'_> = (TABLE, &COLUMNS, 2);

/// Letters in one transaction: far below Spanner's limits also if they are large.
const LETTERS: usize = 500;

/// Keeps dead letters in the table `anabranch_dead_letter`: state and class beside the letter as JSON.
#[derive(Clone)]
pub struct SpannerDeadLetters {
    shared: Arc<Shared>,
}

impl SpannerDeadLetters {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn bodies(&self, sql: &str, values: Vec<(crate::client::Kind, SpannerValue)>) -> Result<Vec<DeadLetter>> {
        if !self.shared.has(TABLE).await? {
            return Ok(Vec::new());
        }
        let select = self.shared.dialect().await?.statement(sql, values);
        let rows = self.shared.query(select, "cannot read dead letters").await?;
        rows.iter().map(|row| decoded(row.first().and_then(SpannerValue::as_text).unwrap_or_default())).collect()
    }
}

#[async_trait]
impl DeadLetterStore for SpannerDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        self.shared.create_missing(&[BOOKKEEPING]).await?;
        for some in letters.chunks(LETTERS) {
            let mutations = some.iter().map(|letter| mutation(pipeline, letter)).collect::<Result<_>>()?;
            // A put is done again after whatever became of it: the same letters replace themselves.
            let done = self.shared.transact(pipeline, &mut Put { mutations }).await;
            done.map_err(|e| e.into_core("cannot store dead letters"))?;
        }
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
        let states: Vec<_> = states.iter().map(|s| format!("'{}'", state_name(*s))).collect();
        let mut values = vec![string(pipeline)];
        values.extend(after.map(string));
        values.push(int64(i64::try_from(limit).unwrap_or(i64::MAX)));
        let sql = format!(
            "SELECT body FROM anabranch_dead_letter WHERE pipeline = ? {} AND state IN ({}) ORDER BY id LIMIT ?",
            if after.is_some() { "AND id > ?" } else { "" },
            states.join(", "),
        );
        self.bodies(&sql, values).await
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let sql = "SELECT body FROM anabranch_dead_letter WHERE pipeline = ? AND id = ?";
        Ok(self.bodies(sql, vec![string(pipeline), string(id)]).await?.pop())
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        if !self.shared.has(TABLE).await? {
            return Ok(0);
        }
        let sql = "SELECT count(*) FROM anabranch_dead_letter WHERE pipeline = ? AND state IN ('open', 'held')";
        let select = self.shared.dialect().await?.statement(sql, vec![string(pipeline)]);
        let rows = self.shared.query(select, "cannot count dead letters").await?;
        let count = rows.first().and_then(|row| row.first()).and_then(SpannerValue::as_text);
        Ok(count.and_then(|text| text.parse().ok()).unwrap_or_default())
    }
}

struct Put {
    mutations: Vec<Mutation>,
}

#[async_trait]
impl Work for Put {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        transaction.buffer(self.mutations.clone())
    }
}

fn mutation(pipeline: &str, letter: &DeadLetter) -> Result<Mutation> {
    let body = serde_json::to_string(letter)
        .map_err(|e| Error::fatal(format!("cannot encode the dead letter {}", letter.id)).because(e))?;
    let texts = [pipeline, &letter.id, state_name(letter.state), class_name(letter.class), &body];
    let values = COLUMNS.iter().zip(texts).map(|((name, _), text)| ((*name).to_owned(), text.into())).collect();
    Ok(Mutation::InsertOrUpdate(Write { table: TABLE.to_owned(), values }))
}

fn decoded(body: &str) -> Result<DeadLetter> {
    serde_json::from_str(body)
        .map_err(|e| Error::fatal(format!("a dead letter in the table {TABLE} is damaged")).because(e))
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

impl fmt::Debug for SpannerDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpannerDeadLetters").finish_non_exhaustive()
    }
}
