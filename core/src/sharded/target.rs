//! The tables of all shards: they must be the same.

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{Sharded, together};
use crate::error::{Error, Result};
use crate::mapping::{Contract, TargetSchema, TargetTable};
use crate::model::{Column, TableName, TableSchema};

impl Sharded {
    /// Asks every shard; each answer, or every error at once.
    async fn ask<'a, T, F>(&'a self, question: impl Fn(&'a dyn TargetSchema) -> F) -> Result<Vec<T>>
    where
        F: Future<Output = Result<T>> + 'a,
    {
        let asked = self.sinks.iter().filter_map(|s| s.target()).map(question);
        let each = join_all(asked).await;
        self.all(each.into_iter().map(|r| r.map(|answer| vec![answer])).collect())
    }

    /// For what is the same in all shards: their contracts are those of one connector.
    fn first(&self) -> Option<&dyn TargetSchema> {
        self.sinks.first().and_then(|s| s.target())
    }
}

fn no_tables() -> Error {
    Error::fatal("the shards do not describe their tables")
}

#[async_trait]
impl TargetSchema for Sharded {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        let found = self.ask(|target| target.describe(name)).await?;
        let mut errors = Vec::new();
        let first = found.first().cloned().flatten();
        for (shard, table) in self.names().iter().zip(&found).skip(1) {
            if let Some(problem) = difference(first.as_ref(), table.as_ref()) {
                let problem = format!("{problem} in shard {}", self.names()[0]);
                let error = Error::config(format!("table {name}"), problem).hint("make the tables of all shards alike");
                errors.push((shard.clone(), error));
            }
        }
        match together(errors) {
            Some(error) => Err(error),
            None => Ok(first),
        }
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        match self.first() {
            Some(target) => target.contract(column, existing),
            None => Contract::new("", crate::mapping::Fidelity::Unsupported),
        }
    }

    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        match self.first() {
            Some(target) => target.planned(table, index),
            None => Contract::new("", crate::mapping::Fidelity::Unsupported),
        }
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        self.first().ok_or_else(no_tables)?.create_statement(table)
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        // An interrupted creation has made it in some of them.
        self.ask(async |target| match target.describe(&table.name).await? {
            Some(_) => Ok(()),
            None => target.create(table).await,
        })
        .await
        .map(|_| ())
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        self.ask(|target| target.clear(name)).await.map(|_| ())
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        Ok(self.ask(|target| target.is_empty(name)).await?.into_iter().all(|empty| empty))
    }
}

/// What keeps a unit of the one from being written to the other, in an operator's words.
fn difference(one: Option<&TargetTable>, other: Option<&TargetTable>) -> Option<String> {
    match (one, other) {
        (None, None) => None,
        (Some(_), None) => Some("is not there, and it is".to_owned()),
        (None, Some(_)) => Some("is there, and it is not".to_owned()),
        (Some(one), Some(other)) => {
            let differs = |a: &Column, b: &Column| (&a.native, a.generated) != (&b.native, b.generated);
            for column in &one.schema.columns {
                match other.schema.columns.iter().find(|c| c.name == column.name) {
                    None => return Some(format!("has no column {}, and it has", column.name)),
                    Some(there) if differs(column, there) => {
                        return Some(format!("{} is {} here and {}", column.name, there.native, column.native));
                    }
                    Some(_) => {}
                }
            }
            let key = |t: &TargetTable| t.schema.key_columns().map(|c| c.name.clone()).collect::<Vec<_>>();
            (key(one) != key(other)).then(|| format!("has the key ({}) and not that", key(other).join(", ")))
        }
    }
}
