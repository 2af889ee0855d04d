//! Spanner source, sink and checkpointer for anabranch.
//!
//! [`Spanner`] reads a change stream. [`client`] is the small trait through which everything here talks
//! to a database, and its implementation over the official client.

mod checkpointer;
pub mod client;
mod config;
mod dead_letters;
mod decode;
mod pieces;
mod sink;
mod snapshot;
mod source;
mod types;
mod verifier;

pub use checkpointer::SpannerCheckpointer;
pub use config::SpannerSourceConfig;
pub use dead_letters::SpannerDeadLetters;
pub use decode::Capture;
pub use sink::{SpannerSink, SpannerSinkConfig};
pub use source::{Dialect, Spanner, transaction as transaction_id};
