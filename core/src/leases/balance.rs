//! Which leases a worker takes, asks for and gives up. Pure: time and chance come from outside.
//!
//! The rules are those of the Kinesis client library, versions 1 and 2 (`LeaseTaker`): a lease whose
//! counter has not moved for the failover time, by the observer's own clock, has expired; each
//! worker goes for `leases / workers`, rounded up; expired leases come first, in random order; only
//! when none has expired one is stolen, one at a time, from the worker that has most; leases that
//! expired very long ago are taken by anybody. Different from there: a thief asks and waits, and it
//! steals only if that makes the shares more equal, so no lease goes back and forth.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::Lease;
use crate::model::PartitionId;

/// After how many failover times a lease is taken by anybody, whatever its share is.
const VERY_OLD: u32 = 3;

/// What one worker has seen of the leases, and what follows from that.
#[derive(Debug)]
pub(crate) struct Balancer {
    me: String,
    failover: Duration,
    /// How many leases this worker may have at most.
    most: usize,
    seen: HashMap<PartitionId, Seen>,
}

#[derive(Debug)]
struct Seen {
    counter: u64,
    /// When the counter was seen to be another one, by the observer's clock.
    since: Duration,
}

/// What to do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    /// Take these, each as it was listed.
    pub(crate) take: Vec<PartitionId>,
    /// Ask the owner for this one.
    pub(crate) ask: Option<PartitionId>,
    /// Finish what is under way and release these: another worker waits for them.
    pub(crate) give: Vec<PartitionId>,
}

impl Balancer {
    pub(crate) fn new(me: impl Into<String>, failover: Duration, most: usize) -> Self {
        Self { me: me.into(), failover, most: most.max(1), seen: HashMap::new() }
    }

    /// `now`: this worker's monotonic clock, read before the leases were listed. `held`: the leases
    /// that it works on. `dice`: a random number each time.
    pub(crate) fn decide(
        &mut self,
        now: Duration,
        leases: &[Lease],
        held: &HashSet<PartitionId>,
        dice: &mut impl FnMut() -> u64,
    ) -> Moves {
        self.look(now, leases);
        let open: Vec<&Lease> = runnable(leases);
        let give = open.iter().filter(|l| held.contains(l.id()) && self.is_wanted(l)).map(|l| l.id().clone()).collect();
        let mut moves = Moves { give, ..Moves::default() };

        let (mut expired, alive): (Vec<&Lease>, Vec<&Lease>) =
            open.iter().partition(|l| !held.contains(l.id()) && self.is_free(now, l));
        let mut shares: BTreeMap<&str, usize> = BTreeMap::from([(self.me.as_str(), 0)]);
        for lease in &alive {
            if let Some(owner) = lease.wanted_by.as_deref().or(lease.owner.as_deref()) {
                *shares.entry(owner).or_default() += 1;
            }
        }
        let target = open.len().div_ceil(shares.len());
        let mine = shares.get(self.me.as_str()).copied().unwrap_or_default();
        let mut room = self.most.saturating_sub(held.len());

        // Waited for, or lost the answer to taking it: it is ours.
        expired.sort_by_cached_key(|_| dice());
        expired.sort_by_key(|l| l.wanted_by.as_deref() != Some(&self.me) && l.owner.as_deref() != Some(&self.me));
        let mut have = mine;
        for lease in &expired {
            let promised = lease.wanted_by.as_deref() == Some(&self.me) || lease.owner.as_deref() == Some(&self.me);
            let very_old = self.age(now, lease) > self.failover * VERY_OLD;
            if room > 0 && (promised || very_old || have < target) {
                moves.take.push(lease.id().clone());
                room -= 1;
                have += 1;
            }
        }
        let waiting = open.iter().any(|l| l.wanted_by.as_deref() == Some(&self.me));
        if expired.is_empty() && !waiting && room > 0 && mine < target {
            moves.ask = steal(&alive, &shares, mine, dice);
        }
        moves
    }

    fn look(&mut self, now: Duration, leases: &[Lease]) {
        let listed: HashSet<&PartitionId> = leases.iter().map(Lease::id).collect();
        self.seen.retain(|id, _| listed.contains(id));
        for lease in leases {
            let seen = Seen { counter: lease.counter, since: now };
            let entry = self.seen.entry(lease.id().clone()).or_insert(Seen { ..seen });
            if entry.counter != lease.counter {
                *entry = seen;
            }
        }
    }

    fn is_wanted(&self, lease: &Lease) -> bool {
        lease.wanted_by.as_ref().is_some_and(|by| *by != self.me)
    }

    /// How long the counter has not moved.
    fn age(&self, now: Duration, lease: &Lease) -> Duration {
        self.seen.get(lease.id()).map_or(Duration::ZERO, |s| now.saturating_sub(s.since))
    }

    /// Whether this worker may take it: nobody has it, or its owner gives no sign of life.
    fn is_free(&self, now: Duration, lease: &Lease) -> bool {
        let silent = self.age(now, lease) > self.failover;
        match &lease.owner {
            // It was taken, and the answer did not arrive.
            Some(owner) if *owner == self.me => true,
            Some(_) => silent,
            // Released to somebody who does not come.
            None => silent || !self.is_wanted(lease),
        }
    }
}

/// The leases that somebody should work on: not finished, and all their parents are. A parent that is
/// not listed has no lease yet: of two that merge, one may be read to its end before the other is even
/// known. Finished ones stay listed as long as a child needs them.
fn runnable(leases: &[Lease]) -> Vec<&Lease> {
    let finished: HashSet<&PartitionId> = leases.iter().filter(|l| l.finished).map(Lease::id).collect();
    let ready = |l: &&Lease| !l.finished && l.partition.parents.iter().all(|p| finished.contains(p));
    leases.iter().filter(ready).collect()
}

/// One of the worker that has most, if it still has no less than this one after that.
fn steal(
    alive: &[&Lease],
    shares: &BTreeMap<&str, usize>,
    mine: usize,
    dice: &mut impl FnMut() -> u64,
) -> Option<PartitionId> {
    let (rich, most) = shares.iter().max_by_key(|(_, n)| **n)?;
    if *most < mine + 2 {
        return None;
    }
    let theirs: Vec<_> = alive.iter().filter(|l| l.owner.as_deref() == Some(*rich) && l.wanted_by.is_none()).collect();
    (!theirs.is_empty()).then(|| theirs[(dice() % theirs.len() as u64) as usize].id().clone())
}

#[cfg(test)]
#[path = "balance/tests.rs"]
mod tests;
