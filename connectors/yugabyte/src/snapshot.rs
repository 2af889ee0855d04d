//! Copies tables as they were at one hybrid time, in chunks of hash codes.
//!
//! The first copy is read at the hybrid time from which the slot has every transaction: the server keeps
//! the rows as they were then for it, and the stream leaves nothing out. A later one, of a table that came
//! later, is read at the end of the present microsecond, and the stream skips what committed by then.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use anabranch_core::{
    ChangeReader, Chunk, Error, PartitionId, Position, Result, Snapshot, Snapshotter, TableName, TableSchema, Timestamp,
};
use anabranch_postgres::Lsn;
use anabranch_postgres::layer::{
    Published, Server, before_time, chunk, classify, ident, literal, table_ident, table_name,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::slot;
use crate::source::Yugabyte;

/// The codes that `yb_hash_code` gives: two bytes.
const HASH_CODES: u32 = 65_536;

struct YugabyteSnapshot {
    server: Server,
    /// Sets the hybrid time to read at, in the transaction that reads.
    set_read_time: String,
    /// What committed before this is in the copy.
    until: Timestamp,
    from: Lsn,
    chunks: Vec<Chunk>,
    tables: HashMap<TableName, Published>,
}

/// [`Chunk::token`]: which hash codes of which columns. None: the whole table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Codes {
    columns: Vec<String>,
    from: u32,
    to: u32,
}

/// What a copy is read at, and what is in it.
struct Point {
    hybrid: u64,
    until: Timestamp,
}

impl Point {
    /// Transactions of the stream committed after this hybrid time, perhaps within its microsecond: none
    /// of them is in the copy.
    fn of_slot(restart: u64) -> Self {
        Self { hybrid: restart, until: slot::time_of(restart) }
    }

    /// The end of the microsecond: what committed in it is in the copy, whatever its logical part.
    fn now(hybrid: u64) -> Self {
        let next = (hybrid >> 12) + 1;
        Self { hybrid: (next << 12) - 1, until: slot::time_of(next << 12) }
    }
}

#[async_trait]
impl Snapshotter for Yugabyte {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let server = self.server()?;
        let client = server.client().await?;
        let slot = slot::read(&client, self.slot_name()).await?;
        let slot = slot.ok_or_else(|| slot::missing(self.slot_name(), self.plugin_of_slot(), None))?;
        let point = match self.resumed.load(Ordering::Relaxed) {
            false => Point::of_slot(slot.restart),
            true => {
                // Another server's clock may have been ahead when it stamped what was applied already.
                let pause = self.skew().as_secs_f64();
                let paused = client.execute("SELECT pg_sleep($1)", &[&pause]).await;
                paused.map_err(|e| classify(e, "cannot choose the copy's hybrid time"))?;
                Point::now(self.hybrid_time().await?)
            }
        };
        let mut published: HashMap<_, _> =
            self.published().await?.into_iter().map(|t| (t.schema().name.clone(), t)).collect();
        let (mut chunks, mut copied) = (Vec::new(), HashMap::new());
        for table in tables {
            let Some(found) = published.remove(&table.name) else {
                return Err(Error::config("source.publication", format!("it has no table {}", table.name)));
            };
            if **found.schema() != *table {
                return Err(Error::transient(format!("the table {} changes just now", table.name)));
            }
            plan(&client, &found, self.chunks, &mut chunks).await?;
            copied.insert(table.name.clone(), found);
        }
        tracing::info!(until = %point.until, chunks = chunks.len(), tables = copied.len(), "snapshot planned");
        Ok(Box::new(YugabyteSnapshot {
            server: server.clone(),
            set_read_time: self.set_read_time(point.hybrid)?,
            until: point.until,
            from: slot.confirmed,
            chunks,
            tables: copied,
        }))
    }
}

impl Yugabyte {
    fn set_read_time(&self, hybrid: u64) -> Result<String> {
        let time = literal(&format!("{hybrid} ht"));
        Ok(match &self.read_time_procedure {
            Some(name) => {
                format!("CALL {}({time})", table_ident(&table_name("source.read_time_procedure", name)?))
            }
            None => format!("SET LOCAL yb_read_time TO {time}"),
        })
    }
}

#[async_trait]
impl Snapshot for YugabyteSnapshot {
    fn point(&self) -> Position {
        before_time(self.until, self.from)
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, wanted: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let table = self.tables.get(&wanted.table);
        let (Some(table), true) = (table, self.chunks.contains(wanted)) else {
            return Err(Error::fatal(format!("chunk {} of {} is of another snapshot", wanted.index, wanted.table)));
        };
        let codes: Option<Codes> =
            serde_json::from_str(&wanted.token).map_err(|e| Error::fatal("a chunk's token is damaged").because(e))?;
        let client = self.server.own_client("anabranch copy").await?;
        begin_at(&client, &self.set_read_time).await?;
        let copy = copy_statement(table, codes.as_ref());
        let partition = PartitionId::new(format!("{}#{}", wanted.table, wanted.index));
        let what = format!("cannot copy chunk {} of {}", wanted.index, wanted.table);
        chunk(client, &copy, table.schema(), partition, what).await
    }
}

async fn begin_at(client: &Client, set_read_time: &str) -> Result<()> {
    let what = "cannot read at the copy's hybrid time";
    client.batch_execute("BEGIN").await.map_err(|e| classify(e, what))?;
    client.batch_execute(set_read_time).await.map_err(|e| {
        let denied = e.code().is_some_and(|c| c.code() == "42501");
        let e = classify(e, what);
        if !denied {
            return e;
        }
        e.hint(
            "only a superuser may set yb_read_time: let one create a SECURITY DEFINER procedure for it (YugabyteDB's \
             manual, \"Initial snapshot\", \"Permissions\") and name it in source.read_time_procedure",
        )
    })
}

/// Adds the chunks of a table.
async fn plan(client: &Client, table: &Published, wanted: Option<u32>, chunks: &mut Vec<Chunk>) -> Result<()> {
    let what = format!("cannot plan the copy of {}", table.schema().name);
    let row = client
        .query_one(
            "SELECT coalesce(p.num_tablets, 1)::int8, coalesce(p.num_hash_key_columns, 0)::int8, c.reltuples \
             FROM pg_class c \
             LEFT JOIN LATERAL (SELECT * FROM yb_table_properties(c.oid) WHERE c.relkind = 'r') p ON true \
             WHERE c.oid = $1",
            &[&table.oid()],
        )
        .await
        .map_err(|e| classify(e, &what))?;
    let (tablets, hashed, rows): (i64, i64, f32) = (row.get(0), row.get(1), row.get(2));
    let hashed = usize::try_from(hashed).unwrap_or(0);
    let count = match hashed {
        0 => 1,
        _ => wanted.unwrap_or(u32::try_from(tablets).unwrap_or(1)).clamp(1, HASH_CODES),
    };
    for index in 0..count {
        let codes = (count > 1).then(|| Codes {
            columns: table.schema().key_columns().take(hashed).map(|c| c.name.clone()).collect(),
            from: (u64::from(index) * u64::from(HASH_CODES) / u64::from(count)) as u32,
            to: (u64::from(index + 1) * u64::from(HASH_CODES) / u64::from(count)) as u32,
        });
        chunks.push(Chunk {
            table: table.schema().name.clone(),
            index,
            token: serde_json::to_string(&codes).map_err(|e| Error::fatal("a chunk has no token").because(e))?,
            // Unknown before the first ANALYZE.
            rows: (rows > 0.0).then(|| (f64::from(rows) / f64::from(count)) as u64),
        });
    }
    Ok(())
}

fn copy_statement(table: &Published, codes: Option<&Codes>) -> String {
    let mut conditions = Vec::new();
    if let Some(codes) = codes {
        let columns: Vec<String> = codes.columns.iter().map(|c| ident(c)).collect();
        let code = format!("yb_hash_code({})", columns.join(", "));
        conditions.push(format!("{code} >= {} AND {code} < {}", codes.from, codes.to));
    }
    conditions.extend(table.filter().map(|filter| format!("({filter})")));
    let schema = table.schema();
    let columns: Vec<_> = schema.columns.iter().map(|c| ident(&c.name)).collect();
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("COPY (SELECT {} FROM {}{condition}) TO STDOUT", columns.join(", "), table_ident(&schema.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_parts_the_commits_exactly() {
        let at = |micros: i64| Timestamp::from_micros(micros);
        // Commits at or after `until` are left to the stream.
        let first = Point::of_slot((7 << 12) + 5);
        assert_eq!((first.hybrid, first.until), ((7 << 12) + 5, at(7)));
        let later = Point::now((7 << 12) + 5);
        assert_eq!((later.hybrid, later.until), ((7 << 12) + 4095, at(8)));
    }
}
