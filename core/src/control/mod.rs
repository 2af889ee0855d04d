//! What operators ask of a pipeline, as pure state machines: no clock, no I/O. The runtime and the
//! handles of a pipeline perform their effects.

pub(crate) mod drain;
pub(crate) mod pause;
