//! PostgreSQL as a source and as a sink.
//!
//! ```text
//! source.rs    Postgres: the publication and slot to read      config.rs  its keys
//! setup/       checks at every start, and what they create
//! reader/      the stream: messages to batches, safe time, schema changes
//! snapshot/    copies of tables under one exported snapshot
//! decode/      bytes to messages, without a socket
//! wire/        the replication connection
//! ```

mod catalog;
mod config;
mod connect;
mod decode;
mod error;
mod lsn;
mod reader;
mod session;
mod setup;
mod snapshot;
mod source;
mod sql;
mod tls;
mod types;
mod wire;

pub use config::{OriginFilter, PostgresSourceConfig, SchemaChange};
pub use connect::Endpoint;
pub use lsn::Lsn;
pub use source::Postgres;
