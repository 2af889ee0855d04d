//! The source on an in-process server that speaks the real protocol and follows a script: what the
//! emulator cannot do.

mod cases;
mod random;
mod support;
