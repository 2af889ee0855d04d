//! Connections: how they are opened and set up, and what is known of the server.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anabranch_core::{Error, ErrorKind, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, Opts, OptsBuilder, SslOpts};
use tokio::time::timeout;

use crate::config::{LocalInfile, MySqlConfig, Tls};
use crate::error::{Failure, Phase};

/// Session settings do not come from the server's configuration: the same write must do the same
/// everywhere. Set wholly, so that ANSI_QUOTES, NO_BACKSLASH_ESCAPES, PAD_CHAR_TO_FULL_LENGTH or
/// EMPTY_STRING_IS_NULL are off. NO_AUTO_VALUE_ON_ZERO keeps a 0 in an AUTO_INCREMENT column.
const SQL_MODE: &str = "STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,\
                        NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO";

/// Seconds without a statement after which the server drops a connection and rolls back, so that a
/// runner whose machine vanished does not hold its lane's row for ever.
const WAIT_TIMEOUT: u32 = 600;

/// A connection that was idle for longer is asked whether it still lives before it is used.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(20);

/// How long a server may take to accept a connection, or to say that it lives. The operating
/// system would wait for minutes for a machine that is gone.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes of a statement, at most; also at most half of max_allowed_packet. Larger ones are not
/// faster, and the server keeps each whole in memory.
const MAX_STATEMENT: usize = 4 << 20;

/// Opens connections to one target.
#[derive(Debug)]
pub(crate) struct Connector {
    config: MySqlConfig,
    server: Mutex<Option<Server>>,
}

/// What is known of the server; the same for all connections.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// MariaDB, else MySQL or something that says so.
    pub(crate) mariadb: bool,
    /// A collation that tells all strings apart, trailing blanks included.
    pub(crate) collation: &'static str,
    /// Names of tables are compared without case.
    pub(crate) folds_names: bool,
    /// Bytes of a packet.
    pub(crate) max_packet: usize,
    /// `LOAD DATA LOCAL` is allowed there and here.
    pub(crate) local_infile: bool,
}

impl Server {
    /// Bytes after which a statement is sent.
    pub(crate) fn statement_limit(&self) -> usize {
        (self.max_packet / 2).min(MAX_STATEMENT)
    }
}

/// An open connection.
pub(crate) struct Link {
    pub(crate) conn: Conn,
    pub(crate) server: Server,
    used: Instant,
}

/// The driver's connection would print its options, and with them the password.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.conn.id()).field("server", &self.server).finish_non_exhaustive()
    }
}

impl Link {
    /// Whether it is probably alive: asks the server if it was idle for some time.
    pub(crate) async fn is_alive(&mut self) -> bool {
        let idle = self.used.elapsed();
        self.used = Instant::now();
        !self.conn.is_disconnected()
            && (idle < IDLE_BEFORE_PING || matches!(timeout(PATIENCE, self.conn.ping()).await, Ok(Ok(()))))
    }
}

/// The driver asks rustls for the process's default provider, and rustls panics where several are compiled
/// in and none is chosen. An application's own choice stands.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody who was faster has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl Connector {
    pub(crate) fn new(config: MySqlConfig) -> Self {
        Self { config, server: Mutex::new(None) }
    }

    pub(crate) fn config(&self) -> &MySqlConfig {
        &self.config
    }

    /// What the last connection found; `None` before the first.
    pub(crate) fn server(&self) -> Option<Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The driver's options.
    ///
    /// # Errors
    /// `Config`, naming the key.
    pub(crate) fn options(&self) -> Result<Opts> {
        let url = self.config.url.resolve("sink.url")?;
        // The driver's message may quote the URL, and with it a password: only its kind is told.
        let opts = Opts::from_url(url.expose()).map_err(|_| {
            Error::config("sink.url", "is not a MySQL URL the driver understands")
                .hint("write mysql://user@host:3306/database")
        })?;
        if opts.db_name().is_none_or(str::is_empty) {
            return Err(Error::config("sink.url", "names no database").hint("add it: mysql://user@host/database"));
        }
        if opts.db_name().is_some_and(|name| name.contains('@')) {
            // The part of a password behind a slash, most likely: it would be shown as a name.
            return Err(Error::config("sink.url", "has an @ in the name of its database")
                .hint("percent-encode / and @ of a password as %2F and %40, or set sink.password"));
        }
        let has_tls = opts.ssl_opts().is_some();
        let mut builder = OptsBuilder::from_opts(opts)
            // Matched rows are counted, not changed ones: an update that changes nothing still found its row.
            .client_found_rows(true)
            // Otherwise the driver leaves 127.0.0.1 for the server's socket: past proxies and firewalls.
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(30)));
        if let Some(password) = &self.config.password {
            builder = builder.pass(Some(password.resolve("sink.password")?.expose()));
        }
        if let Some(tls) = self.tls()? {
            builder = builder.ssl_opts(tls);
        } else if !has_tls {
            builder = builder.ssl_opts(None);
        }
        let opts = Opts::from(builder);
        if opts.ssl_opts().is_some() {
            choose_cryptography();
        }
        Ok(opts)
    }

    fn tls(&self) -> Result<Option<SslOpts>> {
        let c = &self.config;
        if c.tls == Tls::Off {
            if c.tls_ca.is_some() || c.tls_cert.is_some() || c.tls_key.is_some() {
                return Err(
                    Error::config("sink.tls", "is off, but certificates are given").hint("set tls = \"verify\"")
                );
            }
            return Ok(None);
        }
        let readable = |key: &str, path: &Path| {
            std::fs::metadata(path)
                .map(|_| ())
                .map_err(|e| Error::config(key, format!("cannot read the file {}", path.display())).because(e))
        };
        let mut ssl = SslOpts::default();
        if let Some(ca) = &c.tls_ca {
            readable("sink.tls_ca", ca)?;
            ssl = ssl.with_root_certs(vec![ca.clone().into()]).with_disable_built_in_roots(true);
        }
        match (&c.tls_cert, &c.tls_key) {
            (Some(cert), Some(key)) => {
                readable("sink.tls_cert", cert)?;
                readable("sink.tls_key", key)?;
                ssl = ssl.with_client_identity(Some(ClientIdentity::new(cert.clone().into(), key.clone().into())));
            }
            (None, None) => {}
            _ => return Err(Error::config("sink.tls_cert", "goes with sink.tls_key").hint("give both, or none")),
        }
        if c.tls == Tls::Insecure {
            ssl = ssl.with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true);
        }
        Ok(Some(ssl))
    }

    /// A connection, set up.
    pub(crate) async fn connect(&self) -> Result<Link> {
        let opts = self.options()?;
        let whom = format!(
            "sink.url: cannot connect to mysql://{}@{}:{}/{}",
            opts.user().unwrap_or_default(),
            opts.ip_or_hostname(),
            opts.tcp_port(),
            opts.db_name().unwrap_or_default()
        );
        self.connect_with(opts).await.map_err(|e| match e.kind() {
            // These name the key themselves.
            ErrorKind::Config if e.to_string().starts_with("sink") => e,
            _ => e.context(whom),
        })
    }

    async fn connect_with(&self, opts: Opts) -> Result<Link> {
        let mut conn = timeout(PATIENCE, Conn::new(opts))
            .await
            .map_err(|_| Error::transient(format!("the MySQL server did not answer in {} s", PATIENCE.as_secs())))?
            .map_err(|e| Failure::driver(e).into_error(Phase::Connect))?;
        let server = self.set_up(&mut conn).await.map_err(|e| Failure::driver(e).into_error(Phase::Connect))?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.clone());
        Ok(Link { conn, server, used: Instant::now() })
    }

    async fn set_up(&self, conn: &mut Conn) -> Result<Server, mysql_async::Error> {
        let facts: Option<(String, u64, u64, u64)> = conn
            .query_first("SELECT VERSION(), @@max_allowed_packet, @@lower_case_table_names, @@GLOBAL.local_infile")
            .await?;
        let (version, max_packet, folding, local_infile) = facts.unwrap_or_default();
        let mariadb = version.to_ascii_lowercase().contains("mariadb");
        let collation = match (mariadb, conn.server_version()) {
            (true, _) => "utf8mb4_nopad_bin",
            (false, v) if v >= (8, 0, 17) => "utf8mb4_0900_bin",
            // Blanks at the end are not told apart; such keys are guarded (see `plan.rs`).
            (false, _) => "utf8mb4_bin",
        };
        // foreign_key_checks=0: the source has checked them, the net effect of a unit may hold a
        // child before its parent, and a cascade would do what the stream does again.
        let mut settings = format!(
            "SET SESSION sql_mode='{SQL_MODE}', time_zone='+00:00', autocommit=1, completion_type=0, \
             foreign_key_checks=0, unique_checks=1, sql_safe_updates=0, sql_auto_is_null=0, \
             wait_timeout={WAIT_TIMEOUT}"
        );
        if mariadb {
            // A limit meant for queries would cut large units off again and again.
            settings.push_str(", max_statement_time=0");
        }
        // A Galera cluster may commit in the middle of a load (wsrep_load_data_splitting).
        let cluster: Option<(String, String)> = conn.query_first("SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").await?;
        let may_load = local_infile != 0 && !cluster.is_some_and(|(_, on)| on.eq_ignore_ascii_case("on"));
        conn.query_drop(settings).await?;
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        conn.query_drop(format!("SET NAMES utf8mb4 COLLATE {collation}")).await?;
        Ok(Server {
            mariadb,
            collation,
            folds_names: folding != 0,
            max_packet: usize::try_from(max_packet).unwrap_or(usize::MAX),
            local_infile: may_load && self.config.local_infile == LocalInfile::Auto,
        })
    }
}

/// A connection that is kept between calls: for stores that are asked now and then.
#[derive(Debug, Default)]
pub(crate) struct Kept(tokio::sync::Mutex<Option<Link>>);

impl Kept {
    /// Takes the connection, or opens one. It comes back with [`Kept::put`] unless a call failed.
    pub(crate) async fn take(&self, connector: &Connector) -> Result<Link> {
        let kept = self.0.lock().await.take();
        if let Some(mut link) = kept
            && link.is_alive().await
        {
            return Ok(link);
        }
        connector.connect().await
    }

    pub(crate) async fn put(&self, link: Link) {
        if !link.conn.is_disconnected() {
            *self.0.lock().await = Some(link);
        }
    }
}
