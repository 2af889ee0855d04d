//! Answers that arrive in pieces, as over a slow or loaded network. The driver passes them on piece by
//! piece, and reads no further when a statement's pieces are not taken: whoever waits for a later
//! statement, and takes nothing meanwhile, waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::support::*;

/// Smaller than any answer to a statement.
const PIECE: usize = 6;
/// Between two pieces, so that they are not joined on the way.
const APART: Duration = Duration::from_millis(1);
/// A unit takes a fraction of a second; a connection that is stuck never moves again.
const DEADLINE: Duration = Duration::from_secs(60);

/// Carries what the server says: bit by bit once `pieces` is set.
async fn in_pieces(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pieces: Arc<AtomicBool>) {
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let size = if pieces.load(Ordering::Relaxed) { PIECE } else { n };
        for piece in buffer[..n].chunks(size) {
            if to.write_all(piece).await.is_err() {
                return;
            }
            if size == PIECE {
                tokio::time::sleep(APART).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_pieces_do_not_stop_a_unit() {
    for db in databases() {
        db.exec(
            "CREATE TABLE a (id bigint PRIMARY KEY, v text UNIQUE); CREATE TABLE b (id bigint PRIMARY KEY, v text)",
        );
        let pieces = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&pieces);
        let sink = db.sink_through(unchanged, move |from, to| in_pieces(from, to, Arc::clone(&told))).await;
        let mut w = db.writer(&sink, 1).await;
        let (a, b) = (table("a", &[("id", INT), ("v", TEXT)], 1), table("b", &[("id", INT), ("v", TEXT)], 1));
        write(&mut w, &Changes::new().insert(&a, &["1", "x"]).insert(&a, &["2", "y"]).unit()).await;

        pieces.store(true, Ordering::Relaxed);
        // Refused at first, for two rows swap their unique values; and each table needs statements that
        // are prepared while others are under way.
        let unit = Changes::new()
            .update(&a, None, &["1", "y"])
            .update(&a, None, &["2", "x"])
            .insert(&b, &["1", "z"])
            .insert(&b, &["2", "z"])
            .delete(&b, &["1", "?"])
            .update(&b, None, &["7", "?"])
            .unit();
        let rest = Changes::new().insert(&b, &["7", "z"]).unit();
        for unit in [&rest, &unit] {
            let written = tokio::time::timeout(DEADLINE, w.write(unit)).await.expect("it is stuck");
            assert!(written.is_ok(), "{written:?}");
        }
        assert_eq!(db.rows("SELECT id, v FROM a ORDER BY id"), ["1|y", "2|x"]);
        assert_eq!(db.rows("SELECT id, v FROM b ORDER BY id"), ["2|z", "7|z"]);
    }
}
