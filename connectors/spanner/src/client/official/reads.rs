//! Queries, plain and in parts.

use async_trait::async_trait;
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

/// The rows of a query. The client's `next` keeps what it has received in its own state, so that a
/// dropped call loses nothing.
#[derive(Debug)]
pub(super) struct OfficialRows(pub(super) ResultSet);

#[async_trait]
impl Rows for OfficialRows {
    async fn next(&mut self) -> SpannerResult<Option<Row>> {
        match self.0.next().await {
            Some(Ok(values)) => row(values.into_values()).map(Some),
            Some(Err(e)) => Err(error(&e)),
            None => Ok(None),
        }
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
        let rows = part.execute(&self.client).await.map_err(|e| error(&e))?;
        Ok(Box::new(OfficialRows(rows)))
    }
}
