//! What tests of anabranch and of connectors share.

pub mod history;
