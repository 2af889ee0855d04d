//! Pipelines between real databases: one test binary, started by `make test`.
//!
//! Each test starts its own servers in temporary folders. A test whose servers, or whose `anabranch`
//! command, cannot be had prints `skipped: <reason>`.

mod pipelines;
