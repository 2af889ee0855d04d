//! Reads rows back, for a comparison with the source.

use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, DataType, Error, Op, PartitionId, Position, Rank, Result, RowReader, TableSchema,
    Transaction, Value, ValueRef, Verifier,
};
use async_trait::async_trait;
use rusqlite::types::ValueRef as Stored;
use rusqlite::{Row, params_from_iter};
use tokio::sync::mpsc;

use crate::Sqlite;
use crate::connection::{Database, Settings, quoted};
use crate::describe::{self, Described};
use crate::types::Codec;

/// Bytes of rows in a batch, about.
const BATCH: usize = 256 << 10;

#[async_trait]
impl Verifier for Sqlite {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let (batches, inbox) = mpsc::channel(2);
        let read = Read { settings: self.shared.settings.clone(), table: Arc::new(table.clone()), batches };
        let keys = keys.map(<[_]>::to_vec);
        // It ends when the reader is dropped: nobody takes its next batch then.
        tokio::task::spawn_blocking(move || read.run(keys.as_deref()));
        Ok(Box::new(Rows(inbox)))
    }
}

/// The batches of a thread that reads.
struct Rows(mpsc::Receiver<Result<ChangeBatch>>);

#[async_trait]
impl RowReader for Rows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        self.0.recv().await.transpose()
    }
}

struct Read {
    settings: Settings,
    table: Arc<TableSchema>,
    batches: mpsc::Sender<Result<ChangeBatch>>,
}

/// Nobody wants the rows any more.
struct Unwanted;

impl Read {
    fn run(self, keys: Option<&[Vec<Value>]>) {
        if let Err(e) = self.read(keys) {
            let _ = self.batches.blocking_send(Err(e));
        }
    }

    fn read(&self, keys: Option<&[Vec<Value>]>) -> Result<()> {
        let name = &self.table.name.name;
        let db = match self.settings.is_missing()? {
            true => self.settings.connect_to_nothing()?,
            false => self.settings.connect()?,
        };
        let described = describe::table(&db, name)?
            .ok_or_else(|| Error::config(format!("target table {name}"), "does not exist"))?;
        let columns: Vec<String> = self.table.columns.iter().map(|c| quoted(&c.name)).collect();
        let sql = format!("SELECT {} FROM main.{}", columns.join(", "), quoted(&described.name));
        match keys {
            None => self.query(&db, &sql, &[]),
            Some([]) => Ok(()),
            Some(keys) => {
                let one: Vec<String> = self.table.key_columns().map(|c| format!("{} IS ?", quoted(&c.name))).collect();
                let each = vec![format!("({})", one.join(" AND ")); keys.len()];
                let codecs = self.codecs(&described);
                let mut values = Vec::with_capacity(keys.len() * codecs.len());
                for key in keys {
                    for ((codec, column), value) in codecs.iter().zip(self.table.key_columns()).zip(key) {
                        values.push(codec.encode(&column.name, value.as_ref())?);
                    }
                }
                self.query(&db, &format!("{sql} WHERE {}", each.join(" OR ")), &values)
            }
        }
    }

    fn codecs(&self, described: &Described) -> Vec<Codec> {
        let codec = |c: &anabranch_core::Column| {
            let there = described.columns.iter().find(|d| d.name.eq_ignore_ascii_case(&c.name));
            there.map_or(Codec::Text, |d| d.declared.codec(&c.data_type))
        };
        self.table.key_columns().map(codec).collect()
    }

    /// One statement: it reads under one point in time.
    fn query(&self, db: &Database, sql: &str, values: &[rusqlite::types::ToSqlOutput<'_>]) -> Result<()> {
        let name = &self.table.name;
        let told = |result| db.told(format_args!("cannot read {name}"), result);
        let mut statement = db.told(format_args!("cannot read {name}"), db.conn.prepare(sql))?;
        let mut rows = db.told(format_args!("cannot read {name}"), statement.query(params_from_iter(values)))?;
        let mut batch = self.batch();
        while let Some(row) = db.told(format_args!("cannot read {name}"), rows.next())? {
            batch.change(Op::Insert, 0);
            batch.new_row();
            told(self.push(row, &mut batch))?;
            if batch.size() >= BATCH {
                let full = std::mem::replace(&mut batch, self.batch());
                if self.send(full)?.is_err() {
                    return Ok(());
                }
            }
        }
        self.send(batch).map(drop)
    }

    fn batch(&self) -> BatchBuilder {
        let mut batch = BatchBuilder::new(PartitionId::new("rows"));
        batch.schema(&self.table);
        batch.begin(Transaction { rank: vec![0; 8].into(), ..Transaction::default() }, 1);
        batch
    }

    fn push(&self, row: &Row<'_>, batch: &mut BatchBuilder) -> rusqlite::Result<()> {
        for (i, column) in self.table.columns.iter().enumerate() {
            match row.get_ref(i)? {
                Stored::Null => batch.push(ValueRef::Null),
                Stored::Integer(v) if column.data_type == DataType::Bool => batch.push(match v {
                    0 => ValueRef::Bool(false),
                    1 => ValueRef::Bool(true),
                    other => ValueRef::Int(other),
                }),
                Stored::Integer(v) => batch.push(ValueRef::Int(v)),
                Stored::Real(v) => batch.push(ValueRef::Float(v)),
                // What is no text differs from everything that the source could have sent.
                Stored::Text(v) => match std::str::from_utf8(v) {
                    Ok(text) => batch.push(ValueRef::Text(text)),
                    Err(_) => batch.push(ValueRef::Bytes(v)),
                },
                Stored::Blob(v) => batch.push(ValueRef::Bytes(v)),
            }
        }
        Ok(())
    }

    fn send(&self, batch: BatchBuilder) -> Result<Result<(), Unwanted>> {
        let batch = batch.finish(Position::new(Rank::of_end(&[0; 8]), ""), None)?;
        Ok(self.batches.blocking_send(Ok(batch)).map_err(|_| Unwanted))
    }
}
