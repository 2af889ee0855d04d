//! The [`Client`] over Google's own crate.

mod admin;
mod convert;
mod lines;
mod reads;
mod transaction;

use std::fmt;
use std::sync::Arc;

use anabranch_core::{Error, ErrorKind};
use async_trait::async_trait;
use google_cloud_spanner::channel_pool::StaticChannelPoolConfig;
use google_cloud_spanner::client::{DatabaseClient, Spanner, SpannerBuilderExt};
use tokio::sync::{Mutex, OnceCell};

use super::{
    BatchRead, Client, Code, Instant, ReadAt, Rows, SpannerError, SpannerResult, Statement, TransactionOptions, Work,
};
use admin::Admin;
use convert::{error, statement};
use lines::Lines;
use reads::{OfficialBatchRead, OfficialRows, Open, bound};

/// The port of the REST administration is this much above that of gRPC on an emulator.
const EMULATOR_REST_OFFSET: u16 = 10;

/// Connects to a database.
#[derive(Debug, Clone)]
pub struct OfficialBuilder {
    database: String,
    endpoint: Option<String>,
    admin_endpoint: Option<String>,
    role: Option<String>,
}

impl OfficialBuilder {
    /// The address of the service; `http://host:port` speaks without TLS and credentials (an
    /// emulator). Default: `SPANNER_EMULATOR_HOST` if it is set, else Google's.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The address of the REST administration, for DDL. Default: that of the service, on a port
    /// higher by ten where the service is without TLS.
    #[must_use]
    pub fn admin_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.admin_endpoint = Some(endpoint.into());
        self
    }

    /// The database role to take on (fine-grained access control).
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) for a malformed name or endpoint and missing credentials;
    /// by the code of the answer otherwise.
    pub async fn connect(self) -> Result<Official, Error> {
        check_database(&self.database)?;
        let spanner = self.spanner(None).await?;
        let doing = format!("cannot connect to {}", self.database);
        let client = self.client(&spanner).await.map_err(|e| error(&e).into_core(doing))?;
        let rest = || rest_of(&self.address()?);
        let admin_endpoint = self.admin_endpoint.clone().map(with_scheme).or_else(rest);
        let lines = Arc::new(Lines::new(self.clone(), client.clone()));
        let alone = self.is_emulator().then(Arc::default);
        Ok(Official {
            database: self.database,
            spanner,
            client,
            lines,
            admin_endpoint,
            admin: Arc::new(OnceCell::new()),
            alone,
        })
    }

    fn is_emulator(&self) -> bool {
        self.address().is_some_and(|address| address.starts_with("http://"))
    }

    fn address(&self) -> Option<String> {
        self.endpoint.clone().or_else(emulator).map(with_scheme)
    }

    /// With so many connections; by default as many as the client thinks fit.
    async fn spanner(&self, channels: Option<usize>) -> Result<Spanner, Error> {
        let mut builder = Spanner::builder();
        if let Some(endpoint) = self.address() {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(channels) = channels {
            builder = builder.with_channel_pool(StaticChannelPoolConfig::new(channels));
        }
        builder.build().await.map_err(|e| {
            let kind = if e.is_default_credentials() { ErrorKind::Config } else { ErrorKind::Transient };
            Error::new(kind, "cannot set up the Spanner client").because(e)
        })
    }

    async fn client(&self, spanner: &Spanner) -> Result<DatabaseClient, google_cloud_spanner::Error> {
        let mut database = spanner.database_client(&*self.database);
        if let Some(role) = &self.role {
            database = database.with_database_role(role.clone());
        }
        database.build().await
    }

    /// A further client, on one connection.
    async fn one_channel(&self) -> SpannerResult<DatabaseClient> {
        let spanner = self.spanner(Some(1)).await;
        let spanner = spanner.map_err(|e| SpannerError::new(Code::Unavailable, e.report()))?;
        self.client(&spanner).await.map_err(|e| error(&e))
    }
}

/// A database, over the official client. Cheap to clone.
#[derive(Clone)]
pub struct Official {
    database: String,
    spanner: Spanner,
    client: DatabaseClient,
    lines: Arc<Lines>,
    admin_endpoint: Option<String>,
    admin: Arc<OnceCell<Admin>>,
    /// An emulator has one read-write transaction at a time, and aborts the others. They would be tried again so
    /// often that it forgets the one that goes on ("Transaction not found"). Here they wait for each other.
    alone: Option<Arc<Mutex<()>>>,
}

impl fmt::Debug for Official {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Official").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Official {
    /// For `projects/P/instances/I/databases/D`.
    pub fn builder(database: impl Into<String>) -> OfficialBuilder {
        OfficialBuilder { database: database.into(), endpoint: None, admin_endpoint: None, role: None }
    }

    async fn admin(&self) -> SpannerResult<&Admin> {
        let endpoint = self.admin_endpoint.clone();
        self.admin.get_or_try_init(|| Admin::connect(&self.spanner, &self.database, endpoint)).await
    }
}

#[async_trait]
impl Client for Official {
    async fn query(&self, query: Statement, at: ReadAt) -> SpannerResult<Box<dyn Rows>> {
        let lines = Arc::clone(&self.lines);
        Ok(Box::new(OfficialRows::new(async move {
            let (client, line) = lines.take().await?;
            let read = client.single_use().set_timestamp_bound(bound(at)).build();
            let rows = read.execute_query(statement(query)).await.map_err(|e| error(&e))?;
            Ok(Open { rows, line: Some(line) })
        })))
    }

    async fn batch_read(&self, at: ReadAt) -> SpannerResult<Arc<dyn BatchRead>> {
        Ok(Arc::new(OfficialBatchRead::begin(&self.client, at).await?))
    }

    async fn transact(&self, options: TransactionOptions, work: &mut dyn Work) -> SpannerResult<Instant> {
        let _alone = match &self.alone {
            Some(alone) => Some(alone.lock().await),
            None => None,
        };
        transaction::transact(&self.client, options, work).await
    }

    async fn partitioned_update(&self, update: Statement) -> SpannerResult<i64> {
        let dml = self.client.partitioned_dml_transaction().build();
        Box::pin(dml.execute_update(statement(update))).await.map_err(|e| error(&e))
    }

    async fn ddl(&self) -> SpannerResult<Vec<String>> {
        self.admin().await?.ddl().await
    }

    async fn apply_ddl(&self, statements: Vec<String>) -> SpannerResult<()> {
        self.admin().await?.apply(statements).await
    }
}

/// Checks the name of a database.
pub(crate) fn check_database(database: &str) -> Result<(), Error> {
    let parts: Vec<&str> = database.split('/').collect();
    match parts[..] {
        ["projects", p, "instances", i, "databases", d] if !p.is_empty() && !i.is_empty() && !d.is_empty() => Ok(()),
        _ => Err(Error::config("database", format!("{database:?} does not name a Spanner database"))
            .hint("write projects/PROJECT/instances/INSTANCE/databases/DATABASE")),
    }
}

fn emulator() -> Option<String> {
    std::env::var("SPANNER_EMULATOR_HOST").ok().filter(|host| !host.is_empty())
}

/// `host:port`, as `SPANNER_EMULATOR_HOST` has it, is without TLS.
fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") }
}

fn rest_of(endpoint: &str) -> Option<String> {
    let (host, port) = endpoint.strip_prefix("http://")?.trim_end_matches('/').rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    Some(format!("http://{host}:{}", port.checked_add(EMULATOR_REST_OFFSET)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_has_its_administration_ten_ports_above() {
        assert_eq!(rest_of("http://localhost:9010").as_deref(), Some("http://localhost:9020"));
        assert_eq!(rest_of("https://spanner.googleapis.com"), None);
        assert_eq!(with_scheme("localhost:9010".to_owned()), "http://localhost:9010");
    }

    #[test]
    fn a_database_is_named_in_full() {
        assert!(check_database("projects/p/instances/i/databases/d").is_ok());
        for bad in
            ["d", "projects/p/instances/i", "projects//instances/i/databases/d", "projects/p/instances/i/databases/d/x"]
        {
            let e = check_database(bad).unwrap_err().to_string();
            assert!(e.starts_with("database: ") && e.contains("projects/PROJECT/"), "{e}");
        }
    }
}
