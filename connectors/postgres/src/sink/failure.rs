//! What can go wrong while a unit is applied, and what to try next.

use std::sync::Arc;

use anabranch_core::{Error, TableSchema};

use super::apply::{Values, key_text};
use super::plan::Plan;
use crate::error::classify;

/// What went wrong while a unit was applied.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused a statement, or the connection is lost.
    Refused {
        /// What the driver says.
        error: tokio_postgres::Error,
        /// The table, if the statement was about one.
        plan: Option<Arc<Plan>>,
    },
    /// A row that a partial update is about is not there.
    Missing {
        /// The table.
        plan: Arc<Plan>,
        /// The row's key, where it is known.
        what: Option<String>,
    },
    /// Something in the target left a row out, without an error.
    LeftOut {
        /// The table.
        plan: Arc<Plan>,
        /// The row's key, where it is known.
        what: Option<String>,
    },
    /// The table was altered since its plan was made.
    Altered {
        /// The table.
        plan: Arc<Plan>,
    },
    /// A new row lacks values that the source did not send.
    Incomplete {
        /// The table.
        plan: Arc<Plan>,
        /// The columns, and the row's key.
        what: String,
    },
    /// Deleting rows and inserting them again would have effects of its own.
    Unreplaceable,
    /// A newer run has taken the pipeline over.
    Fenced,
    /// Anything else.
    Broken(Error),
}

/// What to try after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The same rows, deleted first and then inserted.
    Replace,
    /// The changes one by one, as they happened.
    InOrder,
    /// Nothing.
    GiveUp,
}

impl Failure {
    pub(crate) fn unplanned(schema: &TableSchema) -> Self {
        Self::Broken(Error::fatal(format!("no plan was made for table {}", schema.name)))
    }

    pub(crate) fn incomplete<R: Values>(plan: &Arc<Plan>, row: &R) -> Self {
        let unsent = plan.written.iter().filter(|&&c| row.value(c).is_unchanged());
        let columns: Vec<&str> = unsent.map(|&c| plan.source.columns[usize::from(c)].name.as_str()).collect();
        let key = if plan.source.key.is_empty() { "no key".to_owned() } else { key_text(plan, row) };
        Self::Incomplete { plan: Arc::clone(plan), what: format!("{} ({key})", columns.join(", ")) }
    }

    /// What may succeed after the net effect failed like this.
    pub(crate) fn next(&self) -> Next {
        match self {
            Self::Refused { error, .. } => match error.code().map(|c| c.code()) {
                Some("23505" | "23P01") => Next::Replace,
                // Bad values, NULLs and failed checks are refused in any order.
                Some("23502" | "23514") => Next::GiveUp,
                Some(code) => match &code[..2] {
                    // Integrity, exceptions raised by triggers, views with a check option.
                    // And two rows that the target takes for one (21).
                    "23" | "P0" | "27" | "44" | "21" => Next::InOrder,
                    _ => Next::GiveUp,
                },
                None => Next::GiveUp,
            },
            Self::Missing { .. } | Self::LeftOut { .. } | Self::Unreplaceable => Next::InOrder,
            Self::Incomplete { .. } | Self::Altered { .. } | Self::Fenced | Self::Broken(_) => Next::GiveUp,
        }
    }

    /// Rows that were taken for new ones seem to be what it failed of.
    pub(crate) fn distrust(&self) {
        if let Self::Refused { plan: Some(plan), .. } = self {
            plan.distrust();
        }
    }

    /// The table or a column of it is not as it was when the plan was made.
    pub(crate) fn is_stale(&self) -> bool {
        let code = match self {
            Self::Refused { error, .. } => error.code().map(|c| c.code()),
            Self::Altered { .. } => return true,
            // Something that the plan does not know of, and that may have come since.
            Self::LeftOut { plan, .. } => return plan.target.triggers.is_empty() && plan.target.rules.is_empty(),
            _ => None,
        };
        code.is_some_and(|c| (c.starts_with("42") && c != "42501") || c.starts_with("0A") || c.starts_with("26"))
    }

    /// `COPY` cannot write to this relation (a view, row-level security), but `INSERT` may.
    pub(crate) fn is_copy_unsupported(&self) -> bool {
        match self {
            Self::Refused { error, .. } => matches!(error.code().map(|c| c.code()), Some("0A000" | "42809")),
            _ => false,
        }
    }

    /// The error for the runtime. Nothing was committed.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Broken(error) => error,
            Self::Unreplaceable => Error::fatal("rows that may not be replaced were not applied in order either"),
            Self::Fenced => {
                Error::fenced("another runner has taken over the pipeline: the target has seen a newer epoch")
            }
            Self::Missing { plan, what } => {
                let what = what.map_or_else(|| "such a row".to_owned(), |w| format!("the row with key ({w})"));
                if plan.is_loose() {
                    return Error::rejected(format!(
                        "target table {} does not have {what}: its key does not tell this row from another one (citext, or \
                         a collation that ignores differences), or the source did not send all of its columns",
                        plan.target.name
                    ));
                }
                Error::rejected(format!(
                    "target table {} does not have {what}, and the source did not send all of its columns",
                    plan.target.name
                ))
            }
            // To begin again is to judge the types anew.
            Self::Altered { plan } => {
                Error::transient(format!("target table {} was altered while it was written to", plan.target.name))
            }
            Self::LeftOut { plan, what } => {
                let what = what.map_or_else(|| "a row".to_owned(), |w| format!("the row with key ({w})"));
                Error::rejected(format!(
                    "target table {}: a trigger or a rule of the target left {what} as it was, without an error",
                    plan.target.name
                ))
                .hint(
                    "drop or disable it; triggers and rules do not act on replicated rows if the user may set \
                     session_replication_role and they are not ENABLE ALWAYS or REPLICA",
                )
            }
            // Without them it would get NULL or a default for what the source has a value of.
            Self::Incomplete { plan, what } => Error::rejected(format!(
                "a new row of target table {} lacks {what}: the source did not send all of it",
                plan.target.name
            ))
            .hint(
                "an update by which a row comes into a publication's row filter leaves out long values that it did not \
                 touch; set REPLICA IDENTITY FULL on the source's table, and put this row into the target by hand or \
                 with `anabranch verify FILE --repair`",
            ),
            Self::Refused { error, plan } => refused(error, plan.as_deref()),
        }
    }
}

fn refused(error: tokio_postgres::Error, plan: Option<&Plan>) -> Error {
    let what = match plan {
        Some(plan) => format!("cannot write to target table {}", plan.target.name),
        None => "cannot write to the target".to_owned(),
    };
    let refusal = error
        .code()
        .is_some_and(|c| matches!(&c.code()[..2], "22" | "23" | "P0" | "27" | "44" | "54" | "2F" | "38" | "39"));
    let error = classify(error, &what);
    if refusal { error.with_kind(anabranch_core::ErrorKind::Rejected) } else { error }
}
