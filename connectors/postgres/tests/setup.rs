//! What is checked and created at every start, against real servers.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anabranch_core::*;
use anabranch_postgres::{Postgres, PostgresSink};
use support::reading::source;
use support::{BOTH, PgVersion, append, start};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;

async fn refused(source: &Postgres, resume: Option<&Checkpoint>, kind: ErrorKind, says: &[&str]) {
    let e = source.prepare(resume).await.expect_err("must be refused");
    assert_eq!(e.kind(), kind, "{e:?}");
    for part in says {
        assert!(e.report().contains(part), "{part:?} is not in: {e:?}");
    }
}

/// A checkpoint of this source that has applied everything through this place.
fn checkpoint(identity: &SourceIdentity, lsn: &str) -> Checkpoint {
    let lsn: anabranch_postgres::Lsn = lsn.parse().unwrap();
    let position = Position::new(Rank::of_change(&lsn.0.to_be_bytes(), 0), lsn.0.to_be_bytes().to_vec());
    Checkpoint {
        identity: identity.clone(),
        partitions: BTreeMap::from([(
            PartitionId::new("slot"),
            PartitionProgress { position: Some(position), ..Default::default() },
        )]),
        ..Default::default()
    }
}

async fn text(sql: &tokio_postgres::Client, query: &str) -> String {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn what_is_missing_is_created_or_explained() {
    for version in BOTH {
        let Some(server) = start(version, &[("max_replication_slots", "1")]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE nokey (a int)").await.unwrap();
        let all = "CREATE PUBLICATION \"pub\" FOR ALL TABLES";
        refused(&source(&server).create(false), None, ErrorKind::Config, &["source.publication", all]).await;
        refused(
            &source(&server),
            None,
            ErrorKind::Config,
            &["public.nokey", "ALTER TABLE \"public\".\"nokey\" REPLICA IDENTITY FULL;"],
        )
        .await;
        refused(
            &source(&server).tables(["missing"]),
            None,
            ErrorKind::Config,
            &["source.tables", "no table public.missing"],
        )
        .await;
        sql.batch_execute("ALTER TABLE nokey REPLICA IDENTITY FULL").await.unwrap();
        sql.batch_execute("SELECT pg_create_logical_replication_slot('other', 'pgoutput')").await.unwrap();
        let full = ["source.slot", "max_replication_slots", "ALTER SYSTEM"];
        refused(&source(&server), None, ErrorKind::Config, &full).await;
        assert_eq!(
            text(&sql, "SELECT count(*)::text FROM pg_publication").await,
            "0",
            "a refused start leaves nothing"
        );
        sql.batch_execute("CREATE PUBLICATION pub FOR ALL TABLES").await.unwrap();
        refused(
            &source(&server).create(false),
            None,
            ErrorKind::Config,
            &["source.slot", "SELECT pg_create_logical_replication_slot('slot', 'pgoutput');"],
        )
        .await;
        sql.batch_execute("SELECT pg_drop_replication_slot('other')").await.unwrap();
        let identity = source(&server).prepare(None).await.unwrap();
        assert_eq!(identity.get("slot"), Some("slot"));
        assert_eq!(
            identity.get("system_identifier").map(str::to_owned),
            Some(text(&sql, "SELECT system_identifier::text FROM pg_control_system()").await)
        );
        // A second start without a checkpoint finds everything there.
        assert_eq!(source(&server).prepare(None).await.unwrap(), identity);
        assert_eq!(Source::tables(&source(&server)).await.unwrap().len(), 2);
    }
}

/// Everything on the server that a start could create.
const CREATED: &str = "
SELECT concat((SELECT count(*) FROM pg_publication), ' ', (SELECT count(*) FROM pg_replication_slots), ' ',
              (SELECT count(*) FROM pg_class), ' ', pg_current_xact_id_if_assigned())";

#[tokio::test]
async fn a_check_creates_nothing_and_knows_what_a_start_would() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
             CREATE TABLE parts (id int, at date, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
             CREATE TABLE heir (extra int, PRIMARY KEY (id)) INHERITS (t);
             CREATE UNLOGGED TABLE unlogged (id int);
             CREATE TEMPORARY TABLE passing (id int);
             CREATE VIEW v AS SELECT * FROM t",
        )
        .await
        .unwrap();
        let before = text(&sql, CREATED).await;
        for tables in [&[][..], &["t", "parts", "parts_1"], &["public.parts_1"]] {
            let source = || source(&server).tables(tables.iter().copied());
            let planned = source();
            let statements = Source::check(&planned, None).await.unwrap();
            assert!(statements[0].starts_with("CREATE PUBLICATION \"pub\" FOR"), "{statements:?}");
            assert!(statements[1].starts_with("CREATE_REPLICATION_SLOT \"slot\" LOGICAL"), "{statements:?}");
            let planned = Source::tables(&planned).await.unwrap();
            assert_eq!(text(&sql, CREATED).await, before, "{version:?}");
            // Generated columns are not sent.
            assert!(planned.iter().all(|t| t.index_of("twice").is_none()), "{version:?}: {planned:?}");

            // What a start then creates is what was planned.
            let started = source();
            started.prepare(None).await.unwrap();
            assert_eq!(planned, Source::tables(&started).await.unwrap(), "{version:?} {tables:?}");
            assert_eq!(Source::check(&source(), None).await.unwrap(), Vec::<String>::new());
            sql.batch_execute("DROP PUBLICATION pub; SELECT pg_drop_replication_slot('slot')").await.unwrap();
        }
        // What would keep a start from going on is an error here too.
        let keep = source(&server).create(false);
        let e = Source::check(&keep, None).await.unwrap_err();
        assert!(e.report().contains("CREATE PUBLICATION \"pub\" FOR ALL TABLES"), "{e:?}");
        let failover = source(&server).failover(true);
        let planned = Source::check(&failover, None).await;
        match version {
            PgVersion::V15 => assert!(planned.unwrap_err().to_string().contains("source.failover")),
            _ => assert!(planned.unwrap()[1].contains("FAILOVER true")),
        }
        let identity = SourceIdentity::default().with("slot", "slot");
        let resume = checkpoint(&identity, "0/1");
        let e = Source::check(&source(&server), Some(&resume)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fatal, "{e:?}");
        assert_eq!(text(&sql, CREATED).await, before);
    }
}

#[tokio::test]
async fn gaps_stop_with_what_was_lost() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
        let identity = source(&server).prepare(None).await.unwrap();
        let before = text(&sql, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots").await;
        let resume = checkpoint(&identity, &before);
        assert_eq!(source(&server).prepare(Some(&resume)).await.unwrap(), identity);

        // Somebody else consumed changes.
        sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        sql.batch_execute("SELECT pg_replication_slot_advance('slot', pg_current_wal_lsn())").await.unwrap();
        refused(&source(&server), Some(&resume), ErrorKind::Fatal, &[before.as_str(), "consumed by somebody else"])
            .await;
        let partition = source(&server).partitions().await.unwrap().remove(0);
        let from = StartFrom { position: resume.partitions[&partition.id].position.clone(), ..Default::default() };
        let e = source(&server).open(&partition, &from).await.err().expect("the reader must refuse too");
        assert_eq!(e.kind(), ErrorKind::Fatal);

        // The slot is gone, with and without something to resume.
        sql.batch_execute("SELECT pg_drop_replication_slot('slot')").await.unwrap();
        refused(&source(&server), Some(&resume), ErrorKind::Fatal, &["does not exist any more", before.as_str()]).await;
        // Created anew by hand.
        sql.batch_execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')").await.unwrap();
        refused(&source(&server), Some(&resume), ErrorKind::Fatal, &["created anew"]).await;
        // Copied, nothing streamed yet: the copy's point counts.
        let mut copied = resume.clone();
        let position = copied.partitions.values_mut().next().unwrap().position.take().unwrap();
        let table = TableSnapshot { point: position, finished: true, ..Default::default() };
        copied.snapshot.tables.insert(TableName::new("public", "t"), table);
        refused(&source(&server), Some(&copied), ErrorKind::Fatal, &["created anew"]).await;

        // Another server, database, slot, plugin.
        let other = checkpoint(&identity.clone().with("system_identifier", "1"), &before);
        refused(&source(&server), Some(&other), ErrorKind::Fatal, &["another server"]).await;
        let other = checkpoint(&identity.clone().with("slot", "old"), &before);
        refused(&source(&server), Some(&other), ErrorKind::Fatal, &["another slot"]).await;
        sql.batch_execute("SELECT pg_create_logical_replication_slot('decoding', 'test_decoding')").await.ok();
        if text(&sql, "SELECT count(*)::text FROM pg_replication_slots WHERE plugin = 'test_decoding'").await == "1" {
            refused(&source(&server).slot("decoding"), None, ErrorKind::Config, &["test_decoding"]).await;
        }
        sql.batch_execute("CREATE DATABASE second").await.unwrap();
        let second = Postgres::new(server.database("second")).publication("pub").slot("slot");
        refused(&second, None, ErrorKind::Config, &["belongs to the database postgres"]).await;
    }
}

#[tokio::test]
async fn an_invalidated_slot_is_fatal() {
    for version in BOTH {
        let settings = [("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
        let Some(server) = start(version, &settings) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
        source(&server).prepare(None).await.unwrap();
        let left = source(&server).retention().unwrap().left().await.unwrap();
        assert!(left.bytes.is_some(), "{left:?}");
        for _ in 0..4 {
            sql.batch_execute(
                "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i; TRUNCATE t; \
                 SELECT pg_switch_wal(); CHECKPOINT",
            )
            .await
            .unwrap();
        }
        assert_eq!(text(&sql, "SELECT wal_status FROM pg_replication_slots").await, "lost");
        let left = source(&server).retention().unwrap().left().await.unwrap();
        assert!(left.bytes == Some(0) && left.to_string().starts_with("LOST: the slot slot: it held back"), "{left:?}");
        refused(
            &source(&server),
            None,
            ErrorKind::Fatal,
            &[
                "invalidated",
                "max_slot_wal_keep_size",
                "SELECT pg_drop_replication_slot('slot');",
                "verify FILE --repair",
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn one_runner_at_a_time_reads_a_slot() {
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    let source = source(&server);
    source.prepare(None).await.unwrap();
    let partition = source.partitions().await.unwrap().remove(0);
    let reader = source.open(&partition, &StartFrom::default()).await.unwrap();
    refused(&source, None, ErrorKind::Transient, &["is read by the server's process"]).await;
    let e = source.open(&partition, &StartFrom::default()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
    reader.close().await.unwrap();
    while let Err(e) = source.prepare(None).await {
        assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
    }
}

#[tokio::test]
async fn the_least_rights_are_enough_and_missing_ones_are_named() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE ROLE reader LOGIN; CREATE SCHEMA shop; CREATE TABLE shop.t (id int PRIMARY KEY);
             INSERT INTO shop.t VALUES (1);",
        )
        .await
        .unwrap();
        let source = || Postgres::new(server.url("reader")).publication("pub").slot("slot");
        refused(&source(), None, ErrorKind::Config, &["ALTER ROLE \"reader\" REPLICATION;"]).await;
        sql.batch_execute("ALTER ROLE reader REPLICATION").await.unwrap();
        refused(&source(), None, ErrorKind::Config, &["only a superuser", "source.tables"]).await;
        refused(
            &source().tables(["shop.t"]),
            None,
            ErrorKind::Config,
            &["has no CREATE on the database", "CREATE PUBLICATION \"pub\" FOR TABLE \"shop\".\"t\""],
        )
        .await;
        sql.batch_execute("GRANT CREATE ON DATABASE postgres TO reader").await.unwrap();
        let owner = "it does not own shop.t";
        refused(&source().tables(["shop.t"]), None, ErrorKind::Config, &[owner, "CREATE PUBLICATION"]).await;
        sql.batch_execute("CREATE PUBLICATION pub FOR TABLE shop.t").await.unwrap();
        refused(
            &source(),
            None,
            ErrorKind::Config,
            &["GRANT USAGE ON SCHEMA \"shop\" TO \"reader\";", "GRANT SELECT ON \"shop\".\"t\" TO \"reader\";"],
        )
        .await;
        sql.batch_execute("GRANT USAGE ON SCHEMA shop TO reader; GRANT SELECT ON shop.t TO reader").await.unwrap();

        // With exactly these: prepare, copy, stream, mark, ask.
        let source = source();
        source.prepare(None).await.unwrap();
        let tables = Source::tables(&source).await.unwrap();
        let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
        let mut chunk = snapshot.open(&snapshot.chunks()[0]).await.unwrap();
        let Next::Batch(batch) = chunk.next().await.unwrap() else { panic!() };
        assert_eq!(batch.len(), 1);
        drop((chunk, snapshot));
        let partition = source.partitions().await.unwrap().remove(0);
        let mut reader = source.open(&partition, &StartFrom::default()).await.unwrap();
        source.marker().unwrap().mark().await.unwrap();
        assert!(source.retention().unwrap().left().await.unwrap().held_bytes.is_some());
        sql.batch_execute("INSERT INTO shop.t VALUES (2)").await.unwrap();
        let (mut inserted, mut safe) = (false, false);
        while !inserted || !safe {
            let Next::Batch(batch) = reader.next().await.unwrap() else { panic!() };
            inserted |= batch.changes().any(|c| c.op() == Op::Insert);
            safe |= batch.safe_time().is_some();
        }
    }
}

#[tokio::test]
async fn wal_level_and_unreachable_servers_are_explained() {
    let Some(server) = start(PgVersion::V15, &[("wal_level", "replica")]) else { return };
    refused(
        &source(&server),
        None,
        ErrorKind::Config,
        &["wal_level is replica", "ALTER SYSTEM SET wal_level = logical"],
    )
    .await;
    server.kill9().unwrap();
    refused(&source(&server), None, ErrorKind::Transient, &["cannot connect to postgresql://postgres@127.0.0.1"]).await;
    for (source, key) in [
        (Postgres::new("postgresql://u@h/d").slot("s"), "source.publication"),
        (Postgres::new("postgresql://u@h/d").publication("p").slot("No Good"), "source.slot"),
        (Postgres::new("nonsense").publication("p").slot("s"), "source.url"),
        (Postgres::new("env:ANABRANCH_TEST_UNSET").publication("p").slot("s"), "source.url"),
    ] {
        let e = source.check().unwrap_err();
        assert!(e.kind() == ErrorKind::Config && e.to_string().starts_with(key), "{e:?}");
    }
}

#[tokio::test]
async fn every_way_to_log_in() {
    for version in BOTH {
        let Some(server) = start(version, &[("password_encryption", "scram-sha-256")]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'päss w:ord'; CREATE ROLE plain LOGIN REPLICATION PASSWORD 'x';
             SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'hunter2';
             CREATE PUBLICATION pub FOR ALL TABLES",
        )
        .await
        .unwrap();
        let hba = server.data_dir().join("pg_hba.conf");
        std::fs::write(&hba, "local all all trust\n").unwrap();
        append(&hba, "host all,replication scram 127.0.0.1/32 scram-sha-256\nhost all hashed 127.0.0.1/32 md5\n");
        append(&hba, "host all plain 127.0.0.1/32 password\nhost all postgres 127.0.0.1/32 trust\n");
        sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        for (user, password) in [("scram", "päss w:ord"), ("hashed", "hunter2"), ("plain", "x")] {
            let with = |password: &str| {
                Postgres::new(server.url(user)).password(password).publication("pub").slot(format!("s_{user}"))
            };
            with(password).prepare(None).await.unwrap_or_else(|e| panic!("{version:?} {user}: {e:?}"));
            let e = with("wrong").prepare(None).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Config, "{user}: {e:?}");
        }
        Postgres::new(server.socket_url()).publication("pub").slot("s_socket").prepare(None).await.unwrap();
        let required = format!("{}?sslmode=require", server.url("postgres"));
        let e = Postgres::new(required).publication("pub").slot("s").prepare(None).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Config, "{e:?}");
    }
}

#[tokio::test]
async fn a_failover_is_accepted_only_if_nothing_applied_was_lost() {
    // Only this installation has pg_basebackup.
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let identity = source(&server).prepare(None).await.unwrap();
    let standby = server.standby();
    let reached = text(&sql, "SELECT pg_current_wal_lsn()::text").await;
    let replica = standby.client().await;
    let caught_up = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{reached}', false)");
    while !replica.query_one(&caught_up, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::task::yield_now().await;
    }
    server.kill9().unwrap();
    replica.batch_execute("SELECT pg_promote()").await.unwrap();
    replica.batch_execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')").await.unwrap();

    // Applied more than the new primary has.
    refused(
        &source(&standby),
        Some(&checkpoint(&identity, "F/0")),
        ErrorKind::Fatal,
        &["failed over from timeline 1 to 2", "in the target and not in the source"],
    )
    .await;
    // All of it is there, but the slot is younger.
    refused(&source(&standby), Some(&checkpoint(&identity, &reached)), ErrorKind::Fatal, &["created anew"]).await;
    replica.batch_execute("SELECT pg_drop_replication_slot('slot')").await.unwrap();
    refused(&source(&standby), Some(&checkpoint(&identity, &reached)), ErrorKind::Fatal, &["does not exist any more"])
        .await;
    // Back in time: from a timeline that this server does not know.
    let later = checkpoint(&identity.clone().with("timeline", "9"), &reached);
    refused(&source(&standby), Some(&later), ErrorKind::Fatal, &["does not descend from 9"]).await;
}

/// Passes connections on to the port that it is told.
async fn virtual_address(to: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = to.load(Ordering::SeqCst);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

/// A start takes a while, and a copy takes hours: the server that is read must be the one that was checked.
#[tokio::test]
async fn a_failover_between_the_check_and_the_reading_is_noticed() {
    // Only this installation has pg_basebackup.
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    server.client().await.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let to = Arc::new(AtomicU16::new(server.port()));
    let port = virtual_address(Arc::clone(&to)).await;
    let source =
        Postgres::new(format!("postgresql://postgres@127.0.0.1:{port}/postgres")).publication("pub").slot("slot");
    let identity = source.prepare(None).await.unwrap();
    let standby = server.standby();
    server.kill9().unwrap();
    let replica = standby.client().await;
    replica.batch_execute("SELECT pg_promote()").await.unwrap();
    replica.batch_execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')").await.unwrap();
    to.store(standby.port(), Ordering::SeqCst);

    // The pipeline has applied what the new primary never had.
    let resume = checkpoint(&identity, "F/0");
    let partition = source.partitions().await.unwrap().remove(0);
    let from = StartFrom { position: resume.partitions[&partition.id].position.clone(), ..StartFrom::default() };
    let e = loop {
        // The old connection may not have been noticed to be gone.
        match source.open(&partition, &from).await {
            Ok(_) => panic!("it reads another history"),
            Err(e) if e.report().contains("another server") => break e,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}"),
        }
    };
    assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
    refused(&source, Some(&resume), ErrorKind::Fatal, &["failed over from timeline 1 to 2"]).await;
}

/// Of several servers the one that takes writes is read, by every connection.
#[tokio::test]
async fn of_several_servers_the_one_that_is_asked_for_is_read() {
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    server.client().await.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let standby = server.standby();
    let both = format!("127.0.0.1:{},127.0.0.1:{}", standby.port(), server.port());
    let url = format!("postgresql://postgres@{both}/postgres?target_session_attrs=read-write");
    let source = Postgres::new(url).publication("pub").slot("slot");
    source.prepare(None).await.unwrap();
    let tables = Source::tables(&source).await.unwrap();
    source.snapshotter().unwrap().begin(&tables).await.unwrap();
    let partition = source.partitions().await.unwrap().remove(0);
    source.open(&partition, &StartFrom::default()).await.unwrap().close().await.unwrap();
    server.stop().unwrap();
    let e = source.prepare(None).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
}

#[tokio::test]
async fn a_pipeline_checks_both_sides_and_changes_neither() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
        sql.batch_execute("CREATE DATABASE target").await.unwrap();
        let (target, connection) = tokio_postgres::connect(&server.database("target"), NoTls).await.unwrap();
        tokio::spawn(connection);
        let before = (text(&sql, CREATED).await, text(&target, CREATED).await);
        let pipeline = || {
            let sink = PostgresSink::new(server.database("target"));
            let builder = Pipeline::builder("check").source(source(&server)).sink(sink).create_tables(true);
            builder.build().unwrap()
        };
        let checked = pipeline().check().await.unwrap();
        assert_eq!(checked.source_statements.len(), 2, "{:?}", checked.source_statements);
        assert!(checked.verdict().is_ok() && checked.tables.len() == 1, "{checked}");
        assert_eq!(checked.tables[0].source, TableName::new("public", "t"));
        assert!(checked.tables[0].create.is_some());
        assert!(pipeline().stored_status().await.unwrap().is_none());
        assert_eq!((text(&sql, CREATED).await, text(&target, CREATED).await), before, "{version:?}");
    }
}
