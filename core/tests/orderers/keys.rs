//! The order of changes of one key.

use std::collections::HashMap;

use anabranch_core::{Op, TableName};
use anabranch_testkit::generators::{Change, History, KEYLESS};

use super::drive::Emitted;

/// The fourth table, and now and then the second with it, stay on one lane.
pub(crate) fn pinned(history: &History, both: bool) -> HashMap<TableName, u32> {
    let tables = if both { &[1, 3][..] } else { &[3] };
    tables.iter().map(|&t: &usize| (history.tables[t].name.clone(), 7)).collect()
}

/// Whether `b`, which comes after `a`, must wait for it.
fn depends(a: &Change, b: &Change) -> bool {
    if a.op == Op::Message || b.op == Op::Message || a.table != b.table {
        return false;
    }
    let whole = |c: &Change| matches!(c.op, Op::Truncate(_) | Op::Schema);
    let share = [a.key, a.new_key].iter().any(|k| *k == b.key || *k == b.new_key);
    whole(a) || whole(b) || a.table == KEYLESS || share
}

/// A change that depends on another of its partition comes after it on the same lane, or after it is durable.
pub(crate) fn check(history: &History, emitted: &[Emitted]) {
    let mut places = HashMap::new();
    for (unit, e) in emitted.iter().enumerate() {
        for (n, at) in e.changes.iter().enumerate() {
            places.insert(*at, (unit, n));
        }
    }
    for (log, l) in history.logs.iter().enumerate() {
        for (b, later) in l.changes.iter().enumerate() {
            for (a, earlier) in l.changes[..b].iter().enumerate().filter(|(_, a)| depends(a, later)) {
                let (first, second) = (places[&(log, a)], places[&(log, b)]);
                let (e, f) = (&emitted[first.0], &emitted[second.0]);
                let same_lane = e.unit.lane == f.unit.lane && first < second;
                assert!(
                    same_lane || e.completed.is_some_and(|c| c <= f.emitted),
                    "{later:?} on lane {} did not wait for {earlier:?} on lane {}",
                    f.unit.lane,
                    e.unit.lane
                );
            }
        }
    }
}
