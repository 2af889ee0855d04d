//! The tables of the target, for preflight and to create missing ones.

use anabranch_core::{Column, Contract, Error, Result, TableName, TableSchema, TargetSchema, TargetTable};
use async_trait::async_trait;

use super::SpannerSink;
use super::contract;
use super::describe::{self, Described};
use super::dialect::Dialect;
use super::native::Native;
use crate::client::Statement;

/// The key of a table whose source has none. Spanner gives each row a value.
pub(crate) const ROW_ID: &str = "anabranch_row_id STRING(36) NOT NULL DEFAULT (GENERATE_UUID())";
const ROW_ID_PG: &str = "anabranch_row_id varchar(36) NOT NULL DEFAULT spanner.generate_uuid()";
pub(crate) const ROW_ID_NAME: &str = "anabranch_row_id";

#[async_trait]
impl TargetSchema for SpannerSink {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        // Which dialect a contract is about is known from here on.
        self.shared.dialect().await?;
        Ok(describe::table(&self.shared, &name.name).await?.map(described))
    }

    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        let dialect = self.shared.known_dialect();
        match existing {
            Some(existing) => contract::contract(column, &existing.native),
            None => contract::contract(column, &contract::created(column, false, dialect)),
        }
    }

    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        let column = &table.columns[index];
        contract::contract(column, &contract::created(column, table.is_key(index), self.shared.known_dialect()))
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        create_statement(self.shared.known_dialect(), table)
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let statement = create_statement(self.shared.dialect().await?, table)?;
        let doing = format!("cannot create the table {}", table.name.name);
        self.shared.client().await?.apply_ddl(vec![statement]).await.map_err(|e| e.into_core(doing))
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        let table = self.shared.dialect().await?.quoted(&name.name);
        let delete = Statement::new(format!("DELETE FROM {table} WHERE true"));
        let done = self.shared.client().await?.partitioned_update(delete).await;
        done.map(drop).map_err(|e| e.into_core(format!("cannot empty {}", name.name)))
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        let table = self.shared.dialect().await?.quoted(&name.name);
        let select = Statement::new(format!("SELECT 1 FROM {table} LIMIT 1"));
        Ok(self.shared.query(select, &format!("cannot read {}", name.name)).await?.is_empty())
    }
}

fn described(table: Described) -> TargetTable {
    let place = |name: &String| table.columns.iter().position(|c| c.name == *name).map(|at| at as u16);
    let key = table.key.iter().filter_map(place).collect();
    let warnings = warnings(&table);
    let required = table.columns.iter().filter(|c| !c.nullable && !c.generated && !c.has_default);
    TargetTable {
        unique: table.unique.clone(),
        references: table.references.iter().map(|t| TableName::new("", t)).collect(),
        required: required.map(|c| c.name.clone()).collect(),
        warnings,
        schema: TableSchema {
            columns: table
                .columns
                .iter()
                .map(|c| Column {
                    name: c.name.clone(),
                    data_type: Native::parse(&c.native)
                        .map_or_else(|| anabranch_core::DataType::Other(c.native.clone()), |n| n.data_type()),
                    native: c.native.clone(),
                    nullable: c.nullable,
                    generated: c.generated,
                })
                .collect(),
            key,
            name: TableName::new("", table.name),
        },
    }
}

fn warnings(table: &Described) -> Vec<String> {
    let mut warnings = Vec::new();
    if let (Some(parent), true) = (&table.parent, table.cascades) {
        warnings.push(format!("its rows go when their parents in {parent} are deleted"));
    }
    for column in table.columns.iter().filter(|c| c.commit_timestamp) {
        warnings.push(format!(
            "{} takes times of the past only; sink.commit_timestamps = [\"{}.{}\"] fills in those of the target's commits",
            column.name, table.name, column.name
        ));
    }
    warnings
}

fn create_statement(dialect: Dialect, table: &TableSchema) -> Result<String> {
    let name = &table.name.name;
    check_name(name, name)?;
    if table.columns.iter().any(|c| c.name == ROW_ID_NAME) {
        let problem = "the sink keeps this name for itself";
        return Err(Error::config(format!("{name}.{ROW_ID_NAME}"), problem).hint("rename the column with a transform"));
    }
    let mut lines = Vec::with_capacity(table.columns.len() + 1);
    for (at, column) in table.columns.iter().enumerate() {
        check_name(&format!("{name}.{}", column.name), &column.name)?;
        let key = table.is_key(at);
        let not_null = if key || !column.nullable { " NOT NULL" } else { "" };
        lines.push(format!("{} {}{not_null}", dialect.quoted(&column.name), contract::created(column, key, dialect)));
    }
    let mut key: Vec<String> = table.key_columns().map(|c| dialect.quoted(&c.name)).collect();
    if key.is_empty() {
        lines.push(if dialect == Dialect::Google { ROW_ID } else { ROW_ID_PG }.to_owned());
        key.push(dialect.quoted(ROW_ID_NAME));
    }
    let (name, key) = (dialect.quoted(name), key.join(", "));
    Ok(match dialect {
        Dialect::Google => format!("CREATE TABLE {name} (\n    {}\n) PRIMARY KEY ({key})", lines.join(",\n    ")),
        Dialect::Postgres => {
            format!("CREATE TABLE {name} (\n    {},\n    PRIMARY KEY ({key})\n)", lines.join(",\n    "))
        }
    })
}

/// Spanner's rule: a letter, then letters, digits and underscores, 128 of them at most.
fn check_name(key: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins && name.chars().all(plain) && name.len() <= 128 {
        return Ok(());
    }
    Err(Error::config(key, "Spanner's names have letters, digits and underscores, up to 128")
        .hint("give it another name with a transform, or create the table by hand"))
}
