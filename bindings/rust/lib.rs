//! anabranch carries the committed changes of one database to another.
use anabranch_core::pipeline::Registry;
pub use anabranch_core::*;
/// The registry with every connector of the enabled features.
pub fn registry() -> Registry {
    Registry::new()
}
