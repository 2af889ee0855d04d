//! Finds the keys of rows that changed between two points: reads the slot, and confirms nothing.

use std::collections::{HashMap, HashSet};

use anabranch_core::{ChangeBatch, ChangeReader, ChangeRef, Error, Next, Op, Result, TableName};

use super::keys::{Full, Keys};
use crate::catalog::CatalogTable;
use crate::config::{OriginFilter, SchemaChange};
use crate::lsn::{Lsn, Ranking};
use crate::reader::Reader;
use crate::reader::assemble::{Assembler, Start};
use crate::reader::relation::Relations;
use crate::source::Postgres;
use crate::wire::Connection;

/// The tables to look for, and what was found.
pub(super) struct Search {
    /// The points of their copies.
    pub(super) since: HashMap<TableName, Lsn>,
    pub(super) keys: HashMap<TableName, Keys>,
    /// Tables whose copies cannot go on, and why.
    pub(super) given_up: HashMap<TableName, &'static str>,
}

impl Search {
    pub(super) fn new(since: HashMap<TableName, Lsn>) -> Self {
        let keys = since.keys().map(|name| (name.clone(), Keys::default())).collect();
        Self { since, keys, given_up: HashMap::new() }
    }

    /// Reads what was committed from the earliest of the points on, before `until`. What was committed
    /// after that may be found too: it does no harm to copy a row that did not change.
    ///
    /// Transactions of every origin: a copy has the rows of all.
    pub(super) async fn read(&mut self, source: &Postgres, known: Vec<CatalogTable>, until: Lsn) -> Result<()> {
        let Some(from) = self.since.values().min().copied() else { return Ok(()) };
        source.usable_slot(Some(from)).await?;
        let version = source.version().await?;
        // Of other tables everything is left out, as if it were in their copies.
        let others: HashSet<TableName> = known.iter().map(|t| t.schema.name.clone()).collect();
        let mut copied: HashMap<_, _> = others.into_iter().map(|name| (name, Lsn(u64::MAX))).collect();
        copied.extend(self.since.clone());
        let relations = Relations::new(known, copied, SchemaChange::Ignore);
        let start = Start { position: from.as_position(), drop_origins: false, ranking: Ranking::Log };
        let assembler = Assembler::new(source.partition(), relations, start)?;

        let session = source.session()?.clone();
        let mut connection = Connection::open(session.endpoint(), "anabranch resume").await?;
        let command = source.read_slot(from, version, OriginFilter::Any, false);
        connection.start_replication(&command, &format!("cannot read the slot {}", source.slot)).await?;
        let mut reader = Box::new(Reader::new(connection, assembler, session, source.publication.clone(), None));
        let found = self.read_until(reader.as_mut(), until).await;
        // The slot is free for the stream when this returns.
        reader.close().await?;
        found
    }

    async fn read_until(&mut self, reader: &mut Reader, until: Lsn) -> Result<()> {
        let until = until.as_position();
        loop {
            let Next::Batch(batch) = reader.next().await? else {
                return Err(Error::transient("the reading of the slot stopped early"));
            };
            self.take(&batch);
            if batch.end().rank >= until.rank || self.keys.is_empty() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, batch: &ChangeBatch) {
        for change in batch.changes() {
            let Some(table) = change.table() else { continue };
            let Some(keys) = self.keys.get_mut(&table.name) else { continue };
            if let Err(why) = add(keys, change) {
                self.keys.remove(&table.name);
                self.given_up.insert(table.name.clone(), why);
            }
        }
    }
}

/// Adds the keys that a changed row has and had. A row that an update moved to another page is one of
/// them too, whatever its new values: a finished range of pages may have lost it to one that is not, or
/// the other way round.
fn add(keys: &mut Keys, change: ChangeRef<'_>) -> Result<(), &'static str> {
    match change.op() {
        Op::Truncate(_) => return Err("it was truncated"),
        Op::Schema => return Err("its columns or its key changed"),
        Op::Message => return Ok(()),
        Op::Insert | Op::Update | Op::Delete => {}
    }
    let schema = change.schema();
    if schema.key.is_empty() {
        return Err("it has no key");
    }
    for row in [change.old_row(), change.new_row()].into_iter().flatten() {
        keys.add(schema, row).map_err(Full::reason)?;
    }
    Ok(())
}
