//! The target of a run: what a reader of it sees, in one snapshot.

mod dynamodb;
mod mariadb;
mod postgres;
#[cfg(feature = "spanner")]
mod spanner;
mod sqlite;

use anabranch_testkit::history::{Observation, Row, TABLES, canonical};
use async_trait::async_trait;

use super::Tested;

pub(super) use dynamodb::DynamoTarget;
pub(super) use mariadb::MariaTarget;
pub(super) use postgres::PgTarget;
#[cfg(feature = "spanner")]
pub(super) use spanner::SpannerTarget;
pub(super) use sqlite::SqliteTarget;

/// A target database under test.
#[async_trait]
pub(super) trait Target: Send + Sync {
    /// The `[sink]` section of the configuration, without its head.
    fn sink(&self) -> String;

    /// The types whose rarest values it refuses, as `mapping.lossy` names them. The workload has
    /// none of these values.
    fn lossy(&self) -> &'static [&'static str] {
        &[]
    }

    /// Further sections of the configuration: transforms that the target needs.
    fn transforms(&self) -> &'static str {
        ""
    }

    /// Tables that it cannot have.
    fn without(&self) -> &'static [&'static str] {
        &[]
    }

    /// An emulator, which applies some hundreds of changes a second and needs seconds to create a table:
    /// it is written to slowly, and nothing is killed before the first copy is done.
    fn is_slow(&self) -> bool {
        false
    }

    /// All rows in one snapshot. `None`: a table is not there yet, or the server is not.
    async fn observe(&self) -> Option<Observation>;

    /// What the pipeline has stored about its progress, for the message of a failed run.
    fn stored(&self) -> String {
        String::new()
    }

    /// Kills its server with SIGKILL and starts it again. False: it has no server.
    async fn crash(&self) -> Tested<bool>;

    /// Cuts the pipeline's connections. False: it has none.
    async fn cut(&self) -> Tested<bool>;
}

/// A row whose values came from any database.
pub(super) fn canonical_row(table: usize, row: Row) -> Row {
    let kinds = TABLES[table].columns.iter().map(|(_, kind)| *kind);
    kinds.zip(row).map(|(kind, value)| value.map(|text| canonical(kind, &text))).collect()
}

/// Quotes a name with `quote`, doubling it inside.
fn quoted(name: &str, quote: char) -> String {
    format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")))
}

/// `SELECT columns FROM table`, with `column` writing each one.
fn select(table: usize, quote: char, column: impl Fn(usize, &str) -> String) -> String {
    let columns = TABLES[table].columns.iter().enumerate();
    let columns: Vec<String> = columns.map(|(i, (name, _))| column(i, &quoted(name, quote))).collect();
    format!("SELECT {} FROM {}", columns.join(", "), quoted(TABLES[table].name, quote))
}
