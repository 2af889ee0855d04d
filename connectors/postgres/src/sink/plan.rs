//! How one version of a source table is written to its target table: which column goes where, and
//! the statements. A statement takes one array for each column it needs, so that one round trip
//! carries thousands of rows.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anabranch_core::{DataType, Error, Result, TableSchema};

use super::apply::Expect;
use super::params::Encoding;
use super::table::{Identity, Table, TargetColumn};
use crate::sql::ident;

/// Units for which new rows of a table are upserted after one of them was there already. A table in which
/// that happens all the time loses one attempt in so many.
const DISTRUST: u32 = 200;

/// How one version of a source table is written to its target table.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) source: Arc<TableSchema>,
    pub(crate) target: Arc<Table>,
    /// Tells plans apart in the statement cache.
    pub(crate) id: u64,
    /// For each source column its target column; `None` if it is not written.
    columns: Vec<Option<usize>>,
    /// Source places of the columns that are written.
    pub(crate) written: Vec<u16>,
    /// Target places of columns that the source does not have and that hold data of their own.
    pub(crate) extra: Vec<usize>,
    pub(crate) arbiter: Arbiter,
    /// For how many units more new rows are upserted like others.
    distrust: AtomicU32,
}

/// How an upsert finds the row that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arbiter {
    /// The table has no key.
    None,
    /// `ON CONFLICT (key)`.
    Index,
    /// The unique constraint is deferrable, which `ON CONFLICT` cannot use: update, then insert what is not there.
    Join,
}

impl Plan {
    /// Matches a source table with its target table.
    ///
    /// # Errors
    /// `Config`, naming both columns, if a value would have nowhere to go.
    pub(crate) fn new(id: u64, source: &Arc<TableSchema>, target: Arc<Table>) -> Result<Self> {
        let name = &target.name;
        let mut columns = Vec::with_capacity(source.columns.len());
        for column in &source.columns {
            let at = target.index_of(&column.name);
            columns.push(match at.map(|i| &target.columns[i]) {
                Some(there) if !there.generated => at,
                // The target computes it too, or it was left out when the table was created.
                _ if column.generated => None,
                Some(_) => {
                    return Err(Error::config(
                        format!("column {} of target table {name}", column.name),
                        format!("is generated, but column {} of source table {} holds data", column.name, source.name),
                    )
                    .hint("make it an ordinary column, or leave the source's column out"));
                }
                None => {
                    return Err(Error::config(
                        format!("column {} of source table {}", column.name, source.name),
                        format!("has no column {} in target table {name}", column.name),
                    )
                    .hint(format!(
                        "run on the target: ALTER TABLE {} ADD COLUMN {} {}; with the DEFAULT that the source gave it, \
                         which the stream does not bring to rows that are there",
                        target.sql(),
                        ident(&column.name),
                        column.native
                    )));
                }
            });
        }
        let sent: Vec<usize> = columns.iter().flatten().copied().collect();
        let mut extra = Vec::new();
        for (i, column) in target.columns.iter().enumerate().filter(|(i, c)| !sent.contains(i) && !c.generated) {
            if column.is_required() {
                return Err(Error::config(
                    format!("column {} of target table {name}", column.name),
                    format!("is NOT NULL without a default, and source table {} has no such column", source.name),
                )
                .hint("give it a default, or allow NULL"));
            }
            extra.push(i);
        }
        let written = (0..columns.len()).filter(|&i| columns[i].is_some()).map(|i| i as u16).collect();
        let mut plan = Self {
            source: Arc::clone(source),
            target,
            id,
            columns,
            written,
            extra,
            arbiter: Arbiter::None,
            distrust: AtomicU32::new(0),
        };
        plan.arbiter = plan.find_arbiter()?;
        Ok(plan)
    }

    fn find_arbiter(&self) -> Result<Arbiter> {
        if self.source.key.is_empty() {
            return Ok(Arbiter::None);
        }
        let key: Vec<&str> = self.source.key_columns().map(|c| c.name.as_str()).collect();
        if let Some(&k) = self.source.key.iter().find(|&&k| self.columns[usize::from(k)].is_none()) {
            let column = &self.source.columns[usize::from(k)].name;
            return Err(Error::config(
                format!("target table {}", self.target.name),
                format!("computes {column}, which is part of the key of source table {}", self.source.name),
            ));
        }
        match self.target.unique_on(&key) {
            Some(index) if index.arbiter => Ok(Arbiter::Index),
            Some(_) => Ok(Arbiter::Join),
            None => {
                let list: Vec<String> = key.iter().map(|c| ident(c)).collect();
                let list = list.join(", ");
                Err(Error::config(
                    format!("target table {}", self.target.name),
                    format!("has no unique key on ({list}), by which source table {} finds its rows", self.source.name),
                )
                .hint(format!("run on the target: ALTER TABLE {} ADD PRIMARY KEY ({list})", self.target.sql())))
            }
        }
    }

    /// The target column of a source column that is written.
    pub(crate) fn column(&self, source: u16) -> &TargetColumn {
        &self.target.columns[self.place(source)]
    }

    /// The place in the target of a source column that is written.
    pub(crate) fn place(&self, source: u16) -> usize {
        // `written` and the key, the only indices used, have a target column: checked by `new`.
        self.columns[usize::from(source)].unwrap_or_default()
    }

    pub(crate) fn encoding(&self, source: u16) -> Encoding {
        match (self.column(source).encoding, &self.source.columns[usize::from(source)].data_type) {
            (Encoding::Number, DataType::Bool) => Encoding::Truth,
            (encoding, _) => encoding,
        }
    }

    pub(crate) fn is_key(&self, source: u16) -> bool {
        self.source.key.contains(&source)
    }

    /// Whether the target takes some different keys for equal. Rows are found by equality, for its index, and by
    /// their texts: a row that the target does not tell from another one is refused, and does nothing to that one.
    pub(crate) fn is_loose(&self) -> bool {
        self.source.key.iter().any(|&k| self.columns[usize::from(k)].is_some() && self.column(k).loose)
    }

    /// Whether new rows may be inserted as such. Not where rows of one statement may refer to each
    /// other, and for some units not after one was there already.
    pub(crate) fn may_trust(&self, replica_role: bool) -> bool {
        let apart = replica_role || !self.target.references.iter().any(|(to, _)| *to == self.target.oid);
        let counted = self.distrust.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |units| units.checked_sub(1));
        apart && self.arbiter == Arbiter::Index && counted.is_err()
    }

    /// A row that should have been new was there, or another had its unique value.
    pub(crate) fn distrust(&self) {
        self.distrust.store(DISTRUST, Ordering::Relaxed);
    }

    /// Rows of the key can be deleted and inserted again without anyone noticing.
    pub(crate) fn replaceable(&self, replica_role: bool) -> bool {
        let t = &self.target;
        replica_role || !t.referenced_with_action && t.rules.is_empty() && t.triggers.iter().all(|t| !t.on_origin)
    }

    /// `INSERT` of rows with these source columns and, after them, these extra target columns.
    pub(crate) fn insert(&self, columns: &[u16], extra: &[usize]) -> String {
        let all: Vec<&TargetColumn> =
            columns.iter().map(|&c| self.column(c)).chain(extra.iter().map(|&e| &self.target.columns[e])).collect();
        let names: Vec<String> = all.iter().map(|c| ident(&c.name)).collect();
        let overriding =
            if all.iter().any(|c| c.identity == Some(Identity::Always)) { " OVERRIDING SYSTEM VALUE" } else { "" };
        let (values, from) = unnest(&all);
        format!("INSERT INTO {} ({}){overriding} SELECT {values} FROM {from}", self.target.sql(), names.join(", "))
    }

    /// `INSERT` that updates the rows which are there.
    pub(crate) fn upsert(&self, columns: &[u16]) -> String {
        let mut sql = self.insert(columns, &[]);
        let key: Vec<String> = self.source.key.iter().map(|&k| ident(&self.column(k).name)).collect();
        let mut set: Vec<String> = self.settable(columns).map(excluded).collect();
        let loose: Vec<String> = self
            .key_columns()
            .into_iter()
            .filter(|c| c.loose)
            .map(|c| {
                same_text(&format!("{}.{}", self.target.sql(), ident(&c.name)), &format!("EXCLUDED.{}", ident(&c.name)))
            })
            .collect();
        if set.is_empty() && !loose.is_empty() {
            // So that it counts.
            set.extend(self.key_columns().into_iter().filter(|c| c.loose).map(excluded));
        }
        _ = write!(sql, " ON CONFLICT ({}) DO ", key.join(", "));
        if set.is_empty() {
            sql.push_str("NOTHING");
        } else {
            _ = write!(sql, "UPDATE SET {}", set.join(", "));
        }
        if !loose.is_empty() {
            _ = write!(sql, " WHERE {}", loose.join(" AND "));
        }
        sql
    }

    /// Whether an upsert counts a row that is there.
    pub(crate) fn upsert_counts(&self, columns: &[u16]) -> bool {
        self.settable(columns).next().is_some()
    }

    /// What a statement must count that stores so many rows.
    pub(crate) fn stored(&self, rows: u64) -> Expect {
        if self.target.uncounted { Expect::Any } else { Expect::Stored(rows) }
    }

    /// An upsert of one row, which counts also if the row is there as it should be and nothing was done.
    pub(crate) fn upsert_unless_same(&self, columns: &[u16], place: &str) -> String {
        let all: Vec<&TargetColumn> = columns.iter().map(|&c| self.column(c)).collect();
        let same = self.find_image(columns, &named(&all), place);
        format!("WITH u AS ({} RETURNING 1), f AS ({same}) SELECT 1 FROM u UNION SELECT 1 FROM f", self.upsert(columns))
    }

    /// The rows with these keys.
    pub(crate) fn remaining(&self) -> String {
        let key = self.key_columns();
        format!("SELECT 1 FROM {} AS t, {} AS s WHERE {}", self.target.rows(), named(&key), joined(&key, 0))
    }

    /// `INSERT` of the rows whose key is not there.
    pub(crate) fn insert_missing(&self, columns: &[u16]) -> String {
        let key: Vec<String> = self
            .source
            .key
            .iter()
            .filter_map(|k| {
                let at = columns.iter().position(|c| c == k)?;
                let column = self.column(*k);
                Some(same(column, &value(column, at)))
            })
            .collect();
        let insert = self.insert(columns, &[]);
        format!("{insert} WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})", self.target.rows(), key.join(" AND "))
    }

    /// Columns that an update of a row with this key sets: not the key, unless equal keys may differ
    /// (`1.0` and `1.00`), and nothing that only the server may set.
    fn settable<'p>(&'p self, columns: &'p [u16]) -> impl Iterator<Item = &'p TargetColumn> {
        columns
            .iter()
            .filter(|&&c| {
                let data_type = &self.source.columns[usize::from(c)].data_type;
                let exact = !matches!(data_type, DataType::Decimal { .. } | DataType::Float32 | DataType::Float64);
                !(self.is_key(c) && exact && data_type.text_equality())
            })
            .map(|&c| self.column(c))
            .filter(|c| c.identity != Some(Identity::Always))
    }

    /// `UPDATE` of the rows with these keys; parameters are `columns`, which include the key.
    pub(crate) fn update(&self, columns: &[u16]) -> String {
        let all: Vec<&TargetColumn> = columns.iter().map(|&c| self.column(c)).collect();
        let place = |c: &TargetColumn| all.iter().position(|a| a.name == c.name).unwrap_or_default();
        let set: Vec<String> =
            self.settable(columns).map(|c| format!("{} = s.c{}", ident(&c.name), place(c))).collect();
        let key: Vec<String> =
            self.source.key.iter().map(|&k| self.column(k)).map(|c| same(c, &format!("s.c{}", place(c)))).collect();
        let (table, from, key) = (self.target.rows(), named(&all), key.join(" AND "));
        if set.is_empty() {
            // Nothing to set, but the row must be there: the count tells.
            return format!("SELECT 1 FROM {table} AS t, {from} AS s WHERE {key}");
        }
        format!("UPDATE {table} AS t SET {} FROM {from} AS s WHERE {key}", set.join(", "))
    }

    /// `DELETE` of the rows with these keys.
    pub(crate) fn delete(&self) -> String {
        let key: Vec<&TargetColumn> = self.source.key.iter().map(|&k| self.column(k)).collect();
        let table = self.target.rows();
        if let [only] = key[..] {
            // Only where the element's own operator is sure to be found.
            if only.unnests && !only.loose && !only.base.contains(['.', '"']) {
                return format!("DELETE FROM {table} AS t WHERE t.{} = ANY ($1::{}[])", ident(&only.name), only.base);
            }
        }
        let matches = joined(&key, 0);
        format!("DELETE FROM {table} AS t USING {} AS s WHERE {matches}", named(&key))
    }

    /// `UPDATE` of one row to another key: parameters are the old key, then `columns`.
    pub(crate) fn update_key(&self, columns: &[u16]) -> String {
        let key: Vec<&TargetColumn> = self.source.key.iter().map(|&k| self.column(k)).collect();
        let mut all = key.clone();
        all.extend(columns.iter().map(|&c| self.column(c)));
        let set: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(n, &c)| format!("{} = s.c{}", ident(&self.column(c).name), n + key.len()))
            .collect();
        let matches = joined(&key, 0);
        format!("UPDATE {} AS t SET {} FROM {} AS s WHERE {matches}", self.target.rows(), set.join(", "), named(&all),)
    }

    /// Finds one row by its whole image, for tables without a key. Two rows that are alike to the last
    /// bit are the same row to everyone, so the first will do.
    fn find_image(&self, image: &[u16], from: &str, place: &str) -> String {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for (n, &c) in image.iter().enumerate() {
            let column = self.column(c);
            here.push(format!("t.{}", ident(&column.name)));
            // With its modifier: padded and rounded as it was when it was stored.
            there.push(format!("s.c{n}::{}", column.native));
        }
        // `*=` compares as stored and takes NULLs for equal; it needs no equality of the type (json, point).
        format!(
            "SELECT t.tableoid AS o, t.{place} AS c, s.* FROM {} AS t, {from} AS s \
             WHERE ROW({})::record OPERATOR(pg_catalog.*=) ROW({})::record LIMIT 1",
            self.target.rows(),
            here.join(", "),
            there.join(", ")
        )
    }

    /// `DELETE` of one row by its image.
    pub(crate) fn delete_image(&self, image: &[u16], place: &str) -> String {
        let all: Vec<&TargetColumn> = image.iter().map(|&c| self.column(c)).collect();
        let found = self.find_image(image, &named(&all), place);
        let table = self.target.rows();
        format!("DELETE FROM {table} AS t USING ({found}) AS f WHERE t.{place} = f.c AND t.tableoid = f.o")
    }

    /// `UPDATE` of one row by its image: parameters are the image, then `columns`.
    pub(crate) fn update_image(&self, image: &[u16], columns: &[u16], place: &str) -> String {
        let all: Vec<&TargetColumn> = image.iter().chain(columns).map(|&c| self.column(c)).collect();
        let found = self.find_image(image, &named(&all), place);
        let set: Vec<String> = columns
            .iter()
            .enumerate()
            .filter(|(_, c)| self.column(**c).identity != Some(Identity::Always))
            .map(|(n, &c)| format!("{} = f.c{}", ident(&self.column(c).name), n + image.len()))
            .collect();
        format!(
            "UPDATE {} AS t SET {} FROM ({found}) AS f WHERE t.{place} = f.c AND t.tableoid = f.o",
            self.target.rows(),
            set.join(", ")
        )
    }

    /// `SELECT` of these target columns, as text, of rows by key; the first column is the row's number
    /// among the parameters, from 1.
    pub(crate) fn select(&self, target_columns: &[usize]) -> String {
        let key: Vec<&TargetColumn> = self.source.key.iter().map(|&k| self.column(k)).collect();
        let mut values = String::from("s.n");
        for &c in target_columns {
            _ = write!(values, ", t.{}::text", ident(&self.target.columns[c].name));
        }
        let matches: Vec<String> = key.iter().enumerate().map(|(n, c)| same(c, &value(c, n))).collect();
        let (arrays, names) = arrays(&key);
        format!(
            "SELECT {values} FROM {} AS t, unnest({arrays}) WITH ORDINALITY AS s({names}, n) WHERE {}",
            self.target.rows(),
            matches.join(" AND ")
        )
    }

    /// The target's key columns, in the order of the source's key.
    pub(crate) fn key_columns(&self) -> Vec<&TargetColumn> {
        self.source.key.iter().map(|&k| self.column(k)).collect()
    }

    /// What a statement about keys is made of: parameters are one array for each key column.
    pub(crate) fn key_rows(&self) -> KeyRows {
        let key = self.key_columns();
        let (arrays, aliases) = arrays(&key);
        let list = |parts: Vec<String>, by: &str| parts.join(by);
        KeyRows {
            names: list(key.iter().map(|c| ident(&c.name)).collect(), ", "),
            values: list(key.iter().enumerate().map(|(n, c)| value(c, n)).collect(), ", "),
            matches: list(key.iter().enumerate().map(|(n, c)| same(c, &value(c, n))).collect(), " AND "),
            arrays,
            aliases,
        }
    }

    /// `COPY` of rows with these columns.
    pub(crate) fn copy(&self, columns: &[u16]) -> String {
        let names: Vec<String> = columns.iter().map(|&c| ident(&self.column(c).name)).collect();
        format!("COPY {} ({}) FROM STDIN", self.target.sql(), names.join(", "))
    }
}

/// Parts of a statement about keys.
#[derive(Debug)]
pub(crate) struct KeyRows {
    /// The columns.
    pub(crate) names: String,
    /// Their values, of the from item `s`.
    pub(crate) values: String,
    /// The arrays to unnest.
    pub(crate) arrays: String,
    /// What the from item calls them.
    pub(crate) aliases: String,
    /// The condition that joins the table `t` with `s`.
    pub(crate) matches: String,
}

fn arrays(columns: &[&TargetColumn]) -> (String, String) {
    let parameters: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(n, c)| format!("${}::{}[]", n + 1, if c.unnests { c.base.as_str() } else { "pg_catalog.text" }))
        .collect();
    let names: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
    (parameters.join(", "), names.join(", "))
}

fn value(column: &TargetColumn, at: usize) -> String {
    // Without the modifier: an explicit cast to varchar(3) would cut, the assignment refuses.
    if column.unnests { format!("s.c{at}") } else { format!("s.c{at}::{}", column.base) }
}

/// A select list and a from item that give the rows of array parameters.
fn unnest(columns: &[&TargetColumn]) -> (String, String) {
    let (arrays, names) = arrays(columns);
    let values: Vec<String> = columns.iter().enumerate().map(|(n, c)| value(c, n)).collect();
    (values.join(", "), format!("unnest({arrays}) AS s({names})"))
}

/// A from item whose columns `c0, c1, ...` have the types of the target.
fn named(columns: &[&TargetColumn]) -> String {
    let (arrays, names) = arrays(columns);
    if columns.iter().all(|c| c.unnests) {
        return format!("(SELECT * FROM unnest({arrays}) AS u({names}))");
    }
    let values: Vec<String> = columns.iter().enumerate().map(|(n, c)| format!("{} AS c{n}", value(c, n))).collect();
    format!("(SELECT {} FROM unnest({arrays}) AS s({names}))", values.join(", "))
}

/// A condition that joins the target's `columns` with those of the from item, counted from `first`.
fn joined(columns: &[&TargetColumn], first: usize) -> String {
    let matches: Vec<String> = columns.iter().enumerate().map(|(n, c)| same(c, &format!("s.c{}", n + first))).collect();
    matches.join(" AND ")
}

/// A condition that joins a column of the target with a value.
fn same(column: &TargetColumn, value: &str) -> String {
    let name = format!("t.{}", ident(&column.name));
    let equal = format!("{name} = {value}");
    if column.loose { format!("{equal} AND {}", same_text(&name, value)) } else { equal }
}

/// A condition that two texts are the same to the byte.
fn same_text(a: &str, b: &str) -> String {
    format!("{a}::pg_catalog.text = {b}::pg_catalog.text COLLATE pg_catalog.\"C\"")
}

fn excluded(column: &TargetColumn) -> String {
    let name = ident(&column.name);
    format!("{name} = EXCLUDED.{name}")
}
