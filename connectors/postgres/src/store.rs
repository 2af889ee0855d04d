//! The schema in a database that keeps what pipelines must remember.

use std::sync::Arc;

use anabranch_core::{Error, Result, Secret};
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::connect::Endpoint;
use crate::dialect::Dialect;
use crate::error::classify;
use crate::sql::ident;

/// A database, and the schema in it. Connects at first use and again after a loss.
#[derive(Debug)]
pub(crate) struct Store {
    key: &'static str,
    url: Secret,
    schema: String,
    dialect: Dialect,
    client: Mutex<Option<Arc<Client>>>,
}

/// The tables, created together: whoever may create one may create all.
const TABLES: [(&str, &str); 4] = [
    (
        "lane",
        "pipeline text NOT NULL, lane integer NOT NULL, lanes integer NOT NULL, epoch bigint NOT NULL, \
         identity text NOT NULL, changes bigint NOT NULL DEFAULT 0, transactions bigint NOT NULL DEFAULT 0, \
         snapshot_rows bigint NOT NULL DEFAULT 0, dead_letters bigint NOT NULL DEFAULT 0, \
         updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, lane)",
    ),
    (
        "position",
        "pipeline text NOT NULL, lane integer NOT NULL, partition_id text NOT NULL, position text NOT NULL, \
         safe_time bigint, PRIMARY KEY (pipeline, lane, partition_id)",
    ),
    ("checkpoint", "pipeline text PRIMARY KEY, version bigint NOT NULL, body text NOT NULL"),
    (
        "dead_letter",
        "pipeline text NOT NULL, id text COLLATE \"C\" NOT NULL, state text NOT NULL, class text NOT NULL, \
         body text NOT NULL, PRIMARY KEY (pipeline, id)",
    ),
];

impl Store {
    pub(crate) fn new(key: &'static str, url: Secret, schema: String) -> Self {
        Self { key, url, schema, dialect: Dialect::POSTGRES, client: Mutex::new(None) }
    }

    /// The same for another dialect.
    pub(crate) fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// What the server may lack.
    pub(crate) fn lacks(&self) -> &Dialect {
        &self.dialect
    }

    /// Where the database is.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        Endpoint::parse(self.key, self.url.resolve(self.key)?.expose())
    }

    /// The configuration key of the URL.
    pub(crate) fn key(&self) -> &'static str {
        self.key
    }

    /// The name of a table of the schema, quoted.
    pub(crate) fn table(&self, name: &str) -> String {
        format!("{}.{}", ident(&self.schema), ident(name))
    }

    /// A connection for single statements, shared.
    pub(crate) async fn client(&self) -> Result<Arc<Client>> {
        let mut shared = self.client.lock().await;
        if let Some(client) = shared.as_ref().filter(|c| !c.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.connect("store").await?);
        *shared = Some(Arc::clone(&client));
        Ok(client)
    }

    /// A connection of one's own, that commits durably whatever the server's default is.
    pub(crate) async fn connect(&self, role: &str) -> Result<Client> {
        let client = self.endpoint()?.connect(&format!("anabranch-sink/{role}")).await?;
        // Checkpoints and dead letters are promises too: never `synchronous_commit = off`.
        let setup = "SET synchronous_commit = on; SET statement_timeout = 0; SET lock_timeout = '10s'; \
                     SET default_transaction_isolation = 'read committed'";
        client.batch_execute(setup).await.map_err(|e| classify(e, "cannot set up the session"))?;
        Ok(client)
    }

    /// Whether the tables are there.
    pub(crate) async fn exists(&self, client: &Client) -> Result<bool> {
        let names: Vec<String> = TABLES.iter().map(|(name, _)| self.table(name)).collect();
        let row = client
            .query_one("SELECT count(to_regclass(name)) FROM unnest($1::text[]) AS n(name)", &[&names])
            .await
            .map_err(|e| classify(e, "cannot look for the tables of the pipeline"))?;
        Ok(row.get::<_, i64>(0) == TABLES.len() as i64)
    }

    /// Whether the tables are there, or the user may create them.
    ///
    /// # Errors
    /// `Config`, with the statements to run, if not.
    pub(crate) async fn check_rights(&self, client: &Client) -> Result<()> {
        if self.exists(client).await? {
            return Ok(());
        }
        let row = client
            .query_one(
                "SELECT coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), \
                   has_database_privilege(current_database(), 'CREATE')), current_user::text",
                &[&self.schema],
            )
            .await
            .map_err(|e| classify(e, "cannot look for the schema of the pipeline"))?;
        if row.get(0) { Ok(()) } else { Err(self.denied(row.get(1))) }
    }

    /// Creates the schema and its tables if they are missing.
    ///
    /// # Errors
    /// `Config`, with the statements to run, if the user may not.
    pub(crate) async fn ensure(&self, client: &Client) -> Result<()> {
        if self.exists(client).await? {
            return Ok(());
        }
        // Two pipelines that start at the same time would both find nothing and both create.
        let lock =
            if self.dialect.advisory_locks { "SELECT pg_advisory_xact_lock(hashtext('anabranch'));" } else { "" };
        let mut statements = format!("BEGIN;{lock}");
        let row = client
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), current_user::text",
                &[&self.schema],
            )
            .await
            .map_err(|e| classify(e, "cannot look for the schema of the pipeline"))?;
        if !row.get::<_, bool>(0) {
            statements.push_str(&format!("CREATE SCHEMA IF NOT EXISTS {};", ident(&self.schema)));
        }
        for (name, columns) in TABLES {
            let (table, storage) = (self.table(name), self.dialect.storage);
            statements.push_str(&format!("CREATE TABLE IF NOT EXISTS {table} ({columns}){storage};"));
        }
        statements.push_str("COMMIT");
        match client.batch_execute(&statements).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let denied = e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                _ = client.batch_execute("ROLLBACK").await;
                if denied {
                    Err(self.denied(row.get(1)))
                } else {
                    let e = classify(e, &format!("{}: cannot create the pipeline's tables", self.key));
                    // 25006: the database, the user or the server is set so, or it is a standby.
                    match e.to_string().contains("25006") {
                        true => Err(e.hint(
                            "the target takes no writes: default_transaction_read_only is on (it may be fenced), or it \
                             is a standby",
                        )),
                        false => Err(e),
                    }
                }
            }
        }
    }

    fn denied(&self, user: String) -> Error {
        let (schema, user) = (ident(&self.schema), ident(&user));
        Error::config(self.key, format!("{user} may not create the tables that keep the pipeline's progress"))
            .hint(format!("run as the owner of the database: CREATE SCHEMA {schema} AUTHORIZATION {user}"))
    }
}
