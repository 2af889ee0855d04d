//! Reads the items of a source for a comparison, as the stream would give them.

use std::collections::HashSet;
use std::sync::Arc;

use anabranch_core::{BatchBuilder, Column, Error, Result, RowReader, TableSchema, Value, Verifier};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;

use super::DynamoDb;
use super::setup::Table;
use crate::bookkeeping::{DELETED, MARKER};
use crate::limiter::Limiter;
use crate::types::{self, Item};
use crate::verifier::{ItemForm, Reading};

/// Calls under way, at most: a comparison is not to take a table's capacity from others.
const CALLS: usize = 8;

#[async_trait]
impl Verifier for DynamoDb {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let connected = self.connected();
        let found = connected.tables()?.into_iter().find(|t| t.layout.schema().name == table.name);
        let found = found.ok_or_else(|| Error::config("source.tables", format!("it has no table {}", table.name)))?;
        let reading = Reading {
            client: connected.clients().await?.tables.clone(),
            limiter: Arc::new(Limiter::new(CALLS)),
            table: found.name.clone(),
            capacity: connected.settings.scan_capacity,
        };
        Ok(match keys {
            None => reading.all(Form(found)),
            Some(keys) => reading.with_keys(items_of(found.layout.schema(), keys), Form(found)),
        })
    }
}

/// The keys that an item here can have, each once.
fn items_of(schema: &TableSchema, keys: &[Vec<Value>]) -> Vec<Item> {
    let mut seen = HashSet::new();
    let item = |key: &Vec<Value>| -> Option<Item> {
        let part = |(column, value): (&Column, &Value)| {
            let attribute = types::attribute_of_owned(column, value).ok()??;
            let fits = match &attribute {
                AttributeValue::N(_) => types::is_numeric(&column.data_type),
                AttributeValue::S(text) => !text.is_empty() && !types::is_numeric(&column.data_type),
                AttributeValue::B(bytes) => !bytes.as_ref().is_empty(),
                _ => false,
            };
            fits.then(|| (column.name.clone(), attribute))
        };
        schema.key_columns().zip(key).map(part).collect()
    };
    let once = |item: &Item| {
        let parts: Vec<String> = schema.key_columns().map(|c| format!("{:?}", item.get(&c.name))).collect();
        seen.insert(parts)
    };
    keys.iter().filter_map(item).filter(once).collect()
}

struct Form(Arc<Table>);

impl ItemForm for Form {
    fn schema(&self) -> &Arc<TableSchema> {
        self.0.layout.schema()
    }

    fn is_row(&self, item: &Item) -> bool {
        !item.contains_key(DELETED) && !item.contains_key(MARKER)
    }

    fn push(&self, item: &Item, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        self.0.layout.row(item, batch, scratch)
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::TableName;

    use super::*;

    #[test]
    fn keys_that_no_item_can_have_are_left_out() {
        let columns = vec![types::column("pk", "S").unwrap(), types::column("sk", "N").unwrap()];
        let schema = TableSchema { name: TableName::new("", "t"), columns, key: vec![0, 1] };
        let key = |pk: &str, sk: Value| vec![Value::Text(pk.to_owned()), sk];
        let keys = [
            key("a", Value::Text("1.50".to_owned())),
            key("a", Value::Text("1.5".to_owned())),
            key("", Value::Int(1)),
            key("a", Value::Text("one".to_owned())),
            key("a", Value::Null),
        ];
        let items = items_of(&schema, &keys);
        assert_eq!(items.len(), 1, "{items:?}");
        assert_eq!(items[0]["sk"], AttributeValue::N("1.5".to_owned()));
    }
}
