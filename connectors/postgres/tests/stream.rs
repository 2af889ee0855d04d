//! The change stream, against real servers.

mod support;

use std::collections::BTreeMap;

use anabranch_core::*;
use anabranch_postgres::SchemaChange;
use support::reading::{
    changes, next, open, prepared, prepared_with, refusal, refusal_behind, reopen, source, transactions, value,
};
use support::{BOTH, PgVersion, start};

#[tokio::test]
async fn rows_images_and_unchanged_values() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            r#"CREATE TABLE d (id int PRIMARY KEY, note text, big text);
               ALTER TABLE d ALTER big SET STORAGE EXTERNAL;
               CREATE TABLE f (id int PRIMARY KEY, note text, big text);
               ALTER TABLE f ALTER big SET STORAGE EXTERNAL;
               ALTER TABLE f REPLICA IDENTITY FULL;
               CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, note text);
               CREATE UNIQUE INDEX i_code ON i (code);
               ALTER TABLE i REPLICA IDENTITY USING INDEX i_code;
               CREATE TABLE n (a int, b text);
               ALTER TABLE n REPLICA IDENTITY FULL;
               CREATE TABLE later (id int PRIMARY KEY DEFERRABLE, b text);
               ALTER TABLE later REPLICA IDENTITY FULL;
               CREATE SCHEMA "Mixed Case";
               CREATE TABLE "Mixed Case"."Or""ders" ("Id" int PRIMARY KEY, "no te" text);
               CREATE TABLE bigkey (k text PRIMARY KEY, v int);
               ALTER TABLE bigkey ALTER k SET STORAGE EXTERNAL;"#,
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        sql.batch_execute(
            r#"BEGIN;
               INSERT INTO d VALUES (1, NULL, repeat('x', 5000)), (2, '', 'small');
               UPDATE d SET note = 'b' WHERE id = 1;
               UPDATE d SET id = 3 WHERE id = 1;
               DELETE FROM d WHERE id = 3;
               COMMIT;
               BEGIN;
               INSERT INTO f VALUES (1, NULL, repeat('y', 5000));
               UPDATE f SET note = 'b';
               DELETE FROM f;
               COMMIT;
               BEGIN;
               INSERT INTO i VALUES (1, 'one', 'n');
               UPDATE i SET note = 'm';
               UPDATE i SET code = 'two';
               DELETE FROM i;
               COMMIT;
               BEGIN;
               INSERT INTO n VALUES (1, 'ü'), (1, 'ü');
               UPDATE n SET a = 2 WHERE ctid = '(0,1)';
               COMMIT;
               BEGIN;
               INSERT INTO "Mixed Case"."Or""ders" VALUES (7, E'tab\t''quote');
               TRUNCATE d, f RESTART IDENTITY CASCADE;
               SELECT pg_logical_emit_message(true, 'pre', 'content');
               SELECT pg_logical_emit_message(false, 'pre', 'not transactional');
               COMMIT;
               BEGIN;
               INSERT INTO bigkey VALUES (repeat('k', 2500), 1);
               UPDATE bigkey SET v = 2;
               COMMIT;"#,
        )
        .await
        .unwrap();
        let got = changes(&mut reader, 6).await;
        assert_eq!(
            got[0],
            [
                "+public.d(1,NULL,<5000>)",
                "+public.d(2,,small)",
                "*public.dNone->(1,b,~)",
                "*public.dKey(1,~,~)->(3,b,~)",
                "-public.dKey(3,~,~)",
            ],
            "{version:?}"
        );
        assert_eq!(
            got[1],
            ["+public.f(1,NULL,<5000>)", "*public.fFull(1,NULL,<5000>)->(1,b,<5000>)", "-public.fFull(1,b,<5000>)",]
        );
        assert_eq!(
            got[2],
            [
                "+public.i(1,one,n)",
                "*public.iNone->(1,one,m)",
                "*public.iKey(~,one,~)->(1,two,m)",
                "-public.iKey(~,two,~)",
            ]
        );
        assert_eq!(got[3], ["+public.n(1,ü)", "+public.n(1,ü)", "*public.nFull(1,ü)->(2,ü)"]);
        assert_eq!(got[4][0], "+Mixed Case.Or\"ders(7,tab\t'quote)");
        assert_eq!(got[4].len(), 4, "{:?}", got[4]);
        assert!(got[4].contains(&"truncate public.d true true".to_owned()));
        assert!(got[4].contains(&"message pre content".to_owned()));
        assert_eq!(got[5][1], "*public.bigkeyKey(<2500>,~)->(<2500>,2)");

        let tables = Source::tables(&source).await.unwrap();
        let key = |name: &str| {
            let t = tables.iter().find(|t| t.name.name == name).unwrap();
            t.key_columns().map(|c| c.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!((key("d"), key("f"), key("i")), (vec!["id".into()], vec!["id".into()], vec!["code".to_owned()]));
        assert_eq!(key("n"), Vec::<String>::new());
        assert_eq!(key("later"), Vec::<String>::new(), "a deferrable key may be doubled within a transaction");
        reader.close().await.unwrap();
    }
}

#[tokio::test]
async fn reading_goes_on_after_the_last_transaction() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        for id in 1..=4 {
            sql.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
        }
        let first = transactions(&mut reader, 2).await.unwrap();
        // Dropped, not closed: the server may still hold the slot for a moment.
        drop(reader);
        let after = first[1].1.clone();
        assert!(source.describe(&after).contains('/'));
        let partitions = source.partitions().await.unwrap();
        let from = StartFrom { position: Some(after.clone()), snapshots: BTreeMap::new() };
        let mut reader = loop {
            match source.open(&partitions[0], &from).await {
                Ok(reader) => break reader,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}"),
            }
        };
        assert_eq!(changes(&mut reader, 2).await, [["+public.t(3)"], ["+public.t(4)"]]);
        // The same from within a transaction: what was given is not given again.
        drop(reader);
        sql.batch_execute("INSERT INTO t SELECT generate_series(10, 14)").await.unwrap();
        let mut reader = reopen(&source, Some(after.clone())).await;
        let all = transactions(&mut reader, 3).await.unwrap();
        let end = &all[2].1;
        let prefix = end.rank.as_bytes()[..8].to_vec();
        let within = Position::new(Rank::of_change(&prefix, 3), after.token.clone());
        drop(reader);
        let mut reader = reopen(&source, Some(within)).await;
        assert_eq!(changes(&mut reader, 1).await, [["+public.t(13)", "+public.t(14)"]]);
    }
}

#[tokio::test]
async fn an_idle_source_advances() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)").await.unwrap();
        let source = source(&server).tables(["t"]);
        source.prepare(None).await.unwrap();
        let mut reader = open(&source, None).await;
        // Somebody has written, and waits in his transaction: that holds nothing up.
        let idle = server.client().await;
        idle.batch_execute("BEGIN; INSERT INTO other VALUES (0)").await.unwrap();
        // Only an unpublished table writes.
        sql.batch_execute("INSERT INTO other SELECT generate_series(1, 50000)").await.unwrap();
        let row = sql
            .query_one("SELECT pg_current_wal_lsn()::text, (extract(epoch from clock_timestamp())*1000000)::int8", &[])
            .await
            .unwrap();
        let written: anabranch_postgres::Lsn = row.get::<_, &str>(0).parse().unwrap();
        let at = Timestamp::from_micros(row.get(1));
        let mut acknowledged = Position::default();
        for _ in 0..30 {
            let batch = next(&mut reader).await.unwrap();
            assert!(batch.is_empty());
            assert!(batch.end().rank >= acknowledged.rank);
            acknowledged = batch.end().clone();
            reader.acknowledge(Some(&acknowledged)).await.unwrap();
            if batch.safe_time().is_some_and(|t| t > at) {
                assert!(batch.lag_bytes().is_some());
                break;
            }
        }
        let flushed = || async {
            let row = sql.query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[]).await.unwrap();
            row.get::<_, &str>(0).parse::<anabranch_postgres::Lsn>().unwrap()
        };
        let mut rounds = 0;
        while flushed().await < written {
            next(&mut reader).await.unwrap();
            rounds += 1;
            assert!(rounds < 10, "{version:?}: the slot stands at {} before {written}", flushed().await);
        }
        // A marker on an idle source is reached.
        let marked = source.marker().unwrap().mark().await.unwrap();
        let marker = marked.values().next().unwrap();
        let mut rounds = 0;
        while next(&mut reader).await.unwrap().end().rank < marker.rank {
            rounds += 1;
            assert!(rounds < 10);
        }
        let left = source.retention().unwrap().left().await.unwrap();
        assert!(left.held_bytes.is_some() && left.at.is_some());
    }
}

#[tokio::test]
async fn filters_lists_and_partitions() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE filtered (id int PRIMARY KEY, v int);
             ALTER TABLE filtered REPLICA IDENTITY FULL;
             CREATE TABLE listed (id int PRIMARY KEY, shown text, hidden text);
             CREATE TABLE parts (id int, at date, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
             CREATE PUBLICATION pub FOR TABLE filtered WHERE (v > 10), TABLE listed (id, shown), TABLE parts
               WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        let tables = Source::tables(&source).await.unwrap();
        let names: Vec<_> = tables.iter().map(|t| t.name.to_string()).collect();
        assert_eq!(names, ["public.filtered", "public.listed", "public.parts"]);
        assert_eq!(tables[1].columns.len(), 2);
        assert_eq!(tables[2].key, [1, 0], "key order is that of the index");
        let mut reader = open(&source, None).await;
        sql.batch_execute(
            "BEGIN;
             INSERT INTO filtered VALUES (1, 5), (2, 20);
             UPDATE filtered SET v = 30 WHERE id = 1;
             UPDATE filtered SET v = 1 WHERE id = 2;
             INSERT INTO listed VALUES (1, 's', 'h');
             INSERT INTO parts VALUES (1, '2020-05-05'), (2, '2021-05-05');
             UPDATE parts SET at = '2021-06-06' WHERE id = 1;
             COMMIT",
        )
        .await
        .unwrap();
        let got = changes(&mut reader, 1).await.remove(0);
        assert_eq!(
            got,
            [
                "+public.filtered(2,20)",
                "+public.filtered(1,30)",
                "-public.filteredFull(2,20)",
                "+public.listed(1,s)",
                "+public.parts(1,2020-05-05)",
                "+public.parts(2,2021-05-05)",
                "-public.partsKey(1,2020-05-05)",
                "+public.parts(1,2021-06-06)",
            ],
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn a_changed_table_stops_exactly_before_the_change() {
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    let source = prepared(&server).await;
    prepared_with(&server, |s| s.slot("behind")).await;
    let mut reader = open(&source, None).await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    sql.batch_execute("ALTER TABLE t ADD n numeric(10,2)").await.unwrap();
    sql.batch_execute("INSERT INTO t VALUES (2, 'b', 1.5)").await.unwrap();
    let first = transactions(&mut reader, 1).await.unwrap();
    assert_eq!(first[0].0, ["+public.t(1,a)"]);
    // Not before what was read is durable: the next run is to begin behind it.
    for _ in 0..3 {
        assert!(next(&mut reader).await.unwrap().is_empty());
    }
    let (e, durable) = refusal_behind(&mut reader).await;
    assert_eq!(e.kind(), ErrorKind::Fatal);
    assert!(e.to_string().contains("public.t") && e.to_string().contains("n numeric(10,2)"), "{e}");
    assert!(e.to_string().contains("on_schema_change"), "{e}");
    drop(reader);
    // Started again, it goes on with the changed table.
    Source::tables(&source).await.unwrap();
    assert!(durable.as_ref().is_some_and(|at| at.rank >= first[0].1.rank));
    let mut reader = reopen(&source, durable).await;
    assert_eq!(changes(&mut reader, 1).await, [["+public.t(2,b,1.50)"]]);
    drop(reader);

    // From the beginning: the stream is behind the catalog, which is no change until it gets there.
    let source = prepared_with(&server, |s| s.slot("behind").on_schema_change(SchemaChange::AddColumns)).await;
    let mut reader = reopen(&source, None).await;
    assert_eq!(changes(&mut reader, 2).await, [vec!["+public.t(1,a)"], vec!["schema public.t", "+public.t(2,b,1.50)"]]);
    sql.batch_execute("ALTER TABLE t DROP COLUMN v; INSERT INTO t VALUES (3, 7)").await.unwrap();
    let e = refusal(&mut reader).await;
    assert!(e.to_string().contains("column v was dropped"), "{e}");
}

/// A table that was changed while nobody read: the run was checked with its new shape, and comes through its old one.
#[tokio::test]
async fn a_change_that_was_checked_at_the_start_stops_nothing() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, old text)").await.unwrap();
        prepared(&server).await;
        for statement in [
            "INSERT INTO t VALUES (1, 'a')",
            "ALTER TABLE t ADD COLUMN new int; ALTER TABLE t DROP COLUMN old",
            "INSERT INTO t VALUES (2, 3)",
        ] {
            sql.batch_execute(statement).await.unwrap();
        }
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        let got = changes(&mut reader, 2).await;
        assert_eq!(got, [vec!["+public.t(1,a)"], vec!["schema public.t", "+public.t(2,3)"]], "{version:?}");
        // One that comes later does.
        sql.batch_execute("ALTER TABLE t ADD COLUMN more int; INSERT INTO t VALUES (4, 5, 6)").await.unwrap();
        assert_eq!(refusal(&mut reader).await.kind(), ErrorKind::Fatal);
    }
}

#[tokio::test]
async fn large_transactions_are_cut_and_every_poll_may_be_dropped() {
    let Some(server) = start(PgVersion::V18, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    let source = prepared(&server).await;
    let mut reader = open(&source, None).await;
    sql.batch_execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 60000) i").await.unwrap();
    sql.batch_execute("INSERT INTO t VALUES (0, repeat('z', 20000000))").await.unwrap();
    let (mut rows, mut batches, mut dropped, mut sequence, mut ends) = (0u32, 0, 0, 0, 0);
    while ends < 2 {
        // Polled once and dropped, again and again.
        let polled = futures_util::FutureExt::now_or_never(reader.next());
        let Some(next) = polled else {
            dropped += 1;
            tokio::task::yield_now().await;
            continue;
        };
        let Next::Batch(batch) = next.unwrap() else { panic!() };
        batches += 1;
        assert!(batch.len() <= 8192);
        for piece in batch.pieces() {
            assert_eq!(piece.first_sequence, sequence + 1);
            assert_eq!(piece.first, sequence == 0);
            sequence += piece.changes.len() as u64;
            for i in piece.changes.clone() {
                let row = batch.change(i as usize).new_row().unwrap();
                if ends == 0 {
                    rows += 1;
                    assert_eq!(row.get(0), ValueRef::Text(&rows.to_string()));
                } else {
                    assert_eq!(value(row.get(1)).len(), 20_000_000);
                }
            }
            if piece.end.is_some() {
                ends += 1;
                sequence = 0;
            }
        }
    }
    assert_eq!(rows, 60_000);
    assert!(batches > 7 && dropped > 0, "{batches} batches, {dropped} drops");
}

#[tokio::test]
async fn streamed_transactions_are_given_whole_at_their_commit() {
    for version in BOTH {
        let Some(server) = start(version, &[("logical_decoding_work_mem", "64kB")]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)")
            .await
            .unwrap();
        let source = prepared_with(&server, |s| s.streaming(true)).await;
        let mut reader = open(&source, None).await;
        let other = server.client().await;
        let many = |from: i32, to: i32| {
            format!("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({from}, {to}) i")
        };
        // Aborted as a whole; then one with rolled back parts, and another that commits in between.
        sql.batch_execute(&format!("BEGIN; {}; ROLLBACK", many(1, 5000))).await.unwrap();
        sql.batch_execute(&format!("BEGIN; {}", many(1, 5000))).await.unwrap();
        sql.batch_execute(&format!("SAVEPOINT a; {}; INSERT INTO u VALUES (1); ROLLBACK TO a", many(5001, 9000)))
            .await
            .unwrap();
        other.batch_execute("INSERT INTO u VALUES (100)").await.unwrap();
        sql.batch_execute(&format!(
            "SAVEPOINT b; {}; SAVEPOINT c; {}; ROLLBACK TO c",
            many(5001, 9000),
            many(20_001, 24_000)
        ))
        .await
        .unwrap();
        sql.batch_execute("DELETE FROM t WHERE id = 1; COMMIT; INSERT INTO u VALUES (101)").await.unwrap();
        let got = changes(&mut reader, 3).await;
        assert_eq!(got[0], ["+public.u(100)"], "{version:?}");
        assert_eq!(got[1].len(), 9001, "{version:?}");
        assert!(got[1][8999].starts_with("+public.t(9000,"));
        assert_eq!(got[1][9000], "-public.tKey(1,~)");
        assert_eq!(got[2], ["+public.u(101)"]);
        // The server did stream; its statistics follow a moment later.
        let streamed = "SELECT coalesce(sum(stream_txns), 0)::int8 FROM pg_stat_replication_slots";
        reader.close().await.unwrap();
        while sql.query_one(streamed, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_killed_server_is_transient_and_nothing_is_lost() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        let first = transactions(&mut reader, 1).await.unwrap();
        sql.batch_execute("INSERT INTO t VALUES (2); CHECKPOINT").await.unwrap();
        server.kill9().unwrap();
        let e = loop {
            match next(&mut reader).await {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
        assert!(reader.next().await.is_err());
        server.start().unwrap();
        let mut reader = reopen(&source, Some(first[0].1.clone())).await;
        assert_eq!(changes(&mut reader, 1).await, [["+public.t(2)"]]);
    }
}

#[tokio::test]
async fn replayed_transactions_can_be_left_out() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
        source(&server).prepare(None).await.unwrap();
        for statement in [
            "SELECT pg_replication_origin_create('elsewhere')",
            "SELECT pg_replication_origin_session_setup('elsewhere')",
            "INSERT INTO t VALUES (1)",
            "SELECT pg_replication_origin_session_reset()",
            "INSERT INTO t VALUES (2)",
        ] {
            sql.batch_execute(statement).await.unwrap();
        }
        for (origin, expected) in [
            (anabranch_postgres::OriginFilter::Any, vec!["+public.t(1)", "+public.t(2)"]),
            (anabranch_postgres::OriginFilter::None, vec!["+public.t(2)"]),
        ] {
            let source = prepared_with(&server, |s| s.origin(origin)).await;
            let mut reader = reopen(&source, None).await;
            assert_eq!(changes(&mut reader, expected.len()).await.concat(), expected, "{version:?}");
            reader.close().await.unwrap();
        }
    }
}

/// Prints what reading a backlog costs: run with `-- --ignored --nocapture backlog`, optimized.
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn cost_of_a_backlog() {
    let spent = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    for version in BOTH {
        let Some(server) = start(version, &[("synchronous_commit", "off")]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text, b numeric, c timestamptz DEFAULT now());
             CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN
               FOR i IN 1..40000 LOOP
                 INSERT INTO t SELECT i * 10 + j, 'some text of a customer', 12.5 FROM generate_series(0, 9) j;
                 COMMIT;
               END LOOP; END $$",
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        sql.batch_execute("CALL fill()").await.unwrap();
        let mut reader = open(&source, None).await;
        let (begun, cpu) = (std::time::Instant::now(), spent());
        let (mut changes, mut batches) = (0, 0);
        while changes < 400_000 {
            let batch = next(&mut reader).await.unwrap();
            changes += batch.len();
            batches += 1;
            reader.acknowledge(Some(batch.end())).await.unwrap();
        }
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), (spent() - cpu) as f64);
        println!(
            "{version:?}: {:.0} changes/s, {:.0} ns CPU a change, {batches} batches of {} changes",
            changes as f64 / wall,
            cpu / changes as f64,
            changes / batches
        );
    }
}

/// The database is the target of another pipeline too: what that one keeps there is not replicated.
#[tokio::test(flavor = "multi_thread")]
async fn own_tables_are_left_out_of_a_publication_of_all_tables() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        server
            .exec(
                "postgres",
                "CREATE TABLE kept (id int PRIMARY KEY); CREATE SCHEMA anabranch;
                 CREATE TABLE anabranch.lane (lane int PRIMARY KEY, epoch int)",
            )
            .unwrap();
        let source = prepared(&server).await;
        let tables = Source::tables(&source).await.unwrap();
        assert_eq!(tables.iter().map(|t| t.name.to_string()).collect::<Vec<_>>(), ["public.kept"]);
        let mut reader = open(&source, None).await;
        server
            .exec(
                "postgres",
                "INSERT INTO anabranch.lane VALUES (0, 1); INSERT INTO kept VALUES (1);
                 ALTER TABLE anabranch.lane ADD COLUMN stale int; UPDATE anabranch.lane SET epoch = 2;
                 BEGIN; UPDATE anabranch.lane SET epoch = 3; INSERT INTO kept VALUES (2); COMMIT",
            )
            .unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let more = changes(&mut reader, 1).await;
            seen.extend(more.into_iter().flatten());
        }
        assert_eq!(seen, ["+public.kept(1)", "+public.kept(2)"]);
    }
}
