//! What an author of a connector tests it with: [`conformance`] suites for every trait,
//! random histories from a [`generator`], [`units`] made by hand, and the [`history`] checker of
//! whole pipelines.
//!
//! The suites panic with what went wrong, like the assertions of a test.

pub mod conformance;
pub mod generator;
pub mod history;
pub mod units;
