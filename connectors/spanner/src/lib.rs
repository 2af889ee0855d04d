//! Spanner source, sink and checkpointer for anabranch.
//!
//! [`Spanner`] reads a change stream. [`client`] is the small trait through which everything here talks
//! to a database, and its implementation over the official client.

pub mod client;
mod config;
mod decode;
mod snapshot;
mod source;
mod types;

pub use config::SpannerSourceConfig;
pub use decode::Capture;
pub use source::{Dialect, Spanner, transaction as transaction_id};
