//! What a connector builds on whose database speaks PostgreSQL's protocols: `connectors/yugabyte`. No
//! stable interface.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{ChangeReader, Error, PartitionId, Position, Result, TableName, TableSchema, Timestamp};
use tokio_postgres::Client;

use crate::catalog::{self, CatalogTable};
use crate::config::SchemaChange;
use crate::connect::Endpoint;
pub use crate::dialect::Dialect;
use crate::lsn::{self, Lsn, Ranking};
use crate::reader::assemble::{Assembler, Start};
use crate::reader::relation::Relations;
use crate::reader::{Beat, Reader};
use crate::session::{self, Session};
pub use crate::setup::check_names;
use crate::setup::publication;
use crate::snapshot::chunk::ChunkReader;
pub use crate::sql::{ident, literal, table as table_ident};
use crate::verify;
use crate::wire::Connection;

/// A row of a replication command, as text.
pub type TextRow = Vec<Option<String>>;

/// A server, and one connection to it for statements.
#[derive(Debug, Clone)]
pub struct Server(Session);

/// A published table as it is now.
#[derive(Debug, Clone)]
pub struct Published(CatalogTable);

/// What to stream.
#[derive(Debug)]
pub struct Stream {
    /// The partition.
    pub partition: PartitionId,
    /// `START_REPLICATION ...`
    pub command: String,
    /// Everything at or before this is left out.
    pub start: Position,
    /// The publication, for tables that change.
    pub publication: String,
    /// The tables as they were when the pipeline was checked.
    pub known: Vec<Published>,
    /// Of each table that was copied: its changes that committed before this time are in the copy.
    pub copied: HashMap<TableName, Timestamp>,
    /// Tables whose changes are progress and nothing else.
    pub silent: Vec<TableName>,
    /// What to do when a table changes.
    pub on_schema_change: SchemaChange,
    /// Commits something that the stream brings, for safe time on a quiet source: how, and how often.
    pub beat: Option<(String, Duration)>,
}

impl Server {
    /// No connection is made.
    pub fn new(endpoint: Endpoint) -> Self {
        Self(Session::new(endpoint))
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }

    /// The database.
    pub fn database(&self) -> &str {
        self.0.endpoint().database()
    }

    /// A connection that is shared.
    pub async fn client(&self) -> Result<Arc<Client>> {
        self.0.client().await
    }

    /// A connection of one's own, with the same settings.
    pub async fn own_client(&self, application_name: &str) -> Result<Client> {
        session::open(self.0.endpoint(), application_name).await
    }

    /// Runs one command of the replication protocol on a connection of its own.
    pub async fn command(&self, application_name: &str, command: &str, what: &str) -> Result<Vec<TextRow>> {
        let mut connection = Connection::open(self.0.endpoint(), application_name).await?;
        let rows = connection.query(command, what).await?;
        connection.close().await;
        Ok(rows)
    }

    /// The tables of a publication.
    pub async fn published(&self, publication: &str) -> Result<Vec<Published>> {
        let client = self.client().await?;
        let (tables, _) = catalog::published(&client, publication).await?;
        Ok(tables.into_iter().map(Published).collect())
    }

    /// The tables that a publication of these would have; of all tables, if none is named.
    pub async fn planned(&self, tables: &[TableName]) -> Result<Vec<Published>> {
        let tables = catalog::planned(&*self.client().await?, tables).await?;
        Ok(tables.into_iter().map(Published).collect())
    }

    /// A reader of a stream that is ranked by commit time.
    pub async fn stream(&self, stream: Stream) -> Result<Box<dyn ChangeReader>> {
        let mut copied: HashMap<TableName, Lsn> = HashMap::new();
        for (table, until) in &stream.copied {
            copied.insert(table.clone(), Ranking::CommitTime.place(Lsn(0), *until));
        }
        copied.extend(stream.silent.iter().map(|table| (table.clone(), Lsn(u64::MAX))));
        let known = stream.known.into_iter().map(|table| table.0);
        let relations = Relations::new(known, copied, stream.on_schema_change);
        let start = Start { position: stream.start, drop_origins: false, ranking: Ranking::CommitTime };
        let assembler = Assembler::new(stream.partition, relations, start)?;
        let mut connection = Connection::open(self.0.endpoint(), "anabranch stream").await?;
        connection.start_replication(&stream.command, "cannot read the slot").await?;
        let beat = stream.beat.map(|(statement, every)| Beat { statement, every });
        Ok(Box::new(Reader::new(connection, assembler, self.0.clone(), stream.publication, beat)))
    }
}

impl Published {
    /// Its name, columns and key.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.0.schema
    }

    /// Its object identifier.
    pub fn oid(&self) -> u32 {
        self.0.oid
    }

    /// `pg_class.relreplident`.
    pub fn identity(&self) -> u8 {
        self.0.identity
    }

    /// The publication's row filter, as SQL.
    pub fn filter(&self) -> Option<&str> {
        self.0.filter.as_deref()
    }
}

/// Reads the rows that `copy` (`COPY ... TO STDOUT`) gives on this connection.
pub async fn chunk(
    client: Client,
    copy: &str,
    schema: &Arc<TableSchema>,
    partition: PartitionId,
    what: String,
) -> Result<Box<dyn ChangeReader>> {
    Ok(Box::new(ChunkReader::start(client, copy, schema, partition, what).await?))
}

/// The position after everything that committed before `time`; reading begins at the place `from`.
pub fn before_time(time: Timestamp, from: Lsn) -> Position {
    lsn::before_time(time, from)
}

/// Where to begin to resume from a position.
pub fn resume_at(position: &Position) -> Result<Lsn> {
    Lsn::of_token(position)
}

/// The time that the rank of a position names.
pub fn time_of(position: &Position) -> Result<Timestamp> {
    Lsn::time_of_rank(position)
}

/// Converts an error of the driver; `what` says what was being done.
pub fn classify(e: tokio_postgres::Error, what: &str) -> Error {
    crate::error::classify(e, what)
}

/// Reads `schema.table`, or a table of `public`; `key` is what an error names.
pub fn table_name(key: &str, text: &str) -> Result<TableName> {
    publication::table_name(text).map_err(|_| {
        Error::config(key, format!("{text:?} is not the name of a table"))
            .hint("write schema.table, with double quotes around a part that has a dot")
    })
}

/// The condition that picks the rows with one of these keys.
pub fn condition(table: &TableSchema, keys: &[Vec<anabranch_core::Value>]) -> String {
    let native = |name: &str| {
        let column = table.columns.iter().find(|c| c.name == name);
        column.map_or_else(|| "text".to_owned(), |c| c.native.clone())
    };
    verify::condition(table, keys, native)
}
