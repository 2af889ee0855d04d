//! What an author of a connector tests it with: [`conformance`] suites for every trait.
//!
//! The suites panic with what went wrong, like the assertions of a test.

pub mod conformance;
