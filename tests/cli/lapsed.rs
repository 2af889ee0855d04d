//! A slot that the server has given up: what was lost is said, and the way out that the message names works.

use anabranch_servers::{PgOptions, PgVersion};

use super::Tested;
use super::command::{Anabranch, DONE, OPERATOR, until};
use super::shop::{ORDERS, name, target};

const ROWS: &str = "SELECT id, customer, total, due FROM orders ORDER BY id";

#[test]
fn a_lapsed_slot_says_what_was_lost_and_a_comparison_repairs_it() -> Tested {
    let small = [("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let options = small.iter().fold(PgOptions::new(PgVersion::Any), |o, (key, value)| o.setting(*key, *value));
    let (Some(source), Some(target)) = (options.start()?, target()) else { return Ok(()) };
    let db = name("lapsed");
    source.create_db(&db)?;
    target.create_db(&db)?;
    source.exec(&db, ORDERS)?;
    let config = |pipeline: &str, more: &str| {
        format!(
            "[pipeline]\nname = \"{pipeline}\"\n[source]\ntype = \"postgres\"\nurl = \"{}\"\npublication = \"{db}\"\n\
             slot = \"{db}\"\n{more}[sink]\ntype = \"postgres\"\nurl = \"{}\"\ncreate_tables = true\n",
            source.url(&db),
            target.url(&db)
        )
    };
    let Some(command) = Anabranch::new(&config(&db, ""))? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    command.call(&["status"])?.expect(DONE, &["retention     ", "more until what is needed is dropped"]);

    // Nobody reads; the server needs its disk.
    source.exec(&db, "UPDATE orders SET total = -1 WHERE id = 1")?;
    source.exec(&db, "DELETE FROM orders WHERE id = 2")?;
    source.exec(&db, "INSERT INTO orders VALUES (100, 'missed', 1, null)")?;
    source.exec(&db, "CREATE TABLE filler (v text)")?;
    let state = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{db}'");
    until("the slot is lost", || {
        source.exec(&db, "INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 20000)")?;
        source.exec(&db, "TRUNCATE filler")?;
        source.exec(&db, "SELECT pg_switch_wal()")?;
        source.exec(&db, "CHECKPOINT")?;
        Ok(source.value(&db, &state)?.as_deref() == Some("lost"))
    })?;
    source.exec(&db, "DROP TABLE filler")?;
    let parts = [
        "the server has invalidated the slot",
        "max_slot_wal_keep_size",
        "this pipeline has applied the changes through 0/",
        "what was committed after that, through 0/",
        "is lost to it",
        "verify FILE --repair",
        "copy them again",
    ];
    command.call(&["run"])?.expect(OPERATOR, &parts);
    command.call(&["check"])?.expect(OPERATOR, &parts);
    command.call(&["status"])?.expect(DONE, &["retention     LOST: the slot", "max_slot_wal_keep_size"]);

    // What the message says.
    source.exec(&db, "ALTER SYSTEM SET max_slot_wal_keep_size = '-1'")?;
    source.exec(&db, "SELECT pg_reload_conf()")?;
    source.exec(&db, &format!("SELECT pg_drop_replication_slot('{db}')"))?;
    command.write(&config(&format!("{db}_again"), "snapshot = \"never\"\n"))?;
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    source.exec(&db, "UPDATE orders SET total = -3 WHERE id = 3")?;
    command.call(&["verify", "--repair"])?.expect(DONE, &["1 missing, 1 extra, 1 changed", "3 rows repaired"]);
    drop(running);
    command.drain()?.expect(DONE, &[]);
    assert_eq!(source.exec(&db, ROWS)?, target.exec(&db, ROWS)?);
    Ok(())
}
