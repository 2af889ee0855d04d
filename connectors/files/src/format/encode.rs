//! Writes the lines of a file.

use std::sync::Arc;

use anabranch_core::{ChangeRef, Error, OldImage, Op, Result, RowRef, TableSchema, Transaction};
use bytes::Bytes;
use serde::Serialize;
use serde::ser::SerializeSeq;

use super::value::Written;
use super::{Header, hex};

/// The lines of a file between its first and its last one, as far as they are there.
#[derive(Debug, Default)]
pub(crate) struct Body {
    lines: Vec<u8>,
    count: u64,
    records: u64,
    schemas: Vec<Arc<TableSchema>>,
    /// The rank of the transaction that the last line belongs to.
    transaction: Option<Bytes>,
}

#[derive(Serialize)]
struct SchemaLine<'a> {
    schema: SchemaOf<'a>,
}

#[derive(Serialize)]
struct SchemaOf<'a> {
    id: usize,
    table: &'a TableSchema,
}

#[derive(Serialize)]
struct BeginLine<'a> {
    begin: Begin<'a>,
}

#[derive(Serialize)]
struct Begin<'a> {
    rank: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    #[serde(with = "super::time", skip_serializing_if = "Option::is_none")]
    time: Option<anabranch_core::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
}

#[derive(Serialize)]
struct ChangeLine<'a> {
    op: Op,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<usize>,
    n: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<Row<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<Row<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

struct Row<'a>(RowRef<'a>);

impl Serialize for Row<'_> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let mut row = s.serialize_seq(Some(self.0.len()))?;
        for value in self.0.values() {
            row.serialize_element(&Written(value))?;
        }
        row.end()
    }
}

#[derive(Serialize)]
struct EndLine {
    end: super::End,
}

impl Body {
    /// Adds a change. `order` is the rank of its transaction among those of the file's shard, where
    /// that is not its own rank.
    pub(crate) fn add(&mut self, change: ChangeRef<'_>, order: Option<&Bytes>) -> Result<()> {
        let transaction = &change.piece().transaction;
        if self.transaction.as_ref() != Some(&transaction.rank) {
            self.begin(transaction, order)?;
        }
        let t = change.table().map(|schema| self.schema(schema)).transpose()?;
        let message = change.message();
        self.write(&ChangeLine {
            op: change.op(),
            t,
            n: change.sequence(),
            image: match change.old_image() {
                OldImage::None => None,
                OldImage::Key => Some("key"),
                OldImage::Full => Some("full"),
            },
            old: change.old_row().map(Row),
            new: change.new_row().map(Row),
            prefix: message.map(|(prefix, _)| prefix),
            content: message.map(|(_, content)| hex::encode(content)),
        })?;
        self.records += 1;
        Ok(())
    }

    /// How many bytes it has.
    pub(crate) fn size(&self) -> usize {
        self.lines.len()
    }

    /// How many changes it has.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The schemas of its changes.
    pub(crate) fn schemas(&self) -> &[Arc<TableSchema>] {
        &self.schemas
    }

    /// The whole file.
    pub(crate) fn finish(&mut self, header: &Header) -> Result<Bytes> {
        let mut file = Vec::with_capacity(self.lines.len() + 512);
        line(&mut file, header)?;
        file.append(&mut self.lines);
        line(&mut file, &EndLine { end: super::End { records: self.records, lines: self.count + 2 } })?;
        Ok(file.into())
    }

    fn begin(&mut self, transaction: &Transaction, order: Option<&Bytes>) -> Result<()> {
        self.write(&BeginLine {
            begin: Begin {
                rank: hex::encode(&transaction.rank),
                order: order.map(|order| hex::encode(order)),
                time: transaction.commit_time,
                origin: transaction.origin.as_deref(),
                tag: transaction.tag.as_deref(),
                total: transaction.total,
            },
        })?;
        self.transaction = Some(transaction.rank.clone());
        Ok(())
    }

    fn schema(&mut self, schema: &Arc<TableSchema>) -> Result<usize> {
        // The last one like it: a table may go back to what it was.
        let same = |s: &Arc<TableSchema>| Arc::ptr_eq(s, schema) || s == schema;
        if let Some(id) = self.schemas.iter().rposition(same) {
            return Ok(id);
        }
        let id = self.schemas.len();
        self.write(&SchemaLine { schema: SchemaOf { id, table: schema } })?;
        self.schemas.push(Arc::clone(schema));
        Ok(id)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        self.count += 1;
        line(&mut self.lines, value)
    }
}

fn line(out: &mut Vec<u8>, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(|e| Error::fatal("cannot write a change as JSON").because(e))?;
    out.push(b'\n');
    Ok(())
}
