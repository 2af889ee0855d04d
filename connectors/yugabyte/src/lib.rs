//! YugabyteDB as a source and a sink, and the state of its own replication, xCluster. A thin layer over
//! `anabranch-postgres`: YSQL is PostgreSQL's protocol, and what differs is here.
//!
//! ```text
//! source.rs    Yugabyte: the publication and slot to read    config.rs  its keys
//! setup.rs     checks at every start, and what they create   version.rs slot.rs publication.rs
//! marker.rs    the table that stands in for logical messages
//! snapshot.rs  copies of tables at one hybrid time            verify.rs  their rows
//! sink.rs      YugabyteSink: PostgresSink without what YSQL lacks
//! xcluster/    what yb-admin says about replication between two universes
//! ```
//!
//! # How positions work here
//! A slot's LSNs are a counter of its own (`SEQUENCE`) or commit times (`HYBRID_TIME`). Neither can be
//! asked for like a PostgreSQL server's log position, but every transaction carries its commit time, and
//! the stream gives transactions in the order of these. So a position is ranked by commit time and then
//! by LSN, and resumed by LSN: a mark, and the point of a copy, are times.

mod config;
mod marker;
mod publication;
mod setup;
mod sink;
mod slot;
mod snapshot;
mod source;
mod verify;
mod version;
pub mod xcluster;

pub use config::{LsnType, Plugin, YugabyteSinkConfig, YugabyteSourceConfig};
pub use sink::YugabyteSink;
pub use source::Yugabyte;
