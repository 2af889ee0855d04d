//! The administration: DDL.

use google_cloud_spanner::client::{DatabaseAdmin, Spanner};
use tokio::time::{Duration, sleep};

use super::convert::{chain, error};
use crate::client::{Code, SpannerError, SpannerResult};

/// How often a schema change is asked whether it is done. It takes seconds at least on a real
/// instance, and Spanner has no call that waits.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The first wait: an emulator is done at once.
const ASK_FIRST: Duration = Duration::from_millis(20);

pub(super) struct Admin {
    client: DatabaseAdmin,
    database: String,
}

impl Admin {
    pub(super) async fn connect(spanner: &Spanner, database: &str, endpoint: Option<String>) -> SpannerResult<Self> {
        let mut builder = spanner.database_admin_builder();
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let client = builder.build().await.map_err(|e| SpannerError::new(Code::Unavailable, chain(&e)))?;
        Ok(Self { client, database: database.to_owned() })
    }

    pub(super) async fn ddl(&self) -> SpannerResult<Vec<String>> {
        let answer = self.client.get_database_ddl().set_database(&*self.database).send().await;
        Ok(answer.map_err(|e| error(&e))?.statements)
    }

    pub(super) async fn apply(&self, statements: Vec<String>) -> SpannerResult<()> {
        let request = self.client.update_database_ddl().set_database(&*self.database).set_statements(statements);
        let mut operation = request.send().await.map_err(|e| error(&e))?;
        let mut wait = ASK_FIRST;
        while !operation.done {
            sleep(wait).await;
            wait = (wait * 2).min(ASK_AGAIN);
            let asked = self.client.get_operation().set_name(&*operation.name).send().await;
            operation = asked.map_err(|e| error(&e))?;
        }
        match operation.error() {
            Some(status) => Err(SpannerError::new(Code::from_number(status.code), status.message.clone())),
            None => Ok(()),
        }
    }
}
