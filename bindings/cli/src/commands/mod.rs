//! One file for each command.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod dead_letters;
pub(crate) mod drain;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod pause;
pub(crate) mod reprocess;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod strip;
pub(crate) mod verify;
