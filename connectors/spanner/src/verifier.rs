//! Reads rows, of a source and of a target, for a comparison.
//!
//! A table is read by one query, as of one time. Rows by their keys are read by several, as of the same
//! time: Spanner takes at most 950 parameters in a query ("Quotas and limits").

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Error, Op, PartitionId, Position, Rank, Result, RowReader, TableSchema, Transaction,
    Value, Verifier,
};
use async_trait::async_trait;

use crate::client::{Client, Instant, Kind, ReadAt, Row, Rows, SpannerValue, Statement};
use crate::sink::{self, Codec, Native, SpannerSink, describe_table, route};
use crate::source::{Dialect, Spanner};
use crate::types;

/// Bytes of rows in a batch, about.
const BATCH: usize = 256 << 10;

/// Parameters of a query, at most: below Spanner's 950.
const PARAMETERS: usize = 900;

/// The rank of the rows: a reader of rows is no partition of the stream.
const RANK: [u8; 8] = [0; 8];

#[async_trait]
impl Verifier for Spanner {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let prepared = self.prepared()?;
        let known = prepared.tables.get(&table.name);
        let known =
            known.ok_or_else(|| Error::config("source.tables", format!("the table {} is not watched", table.name)))?;
        let mut columns = Vec::new();
        for column in &table.columns {
            let at = known.schema.index_of(&column.name).ok_or_else(|| missing(table, &column.name))?;
            let native = Native { kind: known.kinds[at].clone(), limit: None };
            columns.push(Form::new(prepared.dialect, &known.schema.columns[at], native));
        }
        let from = prepared.dialect.table(&table.name);
        let select = Select { dialect: prepared.dialect, from, columns, table: Arc::new(table.clone()) };
        select.open(&prepared.client, keys).await
    }
}

#[async_trait]
impl Verifier for SpannerSink {
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let name = &table.name.name;
        let found = describe_table(&self.shared, name).await?;
        let found = found.ok_or_else(|| Error::config(format!("target table {name}"), "does not exist"))?;
        let dialect = match self.shared.dialect().await? {
            sink::Dialect::Google => Dialect::GoogleSql,
            sink::Dialect::Postgres => Dialect::PostgreSql,
        };
        let mut columns = Vec::new();
        for column in &table.columns {
            let there = found.column(&column.name).ok_or_else(|| missing(table, &column.name))?;
            let native = Native::parse(&there.native).ok_or_else(|| {
                Error::config(format!("column {} of target table {name}", column.name), "has a type that is not read")
            })?;
            columns.push(Form::new(dialect, column, native));
        }
        let select = Select { dialect, from: dialect.quoted(&found.name), columns, table: Arc::new(table.clone()) };
        select.open(self.shared.client().await?, keys).await
    }
}

fn missing(table: &TableSchema, column: &str) -> Error {
    Error::config(format!("column {column} of table {}", table.name), "does not exist")
}

/// How a column is read, and how a value of it becomes a parameter.
struct Form {
    quoted: String,
    kind: Kind,
    /// `None`: no value of it can be asked for.
    codec: Option<Codec>,
}

impl Form {
    /// `column` is as the source has it.
    fn new(dialect: Dialect, column: &anabranch_core::Column, native: Native) -> Self {
        let codec = route(column, &native).map(|(_, codec, _)| codec);
        Self { quoted: dialect.quoted(&column.name), kind: native.kind, codec }
    }
}

/// What is to be read.
struct Select {
    dialect: Dialect,
    from: String,
    columns: Vec<Form>,
    table: Arc<TableSchema>,
}

impl Select {
    async fn open(self, client: &Arc<dyn Client>, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>> {
        let what = format!("cannot read {}", self.table.name);
        // It fixes the time that all queries read as of, and says which it is.
        let at = client.batch_read(ReadAt::Strong).await.map_err(|e| e.into_core(what.clone()))?.at();
        let statements = match keys {
            None => VecDeque::from([Statement::new(self.text())]),
            Some(keys) => {
                let each = (PARAMETERS / self.table.key.len().max(1)).max(1);
                keys.chunks(each).filter_map(|some| self.by_keys(some)).collect()
            }
        };
        let kinds = self.columns.into_iter().map(|c| c.kind).collect();
        let client = Arc::clone(client);
        Ok(Box::new(Reader { client, at, statements, rows: None, kinds, table: self.table, what }))
    }

    fn text(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|c| c.quoted.as_str()).collect();
        format!("SELECT {} FROM {}", columns.join(", "), self.from)
    }

    /// The rows with one of these keys; `None` if no row can have one.
    fn by_keys(&self, keys: &[Vec<Value>]) -> Option<Statement> {
        let mut conditions = Vec::new();
        let mut params: Vec<(Kind, SpannerValue)> = Vec::new();
        'keys: for key in keys {
            let (mut one, known) = (Vec::new(), params.len());
            for (&at, value) in self.table.key.iter().zip(key) {
                let form = &self.columns[usize::from(at)];
                let column = &self.table.columns[usize::from(at)].name;
                let Some(Ok(value)) = form.codec.as_ref().map(|codec| codec.encode(column, value.as_ref())) else {
                    // No row here can have it.
                    params.truncate(known);
                    continue 'keys;
                };
                if value.is_null() {
                    one.push(format!("{} IS NULL", form.quoted));
                } else {
                    params.push((form.kind.clone(), value));
                    one.push(format!("{} = {}", form.quoted, self.dialect.param(params.len())));
                }
            }
            conditions.push(format!("({})", one.join(" AND ")));
        }
        if conditions.is_empty() {
            return None;
        }
        let statement = Statement::new(format!("{} WHERE {}", self.text(), conditions.join(" OR ")));
        let bind = |s: Statement, (n, (kind, value))| s.bind(format!("p{}", n + 1), kind, value);
        Some(params.into_iter().enumerate().fold(statement, bind))
    }
}

/// Reads one query after another.
struct Reader {
    client: Arc<dyn Client>,
    at: Instant,
    statements: VecDeque<Statement>,
    rows: Option<Box<dyn Rows>>,
    kinds: Vec<Kind>,
    table: Arc<TableSchema>,
    what: String,
}

impl Reader {
    fn push(&self, row: &Row, batch: &mut BatchBuilder) -> Result<()> {
        let broken = |problem: String| Error::fatal(format!("{}: {problem}", self.what));
        if row.len() != self.kinds.len() {
            return Err(broken(format!("a row of {} columns, not {}", row.len(), self.kinds.len())));
        }
        batch.change(Op::Insert, 0);
        batch.new_row();
        for (n, (kind, value)) in self.kinds.iter().zip(row).enumerate() {
            let named = |e| broken(format!("the column {}: {e}", self.table.columns[n].name));
            types::push(batch, kind, value).map_err(named)?;
        }
        Ok(())
    }
}

#[async_trait]
impl RowReader for Reader {
    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        let mut batch = BatchBuilder::new(PartitionId::new("rows"));
        batch.schema(&self.table);
        batch.begin(Transaction { rank: RANK.to_vec().into(), ..Transaction::default() }, 1);
        while batch.size() < BATCH {
            let rows = match &mut self.rows {
                Some(rows) => rows,
                None => {
                    let Some(statement) = self.statements.pop_front() else { break };
                    let rows = self.client.query(statement, ReadAt::Exactly(self.at)).await;
                    self.rows.insert(rows.map_err(|e| e.into_core(self.what.clone()))?)
                }
            };
            match rows.next().await.map_err(|e| e.into_core(self.what.clone()))? {
                Some(row) => self.push(&row, &mut batch)?,
                None => self.rows = None,
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        batch.finish(Position::new(Rank::of_end(&RANK), ""), None).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::{Column, DataType, TableName};

    use super::*;

    #[test]
    fn rows_are_asked_for_by_the_keys_that_can_be_there() {
        let number = Column::new("id", DataType::Int64);
        let name = Column::new("name", DataType::Text { max_chars: None });
        let native = |kind| Native { kind, limit: None };
        let dialect = Dialect::GoogleSql;
        let columns =
            vec![Form::new(dialect, &number, native(Kind::Int64)), Form::new(dialect, &name, native(Kind::String))];
        let table = TableSchema { name: TableName::new("", "t"), columns: vec![number, name], key: vec![1, 0] };
        let select = Select { dialect, from: "`t`".to_owned(), columns, table: Arc::new(table) };
        let key = |name: &str, id: Value| vec![Value::Text(name.to_owned()), id];
        let keys = [key("a", Value::Int(7)), key("b", Value::Text("no number".to_owned())), key("", Value::Null)];
        let statement = select.by_keys(&keys).unwrap();
        assert_eq!(
            statement.sql,
            "SELECT `id`, `name` FROM `t` WHERE (`name` = @p1 AND `id` = @p2) OR (`name` = @p3 AND `id` IS NULL)"
        );
        let values: Vec<SpannerValue> = statement.params.into_iter().map(|p| p.value).collect();
        assert_eq!(values, ["a".into(), "7".into(), "".into()]);
        assert!(select.by_keys(&keys[1..2]).is_none());
    }
}
