//! Tables of a stream: which of their columns make up the primary key.

use std::collections::HashMap;
use std::io;

use tokio_postgres::Client;

use crate::wire::broken;

/// Tables by oid.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    client: Option<Client>,
    keys: HashMap<u32, Vec<String>>,
    tables: HashMap<u32, Vec<bool>>,
}

impl Tables {
    /// For each column of a described table, whether it is part of the primary key.
    pub(crate) fn key(&self, oid: u32) -> io::Result<&[bool]> {
        self.tables.get(&oid).map(Vec::as_slice).ok_or_else(|| broken(format!("table {oid} was not described")))
    }

    /// Takes a description: the names of the columns.
    pub(crate) async fn describe(
        &mut self,
        port: u16,
        database: &str,
        oid: u32,
        names: &[String],
    ) -> io::Result<&[bool]> {
        if !self.keys.contains_key(&oid) {
            if self.client.as_ref().is_none_or(Client::is_closed) {
                self.client = Some(crate::upstream::client(port, database).await?);
            }
            let Some(client) = &self.client else { return Err(broken("no connection")) };
            let rows = client.query(PRIMARY_KEY, &[&oid]).await.map_err(io::Error::other)?;
            self.keys.insert(oid, rows.iter().map(|r| r.get(0)).collect());
        }
        let key = self.keys.get(&oid).cloned().unwrap_or_default();
        self.tables.insert(oid, names.iter().map(|n| key.contains(n)).collect());
        self.key(oid)
    }
}

const PRIMARY_KEY: &str = "SELECT a.attname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
    ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = $1 AND i.indisprimary";
