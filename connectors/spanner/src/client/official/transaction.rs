//! Read-write transactions.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use google_cloud_spanner::Error;
use google_cloud_spanner::batch::BatchDml;
use google_cloud_spanner::client::DatabaseClient;
use google_cloud_spanner::error::BatchUpdateError;
use google_cloud_spanner::transaction::{ReadWriteTransaction, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::convert::{error, instant, mutation, row, statement};
use crate::client::{
    Code, Instant, Mutation, Row, SpannerError, SpannerResult, Statement, Transaction, TransactionOptions, Work,
};

/// A try: its transaction, and where to tell how the work within it went.
type Try = (ReadWriteTransaction, oneshot::Sender<Result<(), Error>>);

/// Runs `work` until it commits. The client begins a new transaction whenever one is aborted.
pub(super) async fn transact(
    client: &DatabaseClient,
    options: TransactionOptions,
    work: &mut dyn Work,
) -> SpannerResult<Instant> {
    let (begun, mut tries) = mpsc::channel(1);
    // The future of the client's runner cannot be shown to be `Send` (rust-lang/rust#64552), so a thread
    // that waits drives it; the work itself is done here, on the caller's task.
    let (client, handle) = (client.clone(), Handle::current());
    let runner = spawn_blocking(move || handle.block_on(commit(client, options, begun)));
    // What the last try of the work ended with: `None` once the commit was sent.
    let mut failed: Option<SpannerError> = None;
    while let Some((transaction, told)) = tries.recv().await {
        failed = None;
        let open = Open { transaction, refused: Mutex::new(None) };
        let outcome = work.run(&open).await.map_err(|e| {
            // It retries what was aborted, and must see its own error for that.
            let refused = open.refused.into_inner().unwrap_or_else(PoisonError::into_inner);
            let theirs = refused.filter(|_| e.code == Code::Aborted).unwrap_or_else(|| Error::io("the work failed"));
            failed = Some(e);
            theirs
        });
        // Refused only where the runner is gone, and then it says why.
        let _ = told.send(outcome);
    }
    let committed = runner.await.map_err(|e| unknown(format!("the task of a commit ended: {e}")))?;
    match (committed, failed) {
        (Err(_), Some(failed)) => Err(failed),
        (Err(e), None) => {
            let mut e = error(&e);
            // Refused outright, nothing happened. Anything else leaves it open.
            e.may_have_happened = e.code.is_transient() && !matches!(e.code, Code::Aborted | Code::ResourceExhausted);
            Err(e)
        }
        (Ok(at), _) => at.and_then(instant).ok_or_else(|| unknown("Spanner did not tell the time of a commit")),
    }
}

async fn commit(
    client: DatabaseClient,
    options: TransactionOptions,
    begun: mpsc::Sender<Try>,
) -> Result<Option<Timestamp>, Error> {
    let exclude = options.exclude_from_change_streams;
    let mut builder = client.read_write_transaction().set_exclude_txn_from_change_streams(exclude);
    if let Some(tag) = options.tag {
        builder = builder.set_transaction_tag(tag);
    }
    let gone = || Error::io("the caller is gone");
    let committed = builder
        .build()
        .run(async |transaction: ReadWriteTransaction| {
            let (tell, told) = oneshot::channel();
            begun.send((transaction, tell)).await.map_err(|_| gone())?;
            told.await.map_err(|_| gone())?
        })
        .await?;
    Ok(committed.commit_timestamp())
}

fn unknown(message: impl Into<String>) -> SpannerError {
    let mut e = SpannerError::new(Code::Internal, message);
    e.may_have_happened = true;
    e
}

struct Open {
    transaction: ReadWriteTransaction,
    /// The client's own error of the call that was refused last.
    refused: Mutex<Option<Error>>,
}

impl Open {
    fn refused(&self, e: Error) -> SpannerError {
        let ours = error(&e);
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        ours
    }
}

#[async_trait]
impl Transaction for Open {
    async fn query(&self, query: Statement) -> SpannerResult<Vec<Row>> {
        let mut result = self.transaction.execute_query(statement(query)).await.map_err(|e| self.refused(e))?;
        let mut rows = Vec::new();
        while let Some(next) = result.next().await {
            rows.push(row(next.map_err(|e| self.refused(e))?.into_values())?);
        }
        Ok(rows)
    }

    async fn execute(&self, statements: Vec<Statement>) -> SpannerResult<Vec<i64>> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let batch = statements.into_iter().fold(BatchDml::builder(), |b, s| b.add_statement(statement(s)));
        self.transaction.execute_batch_update(batch.build()).await.map_err(|e| {
            let done = BatchUpdateError::extract(&e).map(|b| b.update_counts.len());
            SpannerError { statements_done: done, ..self.refused(e) }
        })
    }

    fn buffer(&self, mutations: Vec<Mutation>) -> SpannerResult<()> {
        self.transaction.buffer(mutations.into_iter().map(mutation)).map_err(|e| self.refused(e))
    }
}
