//! What every [`Leases`] must do.

use std::sync::Arc;

use anabranch_core::{Counters, Lease, Leases, Partition, PartitionId, PartitionProgress, Position, Rank};

/// Runs every check. `open` gives a new handle to one store, which is empty at first: as another
/// process would get it, where the store allows that.
///
/// # Panics
/// With what the leases did wrong.
pub async fn run(open: impl AsyncFn() -> Arc<dyn Leases>) {
    what_is_created_is_listed_once(&open).await;
    a_child_of_two_parents_waits_for_both(&open).await;
    of_two_takers_one_wins(&open).await;
    each_owner_has_a_higher_epoch(&open).await;
    a_lost_lease_stores_nothing(&open).await;
    a_store_whose_answer_was_lost_is_no_loss(&open).await;
    a_process_of_the_same_name_is_another_one(&open).await;
    asking_disturbs_nobody(&open).await;
    a_finished_lease_stays_until_it_is_forgotten(&open).await;
    pipelines_are_apart(&open).await;
}

/// Partitions keep their parents and start, and are created once, also while they are owned or finished.
async fn what_is_created_is_listed_once(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let (one, two) = (open().await, open().await);
    let pipeline = "leases-created";
    assert!(one.list(pipeline).await.expect("list nothing").is_empty());
    let parent = Partition::root(PartitionId::new("parent"));
    let child = Partition {
        id: PartitionId::new("a child with a name that is rather long: 0123456789abcdef0123456789abcdef"),
        parents: vec![parent.id.clone()],
        start: Some(Position::new(Rank::of_end(&[1]), &b"token"[..])),
    };
    one.create(pipeline, std::slice::from_ref(&parent)).await.expect("create");
    two.create(pipeline, &[parent.clone(), child.clone()]).await.expect("create again");
    let taken = take(&one, pipeline, &parent.id, "w").await;
    one.create(pipeline, &[child.clone(), parent.clone()]).await.expect("create a taken one");
    let mut listed: Vec<Lease> = two.list(pipeline).await.expect("list").into_iter().map(timeless).collect();
    listed.sort_by(|a, b| b.id().cmp(a.id()));
    assert_eq!(listed, [taken, Lease::new(child)]);
}

/// Each parent of a merged partition may know parents that the other does not, and the later one
/// where it begins.
async fn a_child_of_two_parents_waits_for_both(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let leases = open().await;
    let pipeline = "leases-merged";
    let child = |parent: &str, start: u8| Partition {
        id: PartitionId::new("child"),
        parents: vec![PartitionId::new(parent)],
        start: Some(Position::new(Rank::of_end(&[start]), vec![start])),
    };
    for (parent, start) in [("one", 3), ("two", 5), ("one", 3)] {
        leases.create(pipeline, &[child(parent, start)]).await.expect("create");
    }
    let listed = find(&leases, pipeline, &child("one", 0).id).await;
    assert_eq!(listed.partition.parents, [PartitionId::new("one"), PartitionId::new("two")]);
    assert_eq!(listed.partition.start, child("", 5).start);
}

async fn of_two_takers_one_wins(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let (one, two) = (open().await, open().await);
    let pipeline = "leases-race";
    one.create(pipeline, &[root()]).await.expect("create");
    for round in 0..10 {
        let seen = find(&one, pipeline, &root().id).await;
        let (a, b) = tokio::join!(one.take(pipeline, &seen, "one"), two.take(pipeline, &seen, "two"));
        let (a, b) = (a.expect("take"), b.expect("take"));
        assert_eq!(u8::from(a.is_some()) + u8::from(b.is_some()), 1, "round {round}: {a:?} {b:?}");
        let won = a.or(b).map(timeless);
        assert_eq!(won, Some(find(&two, pipeline, &root().id).await), "what it was given is not what is stored");
        assert!(won.is_some_and(|w| w.counter > seen.counter), "the counter did not move");
    }
}

/// The next owner finds what the last one stored, with the next epoch, also after a release.
async fn each_owner_has_a_higher_epoch(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let leases = open().await;
    let pipeline = "leases-epoch";
    leases.create(pipeline, &[root()]).await.expect("create");
    let mut epoch = 0;
    for n in 0..4_u8 {
        let mut held = take(&leases, pipeline, &root().id, &format!("worker-{n}")).await;
        assert!(held.checkpoint.epoch > epoch, "the epoch did not grow");
        let expected = (n > 0).then(|| progress(n - 1));
        assert_eq!(held.checkpoint.partitions.get(&root().id).cloned(), expected);
        // As every attempt of the owner does.
        held.checkpoint.epoch += 1;
        epoch = held.checkpoint.epoch;
        held.checkpoint.partitions.insert(root().id, progress(n));
        held.counter = leases.store(pipeline, &held).await.expect("store").expect("it is held");
        if n % 2 == 0 {
            assert!(leases.release(pipeline, &held, false).await.expect("release"));
            let found = find(&leases, pipeline, &root().id).await;
            assert_eq!((found.owner, found.finished), (None, false));
            assert_eq!(leases.store(pipeline, &held).await.expect("store"), None, "it was released");
        }
    }
}

async fn a_lost_lease_stores_nothing(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let (one, two) = (open().await, open().await);
    let pipeline = "leases-lost";
    one.create(pipeline, &[root()]).await.expect("create");
    let mut zombie = take(&one, pipeline, &root().id, "zombie").await;
    let owner = take(&two, pipeline, &root().id, "owner").await;
    zombie.checkpoint.partitions.insert(root().id, progress(9));
    assert_eq!(one.store(pipeline, &zombie).await.expect("store"), None);
    assert!(!one.release(pipeline, &zombie, true).await.expect("release"));
    assert_eq!(one.take(pipeline, &zombie, "zombie").await.expect("take"), None, "its counter has moved");
    assert_eq!(find(&one, pipeline, &root().id).await, owner);
    assert_eq!(one.counted(pipeline).await.expect("count"), Counters::default());
}

async fn a_store_whose_answer_was_lost_is_no_loss(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let leases = open().await;
    let pipeline = "leases-unsure";
    leases.create(pipeline, &[root()]).await.expect("create");
    let mut held = take(&leases, pipeline, &root().id, "w").await;
    leases.store(pipeline, &held).await.expect("store").expect("it is held");
    // The counter of that is not known: the worker still has the one before.
    held.checkpoint.partitions.insert(root().id, progress(3));
    let counter = leases.store(pipeline, &held).await.expect("store").expect("it is held");
    let found = find(&leases, pipeline, &root().id).await;
    assert_eq!((found.counter, found.checkpoint.partitions.get(&root().id)), (counter, Some(&progress(3))));
    assert!(leases.release(pipeline, &held, false).await.expect("release"), "it is held");
}

/// A process is frozen, or cut off, and is started again elsewhere under the name that it is given: what it had is
/// taken by the new one.
async fn a_process_of_the_same_name_is_another_one(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let (one, two) = (open().await, open().await);
    let pipeline = "leases-same-name";
    one.create(pipeline, &[root()]).await.expect("create");
    let mut frozen = take(&one, pipeline, &root().id, "w").await;
    frozen.checkpoint.partitions.insert(root().id, progress(1));
    frozen.counter = one.store(pipeline, &frozen).await.expect("store").expect("it is held");

    let mut owner = take(&two, pipeline, &root().id, "w").await;
    owner.checkpoint.partitions.insert(root().id, progress(5));
    owner.counter = two.store(pipeline, &owner).await.expect("store").expect("it is held");
    assert_eq!(one.store(pipeline, &frozen).await.expect("store"), None, "it wrote over its successor");
    assert!(!one.release(pipeline, &frozen, true).await.expect("release"), "it released its successor's lease");
    let found = find(&two, pipeline, &root().id).await;
    assert_eq!((found.owner.as_deref(), found.checkpoint.epoch), (Some("w"), owner.checkpoint.epoch));
    assert_eq!(found.checkpoint.partitions.get(&root().id), Some(&progress(5)));
    assert!(two.store(pipeline, &owner).await.expect("store").is_some(), "it is held");
}

async fn asking_disturbs_nobody(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let (owner, other) = (open().await, open().await);
    let pipeline = "leases-wanted";
    owner.create(pipeline, &[root()]).await.expect("create");
    let mut held = take(&owner, pipeline, &root().id, "owner").await;
    other.ask(pipeline, &root().id, "other").await.expect("ask");
    other.ask(pipeline, &root().id, "third").await.expect("ask too late");
    let seen = find(&owner, pipeline, &root().id).await;
    assert_eq!((seen.wanted_by.as_deref(), seen.counter), (Some("other"), held.counter));
    held.counter = owner.store(pipeline, &held).await.expect("store").expect("it is held");
    assert_eq!(find(&other, pipeline, &root().id).await.wanted_by.as_deref(), Some("other"), "a store keeps it");
    assert!(owner.release(pipeline, &held, false).await.expect("release"));
    let seen = find(&other, pipeline, &root().id).await;
    assert_eq!((seen.owner.as_deref(), seen.wanted_by.as_deref()), (None, Some("other")));
    take(&other, pipeline, &root().id, "other").await;
    let seen = find(&other, pipeline, &root().id).await;
    assert_eq!((seen.owner.as_deref(), seen.wanted_by), (Some("other"), None), "the wish is fulfilled");
}

/// Its progress is still told, its counters are told once, and it is not created again by another parent.
async fn a_finished_lease_stays_until_it_is_forgotten(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let leases = open().await;
    let pipeline = "leases-finished";
    let other = Partition::root(PartitionId::new("other"));
    leases.create(pipeline, &[root(), other.clone()]).await.expect("create");
    let mut held = take(&leases, pipeline, &root().id, "w").await;
    held.checkpoint.partitions.insert(root().id, progress(7));
    held.checkpoint.counters.changes = 5;
    assert!(leases.release(pipeline, &held, true).await.expect("finish"));
    leases.create(pipeline, &[root()]).await.expect("create again");
    let found = find(&leases, pipeline, &root().id).await;
    assert!(found.finished && found.owner.is_none(), "{found:?}");
    let told = found.checkpoint.partitions.get(&root().id).expect("its progress");
    assert_eq!((&told.position, told.safe_time), (&progress(7).position, progress(7).safe_time));
    assert_eq!(changes(&leases, pipeline).await, 5);

    leases.forget(pipeline, &[root().id, other.id.clone()]).await.expect("forget");
    let left = leases.list(pipeline).await.expect("list");
    assert_eq!(left, [Lease::new(other)], "only what is finished may be forgotten");
    assert_eq!(changes(&leases, pipeline).await, 5);
    leases.forget(pipeline, &[root().id]).await.expect("forget again");
    assert_eq!(changes(&leases, pipeline).await, 5);
}

async fn pipelines_are_apart(open: &impl AsyncFn() -> Arc<dyn Leases>) {
    let leases = open().await;
    for pipeline in ["leases-a", "leases-b"] {
        leases.create(pipeline, &[root()]).await.expect("create");
    }
    take(&leases, "leases-a", &root().id, "w").await;
    assert_eq!(leases.list("leases-b").await.expect("list"), [Lease::new(root())]);
}

fn root() -> Partition {
    Partition::root(PartitionId::new("shard-1"))
}

fn progress(n: u8) -> PartitionProgress {
    let position = Position::new(Rank::of_end(&[n]), vec![n]);
    let safe_time = Some(anabranch_core::Timestamp::from_micros(i64::from(n)));
    PartitionProgress { position: Some(position), safe_time, ..PartitionProgress::default() }
}

async fn find(leases: &Arc<dyn Leases>, pipeline: &str, id: &PartitionId) -> Lease {
    let listed = leases.list(pipeline).await.expect("list");
    listed.into_iter().find(|l| l.id() == id).map(timeless).expect("the lease is listed")
}

/// Takes it, as it is now.
async fn take(leases: &Arc<dyn Leases>, pipeline: &str, id: &PartitionId, worker: &str) -> Lease {
    let seen = find(leases, pipeline, id).await;
    leases.take(pipeline, &seen, worker).await.expect("take").map(timeless).expect("nobody else takes it")
}

/// An implementation may note when it stored a checkpoint.
fn timeless(mut lease: Lease) -> Lease {
    lease.checkpoint.saved_at = None;
    lease
}

async fn changes(leases: &Arc<dyn Leases>, pipeline: &str) -> u64 {
    let listed: u64 = leases.list(pipeline).await.expect("list").iter().map(|l| l.checkpoint.counters.changes).sum();
    listed + leases.counted(pipeline).await.expect("count").changes
}
