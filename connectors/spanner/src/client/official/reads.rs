//! Queries, plain and in parts.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use google_cloud_spanner::Error;
use google_cloud_spanner::batch::{BatchReadOnlyTransaction, Partition};
use google_cloud_spanner::client::DatabaseClient;
use google_cloud_spanner::model::PartitionOptions;
use google_cloud_spanner::result::ResultSet;
use google_cloud_spanner::transaction::TimestampBound;

use super::convert::{error, instant, row, statement, timestamp};
use crate::client::{BatchRead, Code, Instant, ReadAt, Row, Rows, SpannerError, SpannerResult, Statement};

pub(super) fn bound(at: ReadAt) -> TimestampBound {
    match at {
        ReadAt::Strong => TimestampBound::strong(),
        ReadAt::Exactly(at) => TimestampBound::read_timestamp(timestamp(at)),
    }
}

/// The rows of a query.
///
/// The client must not be dropped amid a call: it asks for the first row before it gives anything (a
/// quiet change stream has none for as long as a heartbeat takes), and one that is dropped while it
/// mends a broken connection tells of an end that is none. So its calls live here, and whoever drops
/// [`Rows::next`] finds them again.
pub(super) struct OfficialRows(State);

enum State {
    Idle(Box<ResultSet>),
    Asking(BoxFuture<'static, Asked>),
    Ended,
    /// After an error: what might follow would look like an end.
    Failed,
}

/// The next row, and the rest of them unless it was the last.
type Asked = Result<(Option<Row>, Box<ResultSet>), SpannerError>;

impl OfficialRows {
    /// `opening`: the call that gives the rows. It is made with the first [`Rows::next`].
    pub(super) fn new(opening: impl Future<Output = Result<ResultSet, Error>> + Send + 'static) -> Self {
        Self(State::Asking(Box::pin(async {
            let rows = opening.await.map_err(|e| error(&e))?;
            ask(Box::new(rows)).await
        })))
    }
}

async fn ask(mut rows: Box<ResultSet>) -> Asked {
    match rows.next().await {
        Some(Ok(values)) => Ok((Some(row(values.into_values())?), rows)),
        Some(Err(e)) => Err(error(&e)),
        None => Ok((None, rows)),
    }
}

#[async_trait]
impl Rows for OfficialRows {
    async fn next(&mut self) -> SpannerResult<Option<Row>> {
        if let State::Idle(_) = self.0
            && let State::Idle(rows) = std::mem::replace(&mut self.0, State::Failed)
        {
            self.0 = State::Asking(Box::pin(ask(rows)));
        }
        let asked = match &mut self.0 {
            State::Asking(asking) => asking.await,
            State::Ended => return Ok(None),
            State::Idle(_) | State::Failed => {
                return Err(SpannerError::new(Code::Unavailable, "the query has failed before"));
            }
        };
        self.0 = State::Failed;
        let (row, rows) = asked?;
        self.0 = if row.is_some() { State::Idle(rows) } else { State::Ended };
        Ok(row)
    }
}

/// A point in time.
#[derive(Debug)]
pub(super) struct OfficialBatchRead {
    client: DatabaseClient,
    transaction: BatchReadOnlyTransaction,
    at: Instant,
}

impl OfficialBatchRead {
    pub(super) async fn begin(client: &DatabaseClient, at: ReadAt) -> SpannerResult<Self> {
        let builder = client.batch_read_only_transaction().set_timestamp_bound(bound(at));
        let transaction = builder.build().await.map_err(|e| error(&e))?;
        let at = transaction.read_timestamp().and_then(instant);
        let at = at.ok_or_else(|| SpannerError::new(Code::Internal, "Spanner did not tell the time of a read"))?;
        Ok(Self { client: client.clone(), transaction, at })
    }
}

#[async_trait]
impl BatchRead for OfficialBatchRead {
    fn at(&self) -> Instant {
        self.at
    }

    async fn partition(&self, query: Statement, max_parts: u32) -> SpannerResult<Vec<String>> {
        let options = PartitionOptions::new().set_max_partitions(i64::from(max_parts));
        let parts = self.transaction.partition_query(statement(query), options).await.map_err(|e| error(&e))?;
        let text = |p: &Partition| {
            serde_json::to_string(p).map_err(|e| SpannerError::new(Code::Internal, format!("cannot store a part: {e}")))
        };
        parts.iter().map(text).collect()
    }

    async fn read(&self, part: &str) -> SpannerResult<Box<dyn Rows>> {
        let part: Partition = serde_json::from_str(part)
            .map_err(|e| SpannerError::new(Code::InvalidArgument, format!("no part of a query: {e}")))?;
        let client = self.client.clone();
        Ok(Box::new(OfficialRows::new(async move { part.execute(&client).await })))
    }
}
