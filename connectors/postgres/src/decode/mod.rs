//! From bytes to messages, without a socket: the frames of the replication protocol, pgoutput's
//! messages (protocol versions 1 and 2) and COPY's text rows.
//!
//! Bytes in, borrowed messages out. Malformed input is an error, never a panic. Layouts: PostgreSQL's
//! manual, "Logical Replication Message Formats" and "Streaming Replication Protocol".

pub(crate) mod copy_text;
mod cursor;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod tuple;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It ends before its fields do.
    #[error("the message is cut short")]
    Short,
    /// It goes on after its fields.
    #[error("{0} bytes too many in the message")]
    Long(usize),
    /// A name that is not UTF-8.
    #[error("a name is not UTF-8")]
    NotUtf8,
    /// A tag that protocol versions 1 and 2 do not have.
    #[error("unknown {what} {tag:?}")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The tag.
        tag: char,
    },
    /// A length or number below zero.
    #[error("a length is negative")]
    Negative,
    /// A backslash at the end of a COPY row, or an escape that COPY does not write.
    #[error("an escape in a COPY row is broken")]
    Escape,
}
