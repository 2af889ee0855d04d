//! What of an item goes into which column.

use std::sync::Arc;

use anabranch_core::{BatchBuilder, Column, Error, OldImage, Result, TableName, TableSchema, ValueRef};
use aws_sdk_dynamodb::types::{AttributeDefinition, KeySchemaElement, KeyType, ScalarAttributeType};

use super::Settings;
use crate::bookkeeping::{GLOBAL_TABLES, PREFIX};
use crate::config::{Document, OnMismatch};
use crate::decode::attribute::Item;
use crate::decode::document::{self, Form};
use crate::types;

/// The columns of a table: the key first, then declared ones, then the document.
#[derive(Debug)]
pub(crate) struct Layout {
    schema: Arc<TableSchema>,
    document: Option<Form>,
    strip: Vec<String>,
    global_table_attributes: bool,
    on_mismatch: OnMismatch,
}

impl Layout {
    /// The layout of a table with this key.
    ///
    /// # Errors
    /// `Config`, naming the key, for columns that do not go together.
    pub(crate) fn new(
        settings: &Settings,
        table: &str,
        key: &[KeySchemaElement],
        definitions: &[AttributeDefinition],
    ) -> Result<Self> {
        let mut columns: Vec<Column> = Vec::new();
        let declared = settings.columns.iter().filter(|c| c.table.as_deref().is_none_or(|t| t == table));
        let declared: Vec<Column> = declared.map(|c| c.column()).collect::<Result<_>>()?;
        let mut parts: Vec<&KeySchemaElement> = key.iter().collect();
        parts.sort_by_key(|k| *k.key_type() != KeyType::Hash);
        for part in &parts {
            let name = part.attribute_name();
            let definition = definitions.iter().find(|d| d.attribute_name() == name);
            let native = match definition.map(AttributeDefinition::attribute_type) {
                Some(ScalarAttributeType::N) => "N",
                Some(ScalarAttributeType::B) => "B",
                _ => "S",
            };
            let own = types::column(name, native).ok_or_else(|| Error::fatal("a key of no type"))?;
            let column = declared.iter().find(|c| c.name == name).cloned().unwrap_or(own);
            columns.push(Column { nullable: false, ..column });
        }
        let keys = columns.len();
        if keys == 0 {
            return Err(Error::fatal(format!("the table {table} was described without a key")));
        }
        for column in declared {
            if columns[..keys].iter().any(|c| c.name == column.name) {
                continue;
            }
            if columns.iter().any(|c| c.name == column.name) {
                return Err(Error::config("source.columns", format!("{} is declared twice for {table}", column.name)));
            }
            columns.push(column);
        }
        let document = match settings.document {
            Document::Tagged => Some((Form::Tagged, types::ITEM)),
            Document::Plain => Some((Form::Plain, types::DOCUMENT)),
            Document::None => None,
        };
        if let Some((_, native)) = document {
            let name = &settings.document_column;
            if columns.iter().any(|c| c.name == *name) {
                let problem = format!("{name} is an attribute that {table} sends as a column of its own");
                return Err(Error::config("source.document_column", problem).hint("choose another name"));
            }
            columns.extend(types::column(name, native).map(|c| Column { nullable: false, ..c }));
        }
        let key = (0..keys as u16).collect();
        Ok(Self {
            schema: Arc::new(TableSchema { name: TableName::new("", table), columns, key }),
            document: document.map(|(form, _)| form),
            strip: settings.strip.clone(),
            global_table_attributes: settings.global_table_attributes,
            on_mismatch: settings.on_mismatch,
        })
    }

    pub(crate) fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// Pushes the row of an item.
    pub(crate) fn row<I: Item>(&self, item: &I, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        for (index, column) in self.schema.columns.iter().enumerate() {
            if self.document.is_some() && index + 1 == self.schema.columns.len() {
                self.document(item, batch, scratch)?;
                continue;
            }
            self.attribute(index, column, item, batch, scratch)?;
        }
        Ok(())
    }

    /// Pushes the old row of an item of which only the key is known.
    pub(crate) fn key<I: Item>(&self, keys: &I, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        batch.old_row(OldImage::Key);
        for (index, column) in self.schema.columns.iter().enumerate() {
            if self.schema.is_key(index) {
                self.attribute(index, column, keys, batch, scratch)?;
            } else {
                batch.push(ValueRef::Unchanged);
            }
        }
        Ok(())
    }

    fn attribute<I: Item>(
        &self,
        index: usize,
        column: &Column,
        item: &I,
        batch: &mut BatchBuilder,
        scratch: &mut String,
    ) -> Result<()> {
        let is_key = self.schema.is_key(index);
        let Some(attribute) = item.attribute(&column.name) else {
            if is_key {
                return Err(Error::fatal(format!(
                    "an item of {} came without its key {}",
                    self.schema.name, column.name
                )));
            }
            batch.push(ValueRef::Null);
            return Ok(());
        };
        match types::value_of(column, attribute, scratch) {
            Ok(value) => batch.push(value),
            Err(_) if self.on_mismatch == OnMismatch::Null && !is_key => batch.push(ValueRef::Null),
            Err(problem) => {
                let item = self.name_of(item);
                return Err(Error::config(
                    "source.columns",
                    format!("the attribute {} of {item} in {} {problem}", column.name, self.schema.name),
                )
                .hint("declare the column as attribute, or set on_mismatch = \"null\""));
            }
        }
        Ok(())
    }

    fn document<I: Item>(&self, item: &I, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        let Some(form) = self.document else { return Ok(()) };
        let keep = |name: &str| {
            !name.starts_with(PREFIX)
                && (self.global_table_attributes || !name.starts_with(GLOBAL_TABLES))
                && !self.strip.iter().any(|s| s == name)
        };
        scratch.clear();
        document::write_item(item, form, keep, scratch)
            .map_err(|e| Error::fatal(format!("{} in {} {e}", self.name_of(item), self.schema.name)))?;
        batch.push(ValueRef::Text(scratch));
        Ok(())
    }

    /// The key of an item, for messages.
    fn name_of<I: Item>(&self, item: &I) -> String {
        let mut text = String::new();
        let is_key = |name: &str| self.schema.key_columns().any(|c| c.name == name);
        // An unknown type in a key is told as an empty one.
        let _ = document::write_item(item, Form::Plain, is_key, &mut text);
        format!("the item {text}")
    }
}
