//! What the stream brings, and what becomes of it when connections are cut.

use anabranch_core::*;
use anabranch_testkit::conformance::source::Statement;
use anabranch_yugabyte::{LsnType, Plugin, Yugabyte};

use crate::source::commit;
use crate::support::{PATIENCE, Universe, checkpoint, client, dynamic, identity, open, transactions, universe};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, a text, b bytea, c numeric, d boolean[])";
const ROWS: &str = "INSERT INTO t VALUES (1, 'one', '\\x01', 1.50, '{t}'), (2, NULL, NULL, NULL, NULL);";
const UPDATE: &str =
    "UPDATE t SET c = 2.5 WHERE id = 1; UPDATE t SET a = NULL WHERE id = 1; UPDATE t SET id = 3 WHERE id = 2;";

async fn read_all(universe: &Universe, source: &Yugabyte) -> Vec<Vec<String>> {
    universe.exec(TABLE);
    source.prepare(None).await.unwrap();
    universe.exec(ROWS);
    universe.exec(UPDATE);
    universe.exec("DELETE FROM t WHERE id = 3");
    let mut reader = open(source, &StartFrom::default()).await;
    let read = transactions(&mut *reader, 3).await;
    reader.close().await.unwrap();
    read.into_iter().map(|(changes, _)| changes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_any_type_that_did_not_change_are_not_sent() {
    for lsn_type in [LsnType::Sequence, LsnType::HybridTime] {
        let Some(universe) = universe(identity(b'c')).await else { return };
        let read = read_all(&universe, &universe.source("s").lsn_type(lsn_type)).await;
        assert_eq!(read[0], ["insert +(1,one,\\x01,1.50,{t})", "insert +(2,~,~,~,~)"]);
        assert_eq!(
            read[1],
            ["update +(1,?,?,2.5,?)", "update +(1,~,?,?,?)", "delete -(2,?,?,?,?)", "insert +(3,~,~,~,~)"]
        );
        assert_eq!(read[2], ["delete -(3,?,?,?,?)"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_identities_send_whole_rows() {
    let new = ["update +(1,one,\\x01,2.5,{t})", "update +(1,~,\\x01,2.5,{t})"];
    let Some(universe) = universe(identity(b'd')).await else { return };
    let read = read_all(&universe, &universe.source("s").plugin(Plugin::Pgoutput)).await;
    assert_eq!(read[1], [new[0], new[1], "delete -(2,?,?,?,?)", "insert +(3,~,~,~,~)"]);
    drop(universe);

    let Some(universe) = crate::support::universe(identity(b'f')).await else { return };
    let read = read_all(&universe, &universe.source("s")).await;
    let old = ["update -(1,one,\\x01,1.50,{t})", "update -(1,one,\\x01,2.5,{t})"];
    let with = |n: usize| format!("{}{}", old[n], &new[n]["update".len()..]);
    assert_eq!(read[1], [with(0), with(1), "delete -(2,~,~,~,~)".into(), "insert +(3,~,~,~,~)".into()]);
}

/// TRUNCATE is not sent, and nothing comes of what the marker's table says.
#[tokio::test(flavor = "multi_thread")]
async fn marks_are_progress_and_nothing_else() {
    let Some(universe) = universe(identity(b'c')).await else { return };
    universe.exec(TABLE);
    let source = universe.source("s");
    source.prepare(None).await.unwrap();
    assert_eq!(dynamic(&source).tables().await.unwrap().len(), 1, "the marker's table is not for the target");
    universe.exec("INSERT INTO t (id) VALUES (1)");
    universe.exec("TRUNCATE t");
    let marks = dynamic(&source).marker().unwrap().mark().await.unwrap();
    universe.exec("INSERT INTO t (id) VALUES (2)");
    let mut reader = open(&source, &StartFrom::default()).await;
    let read = transactions(&mut *reader, 2).await;
    assert_eq!(read[0].0, ["insert +(1,~,~,~,~)"]);
    assert_eq!(read[1].0, ["insert +(2,~,~,~,~)"]);
    let mark = marks.values().next().unwrap();
    assert!(read[0].1.rank < mark.rank && mark.rank < read[1].1.rank, "the mark lies between");
    reader.close().await.unwrap();
}

/// Safe time follows the heartbeats, and is what a reader may count on.
#[tokio::test(flavor = "multi_thread")]
async fn safe_time_moves_on_a_quiet_source() {
    let Some(universe) = universe(identity(b'c')).await else { return };
    universe.exec(TABLE);
    let source = universe.source("s");
    source.prepare(None).await.unwrap();
    let mut reader = open(&source, &StartFrom::default()).await;
    let mut seen: Vec<Timestamp> = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "safe time stands still at {seen:?}");
        let Next::Batch(batch) = reader.next().await.unwrap() else { panic!("it closed") };
        assert!(batch.pieces().is_empty());
        if let Some(time) = batch.safe_time().filter(|t| seen.last() != Some(t)) {
            assert!(seen.last() < Some(&time) && time <= Timestamp::now());
            seen.push(time);
        }
    }
    reader.close().await.unwrap();
}

/// The slot is confirmed through commits alone, though keepalives name transactions that were read and
/// not sent: after a cut at any place nothing is missing, and nothing is confirmed that was not acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn cuts_lose_nothing() {
    for lsn_type in [LsnType::Sequence, LsnType::HybridTime] {
        let Some(universe) = universe(identity(b'c')).await else { return };
        universe.exec("CREATE TABLE t (id bigint PRIMARY KEY, body text)");
        let mut writer = client(&universe.server.url("postgres")).await;
        let source = universe.source("s").lsn_type(lsn_type);
        let facts = source.prepare(None).await.unwrap();
        for id in 0..40 {
            let statements = [Statement::Insert(id, "x".into()), Statement::Update(id, "y".into())];
            commit(&mut writer, &statements).await;
        }
        let (mut read, mut at): (Vec<String>, Option<Position>) = (Vec::new(), None);
        for _ in 0..10 {
            let source = universe.source("s").lsn_type(lsn_type);
            let resume = at.as_ref().map(|at| checkpoint(&facts, at));
            source.prepare(resume.as_ref()).await.unwrap();
            let mut reader = open(&source, &StartFrom { position: at.clone(), ..StartFrom::default() }).await;
            let before = universe.fake.confirmed("s");
            // Whatever comes in one batch beyond the first four is forgotten, as by a process that dies.
            let four: Vec<_> = transactions(&mut *reader, 4).await.into_iter().take(4).collect();
            assert_eq!(universe.fake.confirmed("s"), before, "confirmed without being acknowledged");
            at = four.last().map(|(_, end)| end.clone());
            read.extend(four.into_iter().flat_map(|(changes, _)| changes));
            reader.acknowledge(at.as_ref()).await.unwrap();
            universe.fake.cut();
            while reader.next().await.is_ok() {}
        }
        let expected: Vec<String> =
            (0..40).flat_map(|id| [format!("insert +({id},x)"), format!("update +({id},y)")]).collect();
        assert_eq!(read, expected);
    }
}
