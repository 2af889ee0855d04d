use super::*;

fn id(name: &str) -> PartitionId {
    PartitionId::new(name)
}

fn at(rank: u8) -> Position {
    Position::new(Rank::new(vec![rank]), vec![rank])
}

fn child(name: &str, parents: &[&str], start: u8) -> Partition {
    Partition { id: id(name), parents: parents.iter().map(|p| id(p)).collect(), start: Some(at(start)) }
}

fn lineage() -> Lineage {
    Lineage::new(Partitions::new(), vec![Partition::root(id("root"))])
}

fn names(open: Vec<(Partition, Option<Position>, watch::Receiver<Option<Position>>)>) -> Vec<String> {
    open.into_iter().map(|(p, ..)| p.id.to_string()).collect()
}

/// Closes `name`, saves, and gives what may be opened then.
fn close(l: &mut Lineage, name: &str, children: Vec<Partition>) -> Vec<String> {
    l.closed(&id(name), children);
    l.advance(&BTreeMap::new());
    let saved = l.snapshot();
    l.saved(&saved);
    names(l.openable())
}

/// Everything of `name` up to `rank` is durable, with this safe time.
fn reach(l: &mut Lineage, name: &str, rank: u8, safe: i64) {
    l.received(&id(name), &at(rank));
    let safe_time = Some(Timestamp::from_micros(safe));
    let low = BTreeMap::from([(id(name), Progress { partition: id(name), position: at(rank), safe_time })]);
    l.advance(&low);
}

#[test]
fn a_merged_child_is_read_once_and_after_all_its_parents() {
    let mut l = lineage();
    assert_eq!(names(l.openable()), ["root"]);
    assert_eq!(close(&mut l, "root", vec![child("a", &["root"], 1), child("b", &["root"], 1)]), ["a", "b"]);
    assert_eq!(close(&mut l, "a", vec![child("m", &["a", "b"], 5)]), [""; 0]);
    assert_eq!(close(&mut l, "b", vec![child("m", &["a", "b"], 5)]), ["m"]);
    assert_eq!(names(l.openable()), [""; 0]);
}

#[test]
fn a_parent_that_is_not_known_yet_is_waited_for() {
    let mut l = lineage();
    l.openable();
    assert_eq!(close(&mut l, "root", vec![child("a", &["root"], 1), child("x", &["root"], 1)]), ["a", "x"]);
    // `b` will come of `x`, which is behind.
    assert_eq!(close(&mut l, "a", vec![child("m", &["a", "b"], 9)]), [""; 0]);
    assert_eq!(close(&mut l, "x", vec![child("b", &["x"], 5)]), ["b"]);
    assert_eq!(close(&mut l, "b", vec![child("m", &["a", "b"], 9)]), ["m"]);
}

#[test]
fn each_parent_adds_the_parents_that_it_knows_and_the_later_start_holds() {
    let mut l = lineage();
    l.openable();
    close(&mut l, "root", vec![child("a", &["root"], 1), child("b", &["root"], 1)]);
    assert_eq!(close(&mut l, "a", vec![child("m", &["gate a"], 5), child("gate a", &["a"], 5)]), ["gate a"]);
    let of_b = vec![child("m", &["gate a", "gate b"], 6), child("gate b", &["b"], 5)];
    assert_eq!(close(&mut l, "b", of_b), ["gate b"]);
    assert_eq!(close(&mut l, "gate a", Vec::new()), [""; 0]);
    l.closed(&id("gate b"), Vec::new());
    l.advance(&BTreeMap::new());
    let saved = l.snapshot();
    l.saved(&saved);
    let open = l.openable();
    assert_eq!(open[0].1, Some(at(6)));
    assert_eq!(names(open), ["m"]);
}

#[test]
fn finished_partitions_are_forgotten_and_stay_finished() {
    let mut l = lineage();
    l.openable();
    close(&mut l, "root", vec![child("p0", &["root"], 1)]);
    for n in 0..1000 {
        let (parent, next) = (format!("p{n}"), format!("p{}", n + 1));
        reach(&mut l, &parent, 2, n);
        assert_eq!(close(&mut l, &parent, vec![child(&next, &[&parent], 1)]), std::slice::from_ref(&next));
        assert!(l.snapshot().len() <= 3, "{}", l.snapshot().len());
    }
    // The root is listed again at every start: it is never forgotten.
    let stored = l.snapshot();
    assert_eq!(stored.keys().map(PartitionId::as_str).collect::<Vec<_>>(), ["p1000", "root"]);
    let mut again = Lineage::new(stored, vec![Partition::root(id("root"))]);
    assert_eq!(names(again.openable()), ["p1000"]);
}

#[test]
fn a_parent_that_a_waiting_child_needs_is_kept() {
    let mut l = lineage();
    l.openable();
    close(&mut l, "root", vec![child("a", &["root"], 1), child("b", &["root"], 1)]);
    close(&mut l, "a", vec![child("m", &["a", "b"], 5), child("n", &["a"], 5)]);
    assert!(l.snapshot().contains_key("a"));
    let mut again = Lineage::new(l.snapshot(), vec![Partition::root(id("root"))]);
    assert_eq!(names(again.openable()), ["b", "n"]);
    assert_eq!(close(&mut again, "b", vec![child("m", &["a", "b"], 5)]), ["m"]);
    assert!(!again.snapshot().contains_key("a"));
}

#[test]
fn a_drain_that_waits_for_a_forgotten_partition_ends() {
    let mut l = lineage();
    l.openable();
    close(&mut l, "root", vec![child("a", &["root"], 1)]);
    reach(&mut l, "a", 2, 1);
    close(&mut l, "a", vec![child("b", &["a"], 3)]);
    assert_eq!(l.snapshot().keys().map(PartitionId::as_str).collect::<Vec<_>>(), ["b", "root"]);
    assert!(l.finished().contains("a") && !l.finished().contains("b"));
}

#[test]
fn safe_time_passes_from_parents_to_children_and_never_goes_back() {
    let mut l = lineage();
    l.openable();
    close(&mut l, "root", vec![child("a", &["root"], 1), child("b", &["root"], 1)]);
    assert_eq!(l.safe_time(), None);
    reach(&mut l, "a", 3, 30);
    assert_eq!(l.safe_time(), None);
    reach(&mut l, "b", 4, 40);
    let mut last = l.safe_time();
    assert_eq!(last, Some(Timestamp::from_micros(30)));
    let mut check = |l: &Lineage| {
        assert!(l.safe_time() >= last, "{:?} after {last:?}", l.safe_time());
        last = l.safe_time();
    };
    // A split: the children are known before the parent is durable.
    l.received(&id("a"), &at(6));
    l.closed(&id("a"), vec![child("a1", &["a"], 6), child("a2", &["a"], 6)]);
    check(&l);
    reach(&mut l, "a", 6, 60);
    check(&l);
    assert_eq!(l.safe_time(), Some(Timestamp::from_micros(40)));
    let saved = l.snapshot();
    l.saved(&saved);
    assert_eq!(names(l.openable()), ["a1", "a2"]);
    check(&l);
    // A merge of one child with the other partition.
    reach(&mut l, "b", 7, 70);
    check(&l);
    assert_eq!(l.safe_time(), Some(Timestamp::from_micros(60)));
    close(&mut l, "b", vec![child("m", &["b", "a1"], 8)]);
    check(&l);
    reach(&mut l, "a2", 9, 90);
    reach(&mut l, "a1", 8, 80);
    check(&l);
    close(&mut l, "a1", vec![child("m", &["b", "a1"], 8)]);
    check(&l);
    assert_eq!(l.safe_time(), Some(Timestamp::from_micros(80)));
}
