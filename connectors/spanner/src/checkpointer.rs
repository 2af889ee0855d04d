//! Checkpoints in a Spanner database.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{Checkpoint, Checkpointer, Result, Saved, Version};
use async_trait::async_trait;

use crate::client::{Mutation, SpannerResult, SpannerValue, Statement, Transaction, Work, Write};
use crate::sink::{Bookkeeping, Shared, string};

const TABLE: &str = "anabranch_checkpoint";
const COLUMNS: [(&str, &str); 3] =
    [("pipeline", "STRING(MAX) NOT NULL"), ("version", "INT64 NOT NULL"), ("body", "STRING(MAX) NOT NULL")];
const BOOKKEEPING: Bookkeeping<'_> = (TABLE, &COLUMNS, 1);

/// Keeps checkpoints in the table `anabranch_checkpoint`, one row a pipeline. Compare-and-set is a
/// read-write transaction: Spanner serializes those.
#[derive(Clone)]
pub struct SpannerCheckpointer {
    shared: Arc<Shared>,
}

impl SpannerCheckpointer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Checkpointer for SpannerCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        if !self.shared.has(TABLE).await? {
            return Ok(None);
        }
        let sql = "SELECT version, body FROM anabranch_checkpoint WHERE pipeline = ?";
        let select = self.shared.dialect().await?.statement(sql, vec![string(pipeline)]);
        let rows = self.shared.query(select, "cannot read the checkpoint").await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let text = |at: usize| row.get(at).and_then(SpannerValue::as_text).unwrap_or_default();
        let checkpoint = Checkpoint::from_json(text(1))
            .map_err(|e| e.context(format!("the checkpoint of {pipeline} in the table {TABLE}")))?;
        Ok(Some((Version(text(0).parse().unwrap_or_default()), checkpoint)))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        self.shared.create_missing(&[BOOKKEEPING]).await?;
        let sql = "SELECT version FROM anabranch_checkpoint WHERE pipeline = ?";
        let select = self.shared.dialect().await?.statement(sql, vec![string(pipeline)]);
        let mut work = Save { select, pipeline, expected, body: next.to_json()?, saved: Saved::Conflict };
        let doing = "cannot save the checkpoint";
        // After a commit of unknown outcome the version tells the caller what became of it.
        self.shared.transact(pipeline, &mut work).await.map_err(|e| e.into_core(doing))?;
        Ok(work.saved)
    }
}

struct Save<'a> {
    select: Statement,
    pipeline: &'a str,
    expected: Option<Version>,
    body: String,
    saved: Saved,
}

#[async_trait]
impl Work for Save<'_> {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        let rows = transaction.query(self.select.clone()).await?;
        let stored = rows.first().and_then(|row| row.first()).and_then(SpannerValue::as_text);
        let stored = stored.and_then(|text| text.parse().ok()).map(Version);
        self.saved = Saved::Conflict;
        if stored != self.expected {
            return Ok(());
        }
        let version = stored.map_or(1, |v| v.0 + 1);
        let values = vec![
            ("pipeline".to_owned(), self.pipeline.into()),
            ("version".to_owned(), i64::try_from(version).unwrap_or(i64::MAX).into()),
            ("body".to_owned(), self.body.as_str().into()),
        ];
        self.saved = Saved::Committed(Version(version));
        transaction.buffer(vec![Mutation::InsertOrUpdate(Write { table: TABLE.to_owned(), values })])
    }
}

impl fmt::Debug for SpannerCheckpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpannerCheckpointer").finish_non_exhaustive()
    }
}
