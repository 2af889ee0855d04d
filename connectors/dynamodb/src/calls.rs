//! Calls that write: repeated while the service only asks for patience.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, ErrorKind, Result};
use aws_sdk_dynamodb::operation::batch_get_item::BatchGetItemError;
use aws_sdk_dynamodb::operation::batch_write_item::BatchWriteItemError;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::get_item::GetItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::query::QueryError;
use aws_sdk_dynamodb::operation::scan::ScanError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::CancellationReason;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use tokio::time::{Instant, sleep};

use crate::error::{classify, code, is_throttle};
use crate::limiter::{Limiter, backoff};
use crate::types::Item;

/// How long a call is repeated. Longer than DynamoDB takes to split a partition would only hide from
/// the operator that the table is too small; the runtime begins again after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a call is made that is not answered, or answered with an error of the server: about three
/// seconds of waits. Every write can be made again: it is conditional on a version or a counter, has a
/// token, or says the same whenever it is made. A server that is down is the runtime's to wait for.
const TRIES: u32 = 8;

/// Why a call did not do what it was to do, other than for want of patience.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Its condition does not hold; with the item that is there, if it was asked for and is there.
    Condition(Option<Item>),
    /// A transaction was refused; a reason for each of its actions.
    Cancelled(Vec<CancellationReason>),
    Failed(Error),
}

impl Stop {
    /// The error of a call that has no condition, or whose condition was dealt with before.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Condition(_) => Error::fatal("a condition failed that cannot fail"),
            Self::Cancelled(reasons) => {
                let reasons: Vec<String> = reasons
                    .iter()
                    .filter(|r| r.code().is_some_and(|c| c != "None"))
                    .map(|r| format!("{}: {}", r.code().unwrap_or_default(), r.message().unwrap_or_default()))
                    .collect();
                Error::rejected(format!("a transaction was refused: {}", reasons.join("; ")))
            }
        }
    }
}

/// What the errors of operations have in common, as far as it matters here.
pub(crate) trait CallError: ProvideErrorMetadata + StdError + Send + Sync + 'static {
    /// The operation, as IAM names it.
    const ACTION: &'static str;
    /// Whether the call changes something.
    const WRITES: bool = true;

    /// If it is a failed condition: the item that is there.
    fn condition(&self) -> Option<Option<Item>> {
        None
    }

    /// If it is a cancelled transaction: why.
    fn cancelled(&self) -> Option<&[CancellationReason]> {
        None
    }
}

macro_rules! conditional {
    ($error:ident, $action:literal) => {
        impl CallError for $error {
            const ACTION: &'static str = $action;
            fn condition(&self) -> Option<Option<Item>> {
                match self {
                    Self::ConditionalCheckFailedException(e) => Some(e.item().cloned()),
                    _ => None,
                }
            }
        }
    };
}

macro_rules! reading {
    ($error:ident, $action:literal) => {
        impl CallError for $error {
            const ACTION: &'static str = $action;
            const WRITES: bool = false;
        }
    };
}

conditional!(PutItemError, "dynamodb:PutItem");
conditional!(UpdateItemError, "dynamodb:UpdateItem");
conditional!(DeleteItemError, "dynamodb:DeleteItem");
reading!(GetItemError, "dynamodb:GetItem");
reading!(BatchGetItemError, "dynamodb:BatchGetItem");
reading!(QueryError, "dynamodb:Query");
reading!(ScanError, "dynamodb:Scan");

impl CallError for BatchWriteItemError {
    const ACTION: &'static str = "dynamodb:BatchWriteItem";
}

impl CallError for TransactWriteItemsError {
    const ACTION: &'static str = "dynamodb:TransactWriteItems";
    fn cancelled(&self) -> Option<&[CancellationReason]> {
        match self {
            Self::TransactionCanceledException(e) => Some(e.cancellation_reasons()),
            _ => None,
        }
    }
}

/// Makes the call until it is answered for good, each time with a permit of `limiter`. `object` is
/// what it is made on, for messages.
pub(crate) async fn call<T, E, R, F>(
    limiter: &Arc<Limiter>,
    object: &str,
    mut send: impl FnMut() -> F,
) -> Result<T, Stop>
where
    E: CallError,
    R: Debug + Send + Sync + 'static,
    F: Future<Output = Result<T, SdkError<E, R>>>,
{
    let begun = Instant::now();
    let (mut failures, mut lost) = (0, 0);
    // Whether an earlier try may have happened although no answer came.
    let mut unsure = false;
    loop {
        let permit = limiter.acquire().await;
        let failure = match Box::pin(send()).await {
            Ok(answer) => {
                permit.answered();
                return Ok(answer);
            }
            Err(error) => judge(object, error),
        };
        let error = match failure {
            Failure::Stop(stop) => {
                permit.answered();
                return Err(stop);
            }
            Failure::Throttled(error) => {
                permit.throttled();
                error
            }
            Failure::Conflict(error) => {
                permit.answered();
                error
            }
            Failure::Again(error) => {
                drop(permit);
                unsure |= E::WRITES;
                lost += 1;
                error
            }
        };
        failures += 1;
        if lost >= TRIES || begun.elapsed() > PATIENCE {
            let kind = if unsure { ErrorKind::Indeterminate } else { ErrorKind::Transient };
            return Err(Stop::Failed(error.with_kind(kind)));
        }
        tracing::debug!(%object, failures, limit = limiter.limit(), error = %error.report(), "trying again");
        sleep(backoff(failures)).await;
    }
}

enum Failure {
    Throttled(Error),
    /// Another transaction is at one of its items.
    Conflict(Error),
    /// It may or may not have happened: the same again.
    Again(Error),
    Stop(Stop),
}

fn judge<E: CallError, R: Debug + Send + Sync + 'static>(object: &str, error: SdkError<E, R>) -> Failure {
    if let SdkError::ServiceError(service) = &error {
        if let Some(item) = service.err().condition() {
            return Failure::Stop(Stop::Condition(item));
        }
        if let Some(reasons) = service.err().cancelled() {
            return cancelled(object, reasons);
        }
    }
    let code = code(&error).unwrap_or_default().to_owned();
    let error = classify(E::ACTION, object, error);
    match (code.as_str(), error.kind()) {
        (code, _) if is_throttle(code) => Failure::Throttled(error),
        ("TransactionConflictException" | "TransactionInProgressException" | "ReplicatedWriteConflictException", _) => {
            Failure::Conflict(error)
        }
        // Of a write: an item, for keys of tables were compared before the first row.
        ("ValidationException", _) if E::WRITES => Failure::Stop(Stop::Failed(error.with_kind(ErrorKind::Rejected))),
        ("IdempotentParameterMismatchException", _) => Failure::Stop(Stop::Failed(error.with_kind(ErrorKind::Fatal))),
        (_, ErrorKind::Transient) => Failure::Again(error),
        _ => Failure::Stop(Stop::Failed(error)),
    }
}

fn cancelled(object: &str, reasons: &[CancellationReason]) -> Failure {
    let codes = || reasons.iter().filter_map(CancellationReason::code);
    let final_word =
        |c: &str| matches!(c, "ConditionalCheckFailed" | "ValidationError" | "ItemCollectionSizeLimitExceeded");
    if codes().any(final_word) {
        return Failure::Stop(Stop::Cancelled(reasons.to_vec()));
    }
    let said: Vec<&str> = codes().filter(|c| *c != "None").collect();
    let error = Error::transient(format!("a transaction on {object} was refused: {}", said.join(", ")));
    match codes().any(|c| matches!(c, "ThrottlingError" | "ProvisionedThroughputExceeded" | "RequestLimitExceeded")) {
        true => Failure::Throttled(error),
        false => Failure::Conflict(error),
    }
}
