//! What an operator asks of a pipeline, as pure state machines: no I/O and no clock. The runtime and
//! the handles of a pipeline perform their effects.

pub(crate) mod drain;
pub(crate) mod pause;
pub mod verify;
