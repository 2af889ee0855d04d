//! The order of changes of one shard.

use std::collections::HashMap;

use anabranch_testkit::generators::{Change, History};

use super::drive::{At, Emitted, sorted};

/// Each shard is sorted and on one lane; a unit has one window, and is cut between transactions where it can be.
pub(crate) fn check(history: &History, emitted: &[Emitted], length: i64, limit: usize) {
    let change = |at: &At| -> &Change { &history.logs[at.0].changes[at.1] };
    check_order(history, emitted);
    let mut per_lane: HashMap<(u32, usize), usize> = HashMap::new();
    for e in emitted {
        let windows: Vec<i64> =
            e.changes.iter().map(|at| change(at).commit_time.as_micros().div_euclid(length)).collect();
        assert!(windows.windows(2).all(|w| w[0] == w[1]), "a unit of two windows");
        for at in &e.changes {
            *per_lane.entry((e.unit.lane, change(at).transaction)).or_default() += 1;
        }
    }
    for (n, e) in emitted.iter().enumerate() {
        let next = emitted[n + 1..].iter().find(|f| f.unit.lane == e.unit.lane && !f.changes.is_empty());
        if let (Some(last), Some(next)) = (e.changes.last(), next)
            && change(last).transaction == change(&next.changes[0]).transaction
        {
            assert!(per_lane[&(e.unit.lane, change(last).transaction)] > limit, "a transaction was cut");
        }
    }
}

/// Each shard is sorted and on one lane.
pub(crate) fn check_order(history: &History, emitted: &[Emitted]) {
    let change = |at: &At| -> &Change { &history.logs[at.0].changes[at.1] };
    let mut shards: HashMap<Option<&str>, (u32, Vec<At>)> = HashMap::new();
    for e in emitted {
        for at in &e.changes {
            let shard = shards.entry(shard(change(at))).or_insert((e.unit.lane, Vec::new()));
            assert_eq!(shard.0, e.unit.lane);
            shard.1.push(*at);
        }
    }
    let all = sorted(history, |c| (c.transaction, c.sequence));
    for (name, (lane, order)) in &shards {
        let expected: Vec<At> = all.iter().copied().filter(|at| shard(change(at)) == *name).collect();
        assert_eq!(*order, expected, "shard {name:?} on lane {lane}");
    }
}

/// A message has none in the history of the batches.
fn shard(change: &Change) -> Option<&str> {
    change.shard.as_deref().filter(|_| change.op != anabranch_core::Op::Message)
}
