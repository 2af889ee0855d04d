//! Which connection a query goes over.
//!
//! The query of a partition goes on for as long as the partition does. A connection carries a hundred
//! streams at a time (Google's limit, HTTP/2's `MAX_CONCURRENT_STREAMS`); one more waits, on that
//! connection, until another one ends, and with it the least of all safe times. The client's own pool
//! looks at the load only after it has given a query to a connection, so queries are counted here, and a
//! further connection is opened before one is full.

use std::fmt;
use std::sync::Arc;

use google_cloud_spanner::client::DatabaseClient;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::OfficialBuilder;
use crate::client::{Code, SpannerError, SpannerResult};

/// Queries on one connection at a time: a hundred, less some room for calls that are short.
const QUERIES: usize = 80;

/// The connections for queries. They stay open: a database that had many partitions will have them again.
pub(super) struct Lines {
    builder: OfficialBuilder,
    lines: Mutex<Vec<Line>>,
}

struct Line {
    client: DatabaseClient,
    free: Arc<Semaphore>,
}

impl Line {
    fn new(client: DatabaseClient) -> Self {
        Self { client, free: Arc::new(Semaphore::new(QUERIES)) }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// `first`: the client of everything else.
    pub(super) fn new(builder: OfficialBuilder, first: DatabaseClient) -> Self {
        Self { builder, lines: Mutex::new(vec![Line::new(first)]) }
    }

    /// A client with room for a query, which has it until the permit is dropped.
    pub(super) async fn take(&self) -> SpannerResult<(DatabaseClient, OwnedSemaphorePermit)> {
        let mut lines = self.lines.lock().await;
        let free = lines.iter().find_map(|line| {
            let permit = Arc::clone(&line.free).try_acquire_owned().ok()?;
            Some((line.client.clone(), permit))
        });
        if let Some(free) = free {
            return Ok(free);
        }
        // Others wait meanwhile: most of them fit on the new one.
        let line = Line::new(self.builder.one_channel().await?);
        let taken = Arc::clone(&line.free).try_acquire_owned();
        let permit = taken.map_err(|_| SpannerError::new(Code::Internal, "a new connection has no room"))?;
        let client = line.client.clone();
        lines.push(line);
        Ok((client, permit))
    }
}
