//! Reads the items of a target for a comparison: each attribute as the value of the source that it was
//! made of.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, Column, DataType, Error, Op, PartitionId, Position, Result, RowReader, TableSchema, Transaction,
    Value, ValueRef, Verifier,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType};

use super::item::{Plan, Row, key_bytes};
use super::table::{JOINT, Table};
use super::{DynamoDbSink, Settings};
use crate::bookkeeping::{MARKER, PREFIX};
use crate::decode::document::{self, Form as Document};
use crate::decode::number;
use crate::types::{self, Item};
use crate::verifier::{ItemForm, Reading};

#[async_trait]
impl Verifier for DynamoDbSink {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let name = &table.name.name;
        let found = self.shared.table(name).await?;
        let found = found.ok_or_else(|| Error::config(format!("target table {name}"), "does not exist"))?;
        let schema = Arc::new(table.clone());
        let plan = Plan::new(&schema, &found, self.shared.settings.nulls)?;
        let form = Form::new(&schema, &found, &self.shared.settings);
        let reading = Reading {
            client: self.shared.client().await?.clone(),
            limiter: self.shared.limiter(&found.name),
            table: found.name.clone(),
            capacity: None,
        };
        Ok(match keys {
            None => reading.all(form),
            Some(keys) => reading.with_keys(items_of(&plan, &schema, &found, keys)?, form),
        })
    }
}

/// The keys that an item here can have, each once.
fn items_of(plan: &Plan, schema: &Arc<TableSchema>, table: &Table, keys: &[Vec<Value>]) -> Result<Vec<Item>> {
    let mut batch = BatchBuilder::new(PartitionId::new("keys"));
    let at = batch.schema(schema);
    batch.begin(Transaction { rank: vec![0; 8].into(), ..Transaction::default() }, 1);
    for key in keys {
        batch.change(Op::Insert, at);
        batch.new_row();
        for column in 0..schema.columns.len() {
            let part = schema.key.iter().position(|k| usize::from(*k) == column);
            batch.push(part.and_then(|part| key.get(part)).map_or(ValueRef::Unchanged, Value::as_ref));
        }
    }
    let batch = batch.finish(Position::default(), None)?;
    let mut seen = HashSet::new();
    let item = |row| plan.key(Row::new(row)).ok().filter(|item| seen.insert(key_bytes(table, item)));
    Ok(batch.changes().filter_map(|change| change.new_row()).filter_map(item).collect())
}

/// Where the value of a column is.
enum Place {
    /// An attribute of its name.
    Attribute,
    /// One of several values in a key attribute.
    Joined { attribute: String, part: usize },
    /// A part of the key: numbers may be text there.
    Key,
    /// The item itself.
    Whole(Document),
}

struct Form {
    schema: Arc<TableSchema>,
    places: Vec<Place>,
    deleted: String,
    /// Attributes that this library adds.
    own: Vec<String>,
}

impl Form {
    fn new(schema: &Arc<TableSchema>, table: &Table, settings: &Settings) -> Self {
        let place = |column: &Column| {
            for part in table.parts() {
                let names: Vec<&str> = part.columns().collect();
                if let Some(at) = names.iter().position(|name| *name == column.name) {
                    return match (names.len(), &part.kind) {
                        (1, ScalarAttributeType::S) => Place::Key,
                        (1, _) => Place::Attribute,
                        _ => Place::Joined { attribute: part.name.clone(), part: at },
                    };
                }
            }
            match types::is_whole_item(column) {
                true if column.native == types::ITEM => Place::Whole(Document::Tagged),
                true => Place::Whole(Document::Plain),
                false => Place::Attribute,
            }
        };
        let places = schema.columns.iter().map(place).collect();
        let version = settings.stamps_versions().then(|| settings.version_attribute.clone());
        let own = version.into_iter().chain(settings.origin_attribute.clone()).collect();
        Self { schema: Arc::clone(schema), places, deleted: settings.deleted_attribute.clone(), own }
    }
}

impl ItemForm for Form {
    fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    fn is_row(&self, item: &Item) -> bool {
        !item.contains_key(&self.deleted) && !item.contains_key(MARKER)
    }

    fn push(&self, item: &Item, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        for (column, place) in self.schema.columns.iter().zip(&self.places) {
            scratch.clear();
            match place {
                Place::Attribute => push(column, item.get(&column.name), batch, scratch),
                Place::Key => match item.get(&column.name) {
                    Some(AttributeValue::S(text)) => batch.push(ValueRef::Text(&plain_time(column, text))),
                    other => push(column, other, batch, scratch),
                },
                Place::Joined { attribute, part } => match item.get(attribute) {
                    Some(AttributeValue::S(text)) => match split(text).into_iter().nth(*part) {
                        Some(text) => batch.push(ValueRef::Text(&plain_time(column, &text))),
                        None => batch.push(ValueRef::Null),
                    },
                    other => push(column, other, batch, scratch),
                },
                Place::Whole(form) => {
                    let keep = |name: &str| !name.starts_with(PREFIX) && !self.own.iter().any(|own| own == name);
                    document::write_item(item, *form, keep, scratch).map_err(Error::fatal)?;
                    batch.push(ValueRef::Text(scratch));
                }
            }
        }
        Ok(())
    }
}

/// Pushes an attribute as the source's value. One that has another type than the sink would have given it
/// differs from everything that the source can have sent.
fn push(column: &Column, attribute: Option<&AttributeValue>, batch: &mut BatchBuilder, scratch: &mut String) {
    use AttributeValue as A;
    let Some(attribute) = attribute else { return batch.push(ValueRef::Null) };
    match (&column.data_type, attribute) {
        (_, A::Null(_)) => batch.push(ValueRef::Null),
        (DataType::Json, value) => {
            let form = if column.native == types::ATTRIBUTE { Document::Tagged } else { Document::Plain };
            match document::write(value, form, scratch) {
                Ok(()) => batch.push(ValueRef::Text(scratch)),
                Err(_) => strange(value, batch),
            }
        }
        (DataType::Array(of), A::L(list)) => match literal(of, list, scratch) {
            Some(()) => batch.push(ValueRef::Text(scratch)),
            None => strange(attribute, batch),
        },
        (DataType::Array(_), value) => match types::value_of(column, value, scratch) {
            Ok(value) => batch.push(value),
            Err(_) => strange(value, batch),
        },
        (DataType::Bool, A::Bool(v)) => batch.push(ValueRef::Bool(*v)),
        (DataType::Bytes, A::B(v)) => batch.push(ValueRef::Bytes(v.as_ref())),
        (data_type, A::N(v)) if types::is_numeric(data_type) => match number::canonical(v) {
            Some(v) => batch.push(ValueRef::Text(&v)),
            None => strange(attribute, batch),
        },
        (data_type, A::S(v)) if is_text(data_type) => batch.push(ValueRef::Text(&plain_time(column, v))),
        (_, other) => strange(other, batch),
    }
}

/// No text of a source begins with a zero byte, and no other value is such a text.
fn strange(attribute: &AttributeValue, batch: &mut BatchBuilder) {
    let mut text = "\0".to_owned();
    // What cannot be shown is strange all the same.
    let _ = document::write(attribute, Document::Tagged, &mut text);
    batch.push(ValueRef::Text(&text));
}

fn is_text(data_type: &DataType) -> bool {
    let other = matches!(data_type, DataType::Bool | DataType::Bytes | DataType::Json | DataType::Array(_));
    !other && !types::is_numeric(data_type)
}

/// `2026-01-31T23:59:59.5Z` as `2026-01-31 23:59:59.5+00`; all but times as they are.
fn plain_time(column: &Column, text: &str) -> String {
    let is_time = matches!(column.data_type, DataType::Timestamp | DataType::TimestampTz);
    match text.split_once('T').filter(|_| is_time) {
        Some((date, time)) => match time.strip_suffix('Z') {
            Some(time) => format!("{date} {time}+00"),
            None => format!("{date} {time}"),
        },
        None => text.to_owned(),
    }
}

/// A list as an array literal; `None` for what the sink does not write.
fn literal(of: &DataType, list: &[AttributeValue], out: &mut String) -> Option<()> {
    use AttributeValue as A;
    let element = Column::new("element", of.clone());
    out.push('{');
    for (n, value) in list.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        let text = match value {
            A::Null(_) => {
                out.push_str("NULL");
                continue;
            }
            A::Bool(v) => if *v { "t" } else { "f" }.to_owned(),
            A::N(v) => number::canonical(v)?,
            A::B(v) => v.as_ref().iter().fold("\\x".to_owned(), |mut text, byte| {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            }),
            A::S(v) => plain_time(&element, v),
            other if *of == DataType::Json => {
                let mut text = String::new();
                document::write(other, Document::Plain, &mut text).ok()?;
                text
            }
            _ => return None,
        };
        out.push('"');
        for letter in text.chars() {
            if matches!(letter, '"' | '\\') {
                out.push('\\');
            }
            out.push(letter);
        }
        out.push('"');
    }
    out.push('}');
    Some(())
}

/// The values of a joined key.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            JOINT => parts.push(String::new()),
            '\\' => parts.last_mut().into_iter().for_each(|part| part.extend(letters.next())),
            letter => parts.last_mut().into_iter().for_each(|part| part.push(letter)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use anabranch_core::TableName;

    use super::*;

    /// What a row becomes in the target, and what is read of it again.
    fn there_and_back(columns: Vec<Column>, key: Vec<u16>, values: &[ValueRef<'_>]) -> Vec<Value> {
        let schema = Arc::new(TableSchema { name: TableName::new("", "things"), columns, key });
        let table = Arc::new(Table::planned(&schema).unwrap());
        let plan = Plan::new(&schema, &table, super::super::Nulls::Keep).unwrap();
        let row = |values: &dyn Fn(&mut BatchBuilder)| {
            let mut batch = BatchBuilder::new(PartitionId::new("p"));
            let at = batch.schema(&schema);
            batch.begin(Transaction { rank: vec![0; 8].into(), ..Transaction::default() }, 1);
            batch.change(Op::Insert, at);
            batch.new_row();
            values(&mut batch);
            batch.finish(Position::default(), None).unwrap()
        };
        let sent = row(&|batch| values.iter().for_each(|v| batch.push(*v)));
        let change = sent.changes().next().unwrap();
        let row_sent = Row::new(change.new_row().unwrap());
        let item = plan.attributes(row_sent, &plan.key(row_sent).unwrap()).unwrap();
        let settings = DynamoDbSink::new(crate::Access::new()).shared.settings.clone();
        let form = Form::new(&schema, &table, &settings);
        let read = row(&|batch| form.push(&item, batch, &mut String::new()).unwrap());
        let change = read.changes().next().unwrap();
        let row = change.new_row().unwrap();
        (0..schema.columns.len()).map(|n| row.get(n).to_owned()).collect()
    }

    #[test]
    fn values_come_back_in_the_sources_form() {
        let text = |name: &str| Column::new(name, DataType::Text { max_chars: None });
        let columns = vec![
            text("a"),
            Column::new("b", DataType::Int32),
            text("c"),
            Column::new("at", DataType::TimestampTz),
            Column::new("local", DataType::Timestamp),
            Column::new("ok", DataType::Bool),
            Column::new("list", DataType::Array(Box::new(DataType::Int32))),
            Column::new("data", DataType::Bytes),
            text("none"),
            text("empty"),
        ];
        let values = [
            ValueRef::Text("a#b\\"),
            ValueRef::Int(7),
            ValueRef::Text("x#"),
            ValueRef::Text("2026-01-31 23:59:59.5+00"),
            ValueRef::Text("2026-01-31 23:59:59"),
            ValueRef::Bool(false),
            ValueRef::Text("{1,NULL,3}"),
            ValueRef::Bytes(&[0, 255]),
            ValueRef::Null,
            ValueRef::Text(""),
        ];
        let back = there_and_back(columns, vec![0, 1, 2], &values);
        let mut wanted: Vec<Value> = values.iter().copied().map(|v| v.to_owned()).collect();
        // A part of a joined key is text; equal by the type.
        wanted[1] = Value::Text("7".to_owned());
        wanted[6] = Value::Text("{\"1\",NULL,\"3\"}".to_owned());
        assert_eq!(back, wanted);
    }

    #[test]
    fn an_attribute_of_another_type_differs() {
        let column = Column::new("n", DataType::Int32);
        let mut batch = BatchBuilder::new(PartitionId::new("p"));
        let schema = TableSchema { name: TableName::new("", "t"), columns: vec![column.clone()], key: vec![] };
        let at = batch.schema(&Arc::new(schema));
        batch.begin(Transaction { rank: vec![0; 8].into(), ..Transaction::default() }, 1);
        batch.change(Op::Insert, at);
        batch.new_row();
        push(&column, Some(&AttributeValue::S("5".to_owned())), &mut batch, &mut String::new());
        let batch = batch.finish(Position::default(), None).unwrap();
        let change = batch.changes().next().unwrap();
        assert_eq!(change.new_row().unwrap().get(0), ValueRef::Text("\0{\"S\":\"5\"}"));
    }
}
