//! The sink: settings, and the way to everything else.

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::{
    Checkpointer, DeadLetterStore, Error, Lane, ProgressStore, Result, Secret, Sink, SinkInfo, SinkWriter,
    TargetSchema, Verifier,
};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;

use crate::checkpointer::MySqlCheckpointer;
use crate::config::{LocalInfile, MySqlConfig, TimeZone, Tls};
use crate::connection::{Connector, Kept, Server};
use crate::dead_letters::MySqlDeadLetters;
use crate::error::{Failure, Phase};
use crate::rights;
use crate::writer::MySqlWriter;

/// A MySQL or MariaDB database that changes are applied to.
///
/// Each unit is one transaction, with its progress in the tables `anabranch_lane` and
/// `anabranch_position` of the same database. Tables live in the URL's database under the source's
/// table names, without its schemas; they must be InnoDB (or another engine with transactions).
///
/// ```
/// use anabranch_mysql::MySql;
/// let sink = MySql::new("mysql://app@db2:3306/shop").password("env:MYSQL_PASSWORD");
/// ```
#[derive(Debug)]
pub struct MySql {
    connector: Arc<Connector>,
    kept: Kept,
}

impl MySql {
    /// A sink for the database of this URL, `mysql://user@host:3306/database`; also `env:NAME` or `file:PATH`.
    pub fn new(url: impl Into<Secret>) -> Self {
        Self::from_config(MySqlConfig {
            url: url.into(),
            password: None,
            tls: Tls::Off,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            local_infile: LocalInfile::Auto,
            accept_relaxed_durability: false,
            versions: false,
            versions_prefix: crate::config::shadow(),
            time_zone: TimeZone::default(),
        })
    }

    pub(crate) fn from_config(config: MySqlConfig) -> Self {
        Self { connector: Arc::new(Connector::new(config)), kept: Kept::default() }
    }

    fn with(self, set: impl FnOnce(&mut MySqlConfig)) -> Self {
        let mut config = self.connector.config().clone();
        set(&mut config);
        Self::from_config(config)
    }

    /// See [`MySqlConfig::password`].
    #[must_use]
    pub fn password(self, password: impl Into<Secret>) -> Self {
        let password = password.into();
        self.with(|c| c.password = Some(password))
    }

    /// See [`MySqlConfig::tls`].
    #[must_use]
    pub fn tls(self, tls: Tls) -> Self {
        self.with(|c| c.tls = tls)
    }

    /// See [`MySqlConfig::tls_ca`].
    #[must_use]
    pub fn tls_ca(self, file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        self.with(|c| c.tls_ca = Some(file))
    }

    /// See [`MySqlConfig::tls_cert`] and [`MySqlConfig::tls_key`].
    #[must_use]
    pub fn tls_client(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let (cert, key) = (cert.into(), key.into());
        self.with(|c| (c.tls_cert, c.tls_key) = (Some(cert), Some(key)))
    }

    /// See [`MySqlConfig::local_infile`].
    #[must_use]
    pub fn local_infile(self, local_infile: LocalInfile) -> Self {
        self.with(|c| c.local_infile = local_infile)
    }

    /// See [`MySqlConfig::accept_relaxed_durability`].
    #[must_use]
    pub fn accept_relaxed_durability(self, accept: bool) -> Self {
        self.with(|c| c.accept_relaxed_durability = accept)
    }

    /// See [`MySqlConfig::versions`] and [`MySqlConfig::versions_prefix`].
    #[must_use]
    pub fn versions(self, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        self.with(|c| (c.versions, c.versions_prefix) = (true, prefix))
    }

    /// See [`MySqlConfig::time_zone`].
    #[must_use]
    pub fn time_zone(self, offset: TimeZone) -> Self {
        self.with(|c| c.time_zone = offset)
    }

    /// Finds errors of the settings without connecting.
    pub(crate) fn check(&self) -> Result<()> {
        if self.connector.config().versions && self.connector.config().versions_prefix.is_empty() {
            return Err(Error::config(
                "sink.versions_prefix",
                "is empty: the tables of versions need names of their own",
            ));
        }
        self.connector.options().map(|_| ())
    }

    pub(crate) fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What is known of the server without asking it.
    pub(crate) fn server(&self) -> Option<Server> {
        self.connector.server()
    }

    pub(crate) async fn ask_server(&self) -> Result<Server> {
        match self.server() {
            Some(server) => Ok(server),
            None => {
                let link = self.kept.take(&self.connector).await?;
                let server = link.server.clone();
                self.kept.put(link).await;
                Ok(server)
            }
        }
    }

    /// Runs one statement that commits itself.
    pub(crate) async fn run(&self, sql: String) -> Result<()> {
        let mut link = self.kept.take(&self.connector).await?;
        let done = link.conn.query_drop(sql).await.map_err(|e| Failure::driver(e).into_error(Phase::Commit));
        self.kept.put(link).await;
        done
    }
}

#[async_trait]
impl Sink for MySql {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "mysql", transactional: true, max_lanes: 64, schemas: false }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        let mut link = self.connector.connect().await?;
        rights::told(rights::check_writable(&mut link).await)?;
        Ok(Box::new(MySqlWriter::new(Arc::clone(&self.connector), lane, link)))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(MySqlCheckpointer::new(Arc::clone(&self.connector))))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(MySqlDeadLetters::new(Arc::clone(&self.connector))))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }
}
