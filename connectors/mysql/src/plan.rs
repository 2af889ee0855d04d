//! How the rows of one source table are written to its target table: found out once per version of
//! the schema, then used for every row.
//!
//! `INSERT ... ON DUPLICATE KEY UPDATE` updates a row that equals the new one in *any* unique key
//! (MySQL 8.0 reference manual, 15.2.7.2): it would merge a row into another one. So it is used only
//! where the target's primary key is the source's key, and with a guard: an expression that fails
//! (error 1242) unless the key is the same. Also where no other unique key is known, for one may be
//! added while the pipeline runs. Setting the key to NULL would not do as a guard: an AUTO_INCREMENT
//! column takes it as 0.

use std::sync::Arc;

use anabranch_core::net_effect::NetRow;
use anabranch_core::{DataType, Error, Result, RowRef, TableSchema, ValueRef};

use crate::config::TimeZone;
use crate::error::Failure;
use crate::literal::{Rendered, Scratch, push_sql, quote, render};
use crate::native::Family;
use crate::target::Target;
use crate::types::{Encoding, route};

/// A row to write, of whatever kind.
pub(crate) trait Values: Send + Sync {
    fn value(&self, index: usize) -> ValueRef<'_>;
}

impl Values for RowRef<'_> {
    fn value(&self, index: usize) -> ValueRef<'_> {
        self.get(index)
    }
}

impl Values for NetRow<'_> {
    fn value(&self, index: usize) -> ValueRef<'_> {
        self.get(index)
    }
}

/// How a source table is written.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The table, for messages.
    pub(crate) name: Arc<str>,
    /// The table, quoted.
    pub(crate) table: String,
    /// The source's columns that the target has, in the source's order.
    pub(crate) columns: Vec<PlanColumn>,
    /// Places in `columns` of the source's key, in key order.
    pub(crate) key: Vec<usize>,
    /// Columns that only the target has, and that it does not compute.
    pub(crate) extra: Vec<ExtraColumn>,
    /// `INSERT INTO t (a, b) VALUES `.
    pub(crate) insert: String,
    /// What follows the rows of an upsert; `None` where an upsert is not safe.
    pub(crate) upsert: Option<String>,
    /// Equal keys of the source may have different texts in the target.
    pub(crate) key_has_many_texts: bool,
    /// The table as it was defined when this was made; `None` if the user may not see it.
    pub(crate) definition: Option<String>,
}

/// A column that is written.
#[derive(Debug)]
pub(crate) struct PlanColumn {
    /// Its place in the source's schema.
    pub(crate) source: usize,
    /// Its name, quoted.
    pub(crate) name: String,
    /// False for a column that the target computes: it still tells rows apart.
    pub(crate) written: bool,
    pub(crate) encoding: Encoding,
    /// Written to `LOAD DATA` as digits, and converted by this function of the server.
    pub(crate) load: Option<&'static str>,
    pub(crate) read: Read,
    /// Seconds from UTC of the times that it holds.
    pub(crate) shift: i32,
    exact: bool,
    json: bool,
    on_update: bool,
}

/// A column that only the target has.
#[derive(Debug)]
pub(crate) struct ExtraColumn {
    pub(crate) name: String,
    pub(crate) read: Read,
}

/// How a column is read so that writing it again changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Number,
    Text,
    Bytes,
    /// Read back as a decimal, unless it has an exponent.
    Double,
    /// Printed with 6 digits only, unless as DOUBLE.
    Float,
    /// Printed as bytes, unless as a number.
    Bits,
}

impl Read {
    fn of(family: &Family) -> Self {
        match family {
            Family::Int { .. } | Family::Decimal { .. } => Self::Number,
            Family::Double => Self::Double,
            Family::Float => Self::Float,
            Family::Bit(_) => Self::Bits,
            Family::Binary(_) | Family::VarBinary(_) | Family::Blob(_) | Family::Other => Self::Bytes,
            _ => Self::Text,
        }
    }
}

/// A value of a key, for people.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Text(text) => text.chars().take(64).collect(),
        ValueRef::Int(v) => v.to_string(),
        other => format!("{other:?}").chars().take(64).collect(),
    }
}

impl Plan {
    /// # Errors
    /// `Config`, naming the table and the column that does not fit.
    pub(crate) fn new(schema: &TableSchema, target: &Target, time_zone: TimeZone) -> Result<Self> {
        let mut columns = Vec::with_capacity(schema.columns.len());
        for (source, column) in schema.columns.iter().enumerate() {
            let wrong =
                |problem: String| Error::config(format!("table {} column {}", schema.name, column.name), problem);
            let there = target.column(&column.name).ok_or_else(|| {
                wrong(format!("the target's table {} has no such column", target.name)).hint("add it, or leave it out")
            })?;
            if there.generated && !column.generated {
                return Err(wrong(format!("the target's table {} computes it", target.name)));
            }
            let (_, encoding, _) = route(&column.data_type, &there.native)
                .ok_or_else(|| wrong(format!("{} cannot be stored as the target's type", column.data_type)))?;
            columns.push(PlanColumn {
                source,
                name: quote(&column.name),
                written: !there.generated,
                load: match (&there.native.family, &encoding) {
                    (Family::Bit(_), _) => Some("CAST(@{} AS UNSIGNED)"),
                    (_, Encoding::Bytes { .. } | Encoding::UuidBytes) => Some("UNHEX(@{})"),
                    _ => None,
                },
                encoding,
                read: Read::of(&there.native.family),
                shift: match (&column.data_type, &there.native.family) {
                    (DataType::TimestampTz, Family::DateTime(_)) => time_zone.seconds,
                    _ => 0,
                },
                exact: there.exact,
                json: there.native.family == Family::Json,
                on_update: there.on_update,
            });
        }
        let extra = target
            .columns
            .iter()
            .filter(|c| !c.generated && schema.index_of(&c.name).is_none())
            .map(|c| ExtraColumn { name: quote(&c.name), read: Read::of(&c.native.family) })
            .collect();
        let key = schema.key.iter().map(|&k| usize::from(k)).collect();
        let mut plan = Self {
            name: schema.name.to_string().into(),
            table: quote(&target.name),
            columns,
            key,
            extra,
            insert: String::new(),
            upsert: None,
            key_has_many_texts: false,
            definition: None,
        };
        plan.key_has_many_texts = plan.key.iter().map(|&k| &plan.columns[k]).any(|c| {
            let of = &schema.columns[c.source].data_type;
            matches!(of, DataType::Decimal { scale: None, .. })
                && matches!(c.encoding, Encoding::Text { .. } | Encoding::Bytes { .. })
        });
        let written: Vec<&str> = plan.written().map(|c| c.name.as_str()).collect();
        plan.insert = format!("INSERT INTO {} ({}) VALUES ", plan.table, written.join(","));
        plan.upsert = plan.upsert_clause(schema, target);
        Ok(plan)
    }

    fn upsert_clause(&self, schema: &TableSchema, target: &Target) -> Option<String> {
        let same_key = !schema.key.is_empty()
            && target.primary.len() == schema.key.len()
            && schema.key_columns().all(|c| target.primary.contains(&c.name))
            && self.key.iter().all(|&k| self.columns[k].written);
        if !same_key {
            return None;
        }
        let mut set: Vec<String> = Vec::new();
        let same: Vec<String> = self
            .key
            .iter()
            .map(|&k| match &self.columns[k] {
                c if c.exact => format!("{0}<=>VALUES({0})", c.name),
                c => format!("CAST({0} AS BINARY)<=>CAST(VALUES({0}) AS BINARY)", c.name),
            })
            .collect();
        let first = &self.columns[self.key[0]].name;
        set.push(format!("{first}=IF({},{first},(SELECT 1 UNION SELECT 2))", same.join(" AND ")));
        for (at, c) in self.columns.iter().enumerate() {
            if c.written && !self.key.contains(&at) {
                set.push(format!("{0}=VALUES({0})", c.name));
            }
        }
        Some(format!(" ON DUPLICATE KEY UPDATE {}", set.join(",")))
    }

    /// The columns that are written, in order.
    pub(crate) fn written(&self) -> impl Iterator<Item = &PlanColumn> {
        self.columns.iter().filter(|c| c.written)
    }

    /// Appends `(1,'a')`.
    pub(crate) fn push_row(&self, row: &dyn Values, sql: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Failure> {
        sql.push(b'(');
        for (n, column) in self.written().enumerate() {
            if n > 0 {
                sql.push(b',');
            }
            self.push_value(column, row, sql, scratch)?;
        }
        sql.push(b')');
        Ok(())
    }

    /// Appends the value of a column.
    pub(crate) fn push_value(
        &self,
        column: &PlanColumn,
        row: &dyn Values,
        sql: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let value =
            render(row.value(column.source), &column.encoding, scratch).map_err(|why| self.refuse(column, row, why))?;
        if column.shift == 0 || matches!(value, Rendered::Null) {
            push_sql(value, sql);
            return Ok(());
        }
        sql.extend_from_slice(format!("TIMESTAMPADD(SECOND,{},", column.shift).as_bytes());
        push_sql(value, sql);
        sql.push(b')');
        Ok(())
    }

    /// A value that the target cannot hold, in the row of this key.
    fn refuse(&self, column: &PlanColumn, row: &dyn Values, why: impl std::fmt::Display) -> Failure {
        let key: Vec<String> = self
            .key
            .iter()
            .map(|&k| format!("{}={}", self.columns[k].name.trim_matches('`'), shown(row.value(k))))
            .collect();
        let at = if key.is_empty() { String::new() } else { format!(" [{}]", key.join(", ")) };
        let (name, column) = (&self.name, column.name.trim_matches('`'));
        Error::rejected(format!("table {name}{at} column {column}: the value {why}")).into()
    }

    /// Appends the condition that finds the row with the key of `row`.
    pub(crate) fn push_key(&self, row: &dyn Values, sql: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Failure> {
        for (n, &k) in self.key.iter().enumerate() {
            if n > 0 {
                sql.extend_from_slice(b" AND ");
            }
            self.push_equal(&self.columns[k], row, "=", sql, scratch)?;
        }
        Ok(())
    }

    /// Appends the condition that finds a row by all of its values: for tables without a key.
    pub(crate) fn push_all(&self, row: &dyn Values, sql: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Failure> {
        for (n, column) in self.columns.iter().enumerate() {
            if n > 0 {
                sql.extend_from_slice(b" AND ");
            }
            self.push_equal(column, row, "<=>", sql, scratch)?;
        }
        Ok(())
    }

    /// Appends `c = value`, so that no other value is equal to it.
    fn push_equal(
        &self,
        column: &PlanColumn,
        row: &dyn Values,
        equals: &str,
        sql: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let name = column.name.as_bytes();
        sql.extend_from_slice(name);
        sql.extend_from_slice(equals.as_bytes());
        if column.json {
            sql.extend_from_slice(b"CAST(");
            self.push_value(column, row, sql, scratch)?;
            sql.extend_from_slice(b" AS JSON)");
        } else {
            self.push_value(column, row, sql, scratch)?;
        }
        if !column.exact && !row.value(column.source).is_null() {
            // The first condition finds it by the index, this one tells 'a' from 'A' and from 'a '.
            sql.extend_from_slice(b" AND CAST(CONVERT(");
            sql.extend_from_slice(name);
            sql.extend_from_slice(b" USING utf8mb4) AS BINARY)=CAST(");
            self.push_value(column, row, sql, scratch)?;
            sql.extend_from_slice(b" AS BINARY)");
        }
        Ok(())
    }

    /// `a,b`: the key columns.
    pub(crate) fn key_names(&self) -> String {
        let names: Vec<&str> = self.key.iter().map(|&k| self.columns[k].name.as_str()).collect();
        names.join(",")
    }

    /// Appends `1,'a'`: the values of the key columns.
    pub(crate) fn push_key_values(
        &self,
        row: &dyn Values,
        sql: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        for (n, &k) in self.key.iter().enumerate() {
            if n > 0 {
                sql.push(b',');
            }
            self.push_value(&self.columns[k], row, sql, scratch)?;
        }
        Ok(())
    }

    /// Appends the condition that finds the rows with the keys of these.
    pub(crate) fn push_keys<R: Values>(
        &self,
        rows: &[R],
        sql: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let simple = self.simple_key();
        if let Some(key) = simple {
            sql.extend_from_slice(key.name.as_bytes());
            sql.extend_from_slice(b" IN (");
        }
        for (n, row) in rows.iter().enumerate() {
            match simple {
                Some(key) => {
                    if n > 0 {
                        sql.push(b',');
                    }
                    self.push_value(key, row, sql, scratch)?;
                }
                None => {
                    sql.extend_from_slice(if n > 0 { b" OR (" } else { b"(" });
                    self.push_key(row, sql, scratch)?;
                    sql.push(b')');
                }
            }
        }
        if simple.is_some() {
            sql.push(b')');
        }
        Ok(())
    }

    /// Whether rows can be found with `key IN (...)`.
    pub(crate) fn simple_key(&self) -> Option<&PlanColumn> {
        match self.key.as_slice() {
            [k] if self.columns[*k].exact && !self.columns[*k].json => Some(&self.columns[*k]),
            _ => None,
        }
    }

    /// Appends `a=1,b=2` for the columns that were sent. A column that the server would set by
    /// itself, and was not sent, is set to itself. False if there is nothing to set.
    pub(crate) fn push_assignments(
        &self,
        row: &dyn Values,
        sql: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Result<bool, Failure> {
        let mut any = false;
        for column in self.written() {
            let sent = !row.value(column.source).is_unchanged();
            if !sent && !column.on_update {
                continue;
            }
            if any {
                sql.push(b',');
            }
            any = true;
            sql.extend_from_slice(column.name.as_bytes());
            sql.push(b'=');
            if sent {
                self.push_value(column, row, sql, scratch)?;
            } else {
                sql.extend_from_slice(column.name.as_bytes());
            }
        }
        Ok(any)
    }
}
