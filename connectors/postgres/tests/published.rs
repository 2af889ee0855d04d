//! What a publication makes of rows: partitions whose identities differ from their table's, row filters,
//! policies, and tables that take another's name.

mod support;

use anabranch_core::*;
use anabranch_postgres::{Postgres, SchemaChange};
use support::reading::{changes, next, open, prepared, prepared_with, refusal, reopen, source, transactions};
use support::{BOTH, start};

/// Each statement is a transaction.
async fn each(sql: &tokio_postgres::Client, statements: &str) {
    for statement in statements.split(';') {
        sql.batch_execute(statement).await.unwrap();
    }
}

/// Partitions have their own replica identity: ALTER TABLE of the partitioned table does not reach them.
/// The server then sends an old row that it calls whole, with NULL for all that the partition did not log.
#[tokio::test]
async fn old_rows_of_a_partition_are_as_whole_as_its_own_identity() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE p (id int PRIMARY KEY, note text, big text) PARTITION BY RANGE (id);
             CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (100) TO (200);
             ALTER TABLE p_low ALTER big SET STORAGE EXTERNAL;
             ALTER TABLE p_high ALTER big SET STORAGE EXTERNAL;
             ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p_high REPLICA IDENTITY FULL;
             CREATE PUBLICATION pub FOR TABLE p WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        each(
            &sql,
            "INSERT INTO p VALUES (101, 'n', repeat('x', 5000)); UPDATE p SET id = 102; DELETE FROM p;
             INSERT INTO p VALUES (1, 'n', repeat('x', 5000)); UPDATE p SET id = 2; DELETE FROM p",
        )
        .await;
        let got = changes(&mut reader, 6).await.concat();
        assert_eq!(
            got,
            [
                "+public.p(101,n,<5000>)",
                "*public.pFull(101,n,<5000>)->(102,n,<5000>)",
                "-public.pFull(102,n,<5000>)",
                "+public.p(1,n,<5000>)",
                "*public.pKey(1,~,~)->(2,n,~)",
                "-public.pKey(2,~,~)",
            ],
            "{version:?}"
        );
    }
}

/// The table's key is not in what a partition logs: rows could not be found by it.
#[tokio::test]
async fn a_partition_that_does_not_log_the_key_is_refused() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE p (id int PRIMARY KEY, code text NOT NULL) PARTITION BY RANGE (id);
             CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE UNIQUE INDEX code ON p_low (code); ALTER TABLE p_low REPLICA IDENTITY USING INDEX code;
             CREATE PUBLICATION pub FOR TABLE p WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
        let e = source(&server).prepare(None).await.expect_err("must be refused");
        assert_eq!(e.kind(), ErrorKind::Config, "{e:?}");
        for part in ["source.publication", "public.p_low", "ALTER TABLE \"public\".\"p_low\" REPLICA IDENTITY DEFAULT;"]
        {
            assert!(e.report().contains(part), "{part:?} is not in: {}", e.report());
        }
        // What only inserts needs no identity.
        sql.batch_execute("ALTER PUBLICATION pub SET (publish = 'insert')").await.unwrap();
        source(&server).prepare(None).await.unwrap();
        sql.batch_execute("ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')").await.unwrap();

        // The same later, while the stream is read.
        sql.batch_execute("ALTER TABLE p_low REPLICA IDENTITY DEFAULT").await.unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        each(&sql, "INSERT INTO p VALUES (1, 'a'); UPDATE p SET id = 2").await;
        assert_eq!(changes(&mut reader, 2).await.concat(), ["+public.p(1,a)", "*public.pKey(1,~)->(2,a)"]);
        each(&sql, "ALTER TABLE p_low REPLICA IDENTITY USING INDEX code; INSERT INTO p VALUES (5, 'e')").await;
        assert_eq!(changes(&mut reader, 1).await.concat(), ["+public.p(5,e)"], "an insert is whole in any case");
        sql.batch_execute("UPDATE p SET id = 3 WHERE id = 2").await.unwrap();
        let e = refusal(&mut reader).await;
        assert_eq!(e.kind(), ErrorKind::Fatal, "{e:?}");
        assert!(e.report().contains("public.p_low") && e.report().contains("REPLICA IDENTITY"), "{}", e.report());
    }
}

/// A full identity of a partition is more than its table asks for, and no change of the table.
#[tokio::test]
async fn a_partition_that_logs_more_changes_nothing() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE p (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
             CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE PUBLICATION pub FOR TABLE p WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        each(&sql,
            "INSERT INTO p VALUES (1, 'n'); ALTER TABLE p_low REPLICA IDENTITY FULL; UPDATE p SET id = 2;
             DROP TABLE p_low; CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (3, 'm')",
        )
        .await;
        let got = changes(&mut reader, 3).await.concat();
        assert_eq!(got, ["+public.p(1,n)", "*public.pKey(1,~)->(2,n)", "+public.p(3,m)"], "{version:?}");
    }
}

/// A reader that sees only some rows copies only some: it must not come to that.
#[tokio::test]
async fn rows_that_a_policy_hides_are_not_left_out_of_a_copy_in_silence() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE ROLE reader LOGIN REPLICATION; CREATE TABLE t (id int PRIMARY KEY, owner text);
             INSERT INTO t VALUES (1, 'reader'), (2, 'somebody else');
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON t USING (owner = current_user);
             GRANT SELECT ON t TO reader; CREATE PUBLICATION pub FOR TABLE t",
        )
        .await
        .unwrap();
        let of = |user: &str| Postgres::new(server.url(user)).publication("pub").slot("slot");
        let e = of("reader").prepare(None).await.expect_err("must be refused");
        assert_eq!(e.kind(), ErrorKind::Config, "{e:?}");
        for part in ["public.t", "row-level security", "ALTER ROLE \"reader\" BYPASSRLS;"] {
            assert!(e.report().contains(part), "{part:?} is not in: {}", e.report());
        }
        // A policy that came after the start.
        sql.batch_execute("ALTER TABLE t DISABLE ROW LEVEL SECURITY").await.unwrap();
        let source = of("reader");
        source.prepare(None).await.unwrap();
        let tables = Source::tables(&source).await.unwrap();
        sql.batch_execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY").await.unwrap();
        let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
        let e = snapshot.open(&snapshot.chunks()[0]).await.err().expect("must be refused");
        assert!(e.report().contains("row-level security"), "{}", e.report());
        let e = source.verifier().unwrap().rows(&tables[0], None).await.err().expect("must be refused");
        assert!(e.report().contains("row-level security"), "{}", e.report());
        drop(snapshot);
        sql.batch_execute("ALTER ROLE reader BYPASSRLS").await.unwrap();
        let again = of("reader");
        again.prepare(None).await.unwrap();
        let snapshot = again.snapshotter().unwrap().begin(&tables).await.unwrap();
        let mut chunk = snapshot.open(&snapshot.chunks()[0]).await.unwrap();
        let Next::Batch(batch) = chunk.next().await.unwrap() else { panic!() };
        assert_eq!(batch.len(), 2);
    }
}

/// The rows of the table that had the name are gone on the source, and no change of the stream says so.
#[tokio::test]
async fn a_table_that_takes_anothers_name_is_noticed() {
    for version in BOTH {
        for swap in [
            "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE new (id int PRIMARY KEY); INSERT INTO new VALUES (7); DROP TABLE t; ALTER TABLE new RENAME TO t",
        ] {
            let Some(server) = start(version, &[]) else { continue };
            let sql = server.client().await;
            sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
            let first = prepared(&server).await;
            let mut reader = open(&first, None).await;
            sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
            let mut before = transactions(&mut reader, 1).await.unwrap().remove(0).1;
            each(&sql, swap).await;
            sql.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
            let e = loop {
                match next(&mut reader).await {
                    Ok(batch) => {
                        assert!(batch.changes().all(|c| c.table().is_none_or(|t| t.name.name != "t")));
                        before = batch.end().clone();
                        reader.acknowledge(Some(&before)).await.unwrap();
                    }
                    Err(e) => break e,
                }
            };
            assert_eq!(e.kind(), ErrorKind::Fatal, "{e:?}");
            assert!(e.report().contains("dropped and created again"), "{version:?} {}", e.report());
            drop(reader);
            // Started again after a look, or told not to mind, it goes on there.
            for policy in [SchemaChange::Stop, SchemaChange::Ignore] {
                let again = prepared_with(&server, |s| s.on_schema_change(policy)).await;
                let mut reader = reopen(&again, Some(before.clone())).await;
                loop {
                    let batch = next(&mut reader).await.unwrap();
                    let line = |c: ChangeRef<'_>| c.op() == Op::Insert && c.schema().name.name == "t";
                    if batch.changes().any(line) {
                        break;
                    }
                }
                drop(reader);
            }
        }
    }
}

/// An update by which a row comes into a row filter is an insert to the server's output, and a large value
/// that it did not touch is not in it.
#[tokio::test]
async fn a_row_that_comes_into_a_filter_says_what_was_not_sent() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE t (id int, region text, body text, PRIMARY KEY (id, region));
             ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             CREATE PUBLICATION pub FOR TABLE t WHERE (region = 'eu')",
        )
        .await
        .unwrap();
        let source = prepared(&server).await;
        let mut reader = open(&source, None).await;
        each(
            &sql,
            "INSERT INTO t VALUES (1, 'us', repeat('b', 5000)); UPDATE t SET region = 'eu';
             ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET region = 'us'; UPDATE t SET region = 'eu'",
        )
        .await;
        // The identity is no change of the table's columns, and its key is as it was.
        let got = changes(&mut reader, 3).await.concat();
        assert_eq!(got, ["+public.t(1,eu,~)", "-public.tFull(1,eu,<5000>)", "+public.t(1,eu,<5000>)"], "{version:?}");
    }
}
