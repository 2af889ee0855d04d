//! The replication origin that marks what this sink writes.

use anabranch_core::{Error, Result};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Privilege;
use super::session::terminate;
use crate::error::classify;

/// The name of a lane's origin. An origin has one active session, so each lane has its own.
pub(crate) fn name(pipeline: &str, lane: u32) -> String {
    format!("anabranch_{pipeline}_{lane}")
}

/// Creates the origin if it is missing and makes it that of this session.
pub(crate) async fn set_up(client: &Client, wanted: Privilege, origin: &str, session: &str) -> Result<()> {
    if wanted == Privilege::Off {
        return Ok(());
    }
    // Two statements: the second would not see an origin that the first creates in the same snapshot.
    let create = "SELECT pg_replication_origin_create($1) WHERE NOT EXISTS \
                  (SELECT FROM pg_catalog.pg_replication_origin WHERE roname = $1)";
    let set_up = "SELECT pg_replication_origin_session_setup($1)";
    let mut result = match client.execute(create, &[&origin]).await {
        Ok(_) => client.execute(set_up, &[&origin]).await,
        Err(e) => Err(e),
    };
    if result.as_ref().is_err_and(|e| e.code() == Some(&SqlState::OBJECT_IN_USE)) {
        terminate(client, session).await?;
        result = client.execute(set_up, &[&origin]).await;
    }
    let Err(error) = result else { return Ok(()) };
    match error.code() {
        Some(code) if *code == SqlState::OBJECT_IN_USE => {
            Err(Error::transient(format!("the replication origin {origin} is held by another session"))
                .hint("all databases of a server share origins: a pipeline to another one needs another name"))
        }
        Some(code) if denied(code) && wanted == Privilege::Required => {
            Err(Error::config("sink.origin", "the user may not use replication origins").hint(
                "run as a superuser: GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), \
                 pg_replication_origin_session_setup(text) TO <user>",
            ))
        }
        Some(code) if denied(code) => {
            tracing::warn!(origin, reason = %classify(error, "not allowed"), "writes carry no replication origin");
            Ok(())
        }
        _ => Err(classify(error, "cannot set up the replication origin")),
    }
}

/// Gives the origin back, so that the next session of the lane need not end this one.
pub(crate) async fn release(client: &Client) {
    // Fails if none was set up, or the connection is gone: the server then gives it back itself.
    _ = client.batch_execute("SELECT pg_replication_origin_session_reset()").await;
}

/// Removes an origin that is not used again. What it marked stays marked.
pub(crate) async fn drop(client: &Client, origin: &str) {
    // Fails where it was never created, or the user may not drop it: then it stays for the next copy.
    let drop = "SELECT pg_replication_origin_drop(roname) FROM pg_catalog.pg_replication_origin WHERE roname = $1";
    _ = client.execute(drop, &[&origin]).await;
}

/// 55000: the server has no slots for origins (`max_replication_slots`, `max_active_replication_origins` is 0).
fn denied(code: &SqlState) -> bool {
    *code == SqlState::INSUFFICIENT_PRIVILEGE
        || *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED
        || *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
}
