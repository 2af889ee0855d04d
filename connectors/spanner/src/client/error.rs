//! What a database answers when it refuses, by the protocol's codes.

use anabranch_core::{Error, ErrorKind};

/// A status code of gRPC, of those that Spanner uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the protocol's")]
pub enum Code {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl Code {
    /// By its number in the protocol; anything else is [`Code::Unknown`].
    pub fn from_number(number: i32) -> Self {
        match number {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Unknown
                | Self::DeadlineExceeded
                | Self::ResourceExhausted
                | Self::Aborted
                | Self::Internal
                | Self::Unavailable
        )
    }

    /// Whether it tells of rights or of a wrong name, which an operator mends.
    pub fn is_set_up(self) -> bool {
        matches!(self, Self::NotFound | Self::PermissionDenied | Self::Unauthenticated)
    }
}

/// A refusal, or a connection that broke.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SpannerError {
    /// The code; a broken connection is [`Code::Unavailable`].
    pub code: Code,
    /// What the server, or the client, says.
    pub message: String,
    /// A write was sent and its outcome is not known.
    pub may_have_happened: bool,
    /// Of several statements, how many were done before the one that this error is about.
    pub statements_done: Option<usize>,
}

impl SpannerError {
    /// An error of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), may_have_happened: false, statements_done: None }
    }

    /// For reads, and for writes whose refusal concerns no single row: transient codes are to be
    /// tried again, wrong rights and names are the configuration's, everything else is final.
    pub fn into_core(self, doing: impl Into<String>) -> Error {
        let kind = match self.code {
            _ if self.may_have_happened => ErrorKind::Indeterminate,
            code if code.is_transient() => ErrorKind::Transient,
            code if code.is_set_up() => ErrorKind::Config,
            _ => ErrorKind::Fatal,
        };
        let error = Error::new(kind, doing.into());
        match self.code {
            Code::PermissionDenied => error.hint("grant the account the rights that the README of the connector names"),
            Code::Unauthenticated => {
                error.hint("give application default credentials, or GOOGLE_APPLICATION_CREDENTIALS")
            }
            _ => error,
        }
        .because(self)
    }
}
