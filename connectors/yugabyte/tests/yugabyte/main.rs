//! On a PostgreSQL that behaves as a YugabyteDB does (`fake/`), and on a real one where
//! `ANABRANCH_YUGABYTE_URL` names it: see README.md.

mod real;
mod refusals;
mod sink;
mod source;
mod stream;
mod support;
mod xcluster;
