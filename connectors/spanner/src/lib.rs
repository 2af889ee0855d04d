//! Spanner source, sink and checkpointer for anabranch.
//!
//! [`client`] is the small trait through which everything here talks to a database, and its
//! implementation over the official client.

mod checkpointer;
pub mod client;
mod dead_letters;
mod sink;

pub use checkpointer::SpannerCheckpointer;
pub use dead_letters::SpannerDeadLetters;
pub use sink::{SpannerSink, SpannerSinkConfig};
