//! Pure decoding and encoding: no sockets, and malformed input is an error, never a panic.

pub(crate) mod array;
pub(crate) mod attribute;
pub(crate) mod document;
pub(crate) mod number;
pub(crate) mod read;
pub(crate) mod wire;
