//! A shop whose accounts pay each other: the sum of all balances never changes.

use std::time::Duration;

use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::PipelineBuilder;
use anabranch_core::{Order, Pipeline, RunningPipeline, TableName, Value};
use anabranch_servers::{SpannerDialect, SpannerOptions, SpannerServer};
use anabranch_spanner::Spanner;

pub(crate) const ACCOUNTS: i64 = 20;
pub(crate) const BALANCE: i64 = 1000;

/// A database on an emulator. The change stream is named `changes`.
pub(crate) struct Shop {
    pub(crate) server: SpannerServer,
    pub(crate) database: String,
    pub(crate) dialect: SpannerDialect,
}

impl Shop {
    /// `None`, having said so, where there is no emulator.
    pub(crate) fn open(dialect: SpannerDialect, partition_seconds: u32) -> Option<Self> {
        let server = SpannerOptions::new().partition_seconds(partition_seconds).start().unwrap()?;
        let tables = match dialect {
            SpannerDialect::GoogleSql => [
                "CREATE TABLE accounts (id INT64 NOT NULL, balance INT64, note STRING(MAX)) PRIMARY KEY (id)",
                "CREATE TABLE payments (payer INT64 NOT NULL, n INT64 NOT NULL, amount NUMERIC) PRIMARY KEY (payer, n DESC)",
            ],
            SpannerDialect::PostgreSql => [
                "CREATE TABLE accounts (id bigint NOT NULL PRIMARY KEY, balance bigint, note varchar)",
                "CREATE TABLE payments (payer bigint NOT NULL, n bigint NOT NULL, amount numeric, PRIMARY KEY (payer, n))",
            ],
        };
        let database = server.create_db(dialect, &tables).unwrap();
        let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {BALANCE}, 'it''s {id}')")).collect();
        let rows = match dialect {
            SpannerDialect::GoogleSql => rows.join(", ").replace("it''s", "it\\'s"),
            SpannerDialect::PostgreSql => rows.join(", "),
        };
        server.exec(&database, &format!("INSERT INTO accounts (id, balance, note) VALUES {rows}")).unwrap();
        Some(Self { server, database, dialect })
    }

    pub(crate) fn source(&self) -> Spanner {
        Spanner::new(&self.database)
            .change_stream("changes")
            .endpoint(format!("http://{}", self.server.host()))
            .admin_endpoint(format!("http://{}", self.server.rest_host()))
    }

    pub(crate) fn pipeline(&self, sink: &MemorySink, order: impl Into<Order>) -> PipelineBuilder {
        Pipeline::builder("test").source(self.source()).sink(sink.clone()).order(order).create_tables(true)
    }

    /// One account pays another, in DML: two rows change and one comes to be.
    pub(crate) fn pay(&self, n: i64) {
        let (payer, payee) = (n % ACCOUNTS, (n * 7 + 3) % ACCOUNTS);
        let payee = if payer == payee { (payee + 1) % ACCOUNTS } else { payee };
        let statements = [
            format!("UPDATE accounts SET balance = balance - 1, note = 'paid {n}' WHERE id = {payer}"),
            format!("UPDATE accounts SET balance = balance + 1 WHERE id = {payee}"),
            format!("INSERT INTO payments (payer, n, amount) VALUES ({payer}, {n}, 0.25)"),
        ];
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        self.server.transaction(&self.database, &statements).unwrap();
    }

    /// An account's payments are forgotten.
    pub(crate) fn forget(&self, n: i64) {
        let payer = n % ACCOUNTS;
        self.server.exec(&self.database, &format!("DELETE FROM payments WHERE payer = {payer}")).unwrap();
    }

    pub(crate) fn table(&self, name: &str) -> TableName {
        TableName::new(if self.dialect == SpannerDialect::PostgreSql { "public" } else { "" }, name)
    }

    /// The target has the rows that the database has.
    pub(crate) fn assert_equal(&self, sink: &MemorySink) {
        let columns = [("accounts", "id, balance, note", "id"), ("payments", "payer, n, amount", "payer, n")];
        for (table, columns, key) in columns {
            let sql = format!("SELECT {columns} FROM {table} ORDER BY {key}");
            let expected = self.server.exec(&self.database, &sql).unwrap();
            let mut found: Vec<Vec<Option<String>>> =
                sink.rows(&self.table(table)).iter().map(|row| row.iter().map(text).collect()).collect();
            let number = |v: &Option<String>| v.as_deref().and_then(|v| v.parse::<i64>().ok());
            found.sort_by_key(|row| (number(&row[0]), number(&row[1]).filter(|_| table == "payments")));
            let expected: Vec<Vec<Option<String>>> = expected.into_iter().collect();
            assert_eq!(found, expected, "{table} (left: target)");
        }
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Int(v) => Some(v.to_string()),
        Value::Text(v) => Some(v.clone()),
        other => Some(format!("{other:?}")),
    }
}

pub(crate) async fn start(builder: PipelineBuilder) -> RunningPipeline {
    builder.build().unwrap().start().await.unwrap()
}

pub(crate) async fn drained(running: &mut RunningPipeline) {
    let drained = running.drain(Some(Duration::from_secs(180))).await.unwrap();
    assert!(drained.drained, "{drained:?} {:?}", running.status());
}
