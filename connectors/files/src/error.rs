//! Errors of object storage, by what they ask for.

use std::error::Error as StdError;
use std::io;

use anabranch_core::{Error, ErrorKind};
use object_store::Error as StoreError;

/// Turns an error of the store into one that says what to do. `doing` completes "cannot ..."; `key` is
/// the configuration key that names the place.
pub(crate) fn classify(key: &str, doing: &str, cause: StoreError) -> Error {
    let message = format!("cannot {doing}");
    let config = |problem: String, hint: &'static str| Error::config(key, problem).hint(hint);
    match cause {
        StoreError::NotFound { .. } if is_bucket(&cause) => {
            config(message, "the bucket does not exist: create it, or name another").because(cause)
        }
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            let hint = "grant reading, writing, listing and deleting there, or set other credentials";
            config(message, hint).because(cause)
        }
        StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. } => {
            config(message, "correct the path").because(cause)
        }
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
            config(message, "the store must have conditional writes (If-None-Match, If-Match)").because(cause)
        }
        cause if is_refused(&cause) => {
            config(message, "make the folder readable and writable for this user").because(cause)
        }
        // A full disk, a network that went away, a server that is busy: it may come back.
        cause => Error::transient(message).because(cause),
    }
}

/// As [`classify`], for a call of the local file system.
pub(crate) fn classify_io(key: &str, doing: &str, cause: io::Error) -> Error {
    let message = format!("cannot {doing}");
    if refused(&cause) {
        return Error::config(key, message).because(cause).hint("make the folder readable and writable for this user");
    }
    Error::transient(message).because(cause)
}

/// Something in an object that is not what it has to be.
pub(crate) fn damaged(object: &str, problem: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Fatal, format!("{object} is damaged: {problem}"))
}

fn refused(cause: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(cause.kind(), PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem)
}

fn is_refused(cause: &StoreError) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(cause);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(refused) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Both protocols answer a missing bucket with "not found" too; only their texts differ.
fn is_bucket(cause: &StoreError) -> bool {
    let text = cause.to_string();
    text.contains("NoSuchBucket") || text.contains("bucket does not exist")
}
