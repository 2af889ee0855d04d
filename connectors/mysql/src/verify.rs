//! Reads rows back, for a comparison with the source.

use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Column, Error, Op, PartitionId, Position, Rank, Result, RowReader, TableSchema,
    Transaction, Value, ValueRef, Verifier,
};
use async_trait::async_trait;
use mysql_async::Value as Stored;
use mysql_async::prelude::Queryable;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::connection::Link;
use crate::error::{Failure, Phase};
use crate::literal::{Scratch, push_sql, quote, render};
use crate::native::Family;
use crate::sink::MySql;
use crate::target::Target;
use crate::types::{Encoding, route};

/// Bytes of rows in a batch, about.
const BATCH: usize = 256 << 10;

/// Seconds that the server waits for a reader that takes its time: it compares, and may be told to go slowly.
const PATIENCE: u32 = 3600;

#[async_trait]
impl Verifier for MySql {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let mut link = self.connector().connect().await?;
        let what = |f: Failure| f.into_error(Phase::Statement).context(format!("cannot read {}", table.name));
        let name = &table.name.name;
        let described = Target::describe(&mut link, name).await.map_err(what)?;
        let described = described.ok_or_else(|| Error::config(format!("target table {name}"), "does not exist"))?;
        let forms = table.columns.iter().map(|c| Form::new(c, &described)).collect::<Result<Vec<_>>>()?;
        let selected: Vec<String> = forms.iter().map(Form::expression).collect();
        let mut sql = format!("SELECT {} FROM {}", selected.join(", "), quote(name)).into_bytes();
        if let Some(keys) = keys {
            push_condition(table, &forms, keys, &mut sql)?;
        }
        let set = format!("SET SESSION net_write_timeout={PATIENCE}");
        link.conn.query_drop(set).await.map_err(|e| what(Failure::driver(e)))?;
        let (batches, inbox) = mpsc::channel(2);
        let read = Read { table: Arc::new(table.clone()), forms, batches };
        let task = tokio::spawn(read.run(link, String::from_utf8_lossy(&sql).into_owned()));
        Ok(Box::new(Rows { inbox, task }))
    }
}

/// The batches of a task that reads; it ends with this.
struct Rows {
    inbox: mpsc::Receiver<Result<ChangeBatch>>,
    task: JoinHandle<()>,
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl RowReader for Rows {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        self.inbox.recv().await.transpose()
    }
}

/// How a column is read, and turned into the source's canonical text again.
struct Form {
    name: String,
    family: Family,
    encoding: Encoding,
}

impl Form {
    fn new(column: &Column, table: &Target) -> Result<Self> {
        let there = table.column(&column.name);
        let there = there.ok_or_else(|| {
            Error::config(format!("column {} of target table {}", column.name, table.name), "does not exist")
        })?;
        let (_, encoding, _) = route(&column.data_type, &there.native).ok_or_else(|| {
            Error::config(
                format!("column {} of target table {}", column.name, table.name),
                "cannot hold the source's type",
            )
        })?;
        Ok(Self { name: column.name.clone(), family: there.native.family.clone(), encoding })
    }

    fn expression(&self) -> String {
        match self.family {
            Family::Bit(_) => format!("CAST({} AS UNSIGNED)", quote(&self.name)),
            _ => quote(&self.name),
        }
    }

    fn push(&self, value: &Stored, batch: &mut BatchBuilder) {
        let bytes = match value {
            Stored::NULL => return batch.push(ValueRef::Null),
            Stored::Bytes(bytes) => bytes,
            // The text protocol gives bytes; anything else is a number.
            other => return batch.push(ValueRef::Text(other.as_sql(true).trim_matches('\''))),
        };
        match (&self.encoding, std::str::from_utf8(bytes)) {
            (Encoding::Bytes { hex: true, .. }, _) => batch.push(ValueRef::Bytes(bytes)),
            (Encoding::UuidBytes, _) => batch.push(ValueRef::Text(&uuid(bytes))),
            // What is no text differs from everything that the source could have sent.
            (_, Err(_)) => batch.push(ValueRef::Bytes(bytes)),
            (Encoding::Bits { length }, Ok(text)) => match text.parse::<u64>() {
                Ok(number) => batch.push(ValueRef::Text(&format!("{number:0width$b}", width = *length as usize))),
                Err(_) => batch.push(ValueRef::Text(text)),
            },
            (Encoding::Date, Ok(text)) => batch.push(ValueRef::Text(text.strip_suffix(MIDNIGHT).unwrap_or(text))),
            (Encoding::Int, Ok(text)) if text.contains('.') => {
                batch.push(ValueRef::Text(text.trim_end_matches('0').trim_end_matches('.')));
            }
            (_, Ok(text)) => batch.push(ValueRef::Text(text)),
        }
    }
}

const MIDNIGHT: &str = " 00:00:00";

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The rows with these keys.
fn push_condition(table: &TableSchema, forms: &[Form], keys: &[Vec<Value>], sql: &mut Vec<u8>) -> Result<()> {
    let mut scratch = Scratch::default();
    sql.extend_from_slice(b" WHERE FALSE");
    for key in keys {
        let mut one = Vec::new();
        let mut possible = true;
        for (&at, value) in table.key.iter().zip(key) {
            let form = &forms[usize::from(at)];
            if !one.is_empty() {
                one.extend_from_slice(b" AND ");
            }
            one.extend_from_slice(quote(&form.name).as_bytes());
            one.extend_from_slice(b" <=> ");
            match render(value.as_ref(), &form.encoding, &mut scratch) {
                Ok(value) => push_sql(value, &mut one),
                // No row of the target can have it.
                Err(_) => possible = false,
            }
        }
        if possible {
            sql.extend_from_slice(b" OR (");
            sql.append(&mut one);
            sql.push(b')');
        }
    }
    Ok(())
}

struct Read {
    table: Arc<TableSchema>,
    forms: Vec<Form>,
    batches: mpsc::Sender<Result<ChangeBatch>>,
}

impl Read {
    async fn run(self, link: Link, sql: String) {
        if let Err(e) = self.read(link, sql).await {
            let _ = self.batches.send(Err(e.context(format!("cannot read {}", self.table.name)))).await;
        }
    }

    /// One statement: InnoDB reads it under one point in time.
    async fn read(&self, mut link: Link, sql: String) -> Result<()> {
        let failed = |e| Failure::driver(e).into_error(Phase::Statement);
        let mut result = link.conn.query_iter(sql).await.map_err(failed)?;
        let mut batch = self.batch();
        while let Some(row) = result.next().await.map_err(failed)? {
            batch.change(Op::Insert, 0);
            batch.new_row();
            for (i, form) in self.forms.iter().enumerate() {
                form.push(row.as_ref(i).unwrap_or(&Stored::NULL), &mut batch);
            }
            if batch.size() >= BATCH {
                let full = std::mem::replace(&mut batch, self.batch());
                if self.batches.send(finished(full)).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = self.batches.send(finished(batch)).await;
        Ok(())
    }

    fn batch(&self) -> BatchBuilder {
        let mut batch = BatchBuilder::new(PartitionId::new("rows"));
        batch.schema(&self.table);
        batch.begin(Transaction { rank: vec![0; 8].into(), ..Transaction::default() }, 1);
        batch
    }
}

fn finished(batch: BatchBuilder) -> Result<ChangeBatch> {
    batch.finish(Position::new(Rank::of_end(&[0; 8]), ""), None)
}
