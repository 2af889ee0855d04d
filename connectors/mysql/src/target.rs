//! The target's tables: described, created, emptied.

use anabranch_core::{Column, Contract, Error, Fidelity, Result, TableName, TableSchema, TargetSchema, TargetTable};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;

use crate::connection::{Link, Server};
use crate::error::{Failure, Phase};
use crate::literal::{push_text, quote};
use crate::native::Native;
use crate::rights;
use crate::sink::MySql;
use crate::types;

/// A table of the target, as the server's `information_schema` describes it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) columns: Vec<TargetColumn>,
    /// Columns of the primary key, in its order.
    pub(crate) primary: Vec<String>,
    /// Other unique keys; an empty list for one on expressions or on prefixes of columns.
    pub(crate) unique: Vec<Vec<String>>,
    references: Vec<TableName>,
    triggers: Vec<String>,
}

/// A column of it.
#[derive(Debug, Clone)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    pub(crate) native: Native,
    /// The type as its DDL writes it.
    native_text: String,
    nullable: bool,
    pub(crate) generated: bool,
    pub(crate) has_default: bool,
    /// The server sets it when the row changes.
    pub(crate) on_update: bool,
    /// It tells all of its strings apart.
    pub(crate) exact: bool,
    collation: Option<String>,
}

impl Target {
    /// Reads the description; `None` if there is no such table.
    ///
    /// # Errors
    /// `Config` for a view, for a table without transactions, and for a name that the server takes
    /// for that of another table.
    pub(crate) async fn describe(link: &mut Link, name: &str) -> Result<Option<Target>, Failure> {
        let mut literal = Vec::new();
        push_text(name.as_bytes(), &mut literal);
        let literal = String::from_utf8_lossy(&literal).into_owned();
        if !Self::check_kind(link, name, &literal).await? {
            return Ok(None);
        }
        let conn = &mut link.conn;
        let keys: Vec<(String, Option<String>, Option<u64>)> = conn
            .query(format!(
                "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART FROM information_schema.STATISTICS \
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {literal} AND NON_UNIQUE = 0 \
                 ORDER BY INDEX_NAME, SEQ_IN_INDEX"
            ))
            .await?;
        let (primary, unique) = sort_keys(keys);
        let columns: Vec<ColumnFacts> = conn
            .query(format!(
                "SELECT COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, EXTRA, CHARACTER_SET_NAME, COLLATION_NAME, \
                 COLUMN_DEFAULT IS NOT NULL \
                 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {literal} \
                 ORDER BY ORDINAL_POSITION"
            ))
            .await?;
        let references: Vec<(String, String, String)> = conn
            .query(format!(
                "SELECT DISTINCT UNIQUE_CONSTRAINT_SCHEMA, DATABASE(), REFERENCED_TABLE_NAME \
                 FROM information_schema.REFERENTIAL_CONSTRAINTS \
                 WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME = {literal}"
            ))
            .await?;
        let triggers: Vec<String> = conn
            .query(format!(
                "SELECT CONCAT(TRIGGER_NAME, ' (', ACTION_TIMING, ' ', EVENT_MANIPULATION, ')') \
                 FROM information_schema.TRIGGERS \
                 WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = {literal}"
            ))
            .await?;
        let in_key = |c: &str| primary.iter().chain(unique.iter().flatten()).any(|k| k == c);
        let columns = columns.into_iter().map(|c| TargetColumn::new(c, &in_key)).collect();
        let references = references
            .into_iter()
            .map(|(schema, here, table)| TableName::new(if schema == here { String::new() } else { schema }, table))
            .collect();
        Ok(Some(Target { name: name.to_owned(), columns, primary, unique, references, triggers }))
    }

    /// Whether there is a table of exactly this name; an error if it is of no use.
    async fn check_kind(link: &mut Link, name: &str, literal: &str) -> Result<bool, Failure> {
        let found: Vec<(String, String, Option<String>, Option<String>)> = link
            .conn
            .query(format!(
                "SELECT t.TABLE_NAME, t.TABLE_TYPE, t.ENGINE, e.TRANSACTIONS FROM information_schema.TABLES t \
                 LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
                 WHERE t.TABLE_SCHEMA = DATABASE() AND t.TABLE_NAME = {literal}"
            ))
            .await?;
        let Some((_, kind, engine, transactions)) = found.iter().find(|f| f.0 == name) else {
            return match found.first() {
                Some((other, ..)) if link.server.folds_names => Err(Failure::Own(
                    Error::config(
                        format!("table {name}"),
                        format!("the server takes it for {other}: it compares names without case"),
                    )
                    .hint("rename the table in the mapping, or set lower_case_table_names=0"),
                )),
                _ => Ok(false),
            };
        };
        if !matches!(kind.as_str(), "BASE TABLE" | "SYSTEM VERSIONED") {
            let problem = format!("is a {} in the target, not a table", kind.to_ascii_lowercase());
            return Err(Error::config(format!("table {name}"), problem).into());
        }
        if transactions.as_deref() != Some("YES") {
            let engine = engine.as_deref().unwrap_or("its engine");
            return Err(Error::config(format!("table {name}"), format!("{engine} has no transactions"))
                .hint("ALTER TABLE ... ENGINE=InnoDB")
                .into());
        }
        Ok(true)
    }

    pub(crate) fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|c| c.name == name)
    }

    fn into_table(self) -> TargetTable {
        let warnings = self.warnings();
        let key = self
            .primary
            .iter()
            .filter_map(|k| self.columns.iter().position(|c| c.name == *k))
            .filter_map(|at| u16::try_from(at).ok())
            .collect();
        let columns = self
            .columns
            .iter()
            .map(|c| Column {
                name: c.name.clone(),
                data_type: types::data_type_of(&c.native, &c.native_text),
                native: c.native_text.clone(),
                nullable: c.nullable,
                generated: c.generated,
            })
            .collect();
        let needs_value = |c: &&TargetColumn| !c.nullable && !c.generated && !c.has_default;
        let required = self.columns.iter().filter(needs_value).map(|c| c.name.clone()).collect();
        let schema = TableSchema { name: TableName::new("", self.name), columns, key };
        TargetTable { schema, unique: self.unique, references: self.references, required, warnings }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.triggers.iter().map(|t| format!("trigger {t} fires for replicated rows too")).collect();
        for c in &self.columns {
            if c.on_update {
                warnings.push(format!(
                    "column {} has ON UPDATE: it keeps the source's value if the source has this column, else the \
                     server sets it",
                    c.name
                ));
            }
            let in_key = self.primary.iter().chain(self.unique.iter().flatten()).any(|k| *k == c.name);
            if in_key && !c.exact {
                warnings.push(format!(
                    "key column {} has the collation {}: rows whose keys differ only in case or in blanks at the end \
                     are refused",
                    c.name,
                    c.collation.as_deref().unwrap_or_default()
                ));
            }
        }
        if !self.references.is_empty() {
            warnings.push(
                "its foreign keys are not checked for replicated rows, and ON DELETE and ON UPDATE actions do not run: \
                 the source has done both"
                    .into(),
            );
        }
        if self.primary.is_empty() {
            warnings.push("it has no primary key: updates and deletes read the whole table".into());
        }
        warnings
    }
}

type ColumnFacts = (String, String, String, Option<String>, Option<String>, Option<String>, bool);

impl TargetColumn {
    /// Its type, for a column that compares as this one does.
    pub(crate) fn definition(&self) -> String {
        match &self.collation {
            Some(collation) if !self.native_text.contains(" COLLATE ") => {
                format!("{} COLLATE {collation}", self.native_text)
            }
            _ => self.native_text.clone(),
        }
    }

    fn new(facts: ColumnFacts, in_key: &dyn Fn(&str) -> bool) -> Self {
        let (name, mut native_text, nullable, extra, charset, collation, has_default) = facts;
        let extra = extra.unwrap_or_default().to_ascii_uppercase();
        if let Some(charset) = charset.filter(|c| c != "utf8mb4") {
            native_text = format!("{native_text} CHARACTER SET {charset}");
        }
        let family = Native::parse(&native_text);
        let exact = !family.is_text() || collation.as_deref().is_none_or(tells_all_apart);
        if let (false, true, Some(collation)) = (exact, in_key(&name), &collation) {
            native_text = format!("{native_text} COLLATE {collation}");
        }
        let generated = ["VIRTUAL GENERATED", "STORED GENERATED", "PERSISTENT"].iter().any(|g| extra.contains(g));
        Self {
            native: Native::parse(&native_text),
            native_text,
            nullable: nullable == "YES",
            generated,
            has_default: has_default || extra.contains("AUTO_INCREMENT") || extra.contains("DEFAULT_GENERATED"),
            on_update: extra.contains("ON UPDATE"),
            exact,
            name,
            collation,
        }
    }
}

/// Whether a collation compares code points and does not pad with blanks (MariaDB's NO PAD binary
/// collations and MySQL's of UCA 9.0.0).
fn tells_all_apart(collation: &str) -> bool {
    collation.ends_with("_nopad_bin") || collation == "utf8mb4_0900_bin" || collation == "binary"
}

type Keys = (Vec<String>, Vec<Vec<String>>);

fn sort_keys(parts: Vec<(String, Option<String>, Option<u64>)>) -> Keys {
    let mut primary = Vec::new();
    let mut unique: Vec<(String, Vec<String>, bool)> = Vec::new();
    for (index, column, prefix) in parts {
        if index == "PRIMARY" {
            primary.extend(column);
            continue;
        }
        if unique.last().is_none_or(|(name, ..)| *name != index) {
            unique.push((index, Vec::new(), true));
        }
        if let Some((_, columns, whole)) = unique.last_mut() {
            *whole &= column.is_some() && prefix.is_none();
            columns.extend(column);
        }
    }
    let unique = unique.into_iter().map(|(_, columns, whole)| if whole { columns } else { Vec::new() }).collect();
    (primary, unique)
}

/// Bytes of an InnoDB key with ROW_FORMAT=DYNAMIC (the manual's InnoDB limits).
const MAX_KEY: u32 = 3072;
/// Bytes of a row without its LONGTEXT and LONGBLOB columns, with some room for what is not counted here.
const MAX_ROW: u32 = 60_000;

/// The types of the columns of a table that this sink creates.
fn natives(table: &TableSchema, mariadb: bool) -> Vec<String> {
    let free = table.key_columns().filter(|c| types::fixed_key_bytes(&c.data_type, mariadb).is_none()).count() as u32;
    let fixed: u32 = table.key_columns().filter_map(|c| types::fixed_key_bytes(&c.data_type, mariadb)).sum();
    let share = MAX_KEY.saturating_sub(fixed) / free.max(1);
    let native = |(at, column): (usize, &Column)| {
        if table.is_key(at) {
            types::key_native_of(&column.data_type, mariadb, share)
        } else {
            types::native_of(&column.data_type, mariadb)
        }
    };
    let mut natives: Vec<String> = table.columns.iter().enumerate().map(native).collect();
    shorten_rows(table, &mut natives);
    natives
}

/// The statement that creates a table for this source table.
pub(crate) fn create_statement(table: &TableSchema, mariadb: bool, collation: &str) -> Result<String> {
    let natives = natives(table, mariadb);
    for column in &table.columns {
        let contract = types::contract(column, None, mariadb);
        if contract.fidelity == Fidelity::Unsupported {
            return Err(Error::config(format!("table {} column {}", table.name, column.name), contract.note));
        }
    }
    let mut sql = format!("CREATE TABLE {} (", quote(&table.name.name));
    for (at, column) in table.columns.iter().enumerate() {
        let null = if column.nullable && !table.is_key(at) { "NULL" } else { "NOT NULL" };
        sql.push_str(&format!("\n  {} {} {null},", quote(&column.name), natives[at]));
    }
    if table.key.is_empty() {
        sql.pop();
    } else {
        let key: Vec<String> = table.key_columns().map(|c| quote(&c.name)).collect();
        sql.push_str(&format!("\n  PRIMARY KEY ({})", key.join(", ")));
    }
    sql.push_str(&format!("\n) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE={collation}"));
    Ok(sql)
}

/// Turns the longest VARCHARs into LONGTEXT until the row is within the server's limit.
fn shorten_rows(table: &TableSchema, natives: &mut [String]) {
    let bytes = |native: &String| match Native::parse(native).family {
        crate::native::Family::VarChar(n) | crate::native::Family::Char(n) => n * 4 + 2,
        crate::native::Family::VarBinary(n) => n + 2,
        _ => 12,
    };
    while natives.iter().map(bytes).sum::<u32>() > MAX_ROW {
        let longest = (0..natives.len())
            .filter(|&at| !table.is_key(at) && natives[at].starts_with("varchar"))
            .max_by_key(|&at| bytes(&natives[at]));
        match longest {
            Some(at) => natives[at] = "longtext".into(),
            None => return,
        }
    }
}

/// The table, if it is there and the user may write to it.
async fn described(link: &mut Link, name: &str) -> Result<Option<Target>, Failure> {
    rights::check_writable(link).await?;
    let found = Target::describe(link, name).await?;
    match &found {
        Some(table) => rights::check(link, table).await?,
        None => rights::check_unseen(link, name).await?,
    }
    Ok(found)
}

#[async_trait]
impl TargetSchema for MySql {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        let mut link = self.kept().take(self.connector()).await?;
        let found = described(&mut link, &name.name).await;
        self.kept().put(link).await;
        Ok(rights::told(found)?.map(Target::into_table))
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        types::contract(column, existing, self.server().is_some_and(|s| s.mariadb))
    }

    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        let mariadb = self.server().is_some_and(|s| s.mariadb);
        let native = natives(table, mariadb).swap_remove(index);
        let column = &table.columns[index];
        types::contract(column, Some(&Column { native, ..column.clone() }), mariadb)
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        let server = self.server();
        let collation = server.as_ref().map_or("utf8mb4_0900_bin", |s| s.collation);
        create_statement(table, server.is_some_and(|s| s.mariadb), collation)
    }

    async fn may_create(&self, table: &TableSchema) -> Result<()> {
        let mut link = self.kept().take(self.connector()).await?;
        let may = rights::check_create(&mut link, &table.name.name).await;
        self.kept().put(link).await;
        rights::told(may)
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let Server { mariadb, collation, .. } = self.ask_server().await?;
        self.run(create_statement(table, mariadb, collation)?).await
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        let table = quote(&name.name);
        match self.run(format!("TRUNCATE TABLE {table}")).await {
            // Without the DROP right, or where TRUNCATE is not possible.
            Err(e) if e.kind() == anabranch_core::ErrorKind::Config => self.run(format!("DELETE FROM {table}")).await,
            done => done,
        }
    }

    /// Foreign keys do not act in these sessions. Triggers do.
    async fn resumes_copies(&self, name: &TableName) -> Result<bool> {
        let mut link = self.kept().take(self.connector()).await?;
        let found = described(&mut link, &name.name).await;
        self.kept().put(link).await;
        Ok(rights::told(found)?.is_some_and(|table| table.triggers.is_empty()))
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        let mut link = self.kept().take(self.connector()).await?;
        let sql = format!("SELECT 1 FROM {} LIMIT 1", quote(&name.name));
        let row: Option<u64> =
            link.conn.query_first(sql).await.map_err(|e| Failure::driver(e).into_error(Phase::Statement))?;
        self.kept().put(link).await;
        Ok(row.is_none())
    }
}
