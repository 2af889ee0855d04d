//! One opaque error. Its kind says what the runtime, or an operator, has to do.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error asks for. Policy for each kind lives in one file of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// It did not happen. The same call may succeed later: the runtime retries with a backoff.
    Transient,
    /// It may have happened. Reopen, read the stored progress, replay from there.
    Indeterminate,
    /// This row, or its transaction, can never be applied as it is.
    Rejected,
    /// Another runner owns this pipeline now. This one must stop writing for good.
    Fenced,
    /// The configuration, or the set-up of a database, is wrong. The message names the key and the fix.
    Config,
    /// Nothing that retrying could mend: a gap in the source, a lost slot, a broken invariant.
    Fatal,
}

impl ErrorKind {
    /// Its name, as in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Indeterminate => "indeterminate",
            Self::Rejected => "rejected",
            Self::Fenced => "fenced",
            Self::Config => "config",
            Self::Fatal => "fatal",
        }
    }
}

/// An error with a kind, a message, at most one cause and at most one hint for the operator.
///
/// ```
/// use anabranch_core::{Error, ErrorKind};
/// let e = Error::config("source.slot", "is empty").hint("name the replication slot");
/// assert_eq!(e.kind(), ErrorKind::Config);
/// assert_eq!(e.to_string(), "source.slot: is empty (name the replication slot)");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, cause: None }))
    }

    /// [`ErrorKind::Config`], naming the configuration key (or the database object) at fault.
    pub fn config(key: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Config, format!("{key}: {problem}"))
    }

    /// [`ErrorKind::Transient`].
    pub fn transient(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// [`ErrorKind::Indeterminate`].
    pub fn indeterminate(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Indeterminate, message)
    }

    /// [`ErrorKind::Rejected`].
    pub fn rejected(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Rejected, message)
    }

    /// [`ErrorKind::Fenced`].
    pub fn fenced(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Fenced, message)
    }

    /// [`ErrorKind::Fatal`].
    pub fn fatal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Fatal, message)
    }

    /// Keeps `cause` in the chain. Its text must not be repeated in the message.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Says what to do about it, shown in brackets after the message.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts `context` in front: the kind stays, this error becomes the cause.
    #[must_use]
    pub fn context(self, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind: self.0.kind, message: context.into(), hint: None, cause: Some(Box::new(self)) }))
    }

    /// The same error under another kind: for a caller who knows more than the callee did.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What this error asks for.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The whole chain in one line, each message once: what a log or a terminal shows.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(c) = cause {
            text.push_str(": ");
            text.push_str(&c.to_string());
            cause = c.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|c| c as _)
    }
}
