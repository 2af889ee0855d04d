//! PostgreSQL: sink, checkpointer and dead-letter store.

mod checkpointer;
mod connect;
mod dead_letters;
mod error;
mod sink;
mod store;

pub use checkpointer::PostgresCheckpointer;
pub use dead_letters::PostgresDeadLetters;
pub use sink::{PostgresSink, PostgresSinkConfig, Privilege};
