//! Spanner source, sink and checkpointer for anabranch.
//!
//! [`client`] is the small trait through which everything here talks to a database, and its
//! implementation over the official client.

pub mod client;
mod decode;
mod types;

pub use decode::Capture;
