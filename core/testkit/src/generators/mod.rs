//! Random but repeatable input for tests.

mod dice;
mod history;

pub use dice::Dice;
pub use history::{Change, History, KEYLESS, Log, Shape};
