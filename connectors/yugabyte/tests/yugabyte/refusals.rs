//! What a start refuses, and what it says then.

use std::time::Duration;

use anabranch_core::*;
use anabranch_yugabyte::{LsnType, Plugin, Yugabyte, YugabyteSourceConfig};
use anabranch_yugabyte_fake::Options;

use crate::support::{Universe, checkpoint, dynamic, identity, open, transactions, universe};

async fn refused(source: &Yugabyte, resume: Option<&Checkpoint>, kind: ErrorKind, parts: &[&str]) {
    let error = source.prepare(resume).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.report());
    let text = error.report();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(dynamic(source).check(resume).await.is_err(), "a check accepts what a start refuses");
}

fn with_table(universe: &Universe) {
    universe.exec("CREATE TABLE t (id bigint PRIMARY KEY, body text)");
}

/// A checkpoint behind one transaction of a new slot.
async fn one_transaction(universe: &Universe, lsn_type: LsnType) -> Checkpoint {
    with_table(universe);
    let source = universe.source("s").lsn_type(lsn_type);
    let facts = source.prepare(None).await.unwrap();
    universe.exec("INSERT INTO t VALUES (1, 'x')");
    let mut reader = open(&source, &StartFrom::default()).await;
    let (_, end) = transactions(&mut *reader, 1).await.remove(0);
    reader.acknowledge(Some(&end)).await.unwrap();
    reader.close().await.unwrap();
    checkpoint(&facts, &end)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_tables_that_cannot_be_read() {
    let old = Options { version: "PostgreSQL 11.2-YB-2024.2.4.0-b89 on x86_64".into(), ..Options::default() };
    let Some(u) = universe(old).await else { return };
    refused(&u.source("s"), None, ErrorKind::Config, &["2024.2.4.0", "PostgreSQL 11", "2025.1 or later"]).await;
    drop(u);

    let Some(u) = universe(identity(b'c')).await else { return };
    let plain = Yugabyte::new(u.server.url("postgres")).publication("pub").slot("s");
    refused(&plain, None, ErrorKind::Config, &["no YugabyteDB", "type = \"postgres\""]).await;

    refused(&u.source("s"), None, ErrorKind::Config, &["source.tables", "public.t"]).await;
    u.exec("CREATE TABLE t (id bigint, body text)");
    refused(&u.source("s"), None, ErrorKind::Config, &["no primary key", "public.t"]).await;
    u.exec("ALTER TABLE t ADD PRIMARY KEY (id)");
    u.exec("ALTER TABLE t REPLICA IDENTITY NOTHING");
    refused(&u.source("s"), None, ErrorKind::Config, &["REPLICA IDENTITY DEFAULT"]).await;
    u.exec("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    let pgoutput = u.source("s").plugin(Plugin::Pgoutput);
    refused(&pgoutput, None, ErrorKind::Config, &["source.plugin", "identity CHANGE", "yboutput"]).await;
    assert_eq!(u.fake.confirmed("s"), None, "a slot was created by a start that was refused");
    u.source("s").prepare(None).await.unwrap();
    refused(&u.source("s2").create(false), None, ErrorKind::Config, &["source.slot", "CREATE_REPLICATION_SLOT s2"])
        .await;
    let bare = Yugabyte::new(u.url()).publication("bare").slot("s").create(false);
    refused(&bare, None, ErrorKind::Config, &["bare", "CREATE PUBLICATION"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_without_the_marker_gets_it() {
    let Some(u) = universe(identity(b'c')).await else { return };
    with_table(&u);
    u.exec("CREATE PUBLICATION pub FOR TABLE t");
    refused(&u.source("s").create(false), None, ErrorKind::Config, &["ADD TABLE \"public\".\"anabranch_marker\""])
        .await;
    let planned = dynamic(&u.source("s")).check(None).await.unwrap();
    assert_eq!(planned.len(), 3, "{planned:?}");
    u.source("s").prepare(None).await.unwrap();
    assert_eq!(dynamic(&u.source("s")).check(None).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lapsed_slot_says_what_was_lost_and_how_to_repair() {
    let Some(u) = universe(identity(b'c')).await else { return };
    let resume = one_transaction(&u, LsnType::Sequence).await;
    let source = u.source("s").retention(Duration::from_secs(8 * 3600));
    let left = dynamic(&source).retention().unwrap().left().await.unwrap().seconds.unwrap();
    assert!((8.0 * 3600.0 - 600.0..=8.0 * 3600.0).contains(&left), "{left}");
    u.fake.age("s", 3 * 3600);
    let later = dynamic(&source).retention().unwrap().left().await.unwrap().seconds.unwrap();
    assert!((5.0 * 3600.0 - 600.0..=5.0 * 3600.0).contains(&later), "counted down: {later}");

    u.fake.lapse("s");
    let parts = ["has let the slot s lapse", "8.0 hours", "pg_drop_replication_slot('s')", "verify --repair"];
    refused(&source, Some(&resume), ErrorKind::Fatal, &parts).await;
    assert_eq!(dynamic(&source).retention().unwrap().left().await.unwrap().seconds, Some(0.0));
    let error =
        source.open(&Partition::root(PartitionId::new("s")), &StartFrom::default()).await.err().expect("it is lapsed");
    assert_eq!(error.kind(), ErrorKind::Fatal);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_of_one_kind_mean_nothing_to_the_other() {
    let Some(u) = universe(identity(b'c')).await else { return };
    let resume = one_transaction(&u, LsnType::Sequence).await;
    let other = u.source("s").lsn_type(LsnType::HybridTime);
    refused(&other, None, ErrorKind::Config, &["source.lsn_type", "SEQUENCE"]).await;

    u.fake.drop_slot("s").await.unwrap();
    refused(&u.source("s"), Some(&resume), ErrorKind::Fatal, &["the slot s is gone", "fresh checkpoint"]).await;
    // Created again, by somebody else.
    u.source("s").prepare(None).await.unwrap();
    refused(&u.source("s"), Some(&resume), ErrorKind::Fatal, &["created anew", "SEQUENCE", "verify --repair"]).await;
    u.fake.drop_slot("s").await.unwrap();
    other.prepare(None).await.unwrap();
    let parts = ["LSNs of type SEQUENCE", "HYBRID_TIME"];
    refused(&u.source("s"), Some(&resume), ErrorKind::Fatal, &parts).await;
}

/// Hybrid times can be compared: a slot that was made before they were reached has all that is missing.
#[tokio::test(flavor = "multi_thread")]
async fn another_slot_by_hybrid_time_may_go_on() {
    let Some(u) = universe(identity(b'c')).await else { return };
    let resume = one_transaction(&u, LsnType::HybridTime).await;
    u.fake.drop_slot("s").await.unwrap();
    u.source("s").lsn_type(LsnType::HybridTime).prepare(None).await.unwrap();
    refused(&u.source("s"), Some(&resume), ErrorKind::Fatal, &["created anew", "lost to both"]).await;
    // As if it had been made an hour ago, when the pipeline read the old one.
    u.fake.age("s", 3600);
    u.source("s").prepare(Some(&resume)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_confirmed_is_refused() {
    let Some(u) = universe(identity(b'c')).await else { return };
    let resume = one_transaction(&u, LsnType::Sequence).await;
    u.exec("INSERT INTO t VALUES (2, 'x')");
    let source = u.source("s");
    let mut reader = open(&source, &StartFrom::default()).await;
    transactions(&mut *reader, 1).await;
    u.fake.confirm_all("s");
    reader.close().await.unwrap();
    refused(&u.source("s"), Some(&resume), ErrorKind::Fatal, &["consumed by somebody else", "verify --repair"]).await;
}

#[test]
fn keys_are_checked_without_a_connection() {
    let make = |more: &str| {
        let text =
            format!("url = \"postgresql://u:hunter2@h/d?sslmode=disable\"\npublication = \"p\"\nslot = \"s\"\n{more}");
        toml::from_str::<YugabyteSourceConfig>(&text)
            .map_err(|e| e.to_string())
            .and_then(|c| Yugabyte::try_from(c).map_err(|e| e.report()))
    };
    assert!(make("lsn_type = \"hybrid_time\"\nplugin = \"pgoutput\"\nheartbeat_seconds = 0.5").is_ok());
    for (more, part) in [
        ("heartbeat_seconds = 0", "source.heartbeat_seconds"),
        ("retention_hours = -1.0", "source.retention_hours"),
        ("marker_table = \"a.b.c\"", "source.marker_table"),
        ("read_time_procedure = \"\"", "source.read_time_procedure"),
        ("lsn_type = \"lamport\"", "lsn_type"),
        ("tables = [\"\"]", "source.tables"),
        ("failover = true", "failover"),
    ] {
        let error = make(more).err().unwrap_or_else(|| panic!("{more} is accepted"));
        assert!(error.contains(part) && !error.contains("hunter2"), "{more}: {error}");
    }
}
