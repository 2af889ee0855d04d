//! The connector against a real MariaDB. Skipped, with a line that says so, where there is none.

mod altered;
mod apply;
mod conformance;
mod crash;
mod limits;
mod server;
mod speed;
mod tables;
mod transactions;
mod values;
mod versions;
