//! What the service refuses, as errors that say what to do.

use std::error::Error as StdError;
use std::fmt::Display;

use anabranch_core::{Error, ErrorKind};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// The service's code of an error, such as `ResourceNotFoundException`; `None` if it never answered.
pub(crate) fn code<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> Option<&str> {
    match error {
        SdkError::ServiceError(e) => e.err().code(),
        _ => None,
    }
}

/// Whether the service asks for fewer calls.
pub(crate) fn is_throttle(code: &str) -> bool {
    matches!(
        code,
        "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "ProvisionedThroughputExceededException"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "RequestThrottled"
            | "SlowDown"
            | "TooManyRequestsException"
    )
}

/// A call that `action` names (the IAM action too: `dynamodb:Scan`) on `object` failed.
///
/// A call that was not answered is [`Transient`](ErrorKind::Transient): for one that writes, the
/// caller knows better and says [`Indeterminate`](ErrorKind::Indeterminate).
pub(crate) fn classify<E, R>(action: &'static str, object: impl Display, error: SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let status = match &error {
        SdkError::ServiceError(e) => {
            (e.err().code().unwrap_or_default().to_owned(), e.err().message().map(str::to_owned))
        }
        SdkError::ConstructionFailure(_) => {
            let hint = "check the region and the credentials: keys, profile, environment";
            return Error::new(ErrorKind::Config, format!("{action} on {object} could not be asked"))
                .hint(hint)
                .because(chain(&error));
        }
        SdkError::DispatchFailure(e) if e.is_other() || e.is_user() => {
            let text = chain(&error);
            let credentials = text.contains("credential") || text.contains("identity");
            let kind = if credentials { ErrorKind::Config } else { ErrorKind::Transient };
            let hint = if credentials {
                "set an access key, a profile, or a role for this machine"
            } else {
                "check the endpoint"
            };
            return Error::new(kind, format!("{action} on {object}")).hint(hint).because(text);
        }
        SdkError::DispatchFailure(_) => {
            return Error::transient(format!("{action} on {object}: the endpoint cannot be reached"))
                .hint("check endpoint and region, and the way there")
                .because(chain(&error));
        }
        _ => return Error::transient(format!("{action} on {object} was not answered")).because(chain(&error)),
    };
    let (code, message) = status;
    let said = match message.as_deref() {
        Some(message) if !message.is_empty() => format!("{action} on {object}: {code}: {message}"),
        _ => format!("{action} on {object}: {code}"),
    };
    let (kind, hint) = advice(&code, action);
    let error = Error::new(kind, said);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn advice(code: &str, action: &'static str) -> (ErrorKind, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    match code {
        "AccessDeniedException" => {
            (ErrorKind::Config, Some(format!("allow the action {action} on it to these credentials, in IAM")))
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken" => {
            (ErrorKind::Config, hint("the credentials are not known there: check access key, profile and region"))
        }
        "ResourceNotFoundException" | "TableNotFoundException" => {
            (ErrorKind::Config, hint("check the name, the region and the endpoint"))
        }
        "ValidationException" | "SerializationException" | "UnknownOperationException" => (ErrorKind::Config, None),
        "ItemCollectionSizeLimitExceededException" => (ErrorKind::Rejected, None),
        "TrimmedDataAccessException" => (ErrorKind::Fatal, None),
        // Throttling, temporary credentials that are being renewed, a table that is being changed,
        // whatever the server could not do just now.
        _ => (ErrorKind::Transient, None),
    }
}

/// Every message of the chain, once.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let message = c.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = c.source();
    }
    text
}
