//! Checkpoints in a Spanner database.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{Checkpoint, Checkpointer, Error, Result, Saved, Version};
use async_trait::async_trait;

use crate::client::{Mutation, SpannerResult, SpannerValue, Statement, Transaction, Work, Write};
use crate::pieces;
use crate::sink::{Bookkeeping, Shared, string};

const TABLE: &str = "anabranch_checkpoint";
const COLUMNS: [(&str, &str); 3] =
    [("pipeline", "STRING(MAX) NOT NULL"), ("version", "INT64 NOT NULL"), ("body", "STRING(MAX) NOT NULL")];
const BOOKKEEPING: Bookkeeping<'_> = (TABLE, &COLUMNS, 1);

/// Keeps checkpoints in the table `anabranch_checkpoint`, one row a pipeline, and further
/// ones where it is longer than a value may be. Compare-and-set is a
/// read-write transaction: Spanner serializes those.
#[derive(Clone)]
pub struct SpannerCheckpointer {
    shared: Arc<Shared>,
}

impl SpannerCheckpointer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn read(&self, key: &str) -> Result<Option<(Version, String)>> {
        let sql = "SELECT version, body FROM anabranch_checkpoint WHERE pipeline = ?";
        let select = self.shared.dialect().await?.statement(sql, vec![string(key)]);
        let rows = self.shared.query(select, "cannot read the checkpoint").await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let text = |at: usize| row.get(at).and_then(SpannerValue::as_text).unwrap_or_default();
        Ok(Some((Version(text(0).parse().unwrap_or_default()), text(1).to_owned())))
    }
}

/// The key of a further row of a long checkpoint. No pipeline is called so.
fn piece(pipeline: &str, at: usize) -> String {
    format!("anabranch:pieces:{pipeline}:{at:05}")
}

#[async_trait]
impl Checkpointer for SpannerCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        if !self.shared.has(TABLE).await? {
            return Ok(None);
        }
        for _ in 0..pieces::TRIES {
            let Some((version, body)) = self.read(pipeline).await? else { return Ok(None) };
            let mut further = Vec::with_capacity(pieces::further(&body));
            for at in 1..=pieces::further(&body) {
                further.extend(self.read(&piece(pipeline, at)).await?.map(|(_, body)| body));
            }
            let further: Vec<&str> = further.iter().map(String::as_str).collect();
            let place = |e: Error| e.context(format!("the checkpoint of {pipeline} in the table {TABLE}"));
            // `None`: another one was saved meanwhile.
            let Some(body) = pieces::join(&body, &further).map_err(place)? else { continue };
            return Ok(Some((version, Checkpoint::from_json(&body).map_err(place)?)));
        }
        Err(Error::transient(format!("the checkpoint of {pipeline} changes while it is read, again and again")))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        self.shared.create_missing(&[BOOKKEEPING]).await?;
        let sql = "SELECT version FROM anabranch_checkpoint WHERE pipeline = ?";
        let select = self.shared.dialect().await?.statement(sql, vec![string(pipeline)]);
        let (body, further) = pieces::split(next.to_json()?);
        let mut rows = vec![(pipeline.to_owned(), body)];
        rows.extend((1..).zip(further).map(|(at, body)| (piece(pipeline, at), body)));
        let mut work = Save { select, expected, rows, saved: Saved::Conflict };
        let doing = "cannot save the checkpoint";
        // After a commit of unknown outcome the version tells the caller what became of it.
        self.shared.transact(pipeline, &mut work).await.map_err(|e| e.into_core(doing))?;
        Ok(work.saved)
    }
}

struct Save {
    select: Statement,
    expected: Option<Version>,
    /// Their keys and what they have; the pipeline's own first.
    rows: Vec<(String, String)>,
    saved: Saved,
}

#[async_trait]
impl Work for Save {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        let rows = transaction.query(self.select.clone()).await?;
        let stored = rows.first().and_then(|row| row.first()).and_then(SpannerValue::as_text);
        let stored = stored.and_then(|text| text.parse().ok()).map(Version);
        self.saved = Saved::Conflict;
        if stored != self.expected {
            return Ok(());
        }
        let version = stored.map_or(1, |v| v.0 + 1);
        let row = |(key, body): &(String, String)| {
            let values = vec![
                ("pipeline".to_owned(), key.as_str().into()),
                ("version".to_owned(), i64::try_from(version).unwrap_or(i64::MAX).into()),
                ("body".to_owned(), body.as_str().into()),
            ];
            Mutation::InsertOrUpdate(Write { table: TABLE.to_owned(), values })
        };
        self.saved = Saved::Committed(Version(version));
        transaction.buffer(self.rows.iter().map(row).collect())
    }
}

impl fmt::Debug for SpannerCheckpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpannerCheckpointer").finish_non_exhaustive()
    }
}
