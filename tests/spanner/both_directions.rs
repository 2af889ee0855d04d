//! PostgreSQL and Spanner, each replicated into the other at once. The in-process fake stands for Spanner:
//! the emulator leaves the tags of transactions out of its change streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_servers::{PgServer, PgVersion, postgres};
use anabranch_spanner::client::{
    Client, Mutation, Official, SpannerResult, Transaction, TransactionOptions, Work, Write,
};
use anabranch_spanner_fake::{FakeSpanner, Script, Stream, Table, Time};
use async_trait::async_trait;
use tokio::task::block_in_place;

use super::Tested;
use super::command::{Anabranch, DONE, Running, until};

const TRANSACTIONS: i64 = 30;

/// What the sink keeps for itself, and the table of both sides.
fn fake(allow_exclusion: bool) -> FakeSpanner {
    let ints = |table: Table, names: &[&str]| names.iter().fold(table, |t, name| t.column(name, "INT64"));
    let lane = Table::new("anabranch_lane").key("pipeline", "STRING").key("lane", "INT64");
    let lane = ints(lane, &["lanes", "epoch", "changes", "transactions", "snapshot_rows", "dead_letters"]);
    let lane = lane.column("identity", "STRING").column("updated_at", "TIMESTAMP");
    let position = Table::new("anabranch_position").key("pipeline", "STRING").key("lane", "INT64");
    let position = position.key("partition_id", "STRING").column("position", "STRING").column("safe_time", "INT64");
    let kv = Table::new("kv").key("id", "INT64").column("v", "STRING");
    let mut stream = Stream::new("everything");
    stream.root("a", Time::seconds(0)).root("b", Time::seconds(0)).record_commits(allow_exclusion);
    Script::new().table(lane).table(position).table(kv).stream(stream).start()
}

fn to_spanner(server: &PgServer, name: &str, fake: &FakeSpanner) -> String {
    format!(
        "[pipeline]\nname = \"to_spanner\"\n\
         [source]\ntype = \"postgres\"\nurl = \"{}\"\npublication = \"everything\"\nslot = \"{name}\"\norigin = \"none\"\n\
         snapshot = \"never\"\n\
         [sink]\ntype = \"spanner\"\ndatabase = \"{}\"\nendpoint = \"{}\"\n\
         [checkpoint]\ntype = \"sqlite\"\npath = \"state.db\"\n[dead_letters]\ntype = \"sqlite\"\npath = \"letters.db\"\n",
        server.url(name),
        FakeSpanner::DATABASE,
        fake.endpoint()
    )
}

fn to_postgres(server: &PgServer, name: &str, fake: &FakeSpanner) -> String {
    format!(
        "[pipeline]\nname = \"to_postgres\"\n\
         [source]\ntype = \"spanner\"\ndatabase = \"{}\"\nchange_stream = \"everything\"\nendpoint = \"{}\"\n\
         create = false\nsnapshot = \"never\"\n\
         [sink]\ntype = \"postgres\"\nurl = \"{}\"\norigin = \"required\"\n\
         [[transform]]\ntype = \"forward_migration\"\n",
        FakeSpanner::DATABASE,
        fake.endpoint(),
        server.url(name)
    )
}

/// Mutations of an application: a transaction without a tag.
struct Writes(Vec<Mutation>);

#[async_trait]
impl Work for Writes {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        transaction.buffer(self.0.clone())
    }
}

fn put(id: i64, v: &str) -> Mutation {
    let values = vec![("id".to_owned(), id.into()), ("v".to_owned(), v.into())];
    Mutation::InsertOrUpdate(Write { table: "kv".to_owned(), values })
}

/// Each side writes keys of its own: odd ones here, even ones there. Three rows a transaction, one of
/// which goes away again.
async fn write(server: &PgServer, name: &str, client: &dyn Client, n: i64) -> Tested {
    let base = n * 10;
    let sql = format!(
        "BEGIN; INSERT INTO kv VALUES ({}, 'pg {n}'), ({}, 'pg {n}'); UPDATE kv SET v = 'changed by {n}' WHERE id = {}; \
         DELETE FROM kv WHERE id = {}; COMMIT",
        base + 1,
        base + 3,
        base - 10 + 1,
        base - 10 + 3,
    );
    block_in_place(|| server.exec(name, &sql))?;
    let mut mutations = vec![put(base + 2, &format!("sp {n}")), put(base + 4, &format!("sp {n}"))];
    if n > 0 {
        mutations.push(put(base - 10 + 2, &format!("changed by {n}")));
        mutations.push(Mutation::Delete { table: "kv".to_owned(), keys: vec![vec![(base - 10 + 4).into()]] });
    }
    client.transact(TransactionOptions::default(), &mut Writes(mutations)).await?;
    Ok(())
}

type Rows = BTreeMap<String, String>;

fn sides(server: &PgServer, name: &str, fake: &FakeSpanner) -> Tested<(Rows, Rows)> {
    let text = |value: Option<String>| value.unwrap_or_default();
    let there = server.exec(name, "SELECT id, v FROM kv")?;
    let there = there.into_iter().map(|mut row| (text(row[0].take()), text(row[1].take()))).collect();
    let cell = |row: &anabranch_spanner_fake::Row, name: &str| match row[name].kind.as_ref() {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    let here = fake.rows("kv").iter().map(|row| (cell(row, "id"), cell(row, "v"))).collect();
    Ok((here, there))
}

fn started(command: &Anabranch) -> Tested<Running> {
    let mut running = command.spawn(&["run"])?;
    running.says("streaming")?;
    Ok(running)
}

fn counters(command: &Anabranch) -> Tested<serde_json::Value> {
    let said = command.call(&["status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&said.stdout)?;
    assert_eq!(status["dead_letters_open"], 0, "{status}");
    Ok(status["counters"].clone())
}

/// With a change stream that leaves out what asks for it, and with one that has everything.
async fn converge(allow_exclusion: bool) -> Tested {
    let Some(server) = block_in_place(|| postgres(PgVersion::Any)) else { return Ok(()) };
    let name = "both";
    block_in_place(|| -> Tested {
        server.create_db(name)?;
        Ok(server.exec(name, "CREATE TABLE kv (id bigint PRIMARY KEY, v text)").map(drop)?)
    })?;
    let fake = Arc::new(fake(allow_exclusion));
    let Some(there) = Anabranch::new(&to_spanner(&server, name, &fake))? else { return Ok(()) };
    let Some(back) = Anabranch::new(&to_postgres(&server, name, &fake))? else { return Ok(()) };
    let client = Official::builder(FakeSpanner::DATABASE).endpoint(fake.endpoint()).connect().await?;

    let (mut to_there, mut to_back) = block_in_place(|| -> Tested<_> { Ok((started(&there)?, started(&back)?)) })?;
    for n in 0..TRANSACTIONS {
        write(&server, name, &client, n).await?;
        if n == TRANSACTIONS / 2 {
            to_there.signal("KILL")?;
            to_back.signal("KILL")?;
            drop((to_there, to_back));
            (to_there, to_back) = block_in_place(|| -> Tested<_> { Ok((started(&there)?, started(&back)?)) })?;
        }
    }
    block_in_place(|| -> Tested {
        until("both sides are equal", || {
            let (here, there) = sides(&server, name, &fake)?;
            Ok(here == there)
        })?;
        for running in [to_there, to_back] {
            running.signal("TERM")?;
            running.ended()?.expect(DONE, &[]);
        }
        // What came back after that would show now.
        there.drain()?.expect(DONE, &["drained"]);
        back.drain()?.expect(DONE, &["drained"]);
        let (here, target) = sides(&server, name, &fake)?;
        assert_eq!(here, target);
        assert_eq!(here.len() as i64, TRANSACTIONS * 2 + 2);

        // Each direction applied what the other side's applications wrote, and nothing else.
        let written = (4 * TRANSACTIONS - 2) as u64;
        let (over, back) = (counters(&there)?, counters(&back)?);
        assert_eq!((over["changes"].as_u64(), over["filtered"].as_u64()), (Some(written), Some(0)), "{over}");
        assert_eq!(back["changes"].as_u64(), Some(written), "{back}");
        // Merged in one transaction, several writes of a row may have become one.
        let filtered = back["filtered"].as_u64();
        let expected =
            if allow_exclusion { filtered == Some(0) } else { filtered > Some(0) && filtered <= Some(written) };
        assert!(expected, "{back}");
        assert_eq!(back["skipped"].as_u64(), Some(0), "{back}");
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_echo_by_the_tag() -> Tested {
    converge(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_echo_as_the_change_stream_leaves_it_out() -> Tested {
    converge(true).await
}
