//! An emulator that all tests share, and databases on it.

use std::sync::{Arc, OnceLock};

use anabranch_core::{DataType, Sink, TableSchema, TargetSchema};
use anabranch_servers::{SpannerDialect, SpannerServer, spanner};
use anabranch_spanner::SpannerSink;
use anabranch_testkit::conformance::sink::SinkUnderTest;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(crate) const DIALECTS: [SpannerDialect; 2] = [SpannerDialect::GoogleSql, SpannerDialect::PostgreSql];

/// The emulator runs one read-write transaction at a time *a database*, so tests share it.
pub(crate) fn emulator() -> Option<&'static SpannerServer> {
    static SERVER: OnceLock<Option<SpannerServer>> = OnceLock::new();
    SERVER.get_or_init(spanner).as_ref()
}

/// A database of its own for a test.
pub(crate) struct Target {
    pub(crate) server: &'static SpannerServer,
    pub(crate) dialect: SpannerDialect,
    pub(crate) database: String,
}

impl Target {
    pub(crate) fn new(dialect: SpannerDialect, ddl: &[&str]) -> Option<Self> {
        let server = emulator()?;
        let database = server.create_db(dialect, ddl).unwrap();
        Some(Self { server, dialect, database })
    }

    pub(crate) fn sink(&self) -> SpannerSink {
        SpannerSink::new(&*self.database).endpoint(format!("http://{}", self.server.host()))
    }

    pub(crate) fn quoted(&self, name: &str) -> String {
        match self.dialect {
            SpannerDialect::GoogleSql => format!("`{name}`"),
            SpannerDialect::PostgreSql => format!("\"{name}\""),
        }
    }

    /// The rows of a query, as the emulator's REST gives them.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.server.exec(&self.database, sql).unwrap()
    }
}

/// As the canonical text of the type.
pub(crate) fn canonical(data_type: &DataType, value: &str) -> String {
    match data_type {
        DataType::Bool => if value == "true" { "t" } else { "f" }.to_owned(),
        DataType::Bytes => {
            let bytes = STANDARD.decode(value).unwrap();
            bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
        }
        // NUMERIC has no zeros at the end.
        DataType::Decimal { scale: Some(scale), .. } => {
            let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
            format!("{whole}.{fraction:0<0$}", *scale as usize)
        }
        DataType::Float64 => value.parse::<f64>().map_or_else(|_| value.to_owned(), |v| v.to_string()),
        _ => value.to_owned(),
    }
}

#[async_trait]
impl SinkUnderTest for Target {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(self.sink())
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        let sink = self.sink();
        sink.describe(&table.name).await.unwrap();
        sink.create(table).await.unwrap();
        for column in unique {
            let index = format!("{}_{column}", table.name.name);
            let create = format!(
                "CREATE UNIQUE INDEX {} ON {} ({})",
                self.quoted(&index),
                self.quoted(&table.name.name),
                self.quoted(column)
            );
            self.server.ddl(&self.database, &[&create]).unwrap();
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let columns: Vec<String> = table.columns.iter().map(|c| self.quoted(&c.name)).collect();
        let rows = self.rows(&format!("SELECT {} FROM {}", columns.join(", "), self.quoted(&table.name.name)));
        let row = |row: Vec<Option<String>>| {
            let cells = row.into_iter().zip(&table.columns);
            cells.map(|(value, c)| value.map(|v| canonical(&c.data_type, &v))).collect()
        };
        rows.into_iter().map(row).collect()
    }
}
