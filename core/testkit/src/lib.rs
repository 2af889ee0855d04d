//! What an author of a connector tests it with: [`conformance`] suites for every trait,
//! random histories from a [`generator`], and [`units`] made by hand, [`faults`] to inject.
//!
//! The suites panic with what went wrong, like the assertions of a test.

pub mod conformance;
pub mod faults;
pub mod generator;
pub mod units;
