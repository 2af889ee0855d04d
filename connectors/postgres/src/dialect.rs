//! What a database that speaks PostgreSQL's SQL may lack.

/// In what a server differs from PostgreSQL, as far as the sink is concerned.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// The name of the connector.
    pub name: &'static str,
    /// Whether sessions can take advisory locks.
    pub advisory_locks: bool,
    /// Whether a table can be locked against DDL while it is written to.
    pub table_locks: bool,
    /// Whether `TRUNCATE` is undone with its transaction.
    pub transactional_truncate: bool,
    /// The system column that tells where a row is.
    pub row_place: &'static str,
    /// What a table of the pipeline is created with.
    pub storage: &'static str,
    /// Most rows of one statement.
    pub statement_rows: usize,
    /// Most bytes of parameters of one statement.
    pub statement_bytes: usize,
}

impl Dialect {
    /// PostgreSQL itself.
    pub(crate) const POSTGRES: Self = Self {
        name: "postgres",
        advisory_locks: true,
        table_locks: true,
        transactional_truncate: true,
        row_place: "ctid",
        // Every commit updates a row or two there: room in the page keeps the updates in place.
        storage: " WITH (fillfactor = 50)",
        // Beyond some thousands nothing is gained, and the server holds them all.
        statement_rows: 5_000,
        statement_bytes: 4 << 20,
    };
}
