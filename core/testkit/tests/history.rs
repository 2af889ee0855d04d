//! The checker accepts a right target and catches each way of being wrong.

use anabranch_testkit::history::{
    Change, Checker, Commit, Consistency, JOURNAL, Observation, Report, Row, TABLES, Table, ViolationKind,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A source of accounts, ledger rows and log lines, and the rows of a target that follows it.
struct World {
    rng: StdRng,
    commits: Vec<Commit>,
    rows: Observation,
}

fn row(values: &[&dyn ToString]) -> Row {
    values.iter().map(|v| Some(v.to_string())).collect()
}

fn place(table: &str) -> usize {
    Table::place(table).expect("a table of the workload")
}

fn insert(table: usize, new: Row) -> Change {
    Change { table, old: None, new: Some(new) }
}

fn update(table: usize, old: Row, new: Row) -> Change {
    Change { table, old: Some(old), new: Some(new) }
}

fn apply(rows: &mut Observation, change: &Change) {
    let table = &mut rows.tables[change.table];
    if let Some(old) = &change.old {
        let at = table.iter().position(|r| r == old).expect("the row is there");
        table.swap_remove(at);
    }
    table.extend(change.new.clone());
}

impl World {
    /// Ten accounts, ten ledger rows, then `commits` transactions: a transfer, a ledger row's next
    /// version, a log line.
    fn new(seed: u64, commits: usize) -> Self {
        let mut world = Self { rng: StdRng::seed_from_u64(seed), commits: Vec::new(), rows: Observation::empty() };
        let mut load = vec![insert(JOURNAL, row(&[&0, &0]))];
        for id in 0..10 {
            load.push(insert(place("accounts"), row(&[&id, &"owner", &100])));
            load.push(insert(place("ledger"), row(&[&id, &0, &"note"])));
        }
        world.commit(load);
        for number in 1..=commits {
            world.transaction(number);
        }
        world
    }

    fn transaction(&mut self, number: usize) {
        let (accounts, ledger) = (place("accounts"), place("ledger"));
        let mut changes = vec![insert(JOURNAL, row(&[&1, &number]))];
        let from = self.rng.random_range(0..10_usize);
        let to = (from + self.rng.random_range(1..10)) % 10;
        for (id, by) in [(from, -5_i64), (to, 5)] {
            changes.push(self.increased(accounts, id, 2, by));
        }
        let bumped = self.rng.random_range(0..10);
        changes.push(self.increased(ledger, bumped, 1, 1));
        changes.push(insert(place("log_lines"), row(&[&1, &format!("line {}", number % 3)])));
        self.commit(changes);
    }

    fn increased(&self, table: usize, id: usize, column: usize, by: i64) -> Change {
        let wanted = Some(id.to_string());
        let old = self.rows.tables[table].iter().find(|r| r[0] == wanted).expect("the row is there").clone();
        let mut new = old.clone();
        let value: i64 = old[column].as_deref().unwrap_or("0").parse().expect("a number");
        new[column] = Some((value + by).to_string());
        update(table, old, new)
    }

    fn commit(&mut self, changes: Vec<Change>) {
        changes.iter().for_each(|change| apply(&mut self.rows, change));
        self.commits.push(Commit { changes });
    }

    /// What a reader of a right target sees after `count` commits.
    fn at(&self, count: usize) -> Observation {
        let mut rows = Observation::empty();
        self.commits[..count].iter().flat_map(|c| &c.changes).for_each(|change| apply(&mut rows, change));
        rows
    }

    fn checker(&self, consistency: Consistency) -> Checker {
        let mut checker = Checker::new(7, consistency);
        self.commits.iter().for_each(|c| checker.commit(c.clone()));
        checker
    }

    /// Shows the checker the states 1 and 10 and then `last`, in the middle of a run.
    fn judged(&self, last: &Observation) -> Report {
        let mut checker = self.checker(Consistency::Prefix);
        assert!(checker.observe(&self.at(1)) && checker.following());
        assert!(checker.observe(&self.at(10)), "{}", checker.report());
        checker.observe(last);
        checker.report().clone()
    }
}

fn count(report: &Report, kind: ViolationKind) -> usize {
    match kind {
        ViolationKind::Lost => report.lost,
        ViolationKind::Doubled => report.doubled,
        ViolationKind::Backwards => report.backwards,
        ViolationKind::Torn => report.torn,
        ViolationKind::Wrong => report.wrong,
    }
}

/// Exactly one violation, of this kind.
#[track_caller]
fn assert_only(report: &Report, kind: ViolationKind) {
    assert_eq!(count(report, kind), 1, "{report}");
    assert_eq!(report.violations.len(), 1, "{report}");
    assert!(!report.is_clean());
}

#[test]
fn a_right_target_is_clean_at_every_prefix() {
    for seed in 0..20 {
        let mut world = World::new(seed, 200);
        let mut checker = world.checker(Consistency::Prefix);
        let mut at = 1;
        while at < world.commits.len() {
            assert!(checker.observe(&world.at(at)), "{}", checker.report());
            at += world.rng.random_range(0..9);
        }
        let report = checker.finish(&world.at(world.commits.len()));
        assert!(report.is_clean(), "{report}");
        assert!(report.prefixes > 20 && report.compared >= report.prefixes - 1, "{report}");
    }
}

#[test]
fn a_first_load_is_not_judged_before_it_is_complete() {
    let world = World::new(1, 30);
    let mut checker = world.checker(Consistency::Prefix);
    let mut half = world.at(5);
    half.tables[place("accounts")].truncate(3);
    assert!(checker.observe(&Observation::empty()) && checker.observe(&half) && !checker.following());
    assert!(checker.observe(&world.at(5)) && checker.following());
    assert!(!checker.observe(&half), "complete once, it has to stay so");
}

#[test]
fn a_lost_row_is_caught() {
    let world = World::new(2, 30);
    let mut seen = world.at(20);
    // The accounts that no transaction after the tenth touched have been seen before.
    let changes: Vec<&Change> = world.commits[10..20].iter().flat_map(|c| &c.changes).collect();
    let untouched =
        |r: &Row| !changes.iter().any(|c| c.table == place("accounts") && c.new.as_ref().is_some_and(|n| n[0] == r[0]));
    let at = seen.tables[place("accounts")].iter().position(untouched).expect("one is untouched");
    seen.tables[place("accounts")].remove(at);
    assert_only(&world.judged(&seen), ViolationKind::Lost);
}

#[test]
fn a_row_that_never_came_is_lost_at_the_end() {
    let world = World::new(3, 30);
    let mut seen = world.at(world.commits.len());
    seen.tables[place("log_lines")].pop();
    seen.tables[JOURNAL].remove(4);
    let report = world.checker(Consistency::Prefix).finish(&seen);
    assert_eq!((report.lost, report.violations.len()), (2, 2), "{report}");
}

#[test]
fn a_doubled_row_is_caught_with_a_key_and_without() {
    for table in ["log_lines", "ledger"] {
        let world = World::new(4, 30);
        let mut seen = world.at(20);
        let rows = &mut seen.tables[place(table)];
        rows.push(rows[0].clone());
        assert_only(&world.judged(&seen), ViolationKind::Doubled);
    }
}

#[test]
fn a_deleted_row_that_is_back_is_caught() {
    let mut world = World::new(5, 5);
    let gone = row(&[&3, &"x"]);
    let parents = place("parents");
    world.commit(vec![insert(JOURNAL, row(&[&2, &1])), insert(parents, gone.clone())]);
    world.commit(vec![insert(JOURNAL, row(&[&2, &2])), Change { table: parents, old: Some(gone.clone()), new: None }]);
    (10..40).for_each(|number| world.transaction(number));
    let mut seen = world.at(20);
    seen.tables[parents].push(gone);
    assert_only(&world.judged(&seen), ViolationKind::Doubled);
}

#[test]
fn a_row_that_goes_backwards_is_caught() {
    let world = World::new(6, 30);
    let (old, new) = (world.at(1), world.at(20));
    let ledger = place("ledger");
    // One that changed up to the tenth transaction and not after it.
    let at10 = world.at(10);
    let stable = at10.tables[ledger].iter().find(|r| new.tables[ledger].contains(r) && !old.tables[ledger].contains(r));
    let stable = stable.expect("one changed early").clone();
    let mut seen = new;
    let mut stale = stable.clone();
    stale[1] = Some("0".to_owned());
    seen.tables[ledger].iter_mut().filter(|r| **r == stable).for_each(|r| *r = stale.clone());
    assert_only(&world.judged(&seen), ViolationKind::Backwards);
}

#[test]
fn a_whole_state_that_goes_backwards_is_caught() {
    let world = World::new(7, 30);
    assert_only(&world.judged(&world.at(9)), ViolationKind::Backwards);
}

#[test]
fn a_torn_transaction_is_caught_at_each_of_its_changes() {
    let world = World::new(8, 30);
    let changes = world.commits[10].changes.len();
    for count in 1..changes {
        let mut seen = world.at(10);
        world.commits[10].changes[..count].iter().for_each(|change| apply(&mut seen, change));
        let report = world.judged(&seen);
        assert!(report.torn >= 1 && report.doubled + report.backwards + report.wrong == 0, "{count}: {report}");
    }
    // The other way round: all but its row in the journal.
    let mut seen = world.at(10);
    world.commits[10].changes[1..].iter().for_each(|change| apply(&mut seen, change));
    let report = world.judged(&seen);
    assert!(report.torn >= 2, "{report}");
}

#[test]
fn a_transaction_out_of_order_is_caught() {
    let world = World::new(9, 30);
    let mut seen = world.at(10);
    // Number 12 without number 11, where it can be applied.
    for change in &world.commits[11].changes {
        if change.old.as_ref().is_none_or(|old| seen.tables[change.table].contains(old)) {
            apply(&mut seen, change);
        }
    }
    assert!(!world.judged(&seen).is_clean());
}

#[test]
fn a_value_that_never_was_is_caught() {
    let world = World::new(10, 30);
    let mut seen = world.at(20);
    let untouched = seen.tables[place("accounts")].iter_mut().next().expect("an account");
    untouched[1] = None;
    let report = world.judged(&seen);
    assert_eq!(report.violations.len(), 1, "{report}");
    assert!(report.torn + report.wrong == 1, "{report}");
}

#[test]
fn in_key_order_only_rows_must_not_go_back() {
    let world = World::new(11, 60);
    let ledger = place("ledger");
    let mut mixed = world.at(40);
    mixed.tables[place("accounts")] = world.at(20).tables[place("accounts")].clone();
    let mut checker = world.checker(Consistency::PerKey);
    assert!(checker.observe(&mixed), "rows of different prefixes are no fault in key order");
    let newer = world.at(60);
    assert!(checker.observe(&newer), "{}", checker.report());
    let mut stale = newer.clone();
    let changed = stale.tables[ledger].iter_mut().find(|r| r[1].as_deref() != Some("0")).expect("one has changed");
    changed[1] = Some("0".to_owned());
    assert!(!checker.observe(&stale));
    assert_eq!(checker.report().backwards, 1, "{}", checker.report());
    let mut short = newer;
    short.tables[ledger].pop();
    assert!(!checker.observe(&short));
    assert_eq!(checker.report().lost, 1, "{}", checker.report());
    assert_eq!(TABLES[ledger].key, [0]);
}
