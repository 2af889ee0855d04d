//! Changes that could not be applied, kept with the reason.

mod classes;
mod file;
mod mark;
mod memory;

pub use classes::{ClassRule, Classes};
pub use file::FileDeadLetters;
pub use mark::{Mark, mark};
pub use memory::MemoryDeadLetters;

use std::borrow::Cow;
use std::fmt::Debug;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{ChangeRef, Op, PartitionId, Position, RowRef, TableName, TableSchema, Timestamp, Value};

/// Keeps dead letters durably. Several pipelines may share one store.
#[async_trait]
pub trait DeadLetterStore: Debug + Send + Sync + 'static {
    /// Stores these letters durably. A letter whose id is there already replaces it, so that a
    /// replay after a crash stores nothing twice.
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()>;

    /// The letters in these states, in the order of their ids, at most `limit`, with ids above `after`.
    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>>;

    /// One letter.
    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>>;

    /// How many letters are open: not done, not skipped.
    async fn open_count(&self, pipeline: &str) -> Result<u64>;

    /// As [`DeadLetterStore::put`], of letters that were read before: of each what it was then, and what it
    /// is to be. One that was moved meanwhile ([`DeadLetter::is_moved`]), by an operator or by another
    /// process, stays as it is now. Gives how many were stored.
    ///
    /// The default looks just before it puts. A store that can do both at once, does.
    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        let mut unmoved = Vec::with_capacity(changed.len());
        for (before, after) in changed {
            if self.get(pipeline, &before.id).await?.is_some_and(|now| !now.is_moved(before)) {
                unmoved.push(after.clone());
            }
        }
        self.put(pipeline, &unmoved).await?;
        Ok(unmoved.len())
    }
}

/// A change that was not applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Partition, rank and place, so that letters of one partition sort in source order and a
    /// replay gives the same id.
    pub id: String,
    /// What kind of problem it is.
    pub class: LetterClass,
    /// Where it stands.
    pub state: LetterState,
    /// Why, for people.
    pub reason: String,
    /// What happened.
    pub op: Op,
    /// The table as it was then.
    pub schema: TableSchema,
    /// The row before, as far as it was sent.
    pub old: Option<Vec<Value>>,
    /// The row after.
    pub new: Option<Vec<Value>>,
    /// The shard, if a transform chose one.
    #[serde(default)]
    pub shard: Option<String>,
    /// Its partition.
    pub partition: PartitionId,
    /// Its place there.
    pub position: Position,
    /// When its transaction was committed at the source.
    pub commit_time: Option<Timestamp>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was tried last.
    pub last_attempt: Option<Timestamp>,
    /// Set while it is not known whether its shard, which does not answer, has committed it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
    /// The lane that put it before its progress passed the change. Once it has, the letter alone has
    /// the change; until then the source gives it again after a crash, and the letter must not be applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LetterLane>,
}

/// The lane that put a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterLane {
    /// The shard of the lane, where each is a database of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The lane, among those of its shard.
    pub lane: u32,
}

/// The lane that would have applied a letter, of a shard that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// The shard of the lane.
    pub shard: String,
    /// The lane among those of its shard.
    pub lane: u32,
}

impl DeadLetter {
    /// The letter of a change: `{partition}:{rank in hexadecimal}` is its id. Ranks of one source
    /// have one length, so ids of one partition sort in source order, and a replay gives the same id. No
    /// other colon is in it: where a partition's name has some they are written `=3a`, and `=` as `=3d`, or
    /// the ids of `a` and of `a:0` would lie between each other's.
    ///
    /// Its position has no token: a letter is found by rank, a reader is never resumed from it. Of a
    /// message the new row is prefix and content, in a table without a name.
    pub fn from_change(change: ChangeRef<'_>, class: LetterClass, state: LetterState, reason: &str) -> Self {
        let rank = change.rank();
        let partition = change.batch().partition().clone();
        let nameless = || TableSchema { name: TableName::new("", ""), columns: Vec::new(), key: Vec::new() };
        let new = match change.message() {
            Some((prefix, content)) => Some(vec![Value::from(prefix), Value::Bytes(content.to_vec().into())]),
            None => change.new_row().map(owned),
        };
        Self {
            id: format!("{}:{rank:?}", name_in_id(partition.as_str())),
            class,
            state,
            reason: reason.to_owned(),
            op: change.op(),
            schema: change.table().map_or_else(nameless, |schema| TableSchema::clone(schema)),
            old: change.old_row().map(owned),
            new,
            shard: change.shard().map(|shard| shard.to_string()),
            partition,
            position: Position::new(rank, &b""[..]),
            commit_time: change.piece().transaction.commit_time,
            attempts: 0,
            last_attempt: None,
            parked: None,
            lane: None,
        }
    }

    /// Whether somebody has done something about this letter since it was `before`: tried it, marked it.
    pub fn is_moved(&self, before: &DeadLetter) -> bool {
        let stand = |l: &DeadLetter| (l.state, l.class, l.attempts);
        stand(self) != stand(before)
    }
}

fn name_in_id(partition: &str) -> Cow<'_, str> {
    match partition.contains(':') {
        true => partition.replace('=', "=3d").replace(':', "=3a").into(),
        false => partition.into(),
    }
}

fn owned(row: RowRef<'_>) -> Vec<Value> {
    row.values().map(|v| v.to_owned()).collect()
}

impl LetterState {
    /// Whether somebody, or a retry, still has to deal with it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Held)
    }
}

/// The kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterClass {
    /// May succeed later by itself: retried automatically, up to a limit.
    Retry,
    /// Needs a person.
    Severe,
    /// Left out on purpose.
    Skip,
    /// A filter or a transform left it out.
    Filtered,
}

/// Where a letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterState {
    /// Waits; later changes of its key are held behind it.
    Open,
    /// Waits only because an earlier letter of its key (or transaction) is open.
    Held,
    /// Applied by a retry.
    Applied,
    /// An operator decided to leave it out.
    Skipped,
}
