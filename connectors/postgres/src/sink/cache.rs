//! What a writer keeps between units: plans of tables, and prepared statements.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{Op, Result, TableName, TableSchema, Unit};
use tokio_postgres::{Client, Statement};

use super::plan::Plan;
use super::table::{self, Table};

/// Prepared statements kept at a time. A table whose updates send ever other sets of columns would
/// otherwise fill the server's memory.
const MAX_STATEMENTS: usize = 512;

/// Plans by table and by version of the source's schema.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    /// The last version of each table.
    by_name: HashMap<TableName, Arc<Plan>>,
    /// Versions met in the unit at hand, usually one a table.
    current: Vec<Arc<Plan>>,
    next_id: u64,
    /// A plan of the unit at hand was made from an older look at the target.
    pub(crate) remembered: bool,
}

impl Plans {
    /// Makes the plans that `unit` needs.
    pub(crate) async fn prepare(&mut self, client: &Client, unit: &Unit) -> Result<()> {
        self.current.clear();
        self.remembered = false;
        for change in unit.changes() {
            if let (Op::Schema, Some(schema)) = (change.op(), change.table()) {
                self.by_name.remove(&schema.name);
            }
        }
        for slice in &unit.slices {
            for schema in slice.batch.schemas() {
                let used = |c: anabranch_core::ChangeRef<'_>| {
                    c.op() != Op::Schema && c.table().is_some_and(|s| Arc::ptr_eq(s, schema))
                };
                let known = self.current.iter().any(|p| Arc::ptr_eq(&p.source, schema));
                if !known && slice.changes.iter().any(|i| used(slice.batch.change(i as usize))) {
                    self.plan(client, schema).await?;
                }
            }
        }
        Ok(())
    }

    async fn plan(&mut self, client: &Client, schema: &Arc<TableSchema>) -> Result<()> {
        if let Some(plan) = self.by_name.get(&schema.name).filter(|p| p.source == *schema) {
            self.current.push(Arc::clone(plan));
            self.remembered = true;
            return Ok(());
        }
        let table = Table::read(client, &schema.name).await?.ok_or_else(|| table::missing(&schema.name))?;
        self.next_id += 1;
        let plan = Arc::new(Plan::new(self.next_id, schema, Arc::new(table))?);
        self.by_name.insert(schema.name.clone(), Arc::clone(&plan));
        self.current.push(plan);
        Ok(())
    }

    /// Looks at the targets of the unit at hand again. The caller has locked them, so that they stay so.
    pub(crate) async fn refresh(&mut self, client: &Client) -> Result<()> {
        let schemas: Vec<Arc<TableSchema>> = self.current.drain(..).map(|p| Arc::clone(&p.source)).collect();
        for schema in &schemas {
            self.by_name.remove(&schema.name);
            self.plan(client, schema).await?;
        }
        Ok(())
    }

    /// The plans of the unit at hand.
    pub(crate) fn current(&self) -> Vec<Arc<Plan>> {
        self.current.clone()
    }

    /// The targets of the unit at hand, by their quoted names.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.current.iter().map(|p| p.target.sql()).collect()
    }

    /// The plan of a table of the unit at hand.
    pub(crate) fn get(&self, schema: &Arc<TableSchema>) -> Option<&Arc<Plan>> {
        self.current
            .iter()
            .find(|p| Arc::ptr_eq(&p.source, schema))
            .or_else(|| self.current.iter().find(|p| p.source == *schema))
    }

    /// Forgets everything: the target is not as it was.
    pub(crate) fn forget(&mut self) {
        self.by_name.clear();
        self.current.clear();
    }
}

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Insert,
    Upsert,
    UpsertUnlessSame,
    InsertMissing,
    Update,
    UpdateKey,
    UpdateImage,
    Delete,
    Remaining,
    DeleteImage,
    Fence,
    Progress,
    Shape,
}

/// The plan, what it does, the columns it names first, and how many of them.
pub(crate) type StatementKey = (u64, Operation, Box<[u16]>, usize);

/// Prepared statements of one connection.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    prepared: HashMap<StatementKey, Statement>,
}

impl Statements {
    /// The statement, prepared now if it was not before.
    pub(crate) async fn get(
        &mut self,
        client: &Client,
        key: StatementKey,
        sql: impl FnOnce() -> String + Send,
    ) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.prepared.get(&key) {
            return Ok(statement.clone());
        }
        if self.prepared.len() >= MAX_STATEMENTS {
            self.prepared.clear();
        }
        let statement = client.prepare(&sql()).await?;
        self.prepared.insert(key, statement.clone());
        Ok(statement)
    }

    pub(crate) fn forget(&mut self) {
        self.prepared.clear();
    }
}
