//! What an author of a connector tests it with: [`conformance`] suites for every trait, wrappers
//! that make [`faults`], random histories from [`generator`] (of a database) and [`generators`] (of
//! batches), [`units`] made by hand, a [`scripted`] source of several partitions, and the [`history`]
//! checker for runs that are killed.
//!
//! The suites panic with what went wrong, like the assertions of a test.

pub mod conformance;
pub mod faults;
pub mod generator;
pub mod generators;
pub mod history;
pub mod scripted;
pub mod shards;
pub mod units;
