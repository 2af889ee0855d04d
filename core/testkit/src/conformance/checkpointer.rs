//! What every [`Checkpointer`] must do.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    Checkpoint, Checkpointer, Counters, PartitionId, PartitionProgress, PartitionStatus, Position, Rank, Saved,
    Sharing, SnapshotPhase, SourceIdentity, TableName, TableSnapshot, Timestamp, Version,
};

/// Runs every check. `open` gives a new handle to one store, which is empty at first: as another
/// process would get it, where the store allows that.
///
/// # Panics
/// With what the checkpointer did wrong.
pub async fn run(open: impl AsyncFn() -> Arc<dyn Checkpointer>) {
    nothing_is_stored_at_first(&open).await;
    what_is_saved_is_loaded(&open).await;
    a_stale_version_conflicts(&open).await;
    of_two_savers_one_wins(&open).await;
    pipelines_are_apart(&open).await;
    a_newer_format_is_refused(&open).await;
}

/// A pipeline without a checkpoint is `None`, and nothing to compare with.
async fn nothing_is_stored_at_first(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let store = open().await;
    assert_eq!(load(&store, "conformance-new").await, None, "an empty store gave a checkpoint");
    let saved = store.save("conformance-new", Some(Version(1)), &Checkpoint::default()).await;
    assert_eq!(saved.expect("save over a version that is not there"), Saved::Conflict);
    assert_eq!(load(&store, "conformance-new").await, None, "a conflict stored something");
}

/// Every field comes back, through another handle, and versions grow.
async fn what_is_saved_is_loaded(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let mut expected = None;
    let mut checkpoint = full();
    for epoch in 1..=5 {
        checkpoint.epoch = epoch;
        let version = committed(open().await.save("conformance-full", expected, &checkpoint).await);
        assert!(Some(version) > expected, "version {version:?} does not grow from {expected:?}");
        assert_eq!(load(&open().await, "conformance-full").await, Some((version, checkpoint.clone())));
        expected = Some(version);
    }
}

/// Nothing is stored over a version that somebody else replaced, or that was thought absent.
async fn a_stale_version_conflicts(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let (mine, theirs) = (open().await, open().await);
    let pipeline = "conformance-stale";
    let first = committed(mine.save(pipeline, None, &numbered(1)).await);
    let second = committed(theirs.save(pipeline, Some(first), &numbered(2)).await);
    for stale in [None, Some(first), Some(Version(second.0 + 1))] {
        assert_eq!(mine.save(pipeline, stale, &numbered(9)).await.expect("a stale save"), Saved::Conflict, "{stale:?}");
    }
    assert_eq!(load(&mine, pipeline).await, Some((second, numbered(2))));
}

/// Saves that overlap in time never both succeed.
async fn of_two_savers_one_wins(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let (one, two) = (open().await, open().await);
    let pipeline = "conformance-race";
    let mut expected = None;
    for round in 0..20 {
        let (a, b) = (numbered(2 * round), numbered(2 * round + 1));
        let saves = futures_util::future::join(one.save(pipeline, expected, &a), two.save(pipeline, expected, &b));
        let (winner, version) = match saves.await {
            (Ok(Saved::Committed(version)), Ok(Saved::Conflict)) => (a, version),
            (Ok(Saved::Conflict), Ok(Saved::Committed(version))) => (b, version),
            other => panic!("of two saves over {expected:?} not exactly one won: {other:?}"),
        };
        assert_eq!(load(&one, pipeline).await, Some((version, winner)));
        expected = Some(version);
    }
}

/// Names are compared exactly, and whatever is in them.
async fn pipelines_are_apart(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let store = open().await;
    let names = ["conformance-a", "conformance-a.json", "conformance/a b", "conformance-'\"\\%ä"];
    for (epoch, name) in names.iter().enumerate() {
        committed(store.save(name, None, &numbered(epoch as u64)).await);
    }
    for (epoch, name) in names.iter().enumerate() {
        assert_eq!(load(&store, name).await.map(|(_, c)| c.epoch), Some(epoch as u64), "{name}");
    }
}

/// What a newer version of the library stored is an error, not a guess.
async fn a_newer_format_is_refused(open: &impl AsyncFn() -> Arc<dyn Checkpointer>) {
    let store = open().await;
    let newer = Checkpoint { format: Checkpoint::FORMAT + 1, ..numbered(1) };
    if store.save("conformance-newer", None, &newer).await.is_ok() {
        let loaded = store.load("conformance-newer").await;
        assert!(loaded.is_err(), "the checkpoint of a newer format was loaded");
    }
}

async fn load(store: &Arc<dyn Checkpointer>, pipeline: &str) -> Option<(Version, Checkpoint)> {
    store.load(pipeline).await.expect("load")
}

fn committed(saved: anabranch_core::Result<Saved>) -> Version {
    match saved.expect("save") {
        Saved::Committed(version) => version,
        Saved::Conflict => panic!("a save over the current version conflicted"),
    }
}

fn numbered(epoch: u64) -> Checkpoint {
    Checkpoint { epoch, ..Checkpoint::default() }
}

/// A checkpoint with something in every field.
fn full() -> Checkpoint {
    let position = |n: u8| Position::new(Rank::of_end(&[0, n]), vec![0, n, 255]);
    let mut checkpoint = Checkpoint {
        identity: SourceIdentity::default().with("slot", "it's \"quoted\" ä\n"),
        order: "transaction".to_owned(),
        lanes: 4,
        counters: Counters { changes: u64::MAX >> 1, transactions: 2, snapshot_rows: 3, dead_letters: 4 },
        paused: true,
        saved_at: Some(Timestamp::from_micros(-1)),
        sharing: Some(Sharing {
            owner: Some("host-1".to_owned()),
            finished: true,
            wanted: BTreeMap::from([(PartitionId::new("p"), "host-2".to_owned())]),
        }),
        ..Checkpoint::default()
    };
    let progress = PartitionProgress {
        parents: vec![PartitionId::new("p0")],
        start: Some(position(1)),
        position: Some(position(2)),
        safe_time: Some(Timestamp::from_micros(1_700_000_000_000_001)),
        status: PartitionStatus::Running,
    };
    checkpoint.partitions.insert(PartitionId::new("p1"), progress);
    checkpoint.partitions.insert(PartitionId::new("p0"), PartitionProgress::default());
    checkpoint.snapshot.phase = SnapshotPhase::Copying;
    let done_chunks = [0, 2, 5].into();
    let table =
        TableSnapshot { point: position(1), chunks: 7, done: 3, rows: 1234, done_chunks, ..TableSnapshot::default() };
    checkpoint.snapshot.tables.insert(TableName::new("public", "orders"), table);
    checkpoint
}
