//! Errors of object storage, by what they ask for.

use std::error::Error as StdError;
use std::io;

use anabranch_core::{Error, ErrorKind};
use object_store::Error as StoreError;

/// Turns an error of the store into one that says what to do. `doing` completes "cannot ..."; `key` is
/// the configuration key that names the place.
pub(crate) fn classify(key: &str, doing: &str, cause: StoreError) -> Error {
    let message = format!("cannot {doing}");
    let config = |hint: &'static str| Error::config(key, &message).hint(hint);
    let error = match &cause {
        StoreError::NotFound { .. } if is_bucket(&cause) => config("create the bucket, or name another"),
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            config("grant reading, writing, listing and deleting there, or set other credentials")
        }
        StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. } => config("correct the path"),
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
            config("the store must have conditional writes (If-None-Match, If-Match)")
        }
        cause if is_refused(cause) => config("make the folder readable and writable for this user"),
        // A full disk, a network that went away, a server that is busy: it may come back.
        _ => Error::transient(message),
    };
    // As text: it repeats the messages of its own causes.
    error.because(cause.to_string())
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
