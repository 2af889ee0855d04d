//! What every [`Source`] of one partition that gives whole transactions must do.
//!
//! The author of a source implements [`SourceUnderTest`] for a database with one empty table and
//! calls [`run`]. The checks follow one another on one stream, as runs of one pipeline do.

mod reading;
mod story;

use std::sync::Arc;

use anabranch_core::{Source, TableName};
use async_trait::async_trait;

use self::story::Story;

/// A source, and a way to write to its database.
#[async_trait]
pub trait SourceUnderTest: Send + Sync {
    /// Another handle to the source, as another process would get it.
    async fn connect(&self) -> Arc<dyn Source>;

    /// The table: `id`, a 64-bit whole number and the key, and `body`, a text, in this order. The
    /// source sends full new rows of it, and of old ones at least the key where that changes. It
    /// is empty at first.
    fn table(&self) -> TableName;

    /// Commits these statements as one transaction.
    async fn commit(&self, statements: &[Statement]);

    /// Whether a [`Statement::Rekey`] comes as a [`Statement::Delete`] and a [`Statement::Insert`].
    fn splits_key_updates(&self) -> bool {
        false
    }
}

/// A statement on the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A new row.
    Insert(i64, String),
    /// Another body.
    Update(i64, String),
    /// Another id: the old one, the new one.
    Rekey(i64, i64),
    /// No more row.
    Delete(i64),
}

/// Runs every check.
///
/// # Panics
/// With what the source did wrong.
pub async fn run(target: &dyn SourceUnderTest) {
    let mut story = Story::begin(target).await;
    reading::an_empty_token_is_the_start(&mut story).await;
    reading::a_check_finds_what_is_prepared(&mut story).await;
    reading::every_statement(&mut story).await;
    reading::a_reader_resumes_anywhere(&mut story).await;
    reading::a_dropped_call_loses_nothing(&mut story).await;
    reading::a_long_transaction_is_numbered_through(&mut story).await;
    reading::an_idle_source_gives_heartbeats(&mut story).await;
    reading::a_marker_is_reached(&mut story).await;
    reading::a_snapshot_hands_over_exactly(&mut story).await;
    reading::an_interrupted_copy_goes_on(&mut story).await;
    reading::the_identity_stays(&mut story).await;
}
