//! What an operator decides about a letter.

use super::{DeadLetter, DeadLetterStore, LetterClass, LetterState};
use crate::error::{Error, Result};

/// How often a letter is looked at again that the running pipeline has moved meanwhile.
const TRIES: usize = 10;

/// What an operator decides about a letter; the process that runs the pipeline obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is tried again, as if for the first time.
    Retry,
    /// It is left out for good.
    Skip,
}

/// Marks a letter that waits. The pipeline may be at the same letter: what it does meanwhile is seen, so
/// that a letter that it has applied is not opened again.
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config) if there is no such letter, or it was applied or skipped already.
pub async fn mark(store: &dyn DeadLetterStore, pipeline: &str, id: &str, mark: Mark) -> Result<()> {
    for _ in 0..TRIES {
        let missing = || {
            Error::config("dead letter", format!("there is no letter {id}"))
                .hint("list those that are open to find its id")
        };
        let before = store.get(pipeline, id).await?.ok_or_else(missing)?;
        let after = match (mark, before.state) {
            (Mark::Skip, LetterState::Skipped) => return Ok(()),
            (_, LetterState::Applied) => {
                return Err(Error::config("dead letter", format!("{id} is applied already")));
            }
            (Mark::Retry, LetterState::Skipped) => {
                return Err(Error::config("dead letter", format!("{id} was skipped: later changes have passed it"))
                    .hint("bring the row to its place by hand, or with a verify that repairs"));
            }
            (Mark::Retry, _) => DeadLetter { class: LetterClass::Retry, attempts: 0, ..before.clone() },
            (Mark::Skip, _) => DeadLetter { state: LetterState::Skipped, class: LetterClass::Skip, ..before.clone() },
        };
        if store.replace(pipeline, &[(before, after)]).await? > 0 {
            return Ok(());
        }
    }
    Err(Error::transient(format!("the letter {id} is changed by others again and again")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::MemoryDeadLetters;
    use crate::model::{Op, PartitionId, Position, TableName, TableSchema};

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "p:00".to_owned(),
            class: LetterClass::Severe,
            state: LetterState::Open,
            reason: "no".to_owned(),
            op: Op::Delete,
            schema: TableSchema { name: TableName::new("public", "t"), columns: Vec::new(), key: Vec::new() },
            old: None,
            new: None,
            shard: None,
            partition: PartitionId::new("p"),
            position: Position::default(),
            commit_time: None,
            attempts: 7,
            last_attempt: None,
            parked: None,
            lane: None,
        }
    }

    /// The pipeline applies the letter between the operator's look and the operator's mark.
    #[tokio::test]
    async fn what_was_applied_meanwhile_is_not_opened_again() {
        let store = MemoryDeadLetters::new();
        store.put("p", &[letter()]).await.unwrap();
        let applied = DeadLetter { state: LetterState::Applied, ..letter() };
        store.put("p", std::slice::from_ref(&applied)).await.unwrap();
        let again = DeadLetter { class: LetterClass::Retry, attempts: 0, ..letter() };
        assert_eq!(store.replace("p", &[(letter(), again)]).await.unwrap(), 0);
        assert_eq!(store.get("p", "p:00").await.unwrap(), Some(applied));
        for wanted in [Mark::Retry, Mark::Skip] {
            let error = mark(&store, "p", "p:00", wanted).await.unwrap_err();
            assert!(error.report().contains("is applied already"), "{}", error.report());
        }
    }

    #[tokio::test]
    async fn what_waits_is_marked() {
        let store = MemoryDeadLetters::new();
        store.put("p", &[letter()]).await.unwrap();
        mark(&store, "p", "p:00", Mark::Retry).await.unwrap();
        let now = store.get("p", "p:00").await.unwrap().unwrap();
        assert_eq!((now.class, now.state, now.attempts), (LetterClass::Retry, LetterState::Open, 0));
        for _ in 0..2 {
            mark(&store, "p", "p:00", Mark::Skip).await.unwrap();
        }
        let now = store.get("p", "p:00").await.unwrap().unwrap();
        assert_eq!((now.class, now.state), (LetterClass::Skip, LetterState::Skipped));
        assert!(mark(&store, "p", "p:00", Mark::Retry).await.unwrap_err().report().contains("was skipped"));
        assert!(mark(&store, "p", "p:01", Mark::Skip).await.unwrap_err().report().contains("no letter"));
    }
}
