//! A letter is durable before its lane stores that it has passed the change. A process may die in
//! between:
//!
//! ```text
//!   letter put        progress of the lane stored
//!   ────┤.......................├─────────────────
//!       │ the source gives the  │ only the letter
//!       │ change again          │ has the change
//! ```
//!
//! So at every start the letters that the progress has not passed are closed, before any is tried:
//! their changes come again, and are held or refused again if they still have to be.

use super::{LaneName, Letters, PAGE};
use crate::dead_letter::{DeadLetter, LetterState};
use crate::error::Result;

impl Letters {
    /// Closes the letters that do not stand. `stands`: whether the letter's lane has passed its change.
    pub(crate) async fn close_replayed(&self, stands: impl Fn(&DeadLetter) -> bool) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut after: Option<String> = None;
        loop {
            let states = [LetterState::Open, LetterState::Held];
            let page = store.list(&self.pipeline, &states, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id.clone());
            let come_again = page.into_iter().filter(|l| l.lane.is_some() && l.parked.is_none() && !stands(l));
            let closed: Vec<_> =
                come_again.map(|l| (l.clone(), DeadLetter { state: LetterState::Applied, ..l })).collect();
            if !closed.is_empty() {
                store.replace(&self.pipeline, &closed).await?;
            }
        }
    }

    /// Of letters that are to be parked those that the lane had not put by itself, when its shard
    /// still answered: a change that was refused then was never applied, whatever the shard has.
    pub(in crate::runtime) async fn not_put_before(
        &self,
        letters: Vec<DeadLetter>,
        lane: &LaneName,
    ) -> Result<Vec<DeadLetter>> {
        let may_have = lane.shard.as_ref().is_some_and(|shard| self.with_held(|held| held.has_own(shard)));
        let (Some(store), true) = (&self.store, may_have) else { return Ok(letters) };
        let mut new = Vec::with_capacity(letters.len());
        for letter in letters {
            let before = store.get(&self.pipeline, &letter.id).await?;
            if !before.is_some_and(|b| b.state.is_open() && b.parked.is_none()) {
                new.push(letter);
            }
        }
        Ok(new)
    }
}
