//! The tables of the file, for preflight and to create missing ones.

use anabranch_core::{Column, Contract, Error, Result, TableName, TableSchema, TargetSchema, TargetTable};
use async_trait::async_trait;

use crate::Sqlite;
use crate::connection::{Database, quoted};
use crate::describe::{self, Described};
use crate::types;

#[async_trait]
impl TargetSchema for Sqlite {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        let name = name.name.clone();
        self.shared.read(move |db| Ok(describe::table(db, &name)?.map(described))).await
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        match existing {
            Some(existing) => types::contract(column, existing),
            None => types::created(&column.data_type),
        }
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        create_statement(table)
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let (name, sql) = (table.name.name.clone(), create_statement(table)?);
        self.shared
            .write(move |db| db.told(format_args!("cannot create the table {name}"), db.conn.execute_batch(&sql)))
            .await
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        let name = name.name.clone();
        self.shared
            .write(move |db| {
                let done = db.conn.execute(&format!("DELETE FROM {}", place(db, &name)?), []);
                db.told(format_args!("cannot empty {name}"), done).map(drop)
            })
            .await
    }

    /// Foreign keys do not act on these connections. Triggers do.
    async fn resumes_copies(&self, name: &TableName) -> Result<bool> {
        let name = name.name.clone();
        self.shared.read(move |db| Ok(describe::table(db, &name)?.is_some_and(|table| table.triggers.is_empty()))).await
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        let name = name.name.clone();
        self.shared
            .read(move |db| {
                let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM {})", place(db, &name)?);
                db.told(format_args!("cannot read {name}"), db.conn.query_row(&sql, [], |row| row.get(0)))
            })
            .await
    }
}

/// The table as SQL names it; an error of its own if there is none.
fn place(db: &Database, name: &str) -> Result<String> {
    match describe::table(db, name)? {
        Some(table) => Ok(format!("main.{}", quoted(&table.name))),
        None => Err(Error::config(name, "this table is not in the target")),
    }
}

fn described(table: Described) -> TargetTable {
    let warnings = warnings(&table);
    let unique = table.unique.iter().map(|u| match u.plain_columns() {
        Some(columns) => columns.into_iter().map(str::to_owned).collect(),
        None => Vec::new(),
    });
    TargetTable {
        unique: unique.collect(),
        references: table.references.iter().map(|t| TableName::new("", t)).collect(),
        required: table
            .columns
            .iter()
            .filter(|c| !c.nullable && !c.generated && !c.has_default)
            .map(|c| c.name.clone())
            .collect(),
        warnings,
        schema: TableSchema {
            columns: table
                .columns
                .iter()
                .map(|c| Column {
                    name: c.name.clone(),
                    data_type: c.declared.data_type(),
                    native: c.declared.to_string(),
                    nullable: c.nullable,
                    generated: c.generated,
                })
                .collect(),
            // SQLite allows 2,000 columns by default and 32,767 at most.
            key: table.key.iter().map(|&k| k as u16).collect(),
            name: TableName::new("", table.name),
        },
    }
}

fn warnings(table: &Described) -> Vec<String> {
    let mut warnings = Vec::new();
    if !table.references.is_empty() {
        warnings.push(format!(
            "its foreign keys (to {}) are not enforced while anabranch writes, and do not cascade",
            table.references.join(", ")
        ));
    }
    for trigger in &table.triggers {
        warnings.push(format!("the trigger {trigger} will fire for replicated rows"));
    }
    for column in &table.columns {
        if let Some(collation) = &column.declared.collation {
            warnings.push(format!(
                "a unique key compares {} by {collation}: values that differ only by that count as one",
                column.name
            ));
        }
    }
    warnings
}

fn create_statement(table: &TableSchema) -> Result<String> {
    let name = &table.name.name;
    if name.to_ascii_lowercase().starts_with("sqlite_") {
        return Err(Error::config(name, "SQLite keeps names that begin with sqlite_ for itself")
            .hint("give the table another name with a transform"));
    }
    let key: Vec<&Column> = table.key_columns().collect();
    let contract = |column: &Column| types::created(&column.data_type).native;
    // An INTEGER PRIMARY KEY is the rowid itself: one tree instead of two.
    let rowid_key = key.len() == 1 && contract(key[0]) == "INTEGER";
    let mut lines: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let is_key = table.is_key(i);
            let not_null = if is_key || !column.nullable { " NOT NULL" } else { "" };
            let primary = if is_key && rowid_key { " PRIMARY KEY" } else { "" };
            format!("{} {}{not_null}{primary}", quoted(&column.name), contract(column))
        })
        .collect();
    if !key.is_empty() && !rowid_key {
        let key: Vec<String> = key.iter().map(|c| quoted(&c.name)).collect();
        lines.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    Ok(format!("CREATE TABLE main.{} (\n    {}\n) STRICT", quoted(name), lines.join(",\n    ")))
}
