//! Throwaway servers, and the proxy before them.

use std::sync::Arc;

use anabranch_core::*;
use anabranch_servers::{PgServer, PgVersion};
use anabranch_yugabyte::Yugabyte;
use anabranch_yugabyte_fake::{Fake, Options};
use tokio_postgres::{Client, NoTls};

/// A server, and the proxy before it. The proxy ends first.
pub(crate) struct Universe {
    pub(crate) fake: Fake,
    pub(crate) server: PgServer,
}

/// `None`, after saying so, where no PostgreSQL is installed.
pub(crate) async fn universe(options: Options) -> Option<Universe> {
    let server = anabranch_servers::postgres(PgVersion::V15)?;
    let fake = Fake::start(server.port(), &["postgres"], options).await.unwrap();
    Some(Universe { fake, server })
}

pub(crate) fn identity(identity: u8) -> Options {
    Options { identity, ..Options::default() }
}

impl Universe {
    pub(crate) fn url(&self) -> String {
        self.fake.url("postgres")
    }

    pub(crate) fn exec(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.server.exec("postgres", sql).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A source of `t`, with a slot of this name.
    pub(crate) fn source(&self, slot: &str) -> Yugabyte {
        Yugabyte::new(self.url()).publication("pub").slot(slot).tables(["t"])
    }
}

pub(crate) async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// More than anything takes on a busy machine.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Opens a reader; a server may take a moment to notice that the last one has gone.
pub(crate) async fn open(source: &Yugabyte, from: &StartFrom) -> Box<dyn ChangeReader> {
    let partition = source.partitions().await.unwrap().remove(0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match source.open(&partition, from).await {
            Ok(reader) => return reader,
            Err(e) if e.kind() == ErrorKind::Transient && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(e) => panic!("open: {}", e.report()),
        }
    }
}

/// The changes that come, as text: op, old row, new row; `~` is NULL, `?` not sent.
pub(crate) fn text(change: ChangeRef<'_>) -> String {
    let row = |row: RowRef<'_>| {
        let value = |i: usize| match row.get(i) {
            ValueRef::Null => "~".to_owned(),
            ValueRef::Unchanged => "?".to_owned(),
            ValueRef::Text(text) => text.to_owned(),
            other => format!("{other:?}"),
        };
        (0..row.len()).map(value).collect::<Vec<_>>().join(",")
    };
    let op = format!("{:?}", change.op()).to_lowercase();
    let old = change.old_row().map(row).map_or_else(String::new, |r| format!(" -({r})"));
    let new = change.new_row().map(row).map_or_else(String::new, |r| format!(" +({r})"));
    format!("{op}{old}{new}")
}

/// Reads until this many transactions with changes have ended: their changes, and their ends.
pub(crate) async fn transactions(reader: &mut dyn ChangeReader, count: usize) -> Vec<(Vec<String>, Position)> {
    let mut ended = Vec::new();
    let mut open = Vec::new();
    while ended.len() < count {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("a batch in time");
        let Next::Batch(batch) = next.unwrap_or_else(|e| panic!("{}", e.report())) else { panic!("it closed") };
        for piece in batch.pieces() {
            open.extend(piece.changes.clone().map(|i| text(batch.change(i as usize))));
            if let Some(end) = &piece.end {
                ended.push((std::mem::take(&mut open), end.clone()));
            }
        }
    }
    ended
}

/// What a pipeline would have stored by then.
pub(crate) fn checkpoint(identity: &SourceIdentity, position: &Position) -> Checkpoint {
    let progress = PartitionProgress { position: Some(position.clone()), ..PartitionProgress::default() };
    let mut checkpoint = Checkpoint { identity: identity.clone(), ..Checkpoint::default() };
    checkpoint.partitions.insert(PartitionId::new(identity.get("slot").unwrap_or_default()), progress);
    checkpoint
}

pub(crate) fn arc<S: Source>(source: S) -> Arc<dyn Source> {
    Arc::new(source)
}

/// As the runtime sees it: some setters have the names of methods.
pub(crate) fn dynamic(source: &Yugabyte) -> &dyn Source {
    source
}
