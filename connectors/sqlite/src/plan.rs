//! How one version of a source's table is written to its table in the file.

use std::sync::Arc;

use anabranch_core::{Error, Result, TableSchema, ValueRef};
use rusqlite::Statement;

use crate::connection::{Database, quoted};
use crate::describe::{self, Described};
use crate::types::Codec;

/// Names by which a rowid can be asked for, as long as no column has the name
/// (<https://www.sqlite.org/lang_createtable.html#rowid>).
const ROWID_NAMES: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// The statements of a table, and how to bind a row to them.
#[derive(Debug, Clone)]
pub(crate) struct TablePlan {
    /// The table's name in the file.
    pub(crate) name: String,
    /// The same, as SQL: `main."orders"`.
    pub(crate) place: String,
    /// The columns that are written, by their place in the source's schema.
    pub(crate) columns: Vec<PlannedColumn>,
    /// Places in `columns` of the source's key.
    pub(crate) key: Vec<usize>,
    /// Every column of the target that can be written, as SQL.
    pub(crate) all: Vec<String>,
    /// What tells rows without a key apart, as SQL: the rowid, or the primary key.
    pub(crate) address: Vec<String>,
    /// `INSERT OR ABORT ... ON CONFLICT ... DO UPDATE`: the values of `columns`. Empty without a key.
    pub(crate) upsert: String,
    /// `INSERT OR ABORT`: the values of `columns`.
    pub(crate) insert: String,
    /// `DELETE ... WHERE` the key.
    pub(crate) delete: String,
    /// The table's columns as they were declared when this was made.
    shape: String,
}

/// A column that is written.
#[derive(Debug, Clone)]
pub(crate) struct PlannedColumn {
    /// Its place in the source's schema.
    pub(crate) index: usize,
    /// Its name as SQL.
    pub(crate) sql: String,
    pub(crate) name: String,
    pub(crate) codec: Codec,
    /// How it is compared as a part of the key, where the column's own collation may be another one.
    compare: &'static str,
}

impl TablePlan {
    /// Compares the source's table with the one that is there.
    ///
    /// # Errors
    /// `Config` if the table, a column or the key is missing.
    pub(crate) fn new(db: &Database, schema: &TableSchema) -> Result<Self> {
        let name = &schema.name.name;
        let table = describe::table(db, name)?.ok_or_else(|| {
            Error::config(name, "this table is not in the target").hint("create it, or set create_tables = true")
        })?;
        let columns = planned_columns(schema, &table)?;
        let key: Vec<usize> =
            schema.key.iter().filter_map(|&k| columns.iter().position(|c| c.index == usize::from(k))).collect();
        let names: Vec<&str> = key.iter().map(|&k| columns[k].name.as_str()).collect();
        if !schema.key.is_empty() && (key.len() != schema.key.len() || !table.has_unique_key(&names)) {
            let wanted: Vec<&str> = schema.key_columns().map(|c| c.name.as_str()).collect();
            let wanted = wanted.join(", ");
            return Err(Error::config(
                name,
                format!("the target has no primary key or unique key on exactly ({wanted})"),
            )
            .hint(format!("CREATE UNIQUE INDEX on ({wanted}), the key of the source's table")));
        }
        let writable = |c: &&describe::DescribedColumn| !c.generated;
        let plan = Self {
            place: String::new(),
            columns,
            key,
            all: table.columns.iter().filter(writable).map(|c| quoted(&c.name)).collect(),
            address: address(&table)?,
            upsert: String::new(),
            insert: String::new(),
            delete: String::new(),
            shape: table.shape(),
            name: table.name,
        };
        let place = format!("main.{}", quoted(&plan.name));
        Ok(plan.at(place))
    }

    /// The same plan for another table with the same columns.
    pub(crate) fn at(mut self, place: String) -> Self {
        let columns: Vec<&str> = self.columns.iter().map(|c| c.sql.as_str()).collect();
        let marks: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
        // OR ABORT: a table may be declared with ON CONFLICT REPLACE or IGNORE, which would delete
        // or lose rows without a word.
        self.insert = format!("INSERT OR ABORT INTO {place} ({}) VALUES ({})", columns.join(", "), marks.join(", "));
        let key: Vec<&str> = self.key.iter().map(|&k| columns[k]).collect();
        let mut sets: Vec<String> = (0..columns.len())
            .filter(|i| !self.key.contains(i))
            .map(|i| format!("{0} = excluded.{0}", columns[i]))
            .collect();
        if sets.is_empty() {
            // A row of nothing but a key: as an update of itself it counts as one row, as all others do.
            sets = key.iter().take(1).map(|k| format!("{k} = excluded.{k}")).collect();
        }
        if !key.is_empty() {
            self.upsert = format!("{} ON CONFLICT ({}) DO UPDATE SET {}", self.insert, key.join(", "), sets.join(", "));
            self.delete = format!("DELETE FROM {place} WHERE {}", self.where_key(1));
        }
        self.place = place;
        self
    }

    /// `"a" = ?1 AND "b" = ?2`, counting from `first`.
    pub(crate) fn where_key(&self, first: usize) -> String {
        let term = |(n, &k): (usize, &usize)| {
            let column = &self.columns[k];
            format!("{} = ?{}{}", column.sql, first + n, column.compare)
        };
        self.key.iter().enumerate().map(term).collect::<Vec<_>>().join(" AND ")
    }

    /// Whether rows are found by a key.
    pub(crate) fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Binds these columns of a row, from parameter `first` on.
    pub(crate) fn bind<'r>(
        &self,
        db: &Database,
        statement: &mut Statement<'_>,
        first: usize,
        columns: impl IntoIterator<Item = usize>,
        value: impl Fn(usize) -> ValueRef<'r>,
    ) -> Result<()> {
        for (n, at) in columns.into_iter().enumerate() {
            let column = &self.columns[at];
            let encoded = column
                .codec
                .encode(&column.name, value(column.index))
                .map_err(|e| Error::new(e.kind(), format!("{}: {e}", self.name)))?;
            let bound = statement.raw_bind_parameter(first + n, encoded);
            db.told(format_args!("{}: cannot bind {}", self.name, column.name), bound)?;
        }
        Ok(())
    }

    /// Binds the key of a row as the first parameters.
    pub(crate) fn bind_key<'r>(
        &self,
        db: &Database,
        statement: &mut Statement<'_>,
        value: impl Fn(usize) -> ValueRef<'r>,
    ) -> Result<()> {
        self.bind(db, statement, 1, self.key.iter().copied(), value)
    }

    /// The key of a row, for people.
    pub(crate) fn key_text(&self, value: impl Fn(usize) -> String) -> String {
        let parts: Vec<String> =
            self.key.iter().map(|&k| format!("{} = {}", self.columns[k].name, value(self.columns[k].index))).collect();
        parts.join(", ")
    }
}

fn planned_columns(schema: &TableSchema, table: &Described) -> Result<Vec<PlannedColumn>> {
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (index, column) in schema.columns.iter().enumerate() {
        let key = format!("{}.{}", table.name, column.name);
        let Some(there) = table.column(&column.name) else {
            let near = table.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&column.name));
            let fix = match near {
                Some(near) => format!("the target has {}: rename one of them", near.name),
                None => "add it to the target, or leave it out with a transform".to_owned(),
            };
            return Err(Error::config(key, "the source sends this column, and the target does not have it").hint(fix));
        };
        if there.generated {
            if column.generated {
                continue;
            }
            return Err(Error::config(key, "the source sends this column, and the target computes it")
                .hint("make it an ordinary column, or leave it out with a transform"));
        }
        columns.push(PlannedColumn {
            index,
            sql: quoted(&column.name),
            name: column.name.clone(),
            codec: there.declared.codec(&column.data_type),
            // A column may be declared with a collation that its unique index does not have: 'a' would
            // be found by 'A', and both rows are there.
            compare: if there.declared.collation.is_none() { " COLLATE BINARY" } else { "" },
        });
    }
    Ok(columns)
}

fn address(table: &Described) -> Result<Vec<String>> {
    if table.without_rowid {
        return Ok(table.key.iter().map(|&k| quoted(&table.columns[k].name)).collect());
    }
    let taken = |name: &str| table.columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
    match ROWID_NAMES.into_iter().find(|name| !taken(name)) {
        Some(name) => Ok(vec![name.to_owned()]),
        None => Err(Error::config(&table.name, "columns hide every name of the rowid").hint("rename the column oid")),
    }
}

/// The plans of the tables met so far.
#[derive(Default)]
pub(crate) struct Plans {
    plans: Vec<(Arc<TableSchema>, Arc<TablePlan>)>,
    /// The file's count of changes of its schema when they were looked at last.
    version: i64,
}

impl Plans {
    /// The plan of this version of a table, made at its first use.
    pub(crate) fn get(&mut self, db: &Database, schema: &Arc<TableSchema>) -> Result<Arc<TablePlan>> {
        if let Some((_, plan)) = self.plans.iter().find(|(s, _)| Arc::ptr_eq(s, schema)) {
            return Ok(Arc::clone(plan));
        }
        let known = self.plans.iter().find(|(s, _)| s == schema).map(|(_, plan)| Arc::clone(plan));
        let plan = match known {
            Some(plan) => plan,
            None => Arc::new(TablePlan::new(db, schema)?),
        };
        // One entry a table: an older version is not met again, or is planned again.
        self.plans.retain(|(s, _)| s.name != schema.name);
        self.plans.push((Arc::clone(schema), Arc::clone(&plan)));
        Ok(plan)
    }

    /// Makes sure that the tables are as they were when their plans were made, which they stay until the end of
    /// the transaction: a text would become a number in a table that was made anew with another type.
    ///
    /// # Errors
    /// `Transient`: to begin again is to judge the types anew.
    pub(crate) fn confirm(&mut self, db: &Database) -> Result<()> {
        let version = db.conn.query_row("PRAGMA main.schema_version", [], |row| row.get(0));
        let version = db.told("cannot read the schema's version", version)?;
        if version == self.version {
            return Ok(());
        }
        for (_, plan) in &self.plans {
            if describe::table(db, &plan.name)?.is_none_or(|now| now.shape() != plan.shape) {
                return Err(Error::transient(format!("{} was altered while it was written to", plan.name)));
            }
        }
        self.version = version;
        Ok(())
    }

    /// Forgets a table that changed.
    pub(crate) fn forget(&mut self, schema: &TableSchema) {
        self.plans.retain(|(s, _)| s.name != schema.name);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.plans.clear();
    }
}
