//! Throwaway database servers: each in a temporary folder, on a free port of 127.0.0.1, gone when
//! its value is dropped or the process dies.
//!
//! Made for tests, crash runs and demonstrations, so that nobody has to set up a server by hand:
//!
//! ```no_run
//! use anabranch_servers::{PgVersion, postgres};
//!
//! let Some(server) = postgres(PgVersion::Any) else { return Ok(()) }; // said "skipped: ..."
//! server.exec("postgres", "CREATE DATABASE shop")?;
//! println!("{}", server.url("shop"));
//! server.kill9()?; // as a crash does
//! server.start()?; // the same port, the same data
//! # Ok::<(), anabranch_servers::Error>(())
//! ```
//!
//! Where a server is looked for: see [`find`]. `tests/servers/setup.sh` fetches what is missing.

mod account;
mod dynamodb;
mod error;
pub mod find;
mod folder;
mod http;
mod mariadb;
mod port;
mod postgres;
mod process;
mod query;
mod spanner;
mod tls;

pub use dynamodb::{DynamoOptions, DynamoServer};
pub use error::{Error, Result};
pub use find::PgVersion;
pub use mariadb::{MariaOptions, MariaServer};
pub use postgres::{PgOptions, PgServer};
pub use query::Row;
pub use spanner::{SpannerDialect, SpannerOptions, SpannerServer};
pub use tls::TlsFiles;

/// A PostgreSQL with the defaults of [`PgOptions`], or `None`, with a line that says `skipped`, if
/// that version is not installed.
///
/// # Panics
/// If it is installed and does not start: a broken installation must not pass for a skipped test.
pub fn postgres(version: PgVersion) -> Option<PgServer> {
    match PgOptions::new(version).start() {
        Ok(server) => server,
        Err(e) => panic!("PostgreSQL does not start: {e}"),
    }
}

/// A MariaDB with the defaults of [`MariaOptions`], or `None`, with a line that says `skipped`, if
/// none is installed.
///
/// # Panics
/// If it is installed and does not start.
pub fn mariadb() -> Option<MariaServer> {
    match MariaOptions::new().start() {
        Ok(server) => server,
        Err(e) => panic!("MariaDB does not start: {e}"),
    }
}

/// A DynamoDB Local with the defaults of [`DynamoOptions`], or `None`, with a line that says
/// `skipped`, if it or Java is not installed.
///
/// # Panics
/// If it is installed and does not start.
pub fn dynamodb() -> Option<DynamoServer> {
    match DynamoOptions::new().start() {
        Ok(server) => server,
        Err(e) => panic!("DynamoDB Local does not start: {e}"),
    }
}

/// A Cloud Spanner emulator with the defaults of [`SpannerOptions`], or `None`, with a line that says
/// `skipped`, if it is not installed. Its databases live in memory: a kill loses them.
///
/// # Panics
/// If it is installed and does not start.
pub fn spanner() -> Option<SpannerServer> {
    match SpannerOptions::new().start() {
        Ok(server) => server,
        Err(e) => panic!("the Cloud Spanner emulator does not start: {e}"),
    }
}
