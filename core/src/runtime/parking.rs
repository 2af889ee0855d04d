//! Shards that are halted: their changes are parked, and applied first when they answer again.
//!
//! What is known of a shard that does not answer is not what it has committed. So a change that is
//! parked meanwhile is marked, and once the shard answers it is found out, before anything else:
//!
//! ```text
//!   committed by the shard    read again from the source
//!   ────────────┤                  ├───────────────────
//!   ............│..................│..................
//!   it has them │ to be applied    │ come again
//!                                  low watermark of the checkpoint
//! ```
//!
//! A partition that the checkpoint has no more ended before it: none of its changes come again.
//!
//! Then its progress is moved up to the low watermark, and only after that a letter is applied: from
//! there on no change comes to the shard twice, whenever the process dies.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::in_order::InOrder;
use super::letters::{LaneName, Letters, OnRejected, held_letter, is_no_letter, is_row, keys_of, unit_of};
use super::tally::Tally;
use crate::dead_letter::{DeadLetter, LetterClass, LetterState};
use crate::error::{Error, Result};
use crate::model::{ChangeRef, Checkpoint, Counters, LeftOut, Op, Part, PartitionId, Progress, Unit};
use crate::sharded::unknown_shard;
use crate::sink::SinkWriter;

/// How many letters are changed at a time.
const TOGETHER: usize = 500;

impl Letters {
    /// The unit without what transforms left out, and what belongs to a shard that is not known:
    /// counted, and durable in the store on return where that is asked for. `parked`: nothing can be
    /// stored with the count now; all is kept as letters, and counted once the shard answers.
    pub(crate) async fn leave_out(&self, unit: Unit, lane: &LaneName, parked: bool) -> Result<(Unit, Tally)> {
        let leaves_out = unit.slices.iter().any(|s| s.batch.leaves_out());
        if !leaves_out && lane.shard.is_none() {
            return Ok((unit, Tally::default()));
        }
        let mut tally = Tally::default();
        let (mut letters, mut severe) = (Vec::new(), Vec::new());
        for change in unit.changes() {
            let why = match change.left_out() {
                Some(why) => why.clone(),
                None => match self.foreign(change, lane) {
                    Some(error) if is_row(change) => {
                        LeftOut { class: LetterClass::Severe, reason: error.report().into() }
                    }
                    Some(error) => return Err(self.stopped_at(change, 1, error)),
                    None => continue,
                },
            };
            if why.class == LetterClass::Severe {
                if self.policy.on_rejected == OnRejected::Stop {
                    return Err(self.stopped_at(change, 1, Error::rejected(why.reason.to_string())));
                }
                letters.push(DeadLetter::from_change(change, why.class, LetterState::Open, &why.reason));
                severe.push(change);
                continue;
            }
            let filtered = why.class == LetterClass::Filtered;
            let keep = if filtered { self.policy.keep_filtered } else { self.policy.keep_skipped };
            if !parked {
                tally.add(why.class);
            }
            if self.store.is_some() && (keep || parked) {
                let state = if parked { LetterState::Held } else { LetterState::Skipped };
                letters.push(DeadLetter::from_change(change, why.class, state, &why.reason));
            }
        }
        if parked {
            letters.iter_mut().for_each(|l| l.parked = lane.parked());
            letters = self.not_put_before(letters, lane).await?;
        } else {
            letters.iter_mut().for_each(|l| l.lane = Some(lane.of_letter()));
        }
        let along = self.taken_along(&unit, &severe, lane)?;
        let reason = "waits for a change of its transaction that is a dead letter";
        letters.extend(along.iter().map(|c| held_letter(*c, lane, reason)));
        self.put(&letters).await?;
        self.hold_keys(&severe);
        self.hold_keys(&along);
        if !severe.is_empty() {
            let reason = letters.iter().find(|l| l.class == LetterClass::Severe).map(|l| l.reason.clone());
            let letters = severe.len() + along.len();
            tracing::warn!(pipeline = %self.pipeline, letters, reason, "put into the dead-letter store");
        }
        let along: HashSet<_> = along.iter().map(|c| (c.partition().clone(), c.rank())).collect();
        let goes_on = |c: ChangeRef<'_>| !is_row(c) || self.foreign(c, lane).is_none();
        let rest = unit
            .retain(|c| c.left_out().is_none() && goes_on(c) && !along.contains(&(c.partition().clone(), c.rank())));
        Ok((rest, tally))
    }

    /// In `transaction` order, the other rows of the transactions of these changes: they are set aside with
    /// them, for no reader may see a part. A shard is not told from what belongs to none.
    fn taken_along<'u>(&self, unit: &'u Unit, severe: &[ChangeRef<'_>], lane: &LaneName) -> Result<Vec<ChangeRef<'u>>> {
        let torn: HashSet<_> = severe.iter().map(|c| c.piece().transaction.rank.clone()).collect();
        let Some(first) = severe.first().filter(|_| self.whole_transactions && lane.shard.is_none()) else {
            return Ok(Vec::new());
        };
        let of_torn = |c: &ChangeRef<'_>| c.left_out().is_none() && torn.contains(&c.piece().transaction.rank);
        let others: Vec<_> = unit.changes().filter(of_torn).collect();
        if unit.part != Part::Whole || others.iter().any(|c| is_no_letter(*c)) {
            let problem = "its transaction is larger than the byte budget, or has a truncate or a change of a schema: it \
                           cannot be set aside";
            return Err(self.stopped_at(*first, severe.len(), Error::rejected(problem)));
        }
        Ok(others.into_iter().filter(|c| is_row(*c)).collect())
    }

    /// Why this change is not of the lane's shard, if it is not.
    fn foreign(&self, change: ChangeRef<'_>, lane: &LaneName) -> Option<Error> {
        let (shard, names) = (lane.shard.as_ref()?, self.shards.as_ref()?);
        match change.op() {
            Op::Message | Op::Schema => None,
            Op::Truncate(_) => Some(
                Error::rejected("a truncate names no shard")
                    .hint("truncate the table in each shard by hand, then leave truncates out with a transform"),
            ),
            _ if change.shard() == Some(shard) => None,
            _ => Some(unknown_shard(change.shard().map(|s| &**s), names)),
        }
    }

    /// Keeps every change of the unit for when the shard answers again.
    pub(crate) async fn park(&self, unit: &Unit, lane: &LaneName, reason: &str) -> Result<()> {
        let letters: Vec<DeadLetter> = unit
            .changes()
            .filter(|c| is_row(*c))
            .map(|change| {
                let mut letter = DeadLetter::from_change(change, LetterClass::Retry, LetterState::Held, reason);
                letter.parked = lane.parked();
                letter
            })
            .collect();
        self.put(&self.not_put_before(letters, lane).await?).await
    }

    /// Finds out which parked letters of this shard it has committed, and which come again. Gives what
    /// was left out meanwhile and is to be counted by each of its lanes; its ids are for [`Letters::counted`].
    pub(crate) async fn settle(
        &self,
        shard: &str,
        committed: &[HashMap<PartitionId, Progress>],
        checkpoint: &Checkpoint,
    ) -> Result<Settled> {
        let mut settled = Settled { tallies: vec![Tally::default(); committed.len()], ..Settled::default() };
        let Some(store) = &self.store else { return Ok(settled) };
        let mut after: Option<String> = None;
        loop {
            let page = store.list(&self.pipeline, &[LetterState::Open, LetterState::Held], after.as_deref(), TOGETHER);
            let page = page.await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            let mut changed = Vec::new();
            for letter in page {
                let Some(parked) = letter.parked.as_ref().filter(|p| p.shard == shard) else { continue };
                settled.any = true;
                let rank = &letter.position.rank;
                let lane = parked.lane as usize;
                let has = committed.get(lane).and_then(|c| c.get(&letter.partition));
                let has_it = has.is_some_and(|c| *rank <= c.position.rank);
                let stays = checkpoint.is_passed(&letter.partition, rank) && !has_it;
                let left_out = matches!(letter.class, LetterClass::Skip | LetterClass::Filtered);
                if left_out && stays {
                    if let Some(tally) = settled.tallies.get_mut(lane) {
                        tally.add(letter.class);
                    }
                    settled.left_out.push(letter.id);
                    continue;
                }
                // What was refused before it came to the shard is a letter whatever the shard has.
                let refused = letter.class == LetterClass::Severe && has_it;
                let state = match left_out {
                    true => LetterState::Skipped,
                    false if stays || refused => letter.state,
                    // It has it, or the source gives it again: as a letter it is done.
                    false => LetterState::Applied,
                };
                changed.push((letter.clone(), DeadLetter { parked: None, state, ..letter }));
            }
            if !changed.is_empty() {
                store.replace(&self.pipeline, &changed).await?;
            }
        }
        Ok(settled)
    }

    /// What was left out is counted: its letters are closed.
    pub(crate) async fn counted(&self, ids: &[String]) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        for some in ids.chunks(TOGETHER) {
            let mut letters = Vec::new();
            for id in some {
                letters.extend(store.get(&self.pipeline, id).await?);
            }
            letters.iter_mut().for_each(|l| (l.parked, l.state) = (None, LetterState::Skipped));
            store.put(&self.pipeline, &letters).await?;
        }
        Ok(())
    }

    /// Applies the letters of one shard, in source order, until none is left or one is refused. Called
    /// while the lanes of the shard are idle.
    pub(crate) async fn resume_shard(&self, writer: &mut dyn SinkWriter, shard: &str) -> Result<Counters> {
        let mut applied = Counters::default();
        let Some(store) = &self.store else { return Ok(applied) };
        let mut reading = InOrder::begin(Arc::clone(store), Arc::clone(&self.pipeline)).await?;
        let halts = self.policy.on_rejected == OnRejected::HaltShard;
        let known = |l: &DeadLetter| l.shard.as_ref().is_some_and(|s| self.is_known(s));
        let mut blocked = HashSet::new();
        let (mut all, mut group): (bool, Vec<DeadLetter>) = (true, Vec::new());
        loop {
            let next = reading.next().await?;
            let ends = match (&next, group.last()) {
                (Some(next), Some(_)) => {
                    group.push(next.clone());
                    let together = self.groups(&group).len() == 1;
                    group.pop();
                    !together
                }
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if ends {
                let unit = unit_of(&group)?;
                let touches = unit.changes().flat_map(|c| keys_of(c, true)).any(|k| blocked.contains(&k));
                let due = group.iter().all(|l| self.is_due(l));
                if touches || !due || !self.try_group(writer, &unit, &group).await? {
                    all = false;
                    if halts && !touches {
                        break;
                    }
                    blocked.extend(unit.changes().flat_map(|c| keys_of(c, true)));
                } else {
                    applied.changes += unit.row_changes();
                    self.applied(shard, group.len() as u64);
                }
                group.clear();
            }
            match next {
                None => break,
                Some(letter) if letter.shard.as_deref() == Some(shard) => group.push(letter),
                // Nobody applies it: what has its key waits behind it.
                Some(letter) if !known(&letter) => {
                    let unit = unit_of(std::slice::from_ref(&letter))?;
                    blocked.extend(unit.changes().flat_map(|c| keys_of(c, true)));
                }
                Some(_) => {}
            }
        }
        if all {
            self.resume(shard);
        }
        Ok(applied)
    }

    /// Severe letters (`severe`), and with `all` every other too, are tried at once, as if for the first time.
    pub(crate) async fn try_again(&self, all: bool) -> Result<u64> {
        let Some(store) = &self.store else { return Ok(0) };
        let mut reading = InOrder::begin(Arc::clone(store), Arc::clone(&self.pipeline)).await?;
        let mut wanted = 0;
        let mut changed = Vec::new();
        while let Some(letter) = reading.next().await? {
            if letter.class == LetterClass::Severe || all {
                wanted += 1;
                changed.push((letter.clone(), DeadLetter { class: LetterClass::Retry, attempts: 0, ..letter }));
            }
            if changed.len() >= TOGETHER {
                store.replace(&self.pipeline, &std::mem::take(&mut changed)).await?;
            }
        }
        if !changed.is_empty() {
            store.replace(&self.pipeline, &changed).await?;
        }
        self.reload().await?;
        Ok(wanted)
    }

    fn is_known(&self, shard: &str) -> bool {
        self.shards.as_ref().is_none_or(|names| names.iter().any(|n| **n == *shard))
    }
}

/// What was found out of the parked letters of a shard.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Whether there were any.
    pub(crate) any: bool,
    /// For each of its lanes, what was left out.
    pub(crate) tallies: Vec<Tally>,
    /// The ids of the letters of those.
    pub(crate) left_out: Vec<String>,
}
