//! Many small transactions that wait in a slot.

use anabranch_servers::PgServer;

use crate::Result;
use crate::child::{config, measure};
use crate::native::{Subscription, receive};
use crate::report::Report;
use crate::setting::{self, TABLE, drop_slot, publish, servers, size, wanted};

/// Changes of a transaction: half of them inserts, half updates of rows that were inserted before.
pub(crate) const PER_TRANSACTION: u64 = 10;

const NATIVE: &str = "native subscription -> PostgreSQL";

/// Each with a slot of its own.
const CONTENDERS: &[&str] = &["recvlogical", "native", "null", "postgres", "sqlite", "mariadb"];

pub(crate) fn run() -> Result<()> {
    let changes = size("BENCH_CHANGES", 500_000)?.next_multiple_of(PER_TRANSACTION);
    let Some((source, target)) = servers()? else { return Ok(()) };
    let backlog = Backlog::generate(&source, changes, CONTENDERS)?;
    let title = format!(
        "Backlog: {changes} changes in {} transactions, {}",
        changes / PER_TRANSACTION,
        setting::version(&source)?
    );
    let mut report = Report::new(&title, "changes", changes, NATIVE);
    // The native subscription comes first: the others are compared with it.
    if wanted("native") {
        prepare(&target, "native")?;
        let (slot, db) = ("native", "bench");
        let native = Subscription { source: &source, target: &target, db, slot, streaming: "off" };
        let (took, used) = native.apply("SELECT count(*) = 1 FROM the_end")?;
        backlog.check(&target, "bench")?;
        report.add(NATIVE, took, used);
        drop_slot(&source, slot)?;
    }
    if wanted("recvlogical")
        && let Some((took, used)) = receive(&source, "bench", "recvlogical", &backlog.end)?
    {
        report.add("pg_recvlogical -> /dev/null", took, used);
    }
    drop_slot(&source, "recvlogical").or_else(|e| if wanted("recvlogical") { Err(e) } else { Ok(()) })?;
    backlog.ours(&source, &target, &mut report)
}

/// What was generated.
pub(crate) struct Backlog {
    changes: u64,
    /// The log's end after it.
    end: String,
}

impl Backlog {
    /// Makes slots, and then the changes that wait in each of them.
    pub(crate) fn generate(source: &PgServer, changes: u64, slots: &[&str]) -> Result<Self> {
        eprintln!("generating {changes} changes");
        source.create_db("bench")?;
        source.exec("bench", TABLE)?;
        source.exec("bench", "CREATE TABLE the_end (id integer PRIMARY KEY)")?;
        publish(source, "bench", slots)?;
        let half = PER_TRANSACTION / 2;
        source.exec(
            "bench",
            &format!(
                "CREATE PROCEDURE fill(transactions bigint) LANGUAGE plpgsql AS $$
                 DECLARE first bigint;
                 BEGIN
                   FOR n IN 0 .. transactions - 1 LOOP
                     first := n * {half};
                     INSERT INTO bench SELECT {} FROM generate_series(first, first + {half} - 1) id;
                     UPDATE bench SET amount = amount + 1, changed_at = now()
                       WHERE id = ANY (ARRAY(SELECT (first + {half} - 1) * k / {half} FROM generate_series(1, {half}) k));
                     COMMIT;
                   END LOOP;
                 END $$",
                setting::ROW
            ),
        )?;
        source.exec("bench", &format!("CALL fill({})", changes / PER_TRANSACTION))?;
        let written =
            source.value("bench", "SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = 'bench'")?;
        source.exec("bench", "INSERT INTO the_end VALUES (1)")?;
        let end = source.value("bench", "SELECT pg_current_wal_lsn()")?.ok_or("no end of the log")?;
        eprintln!(
            "generated ({} row changes by the server's count), the log ends at {end}",
            written.unwrap_or_default()
        );
        Ok(Self { changes, end })
    }

    /// Fails unless the target has what the source has.
    fn check(&self, target: &PgServer, db: &str) -> Result<()> {
        let rows = target.value(db, "SELECT count(*) FROM bench")?.unwrap_or_default();
        let expected = self.changes / 2;
        if rows != expected.to_string() {
            return Err(format!("{db} has {rows} rows, not {expected}").into());
        }
        Ok(())
    }

    fn ours(&self, source: &PgServer, target: &PgServer, report: &mut Report) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("bench.db");
        let mut contenders = vec![
            ("null", "anabranch -> null", "type = \"null\"".to_owned()),
            ("postgres", "anabranch -> PostgreSQL", format!("type = \"postgres\"\nurl = \"{}\"", target.url("ours"))),
            (
                "sqlite",
                "anabranch -> SQLite",
                format!("type = \"sqlite\"\npath = \"{}\"\ncreate_tables = true", file.display()),
            ),
        ];
        let mariadb = if wanted("mariadb") { setting::mariadb()? } else { None };
        if let Some(server) = &mariadb {
            // The table has neither NaN nor years beyond 9999, which MariaDB could not hold.
            let keys = "accept_relaxed_durability = true\ncreate_tables = true\n\
                        [mapping]\nlossy = [\"bench.amount\", \"bench.changed_at\"]";
            contenders.push((
                "mariadb",
                "anabranch -> MariaDB",
                format!("type = \"mysql\"\nurl = \"{}\"\n{keys}", server.url("bench")),
            ));
        }
        for (slot, name, sink) in contenders.into_iter().filter(|(slot, ..)| wanted(slot)) {
            if slot == "postgres" {
                prepare(target, "ours")?;
            }
            let keys = format!("slot = \"{slot}\"\nsnapshot = \"never\"");
            let outcome = measure(&config(slot, &source.url("bench"), &keys, &sink))?;
            // One more: the row that says that everything was written.
            let outcome = outcome.expect(self.changes + 1, 0)?;
            if slot == "postgres" {
                self.check(target, "ours")?;
            }
            report.add(name, outcome.took(), outcome.used);
            drop_slot(source, slot)?;
        }
        Ok(())
    }
}

/// A database with the tables.
pub(crate) fn prepare(target: &PgServer, db: &str) -> Result<()> {
    let db = if db == "native" { "bench" } else { db };
    target.create_db(db)?;
    target.exec(db, TABLE)?;
    target.exec(db, "CREATE TABLE the_end (id integer PRIMARY KEY)")?;
    Ok(())
}
