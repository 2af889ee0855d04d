//! The two-job form from a Spanner change stream: one job writes what Spanner commits into window files, another
//! one reads them into two MariaDB databases. Partitions split and merge all the while, both jobs are killed, a
//! shard fails and is repaired.

use std::fs;

use anabranch_servers::{MariaOptions, MariaServer, Row, SpannerDialect, SpannerOptions, SpannerServer};

use super::Tested;
use super::command::{Anabranch, DONE, OPERATOR, until};
use super::shop::{SESSION, SHARD, shards_file, status, writer_job};

const SOURCE: [&str; 2] = [
    "CREATE TABLE Customers (migration_shard_id STRING(50) NOT NULL, Id INT64 NOT NULL, FullName STRING(100)) \
     PRIMARY KEY (migration_shard_id, Id)",
    "CREATE TABLE Orders (migration_shard_id STRING(50) NOT NULL, Id INT64 NOT NULL, Total NUMERIC, `At` TIMESTAMP) \
     PRIMARY KEY (migration_shard_id, Id)",
];

/// Both jobs, and what they work on. Times have whole seconds: the emulator 1.5.28 leaves the fractions of
/// TIMESTAMP columns out of its change records.
struct Jobs {
    source: SpannerServer,
    database: String,
    shards: [MariaServer; 2],
    reader: Anabranch,
    writer: Anabranch,
    /// Changes of rows that the source has committed.
    changes: u64,
    /// The next order.
    next: u32,
}

impl Jobs {
    /// `None`: skipped.
    fn begin(order: &str) -> Tested<Option<Self>> {
        let Some(source) = SpannerOptions::new().partition_seconds(1).start()? else { return Ok(None) };
        let (Some(one), Some(two)) = (MariaOptions::new().start()?, MariaOptions::new().start()?) else {
            return Ok(None);
        };
        let shards = [one, two];
        for shard in &shards {
            shard.create_db("shop")?;
            // Spanner's NUMERIC has nine digits behind the point.
            let tables = SHARD.replace("decimal(10,2)", "decimal(38,9)");
            tables.split(';').try_for_each(|statement| shard.exec("shop", statement).map(drop))?;
        }
        let database = source.create_db(SpannerDialect::GoogleSql, &SOURCE)?;
        let (Some(reader), Some(writer)) = (Anabranch::new("")?, Anabranch::new("")?) else { return Ok(None) };
        let files = reader.folder().join("windows").display().to_string();
        let jobs = Self { source, database, shards, reader, writer, changes: 0, next: 1 };
        jobs.reader.write(&jobs.reader_job(order, &files))?;
        jobs.writer.write(&writer_job(&files))?;
        fs::write(jobs.reader.folder().join("session.json"), SESSION)?;
        fs::write(jobs.writer.folder().join("shards.json"), shards_file(&jobs.shards))?;
        // From here on everything is in the stream.
        jobs.reader.drain()?.expect(DONE, &["drained"]);
        Ok(Some(jobs))
    }

    fn reader_job(&self, order: &str, files: &str) -> String {
        format!(
            "[pipeline]\nname = \"shop\"\n{order}\n\
             [source]\ntype = \"spanner\"\ndatabase = \"{}\"\nchange_stream = \"changes\"\nendpoint = \"http://{}\"\n\
             admin_endpoint = \"http://{}\"\nsnapshot = \"never\"\n\
             [sink]\ntype = \"files\"\npath = \"{files}\"\nrun = \"shop\"\nwindow_seconds = 1\n\
             [[transform]]\ntype = \"forward_migration\"\n\
             [[transform]]\ntype = \"session\"\nfile = \"session.json\"\n",
            self.database,
            self.source.host(),
            self.source.rest_host()
        )
    }

    /// Transactions over both shards and both tables: rows that come, change, go and are put back.
    fn trade(&mut self, orders: u32) -> Tested {
        let from = self.next;
        self.next += orders;
        for id in from..self.next {
            let (mine, other) = if id % 2 == 0 { ("one", "two") } else { ("two", "one") };
            let mut sql = vec![
                format!(
                    "INSERT INTO Customers (migration_shard_id, Id, FullName) \
                     VALUES ('{mine}', {id}, 'it\\'s {id}'), ('{other}', {id}, 'ö \u{1f980} {id}')"
                ),
                format!(
                    "INSERT INTO Orders (migration_shard_id, Id, Total, `At`) VALUES ('{mine}', {id}, \
                     NUMERIC '{id}.000000025', TIMESTAMP '2024-02-29T12:00:00Z')"
                ),
            ];
            self.changes += 3;
            if id > from + 3 {
                sql.push(format!("UPDATE Customers SET FullName = 'changed {id}' WHERE Id = {}", id - 2));
                sql.push(format!("DELETE FROM Orders WHERE Id = {}", id - 3));
                // Put back with less than it had: Spanner tells one insert.
                let last = id - 1;
                sql.push(format!("DELETE FROM Customers WHERE Id = {last} AND migration_shard_id = '{mine}'"));
                sql.push(format!("INSERT INTO Customers (migration_shard_id, Id) VALUES ('{mine}', {last})"));
                self.changes += 4;
            }
            let sql: Vec<&str> = sql.iter().map(String::as_str).collect();
            self.source.transaction(&self.database, &sql)?;
        }
        Ok(())
    }

    /// Both shards, and what they should have.
    fn sides(&self, at: usize) -> Tested<(Vec<Row>, Vec<Row>)> {
        let (server, name) = (&self.shards[at], ["one", "two"][at]);
        let of = |columns: &str, table: &str| {
            let sql = format!("SELECT {columns} FROM {table} WHERE migration_shard_id = '{name}' ORDER BY Id");
            self.source.exec(&self.database, &sql)
        };
        let mut wanted = of("Id, FullName", "Customers")?;
        wanted.extend(of("Id, CAST(Total AS STRING), FORMAT_TIMESTAMP('%Y-%m-%d %H:%M:%E6S', `At`, 'UTC')", "Orders")?);
        let mut there = server.exec("shop", "SELECT customer_id, name FROM customers ORDER BY 1")?;
        there.extend(server.exec("shop", "SELECT order_id, amount, placed_at FROM orders ORDER BY 1")?);
        Ok((wanted, there))
    }

    fn until_same(&self, at: usize) -> Tested {
        let same = until("the shard is as the source", || {
            let (wanted, there) = self.sides(at)?;
            Ok(wanted == there)
        });
        if same.is_err() {
            let (wanted, there) = self.sides(at)?;
            let (reader, writer) = (status(&self.reader)?, status(&self.writer)?);
            assert_eq!(there, wanted, "shard {at} (left: target)\nreader: {reader}\nwriter: {writer}");
        }
        same
    }

    fn write(&self, mode: &str, code: i32, says: &[&str]) -> Tested {
        self.writer.call(&["run", "--until-drained", "--mode", mode])?.expect(code, says);
        Ok(())
    }

    /// Both shards are as the source, and every change was applied once.
    fn assert_done(&self) -> Tested {
        for at in 0..2 {
            let (wanted, there) = self.sides(at)?;
            assert!(!wanted.is_empty());
            assert_eq!(there, wanted, "shard {at} (left: target)");
        }
        let status = status(&self.writer)?;
        assert_eq!(status["counters"]["changes"], self.changes, "{status}");
        assert_eq!((&status["counters"]["stale"], &status["dead_letters_open"]), (&0.into(), &0.into()), "{status}");
        Ok(())
    }
}

/// Both jobs at work, both killed, a shard that fails and is repaired: exact rows, each change once.
fn both_jobs(order: &str) -> Tested {
    let Some(mut jobs) = Jobs::begin(order)? else { return Ok(()) };
    let mut reading = jobs.reader.spawn(&["run"])?;
    reading.says("streaming")?;
    let mut writing = jobs.writer.spawn(&["run"])?;
    jobs.trade(20)?;
    reading.signal("KILL")?;
    drop(reading);
    let reading = jobs.reader.spawn(&["run"])?;
    jobs.trade(20)?;
    writing.says("streaming")?;
    writing.signal("KILL")?;
    drop(writing);
    let writing = jobs.writer.spawn(&["run"])?;
    jobs.trade(20)?;
    jobs.until_same(0)?;
    jobs.until_same(1)?;
    for job in [reading, writing] {
        job.signal("TERM")?;
        job.ended()?.expect(DONE, &[]);
    }

    // Shard two fails: it halts alone, and goes on once it is repaired.
    jobs.shards[1].exec("shop", "RENAME TABLE orders TO orders_of_old")?;
    jobs.trade(10)?;
    jobs.reader.drain()?.expect(DONE, &["drained"]);
    jobs.write("regular", OPERATOR, &["1 of 2 shards is halted: two: ", "orders"])?;
    jobs.until_same(0)?;
    jobs.shards[1].exec("shop", "RENAME TABLE orders_of_old TO orders")?;
    jobs.write("resume-failed", DONE, &["in two"])?;
    jobs.write("resume-all", DONE, &["drained"])?;
    jobs.assert_done()
}

#[test]
fn in_windows() -> Tested {
    both_jobs("order = \"window\"\nwindow_seconds = 1")
}

#[test]
fn by_transaction() -> Tested {
    both_jobs("order = \"transaction\"")
}
