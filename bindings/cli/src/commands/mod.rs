//! One file for each command.

pub(crate) mod check;
pub(crate) mod dead_letters;
pub(crate) mod drain;
pub(crate) mod pause;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod verify;
