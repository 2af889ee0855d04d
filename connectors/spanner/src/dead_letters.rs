//! Dead letters in a Spanner database.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{DeadLetter, DeadLetterStore, Error, LetterClass, LetterState, Result};
use async_trait::async_trait;

use crate::client::{Mutation, Row, SpannerResult, SpannerValue, Transaction, Work, Write};
use crate::pieces;
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

/// Letters in one transaction, and their bytes, about: far below Spanner's 100 MiB.
const LETTERS: usize = 500;
const BYTES: usize = 16 << 20;

/// What stands before a pipeline's name in the key of further rows of long letters. No pipeline's name begins
/// so.
const PIECES: &str = "anabranch:pieces:";

/// Keeps dead letters in the table `anabranch_dead_letter`: state and class beside the letter as JSON.
///
/// A letter is often one because it is too large for a column: what is longer than a value may be is in
/// further rows.
#[derive(Clone)]
pub struct SpannerDeadLetters {
    shared: Arc<Shared>,
}

impl SpannerDeadLetters {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn rows(&self, sql: &str, values: Vec<(crate::client::Kind, SpannerValue)>) -> Result<Vec<[String; 2]>> {
        if !self.shared.has(TABLE).await? {
            return Ok(Vec::new());
        }
        let select = self.shared.dialect().await?.statement(sql, values);
        let rows = self.shared.query(select, "cannot read dead letters").await?;
        let text = |row: &Row, at: usize| row.get(at).and_then(SpannerValue::as_text).unwrap_or_default().to_owned();
        Ok(rows.iter().map(|row| [text(row, 0), text(row, 1)]).collect())
    }

    /// The letter of a row; `None` if it was replaced while it was read.
    async fn whole(&self, pipeline: &str, [id, body]: &[String; 2]) -> Result<Option<DeadLetter>> {
        let mut further = Vec::with_capacity(pieces::further(body));
        for at in 1..=pieces::further(body) {
            let values = vec![string(&format!("{PIECES}{pipeline}")), string(&piece(id, at))];
            further.extend(self.rows(ONE, values).await?.into_iter().map(|[_, body]| body));
        }
        let further: Vec<&str> = further.iter().map(String::as_str).collect();
        pieces::join(body, &further)?.map(|body| decoded(&body)).transpose()
    }
}

/// A row by its key.
const ONE: &str = "SELECT id, body FROM anabranch_dead_letter WHERE pipeline = ? AND id = ?";

/// The id of a further row of a long letter.
fn piece(id: &str, at: usize) -> String {
    format!("{id}/{at:05}")
}

#[async_trait]
impl DeadLetterStore for SpannerDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        self.shared.create_missing(&[BOOKKEEPING]).await?;
        let mut put = Put::default();
        for (at, letter) in letters.iter().enumerate() {
            put.add(pipeline, letter)?;
            if at + 1 == letters.len() || put.letters >= LETTERS || put.bytes >= BYTES {
                // A put is done again after whatever became of it: the same letters replace themselves.
                let done = self.shared.transact(pipeline, &mut put).await;
                done.map_err(|e| e.into_core("cannot store dead letters"))?;
                put = Put::default();
            }
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
        let wanted = states;
        let states: Vec<_> = states.iter().map(|s| format!("'{}'", state_name(*s))).collect();
        let mut values = vec![string(pipeline)];
        values.extend(after.map(string));
        values.push(int64(i64::try_from(limit).unwrap_or(i64::MAX)));
        let sql = format!(
            "SELECT id, body FROM anabranch_dead_letter WHERE pipeline = ? {} AND state IN ({}) ORDER BY id LIMIT ?",
            if after.is_some() { "AND id > ?" } else { "" },
            states.join(", "),
        );
        let mut letters = Vec::new();
        for row in self.rows(&sql, values).await? {
            match self.whole(pipeline, &row).await? {
                Some(letter) => letters.push(letter),
                // As it is now.
                None => letters.extend(self.get(pipeline, &row[0]).await?.filter(|l| wanted.contains(&l.state))),
            }
        }
        Ok(letters)
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        for _ in 0..pieces::TRIES {
            let Some(row) = self.rows(ONE, vec![string(pipeline), string(id)]).await?.pop() else { return Ok(None) };
            if let Some(letter) = self.whole(pipeline, &row).await? {
                return Ok(Some(letter));
            }
        }
        Err(Error::transient(format!("the dead letter {id} changes while it is read, again and again")))
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

#[derive(Default)]
struct Put {
    mutations: Vec<Mutation>,
    letters: usize,
    bytes: usize,
}

impl Put {
    fn add(&mut self, pipeline: &str, letter: &DeadLetter) -> Result<()> {
        let body = serde_json::to_string(letter)
            .map_err(|e| Error::fatal(format!("cannot encode the dead letter {}", letter.id)).because(e))?;
        self.letters += 1;
        self.bytes += body.len();
        let (body, further) = pieces::split(body);
        let own = [pipeline, &letter.id, state_name(letter.state), class_name(letter.class), &body];
        self.mutations.push(row(own));
        let of_pieces = format!("{PIECES}{pipeline}");
        let further = (1..).zip(&further);
        self.mutations.extend(further.map(|(at, body)| row([&of_pieces, &piece(&letter.id, at), "", "", body])));
        Ok(())
    }
}

fn row(texts: [&str; 5]) -> Mutation {
    let values = COLUMNS.iter().zip(texts).map(|((name, _), text)| ((*name).to_owned(), text.into())).collect();
    Mutation::InsertOrUpdate(Write { table: TABLE.to_owned(), values })
}

#[async_trait]
impl Work for Put {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        transaction.buffer(self.mutations.clone())
    }
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
