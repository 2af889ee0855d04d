//! Answers that arrive in pieces, as over a slow or loaded network. The driver passes them on piece by
//! piece, and reads no further when a statement's pieces are not taken: whoever waits for a later
//! statement, and takes nothing meanwhile, waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::Sink;
use anabranch_postgres::PostgresSink;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Smaller than any answer to a statement.
const PIECE: usize = 6;
/// A unit takes a fraction of a second; a connection that is stuck never moves again.
const DEADLINE: Duration = Duration::from_secs(60);

/// Passes connections on to `server`. Once `pieces` is set, what the server says arrives bit by bit.
async fn proxy(server: String, pieces: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            client.set_nodelay(true).unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
            let pieces = Arc::clone(&pieces);
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    let size = if pieces.load(Ordering::Relaxed) { PIECE } else { n };
                    for piece in buffer[..n].chunks(size) {
                        if to_client.write_all(piece).await.is_err() {
                            return;
                        }
                        if size == PIECE {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_pieces_do_not_stop_a_unit() {
    for db in databases() {
        db.exec(
            "CREATE TABLE a (id bigint PRIMARY KEY, v text UNIQUE); CREATE TABLE b (id bigint PRIMARY KEY, v text)",
        );
        let pieces = Arc::new(AtomicBool::new(false));
        let port = proxy(format!("127.0.0.1:{}", db.server.port()), Arc::clone(&pieces)).await;
        let sink = PostgresSink::new(db.url().replace(&format!(":{}/", db.server.port()), &format!(":{port}/")));
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
