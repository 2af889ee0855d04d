//! What an operator asks of a pipeline, as pure state machines: no I/O and no clock. The runtime
//! performs their effects.

pub mod verify;
