//! What a publication makes of rows: policies.

mod support;

use anabranch_core::*;
use anabranch_postgres::Postgres;
use support::{BOTH, start};

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
