//! Connections to PostgreSQL of the proxy's own.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls};

use crate::wire::{Message, broken, text};

/// What stands in for YugabyteDB's functions. In `pg_catalog`, where every session finds them.
const FUNCTIONS: &str = r#"
CREATE OR REPLACE FUNCTION pg_catalog.yb_hash_code(key bigint) RETURNS integer IMMUTABLE LANGUAGE sql
AS 'SELECT hashint8(key) & 65535';
CREATE OR REPLACE FUNCTION pg_catalog.yb_table_properties(relation oid,
    OUT num_tablets bigint, OUT num_hash_key_columns bigint, OUT is_colocated boolean) STABLE LANGUAGE sql
AS $$ SELECT 3, (SELECT count(*) FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
          WHERE i.indrelid = relation AND i.indisprimary AND i.indnkeyatts = 1 AND a.atttypid = 20), false $$;
"#;

/// A client for statements.
pub(crate) async fn client(port: u16, database: &str) -> io::Result<Client> {
    let url = format!("postgresql://postgres@127.0.0.1:{port}/{database}?application_name=fake");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.map_err(io::Error::other)?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// Makes a database look like one of YugabyteDB.
pub(crate) async fn install(port: u16, database: &str, identity: u8) -> io::Result<()> {
    let identity = char::from(identity);
    let relreplident = format!(
        "CREATE OR REPLACE FUNCTION pg_catalog.relreplident(relation oid) RETURNS \"char\" STABLE LANGUAGE sql AS \
         $$ SELECT CASE WHEN relreplident IN ('n', 'i') THEN relreplident ELSE '{identity}'::\"char\" END \
            FROM pg_catalog.pg_class WHERE oid = relation $$;"
    );
    let client = client(port, database).await?;
    client.batch_execute(&format!("{FUNCTIONS}{relreplident}")).await.map_err(io::Error::other)
}

/// A connection on messages.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// A replication connection, ready for commands.
    pub(crate) async fn replication(port: u16, database: &str) -> io::Result<Self> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for part in ["user", "postgres", "database", database, "replication", "database", "application_name", "fake"] {
            body.extend_from_slice(&text(part));
        }
        for (name, value) in SETTINGS {
            body.extend_from_slice(&text(name));
            body.extend_from_slice(&text(value));
        }
        body.push(0);
        socket.write_u32(body.len() as u32 + 4).await?;
        socket.write_all(&body).await?;
        let mut raw = Self(socket);
        raw.until_ready().await?;
        Ok(raw)
    }

    pub(crate) async fn send(&mut self, message: &Message) -> io::Result<()> {
        self.0.write_all(&message.bytes()).await
    }

    /// Runs one command and gives the texts of its rows.
    pub(crate) async fn query(&mut self, sql: &str) -> io::Result<Vec<Vec<String>>> {
        self.send(&Message::new(b'Q', text(sql))).await?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> io::Result<Vec<Vec<String>>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let message = Message::read(&mut self.0).await?;
            match message.tag {
                b'D' => rows.push(row(&message.body)),
                b'E' => failed = Some(broken(message.field(b'M').unwrap_or_default())),
                b'Z' => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }
}

/// Values are printed as the client of the proxy wants them.
const SETTINGS: [(&str, &str); 6] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("client_encoding", "UTF8"),
];

fn row(body: &[u8]) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (value, after) = after.split_at(length.min(after.len()));
        values.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    values
}
