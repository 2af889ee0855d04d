//! The two-job form with the real command: one job writes what the source commits into window files, another
//! one reads them into the shards, each by a pipeline of its own. A shard fails, and is repaired; each mode of
//! the writer takes the shards that are meant, and every change is counted once.

use anabranch_servers::{MariaServer, Row};

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, OPERATOR, until};
use super::shop::{Shop, status, writer_job};

/// Both jobs, and what they work on.
struct Jobs {
    shop: Shop,
    reader: Anabranch,
    writer: Anabranch,
    /// Changes of rows that the source has committed for both shards.
    changes: u64,
    /// The next order.
    next: u32,
}

impl Jobs {
    /// `None`: skipped.
    fn begin(what: &str) -> Tested<Option<Self>> {
        let Some(shop) = Shop::open(what)? else { return Ok(None) };
        let Some(reader) = shop.command("")? else { return Ok(None) };
        let Some(writer) = shop.command("")? else { return Ok(None) };
        let files = reader.folder().join("windows").display().to_string();
        reader.write(&reader_job(&shop, &files))?;
        writer.write(&writer_job(&files))?;
        let jobs = Self { shop, reader, writer, changes: 0, next: 1 };
        // From here on everything is in the stream.
        jobs.reader.drain()?.expect(DONE, &["drained"]);
        Ok(Some(jobs))
    }

    /// Orders in both shards, and the files of them.
    fn trade(&mut self, orders: u32) -> Tested {
        self.shop.trade(self.next, self.next + orders)?;
        self.next += orders;
        // Three rows of each; all but the first four change two rows and take one away.
        self.changes += u64::from(3 * orders + 3 * (orders - 4));
        self.reader.drain()?.expect(DONE, &["drained"]);
        Ok(())
    }

    fn drain(&self, mode: &str, code: i32, says: &[&str]) -> Tested {
        self.writer.call(&["run", "--until-drained", "--mode", mode])?.expect(code, says);
        Ok(())
    }

    fn two(&self) -> &MariaServer {
        &self.shop.shards[1]
    }

    /// A table of shard two is not where it should be.
    fn spoil(&self) -> Tested {
        Ok(self.two().exec("shop", "RENAME TABLE orders TO orders_of_old").map(drop)?)
    }

    fn mend(&self) -> Tested {
        Ok(self.two().exec("shop", "RENAME TABLE orders_of_old TO orders").map(drop)?)
    }

    /// Every row of a shard.
    fn rows(&self, at: usize) -> Tested<Vec<Row>> {
        let server = &self.shop.shards[at];
        let mut rows = server.exec("shop", "SELECT customer_id, name FROM customers ORDER BY 1")?;
        rows.extend(server.exec("shop", "SELECT order_id, amount, placed_at FROM orders ORDER BY 1")?);
        Ok(rows)
    }

    /// What `status --json` says of a shard.
    fn shard(&self, name: &str) -> Tested<serde_json::Value> {
        Ok(status(&self.writer)?["shards"][name].clone())
    }

    /// Copies all tables of shard two, also those in which its progress is.
    fn copy_two(&self, from: &str, to: &str) -> Tested {
        self.two().exec("mysql", &format!("DROP DATABASE IF EXISTS {to}"))?;
        self.two().create_db(to)?;
        let tables = format!("SELECT table_name FROM information_schema.tables WHERE table_schema = '{from}'");
        for row in self.two().exec("mysql", &tables)? {
            let table = row[0].as_deref().unwrap_or_default();
            self.two().exec("mysql", &format!("CREATE TABLE {to}.{table} LIKE {from}.{table}"))?;
            self.two().exec("mysql", &format!("INSERT INTO {to}.{table} SELECT * FROM {from}.{table}"))?;
        }
        Ok(())
    }

    /// Both shards are as the source, and every change was applied once.
    fn assert_done(&self) -> Tested {
        self.shop.assert_same()?;
        let status = status(&self.writer)?;
        let of = |shard: &str| status["shards"][shard]["counters"]["changes"].as_u64().unwrap_or_default();
        assert_eq!(of("one") + of("two"), self.changes, "{status}");
        assert_eq!(status["counters"]["changes"], self.changes, "{status}");
        assert_eq!(status["counters"]["stale"], 0, "{status}");
        assert_eq!(status["dead_letters_open"], 0, "{status}");
        Ok(())
    }
}

fn reader_job(shop: &Shop, files: &str) -> String {
    let (name, url) = (&shop.name, shop.source.url(&shop.name));
    format!(
        "[pipeline]\nname = \"{name}\"\norder = \"transaction\"\n\
         [source]\ntype = \"postgres\"\nurl = \"{url}\"\npublication = \"{name}\"\nslot = \"{name}\"\nsnapshot = \"never\"\n\
         [sink]\ntype = \"files\"\npath = \"{files}\"\nrun = \"shop\"\nwindow_seconds = 1\n\
         [[transform]]\ntype = \"forward_migration\"\n\
         [[transform]]\ntype = \"session\"\nfile = \"session.json\"\n"
    )
}

#[test]
fn each_mode_takes_the_shards_that_are_meant() -> Tested {
    let Some(mut jobs) = Jobs::begin("writers_modes")? else { return Ok(()) };
    jobs.writer.call(&["status"])?.expect(CONFIGURATION, &["has never run"]);

    // regular: every shard.
    jobs.trade(10)?;
    jobs.drain("regular", DONE, &["drained"])?;
    jobs.assert_done()?;
    jobs.copy_two("shop", "backup")?;

    // Shard two fails: it halts alone, and says why. The other one goes on.
    jobs.spoil()?;
    jobs.trade(10)?;
    jobs.drain("regular", OPERATOR, &["1 of 2 shards is halted: two: ", "orders", "resume_failed"])?;
    jobs.shop.until_same(0)?;
    let (one, two) = (jobs.shard("one")?, jobs.shard("two")?);
    assert_eq!((&one["phase"], &two["phase"]), (&"stopped".into(), &"halted".into()), "{one} {two}");
    assert!(two["reason"].as_str().is_some_and(|r| r.contains("orders")), "{two}");
    let said = jobs.writer.call(&["status"])?;
    said.expect(DONE, &["shard         two halted", "shard         one stopped"]);

    // resume_success: the shards that did not fail.
    jobs.trade(10)?;
    jobs.drain("resume-success", DONE, &["in one"])?;
    jobs.shop.until_same(0)?;
    assert_eq!(jobs.shard("two")?["phase"], "halted");

    // resume_failed: the shard that did. Before it is repaired it fails again.
    jobs.trade(10)?;
    let one_before = jobs.rows(0)?;
    jobs.drain("resume-failed", OPERATOR, &["1 of 1 shard is halted: two: "])?;
    jobs.mend()?;
    jobs.drain("resume-failed", DONE, &["in two"])?;
    jobs.shop.until_same(1)?;
    assert_eq!(jobs.rows(0)?, one_before, "shard one was left alone");
    assert_eq!(jobs.shard("two")?["phase"], "stopped");
    jobs.drain("resume-failed", DONE, &["no shard has failed"])?;

    // reprocess: the shards that an operator has marked. Shard two was put back to its backup, progress
    // and all: what it lacks is applied again, and counted once.
    jobs.drain("reprocess", DONE, &["no shard is marked"])?;
    jobs.writer.call(&["reprocess", "three"])?.expect(CONFIGURATION, &["no shard \"three\"", "one, two"]);
    jobs.copy_two("backup", "shop")?;
    jobs.writer.call(&["reprocess", "two"])?.expect(DONE, &["two: marked", "--mode reprocess"]);
    assert_eq!(jobs.shard("two")?["phase"], "reprocess");
    jobs.drain("reprocess", DONE, &["in two"])?;
    jobs.shop.until_same(1)?;
    assert_eq!(jobs.rows(0)?, one_before, "shard one was left alone");
    assert_eq!(jobs.shard("two")?["phase"], "stopped");

    // resume_all: one that failed and one that did not; killed on the way.
    jobs.drain("regular", DONE, &["drained"])?;
    jobs.assert_done()?;
    jobs.spoil()?;
    jobs.trade(10)?;
    jobs.drain("regular", OPERATOR, &["two: "])?;
    jobs.mend()?;
    jobs.trade(10)?;
    let mut killed = jobs.writer.spawn(&["run", "--mode", "resume-all"])?;
    killed.says("streaming")?;
    killed.signal("KILL")?;
    drop(killed);
    jobs.drain("resume-all", DONE, &["drained"])?;
    jobs.assert_done()
}

#[test]
fn a_halted_shard_is_resumed_beside_the_others() -> Tested {
    let Some(mut jobs) = Jobs::begin("writers_beside")? else { return Ok(()) };
    let mut first = jobs.writer.spawn(&["run"])?;
    first.says("streaming")?;
    jobs.trade(10)?;
    jobs.shop.until_same(0)?;
    jobs.shop.until_same(1)?;
    // A row in the way of one that is to come.
    let order = jobs.next + 5;
    jobs.two().exec("shop", "ALTER TABLE orders ADD CONSTRAINT few CHECK (amount < 10000)")?;
    jobs.shop.write(&format!("INSERT INTO \"Orders\" VALUES ('two', {}, 20000, now())", order + 1_000_000))?;
    jobs.changes += 1;
    jobs.trade(10)?;
    jobs.shop.until_same(0)?;
    until("shard two halts", || Ok(jobs.shard("two")?["phase"] == "halted"))?;
    let two = jobs.shard("two")?;
    assert!(two["reason"].as_str().is_some_and(|r| r.contains("few")), "{two}");
    assert_eq!(jobs.shard("one")?["phase"], "running");
    // What it lacks keeps the pipeline from being drained, and waiting does not mend it.
    jobs.writer.call(&["drain", "--timeout", "60"])?.expect(OPERATOR, &["two: ", "few"]);

    // Repaired, it is taken up by another process, beside the first.
    jobs.two().exec("shop", "ALTER TABLE orders DROP CONSTRAINT few")?;
    let second = jobs.writer.spawn(&["run", "--mode", "resume-failed"])?;
    jobs.trade(10)?;
    jobs.shop.until_same(0)?;
    jobs.shop.until_same(1)?;
    until("shard two runs", || Ok(jobs.shard("two")?["phase"] == "running"))?;
    jobs.writer.call(&["drain", "--timeout", "60"])?.expect(DONE, &["drained       true"]);
    second.signal("TERM")?;
    second.ended()?.expect(DONE, &[]);
    // Nothing is halted any more.
    first.signal("TERM")?;
    first.ended()?.expect(DONE, &[]);
    jobs.assert_done()
}
