//! DynamoDB for anabranch: a source, a sink, leases and a checkpointer.
//!
//! - [`Access`]: regions, profiles, credentials and endpoints, for each side by itself.
//! - [`types`]: attributes as columns, and columns as attributes.
//! - [`bookkeeping`]: the attributes that this library may add to items.

pub mod bookkeeping;
mod calls;
mod checkpointer;
mod client;
mod dead_letters;
mod decode;
mod error;
mod limiter;
mod sink;
mod store;
pub mod types;

pub use checkpointer::DynamoDbCheckpointer;
pub use client::{Access, ServerClock};
pub use dead_letters::DynamoDbDeadLetters;
pub use sink::{DynamoDbSink, DynamoDbSinkConfig, Mode, Nulls, Oversized, Stripped, Versions};
