//! Rows as items: which attribute each column becomes, and what DynamoDB would refuse.

use std::sync::Arc;

use anabranch_core::{Column, DataType, Error, Result, RowRef, TableSchema, ValueRef};
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType};

use super::table::{JOINT, KeyPart, Table};
use crate::decode::number;
use crate::types::{self, Item};

/// The largest item, names and values of its attributes: developer guide, "Service quotas".
pub(crate) const MAX_ITEM: usize = 400 * 1024;

/// What is kept free for the attributes that this library adds.
const RESERVE: usize = 512;

/// The deepest nesting of lists and maps.
const MAX_DEPTH: usize = 32;

/// What becomes of NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nulls {
    /// An attribute of the type `NULL`: it is told apart from a column that was never there.
    #[default]
    Keep,
    /// No attribute.
    Omit,
}

/// A row, and what an older one has where a column of it was not sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    row: RowRef<'a>,
    older: Option<RowRef<'a>>,
}

impl<'a> Row<'a> {
    pub(crate) fn new(row: RowRef<'a>) -> Self {
        Self { row, older: None }
    }

    /// The row `new` after the row `old`.
    pub(crate) fn after(new: RowRef<'a>, old: Option<RowRef<'a>>) -> Self {
        Self { row: new, older: old }
    }

    fn get(self, index: usize) -> ValueRef<'a> {
        match (self.row.get(index), self.older) {
            (ValueRef::Unchanged, Some(older)) => older.get(index),
            (value, _) => value,
        }
    }
}

/// How the rows of a source's table become items of a target's table.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) table: Arc<Table>,
    schema: Arc<TableSchema>,
    /// The column with the whole item, if the source is a DynamoDB itself.
    whole: Option<usize>,
    hash: Vec<usize>,
    range: Vec<usize>,
    nulls: Nulls,
}

impl Plan {
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if the keys of both tables differ.
    pub(crate) fn new(schema: &Arc<TableSchema>, table: &Arc<Table>, nulls: Nulls) -> Result<Self> {
        let mut wanted: Vec<&str> = schema.key_columns().map(|c| c.name.as_str()).collect();
        let mut have: Vec<&str> = table.key_columns().collect();
        let places = |part: &KeyPart| part.columns().filter_map(|c| schema.index_of(c)).collect::<Vec<_>>();
        let (hash, range) = (places(&table.hash), table.range.as_ref().map(places).unwrap_or_default());
        wanted.sort_unstable();
        have.sort_unstable();
        if wanted != have {
            return Err(Error::config(
                &table.name,
                format!("its key is ({}), that of the source is ({})", have.join(", "), wanted.join(", ")),
            )
            .hint("create the table with the source's key, or let create_tables = true do it"));
        }
        let whole = schema.columns.iter().position(types::is_whole_item);
        Ok(Self { table: Arc::clone(table), schema: Arc::clone(schema), whole, hash, range, nulls })
    }

    pub(crate) fn is_for(&self, schema: &Arc<TableSchema>) -> bool {
        Arc::ptr_eq(&self.schema, schema) || self.schema == *schema
    }

    /// The key of a row.
    pub(crate) fn key(&self, row: Row<'_>) -> Result<Item> {
        let mut key = Item::with_capacity(2);
        key.insert(self.table.hash.name.clone(), self.part(&self.table.hash, &self.hash, row, 2048)?);
        if let Some(part) = &self.table.range {
            key.insert(part.name.clone(), self.part(part, &self.range, row, 1024)?);
        }
        Ok(key)
    }

    fn part(&self, part: &KeyPart, columns: &[usize], row: Row<'_>, most: usize) -> Result<AttributeValue> {
        let bad = |why: &str| Error::rejected(format!("{}.{}: a key attribute {why}", self.table.name, part.name));
        let values: Result<Vec<AttributeValue>> = columns.iter().map(|&at| self.key_value(at, row)).collect();
        let mut values = values?;
        let value = match (values.len(), values.pop()) {
            (1, Some(value)) => key_attribute(&part.kind, value).ok_or_else(|| bad("has another type there"))?,
            (_, Some(last)) => {
                values.push(last);
                let texts: Option<Vec<String>> = values.iter().map(joined).collect();
                AttributeValue::S(texts.ok_or_else(|| bad("cannot hold binary values"))?.join(&JOINT.to_string()))
            }
            (_, None) => return Err(bad("has no column")),
        };
        let size = match &value {
            AttributeValue::S(v) => v.len(),
            AttributeValue::B(v) => v.as_ref().len(),
            _ => 1,
        };
        match size {
            0 => Err(bad("must not be empty")),
            n if n > most => Err(bad(&format!("has at most {most} bytes, not {n}"))),
            _ => Ok(value),
        }
    }

    fn key_value(&self, at: usize, row: Row<'_>) -> Result<AttributeValue> {
        let column = &self.schema.columns[at];
        let name = || format!("{}.{}", self.table.name, column.name);
        match attribute(column, row.get(at))? {
            Some(AttributeValue::Null(_)) => Err(Error::rejected(format!("{}: a key must not be NULL", name()))),
            Some(value) => Ok(value),
            None => Err(Error::rejected(format!("{}: the source did not send a column of the key", name()))),
        }
    }

    /// The attributes that the row has values for, its key's included.
    pub(crate) fn attributes(&self, row: Row<'_>, key: &Item) -> Result<Item> {
        let mut item = match self.whole.map(|at| (&self.schema.columns[at], row.get(at))) {
            Some((column, ValueRef::Text(text))) => whole_item(column, text)?,
            _ => self.columns(row)?,
        };
        // As the key columns have them: also what a transform made of them, in the type of the key.
        item.extend(key.iter().map(|(name, value)| (name.clone(), value.clone())));
        Ok(item)
    }

    fn columns(&self, row: Row<'_>) -> Result<Item> {
        let mut item = Item::with_capacity(self.schema.columns.len() + 2);
        for (at, column) in self.schema.columns.iter().enumerate() {
            if column.generated || Some(at) == self.whole {
                continue;
            }
            let omit = self.nulls == Nulls::Omit || self.table.indexed.contains_key(&column.name);
            match attribute(column, row.get(at))? {
                // An index's key cannot be NULL: an item without the attribute is not in the index.
                Some(AttributeValue::Null(_)) if omit => {}
                Some(value) => drop(item.insert(column.name.clone(), value)),
                None => {}
            }
        }
        Ok(item)
    }

    /// The columns that a partial row sets to NULL although NULL is left out: they are to be removed.
    pub(crate) fn removed(&self, row: Row<'_>) -> Vec<String> {
        let omit = |c: &Column| self.nulls == Nulls::Omit || self.table.indexed.contains_key(&c.name);
        let columns = self.schema.columns.iter().enumerate();
        columns.filter(|(at, c)| row.get(*at).is_null() && omit(c)).map(|(_, c)| c.name.clone()).collect()
    }

    /// Whether every column that is written was sent.
    pub(crate) fn is_complete(&self, row: Row<'_>) -> bool {
        match self.whole {
            Some(at) => !row.get(at).is_unchanged(),
            None => {
                let columns = self.schema.columns.iter().enumerate();
                columns.filter(|(_, c)| !c.generated).all(|(at, _)| !row.get(at).is_unchanged())
            }
        }
    }

    /// What DynamoDB would refuse, found before anything is sent.
    ///
    /// # Errors
    /// [`Rejected`](anabranch_core::ErrorKind::Rejected), naming the attribute or the limit.
    pub(crate) fn check(&self, item: &Item) -> Result<usize> {
        let mut size = 0;
        for (name, value) in item {
            let bad = |why: String| Error::rejected(format!("{}.{name}: {why}", self.table.name));
            size += name.len() + check_value(value, 1).map_err(bad)?;
            if name.is_empty() || name.len() > 65_535 {
                return Err(bad("an attribute's name has 1 to 65,535 bytes".to_owned()));
            }
            if let Some(kind) = self.table.indexed.get(name) {
                let same = key_attribute(kind, value.clone()).as_ref() == Some(value);
                let empty = matches!(value, AttributeValue::S(v) if v.is_empty());
                if !same || empty {
                    return Err(bad(format!("is the key of an index, of the type {}", kind.as_str())));
                }
            }
        }
        if size > MAX_ITEM - RESERVE {
            return Err(Error::rejected(format!(
                "{}: an item of {size} bytes; DynamoDB takes 400 KiB, of which {RESERVE} bytes are reserved",
                self.table.name
            )));
        }
        Ok(size)
    }
}

/// The attribute of a value; `None` if it was not sent. A number never becomes text by itself.
fn attribute(column: &Column, value: ValueRef<'_>) -> Result<Option<AttributeValue>> {
    let attribute = types::attribute_of(column, value)?;
    match &attribute {
        Some(AttributeValue::S(text)) if types::is_numeric(&column.data_type) => {
            let shown: String = text.chars().take(60).collect();
            Err(Error::rejected(format!(
                "the column {}: {shown} is no number of DynamoDB's (38 digits, 1E-130 to 9.99E125)",
                column.name
            ))
            .hint("a transform can make text of it"))
        }
        _ => Ok(attribute),
    }
}

fn whole_item(column: &Column, text: &str) -> Result<Item> {
    if column.native == types::ITEM {
        return types::item_from_json(text);
    }
    match crate::decode::read::plain(text) {
        Ok(AttributeValue::M(item)) => Ok(item),
        Ok(_) => Err(Error::rejected(format!("the column {}: an item is a JSON object", column.name))),
        Err(e) => Err(Error::rejected(format!("the column {}: it is not JSON", column.name)).because(e)),
    }
}

/// The value in the type of a key; `None` if it has no place there.
fn key_attribute(kind: &ScalarAttributeType, value: AttributeValue) -> Option<AttributeValue> {
    match (kind, value) {
        (ScalarAttributeType::S, AttributeValue::Bool(v)) => {
            Some(AttributeValue::S(if v { "t" } else { "f" }.to_owned()))
        }
        (ScalarAttributeType::S, AttributeValue::N(v)) => Some(AttributeValue::S(v)),
        (ScalarAttributeType::S, value @ AttributeValue::S(_))
        | (ScalarAttributeType::N, value @ AttributeValue::N(_))
        | (ScalarAttributeType::B, value @ AttributeValue::B(_)) => Some(value),
        _ => None,
    }
}

/// A part of a joined key: unequal lists of values give unequal texts.
fn joined(value: &AttributeValue) -> Option<String> {
    match value {
        AttributeValue::S(v) => Some(v.replace('\\', "\\\\").replace(JOINT, "\\#")),
        AttributeValue::N(v) => Some(v.clone()),
        AttributeValue::Bool(v) => Some(if *v { "t" } else { "f" }.to_owned()),
        _ => None,
    }
}

/// The size of a value by DynamoDB's rule (developer guide, "Item sizes and formats"), rounded up.
fn check_value(value: &AttributeValue, depth: usize) -> std::result::Result<usize, String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    let number = |v: &String| match number::fits(v) {
        Some(true) => Ok(v.len().div_ceil(2) + 2),
        _ => Err(format!("{} is no number of DynamoDB's", v.chars().take(60).collect::<String>())),
    };
    let set = |empty: bool| if empty { Err("a set must not be empty".to_owned()) } else { Ok(()) };
    Ok(match value {
        AttributeValue::S(v) => v.len(),
        AttributeValue::N(v) => number(v)?,
        AttributeValue::B(v) => v.as_ref().len(),
        AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
        AttributeValue::Ss(all) => {
            set(all.is_empty())?;
            all.iter().map(String::len).sum()
        }
        AttributeValue::Bs(all) => {
            set(all.is_empty())?;
            all.iter().map(|b| b.as_ref().len()).sum()
        }
        AttributeValue::Ns(all) => {
            set(all.is_empty())?;
            all.iter().map(number).sum::<std::result::Result<usize, _>>()?
        }
        AttributeValue::L(all) => {
            let inner: std::result::Result<usize, _> = all.iter().map(|v| check_value(v, depth + 1)).sum();
            3 + all.len() + inner?
        }
        AttributeValue::M(all) => {
            let each = |(name, v): (&String, &AttributeValue)| check_value(v, depth + 1).map(|n| n + name.len());
            let inner: std::result::Result<usize, _> = all.iter().map(each).sum();
            3 + all.len() + inner?
        }
        _ => return Err("has a type that this version does not know".to_owned()),
    })
}

/// Bytes that are equal for equal keys of one table.
pub(crate) fn key_bytes(table: &Table, key: &Item) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    for part in table.parts() {
        let value: &[u8] = match key.get(&part.name) {
            Some(AttributeValue::S(v)) => v.as_bytes(),
            Some(AttributeValue::N(v)) => v.as_bytes(),
            Some(AttributeValue::B(v)) => v.as_ref(),
            _ => &[],
        };
        bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

/// How a key is shown to people.
pub(crate) fn shown(key: &Item) -> String {
    let value = |v: &AttributeValue| match v {
        AttributeValue::S(v) | AttributeValue::N(v) => v.chars().take(64).collect(),
        other => format!("{other:?}").chars().take(64).collect::<String>(),
    };
    let mut all: Vec<String> = key.iter().map(|(name, v)| format!("{name}={}", value(v))).collect();
    all.sort_unstable();
    all.join(", ")
}

/// Whether values of this type can be part of a key.
pub(crate) fn can_be_key(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Json | DataType::Array(_))
}
