//! A unit is one flight of statements: when its BEGIN fails, nothing of it may be committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::support::*;

/// Carries what the sink says. Once `spoil` is set, the next BEGIN arrives as something that the server
/// refuses: as if somebody had cancelled it.
async fn spoiled(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoil: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let begin = buffer[..n].windows(5).position(|w| w == b"BEGIN");
        if let Some(at) = begin.filter(|_| spoil.swap(false, Ordering::Relaxed)) {
            buffer[at..at + 5].copy_from_slice(b"BEGUN");
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_whose_begin_fails_leaves_nothing() {
    for db in databases() {
        db.exec("CREATE TABLE a (id bigint PRIMARY KEY, v text)");
        let spoil = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&spoil);
        let sink = db.sink_through(move |from, to| spoiled(from, to, Arc::clone(&told)), unchanged).await;
        let mut w = db.writer(&sink, 1).await;
        let a = table("a", &[("id", INT), ("v", TEXT)], 1);
        write(&mut w, &Changes::new().insert(&a, &["1", "x"]).unit()).await;
        let lanes = db.rows("SELECT lane, changes, transactions FROM anabranch.lane");

        spoil.store(true, Ordering::Relaxed);
        let unit = Changes::new().update(&a, None, &["1", "y"]).insert(&a, &["2", "y"]).unit();
        let refused = w.write(&unit).await.unwrap_err();
        assert!(!spoil.load(Ordering::Relaxed), "the BEGIN was not seen: {refused:?}");
        assert_eq!(db.rows("SELECT id, v FROM a ORDER BY id"), ["1|x"], "{}", refused.report());
        assert_eq!(db.rows("SELECT lane, changes, transactions FROM anabranch.lane"), lanes);

        write(&mut w, &unit).await;
        assert_eq!(db.rows("SELECT id, v FROM a ORDER BY id"), ["1|y", "2|y"]);
    }
}
