//! anabranch carries the committed changes of one database to another.
pub use anabranch_core::*;

mod registry;
#[cfg(feature = "mysql")]
pub use anabranch_mysql::MySql;
#[cfg(feature = "postgres")]
pub use anabranch_postgres::{Postgres, PostgresSink};
#[cfg(feature = "sqlite")]
pub use anabranch_sqlite::Sqlite;
pub use async_trait::async_trait;
pub use registry::registry;
