//! Reads the stream of a source, and writes what it brings as text.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_core::*;
use anabranch_postgres::Postgres;

use super::PgServer;

pub(crate) fn source(server: &PgServer) -> Postgres {
    Postgres::new(server.url("postgres")).publication("pub").slot("slot")
}

pub(crate) async fn open(source: &Postgres, from: Option<Position>) -> Box<dyn ChangeReader> {
    let partitions = source.partitions().await.unwrap();
    source.open(&partitions[0], &StartFrom { position: from, snapshots: BTreeMap::new() }).await.unwrap()
}

pub(crate) async fn prepared(server: &PgServer) -> Postgres {
    let source = source(server);
    source.prepare(None).await.unwrap();
    Source::tables(&source).await.unwrap();
    source
}

pub(crate) async fn next(reader: &mut Box<dyn ChangeReader>) -> Result<ChangeBatch> {
    match tokio::time::timeout(Duration::from_secs(60), reader.next()).await.expect("no heartbeat") {
        Ok(Next::Batch(batch)) => Ok(batch),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e),
    }
}

pub(crate) fn value(v: ValueRef<'_>) -> String {
    match v {
        ValueRef::Text(t) => t.to_owned(),
        ValueRef::Null => "NULL".into(),
        ValueRef::Unchanged => "~".into(),
        other => format!("{other:?}"),
    }
}

pub(crate) fn line(change: ChangeRef<'_>) -> String {
    let row = |row: Option<RowRef<'_>>| {
        row.map_or(String::new(), |r| {
            let values: Vec<_> = r
                .values()
                .map(|v| {
                    let v = value(v);
                    if v.len() > 40 { format!("<{}>", v.len()) } else { v }
                })
                .collect();
            format!("({})", values.join(","))
        })
    };
    if let Some((prefix, content)) = change.message() {
        return format!("message {prefix} {}", String::from_utf8_lossy(content));
    }
    let table = &change.schema().name;
    match change.op() {
        Op::Insert => format!("+{table}{}", row(change.new_row())),
        Op::Update => format!("*{table}{:?}{}->{}", change.old_image(), row(change.old_row()), row(change.new_row())),
        Op::Delete => format!("-{table}{:?}{}", change.old_image(), row(change.old_row())),
        Op::Truncate(o) => format!("truncate {table} {} {}", o.cascade, o.restart_identity),
        Op::Schema => format!("schema {table}"),
        Op::Message => unreachable!(),
    }
}

/// Reads until `count` transactions ended: their changes as text, and the position after each.
pub(crate) async fn transactions(
    reader: &mut Box<dyn ChangeReader>,
    count: usize,
) -> Result<Vec<(Vec<String>, Position)>> {
    let read = tokio::time::timeout(Duration::from_secs(120), read_transactions(reader, count));
    read.await.expect("too few transactions")
}

async fn read_transactions(reader: &mut Box<dyn ChangeReader>, count: usize) -> Result<Vec<(Vec<String>, Position)>> {
    let (mut done, mut open) = (Vec::new(), Vec::new());
    let mut ranks = Vec::new();
    while done.len() < count {
        let batch = next(reader).await?;
        for piece in batch.pieces() {
            for i in piece.changes.clone() {
                let change = batch.change(i as usize);
                open.push(line(change));
                if change.op() != Op::Schema {
                    ranks.push(change.rank());
                }
            }
            if let Some(end) = &piece.end {
                ranks.push(end.rank.clone());
                done.push((std::mem::take(&mut open), end.clone()));
            }
        }
        ranks.push(batch.end().rank.clone());
    }
    assert!(ranks.is_sorted(), "{ranks:?}");
    Ok(done)
}

pub(crate) async fn changes(reader: &mut Box<dyn ChangeReader>, count: usize) -> Vec<Vec<String>> {
    transactions(reader, count).await.unwrap().into_iter().map(|(c, _)| c).collect()
}

pub(crate) async fn reopen(source: &Postgres, from: Option<Position>) -> Box<dyn ChangeReader> {
    let partitions = source.partitions().await.unwrap();
    let from = StartFrom { position: from, snapshots: BTreeMap::new() };
    loop {
        match source.open(&partitions[0], &from).await {
            Ok(reader) => return reader,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}"),
        }
    }
}

pub(crate) async fn prepared_with(server: &PgServer, set: impl Fn(Postgres) -> Postgres) -> Postgres {
    let source = set(source(server));
    loop {
        match source.prepare(None).await {
            Ok(_) => break,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}"),
        }
    }
    Source::tables(&source).await.unwrap();
    source
}

/// Reads on, with everything durable at once, until the reading fails.
pub(crate) async fn refusal(reader: &mut Box<dyn ChangeReader>) -> Error {
    refusal_behind(reader).await.0
}

/// The same, and what was durable last: the slot begins there from now on.
pub(crate) async fn refusal_behind(reader: &mut Box<dyn ChangeReader>) -> (Error, Option<Position>) {
    let read = async {
        let mut durable = None;
        loop {
            match next(reader).await {
                Ok(batch) => {
                    durable = Some(batch.end().clone());
                    reader.acknowledge(durable.as_ref()).await.unwrap();
                }
                Err(e) => break (e, durable),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), read).await.expect("it goes on")
}
