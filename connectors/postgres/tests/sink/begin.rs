//! A unit is one flight of statements: when its BEGIN fails, nothing of it may be committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_postgres::PostgresSink;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Passes connections on to `server`. Once `spoil` is set, the next BEGIN arrives as something that the
/// server refuses: as if somebody had cancelled it.
async fn proxy(server: String, spoil: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
            let spoil = Arc::clone(&spoil);
            tokio::spawn(async move {
                let mut buffer = [0; 65_536];
                while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                    let begin = buffer[..n].windows(5).position(|w| w == b"BEGIN");
                    if let Some(at) = begin.filter(|_| spoil.swap(false, Ordering::Relaxed)) {
                        buffer[at..at + 5].copy_from_slice(b"BEGUN");
                    }
                    if to_server.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_whose_begin_fails_leaves_nothing() {
    for db in databases() {
        db.exec("CREATE TABLE a (id bigint PRIMARY KEY, v text)");
        let spoil = Arc::new(AtomicBool::new(false));
        let port = proxy(format!("127.0.0.1:{}", db.server.port()), Arc::clone(&spoil)).await;
        let sink = PostgresSink::new(db.url().replace(&format!(":{}/", db.server.port()), &format!(":{port}/")));
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
