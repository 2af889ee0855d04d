//! A table of the target, as far as a writer has to know it.

use std::collections::HashMap;

use anabranch_core::{Column, DataType, Error, Result, TableName, TableSchema};
use aws_sdk_dynamodb::types::{KeyType, ScalarAttributeType, TableDescription};

/// What stands between the names of key columns that share one attribute, and between their values.
pub(crate) const JOINT: char = '#';

/// A part of a primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPart {
    pub(crate) name: String,
    pub(crate) kind: ScalarAttributeType,
}

impl KeyPart {
    /// The columns that it holds: several if the source's key has more than two.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.name.split(JOINT)
    }
}

/// Keys of a table and of its indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) hash: KeyPart,
    pub(crate) range: Option<KeyPart>,
    /// The key attributes of its secondary indexes: an item has them with this type, or not at all.
    pub(crate) indexed: HashMap<String, ScalarAttributeType>,
}

impl Table {
    pub(crate) fn from_description(name: &str, found: &TableDescription) -> Result<Self> {
        let kind_of = |attribute: &str| {
            let definition = found.attribute_definitions().iter().find(|d| d.attribute_name() == attribute);
            definition.map(|d| d.attribute_type().clone()).unwrap_or(ScalarAttributeType::S)
        };
        let part = |kind: KeyType| {
            let element = found.key_schema().iter().find(|e| *e.key_type() == kind)?;
            let name = element.attribute_name().to_owned();
            Some(KeyPart { kind: kind_of(&name), name })
        };
        let Some(hash) = part(KeyType::Hash) else {
            return Err(Error::config(name, "the description of this table has no partition key"));
        };
        let range = part(KeyType::Range);
        let local = found.local_secondary_indexes().iter().flat_map(|i| i.key_schema());
        let global = found.global_secondary_indexes().iter().flat_map(|i| i.key_schema());
        let names = local.chain(global).map(|e| e.attribute_name().to_owned());
        let own = |n: &String| *n == hash.name || range.as_ref().is_some_and(|r| r.name == *n);
        let indexed = names.filter(|n| !own(n)).map(|n| (n.clone(), kind_of(&n))).collect();
        Ok(Self { name: name.to_owned(), hash, range, indexed })
    }

    /// The table that is created for a source's table. A key of more than two columns becomes a
    /// partition key of the first and a sort key of the others.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if it has no key, or a name that DynamoDB refuses.
    pub(crate) fn planned(schema: &TableSchema) -> Result<Self> {
        let name = &schema.name.name;
        check_name(name)?;
        let key: Vec<&Column> = schema.key_columns().collect();
        let Some((first, rest)) = key.split_first() else {
            return Err(Error::config(name, "the table has no key, and DynamoDB finds items by key only")
                .hint("give it a primary key, or leave it out with a transform"));
        };
        if let Some(column) = key.iter().find(|c| c.name.contains(JOINT)) {
            return Err(Error::config(
                format!("{name}.{}", column.name),
                format!("the name of a key column must not have {JOINT:?} here"),
            )
            .hint("rename the column with a transform"));
        }
        let range = match rest {
            [] => None,
            [one] => Some(KeyPart { name: one.name.clone(), kind: scalar(&one.data_type) }),
            many => {
                let names: Vec<&str> = many.iter().map(|c| c.name.as_str()).collect();
                Some(KeyPart { name: names.join(&JOINT.to_string()), kind: ScalarAttributeType::S })
            }
        };
        let hash = KeyPart { name: first.name.clone(), kind: scalar(&first.data_type) };
        Ok(Self { name: name.clone(), hash, range, indexed: HashMap::new() })
    }

    /// The columns of its key.
    pub(crate) fn key_columns(&self) -> impl Iterator<Item = &str> {
        self.parts().flat_map(KeyPart::columns)
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &KeyPart> {
        std::iter::once(&self.hash).chain(&self.range)
    }

    /// Its name, as the rest of anabranch names tables.
    pub(crate) fn table_name(&self) -> TableName {
        TableName::new("", &self.name)
    }
}

/// The type of a key attribute for values of this type.
pub(crate) fn scalar(data_type: &DataType) -> ScalarAttributeType {
    match data_type {
        DataType::Bytes => ScalarAttributeType::B,
        data_type if crate::types::is_numeric(data_type) => ScalarAttributeType::N,
        _ => ScalarAttributeType::S,
    }
}

/// DynamoDB's rule for the names of tables: its developer guide, "Naming rules".
pub(crate) fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (3..=255).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Error::config(name, "DynamoDB's tables have names of 3 to 255 of the characters a-z, A-Z, 0-9, _, - and .")
        .hint("give the table another name with a transform"))
}
