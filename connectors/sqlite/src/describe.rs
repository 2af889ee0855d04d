//! A table of the file, as SQLite's pragmas describe it.
//!
//! Source: <https://www.sqlite.org/pragma.html>, `table_list`, `table_xinfo`, `index_list`,
//! `index_xinfo`, `foreign_key_list`.

use anabranch_core::{Error, Result};
use rusqlite::{OptionalExtension, Row, params};

use crate::connection::Database;
use crate::types::Declared;

/// An ordinary table.
#[derive(Debug)]
pub(crate) struct Described {
    /// Its name as stored; SQLite finds it by any case.
    pub(crate) name: String,
    pub(crate) without_rowid: bool,
    pub(crate) columns: Vec<DescribedColumn>,
    /// Places of the primary key's columns, in key order.
    pub(crate) key: Vec<usize>,
    /// Unique indexes besides the primary key.
    pub(crate) unique: Vec<UniqueIndex>,
    /// Tables that its foreign keys refer to.
    pub(crate) references: Vec<String>,
    pub(crate) triggers: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct DescribedColumn {
    pub(crate) name: String,
    pub(crate) declared: Declared,
    pub(crate) nullable: bool,
    pub(crate) generated: bool,
    pub(crate) has_default: bool,
}

#[derive(Debug)]
pub(crate) struct UniqueIndex {
    /// `None` for an expression.
    pub(crate) columns: Vec<Option<String>>,
    /// Whether it holds for some rows only.
    pub(crate) partial: bool,
}

impl UniqueIndex {
    /// The columns, where it is one on columns and on all rows.
    pub(crate) fn plain_columns(&self) -> Option<Vec<&str>> {
        if self.partial {
            return None;
        }
        self.columns.iter().map(Option::as_deref).collect()
    }
}

/// The table of this name, in any case; `None` if there is none.
///
/// # Errors
/// `Config` for a view or a virtual table.
pub(crate) fn table(db: &Database, name: &str) -> Result<Option<Described>> {
    let found: Option<(String, String, bool, bool)> = db.told(
        "cannot read the schema",
        db.conn
            .query_row(
                "SELECT name, type, wr, strict FROM pragma_table_list \
                 WHERE schema = 'main' AND name = ?1 COLLATE NOCASE",
                params![name],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .optional(),
    )?;
    let Some((name, kind, without_rowid, strict)) = found else { return Ok(None) };
    if kind != "table" {
        return Err(Error::config(&name, format!("is a {kind} and not an ordinary table"))
            .hint("rename it, or send this table elsewhere"));
    }
    let (columns, key) = columns(db, &name, strict)?;
    let mut table = Described {
        without_rowid,
        columns,
        key,
        unique: Vec::new(),
        references: list(db, "SELECT DISTINCT \"table\" FROM pragma_foreign_key_list(?1)", &name, |row| row.get(0))?,
        triggers: list(
            db,
            "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE",
            &name,
            |row| row.get(0),
        )?,
        name,
    };
    table.read_indexes(db)?;
    Ok(Some(table))
}

fn columns(db: &Database, table: &str, strict: bool) -> Result<(Vec<DescribedColumn>, Vec<usize>)> {
    let rows: Vec<(String, String, bool, i64, i64, bool)> = list(
        db,
        "SELECT name, type, \"notnull\", pk, hidden, dflt_value IS NOT NULL FROM pragma_table_xinfo(?1) ORDER BY cid",
        table,
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
    )?;
    let mut key: Vec<(i64, usize)> = rows.iter().enumerate().filter(|(_, r)| r.3 > 0).map(|(i, r)| (r.3, i)).collect();
    key.sort_unstable();
    let columns = rows
        .into_iter()
        .map(|(name, declared, not_null, _, hidden, has_default)| DescribedColumn {
            name,
            declared: Declared::new(declared, strict),
            nullable: !not_null,
            // 2: virtual, 3: stored (table_xinfo). 1 is of virtual tables only.
            generated: hidden >= 2,
            has_default,
        })
        .collect();
    Ok((columns, key.into_iter().map(|(_, i)| i).collect()))
}

impl Described {
    /// All that tells how values are stored in it, to notice that it was altered.
    pub(crate) fn shape(&self) -> String {
        format!("{:?} {} {:?}", self.columns, self.without_rowid, self.key)
    }

    pub(crate) fn column(&self, name: &str) -> Option<&DescribedColumn> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// Whether a unique key is made of exactly these columns, so that ON CONFLICT can name them.
    pub(crate) fn has_unique_key(&self, columns: &[&str]) -> bool {
        let same = |have: &[&str]| have.len() == columns.len() && columns.iter().all(|c| have.contains(c));
        let primary: Vec<&str> = self.key.iter().map(|&i| self.columns[i].name.as_str()).collect();
        same(&primary) || self.unique.iter().filter_map(UniqueIndex::plain_columns).any(|u| same(&u))
    }

    fn read_indexes(&mut self, db: &Database) -> Result<()> {
        let indexes: Vec<(String, String, bool)> = list(
            db,
            "SELECT name, origin, partial FROM pragma_index_list(?1) WHERE \"unique\" ORDER BY seq DESC",
            &self.name,
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        for (index, origin, partial) in indexes {
            let parts: Vec<(Option<String>, String)> =
                list(db, "SELECT name, coll FROM pragma_index_xinfo(?1) WHERE key ORDER BY seqno", &index, |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            for (name, collation) in &parts {
                if !collation.eq_ignore_ascii_case("BINARY") {
                    let column = self.columns.iter_mut().find(|c| Some(&c.name) == name.as_ref());
                    column.into_iter().for_each(|c| c.declared.collation = Some(collation.clone()));
                }
            }
            if origin != "pk" {
                self.unique.push(UniqueIndex { columns: parts.into_iter().map(|p| p.0).collect(), partial });
            }
        }
        Ok(())
    }
}

fn list<T>(db: &Database, sql: &str, name: &str, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>> {
    let rows = db
        .conn
        .prepare_cached(sql)
        .and_then(|mut select| select.query_map(params![name], read).and_then(Iterator::collect));
    db.told(format_args!("cannot read the schema of {name}"), rows)
}
