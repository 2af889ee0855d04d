//! Everything that may be wrong with the source: `check` says it at once, `run` waits for what may
//! mend itself and stops at the rest, and after the repair everything arrives.

use anabranch_servers::{PgOptions, PgVersion};

use super::Tested;
use super::command::{CONFIGURATION, DONE, FAILED, OPERATOR, SECRET, until};
use super::shop::{ORDERS, Shop, with_passwords};

/// `check` and `run` refuse it in the same words.
fn both_refuse(shop: &Shop, config: &str, code: i32, parts: &[&str]) -> Tested {
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(config)?;
    command.check()?.expect(code, parts);
    command.drain()?.expect(code, parts);
    Ok(())
}

#[test]
fn a_right_configuration_copies_and_streams() -> Tested {
    let Some(shop) = Shop::open("right")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.call(&["status"])?.expect(CONFIGURATION, &[&format!("the pipeline {} has never run", shop.name)]);
    command.check()?.expect(DONE, &["orders", "character varying(40)", "exact", "CREATE TABLE", "\nok\n"]);
    command.drain()?.expect(DONE, &["drained: "]);
    shop.assert_same()?;
    shop.on_source("UPDATE orders SET total = 1 WHERE id < 5; DELETE FROM orders WHERE id = 7")?;
    command.drain()?.expect(DONE, &["drained: "]);
    shop.assert_same()?;
    command.call(&["status"])?.expect(DONE, &["50 rows, 1/1 tables, done", "dead letters  0 open"]);
    let said = command.call(&["status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&said.stdout)?;
    assert_eq!(status["pipeline"], shop.name.as_str());
    assert_eq!(status["counters"]["snapshot_rows"], 50);
    assert!(status["partitions"].as_object().is_some_and(|p| p.len() == 1), "{status}");
    Ok(())
}

#[test]
fn a_server_that_cannot_be_reached_fails_a_check_and_is_waited_for_by_a_run() -> Tested {
    let Some(shop) = Shop::open("unreachable")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    for (host, why) in [("127.0.0.1:1", "Connection refused"), ("nowhere.invalid", "failed to lookup address")] {
        let url = format!("postgresql://app:{SECRET}@{host}/shop?sslmode=disable");
        command.write(&(shop.head_of(&url) + &shop.sink()))?;
        command.check()?.expect(FAILED, &["source.url: cannot connect to postgresql://app@", why]);
        let mut running = command.spawn(&["run"])?;
        running.says(" retrying | ")?;
        running.says(why)?;
        assert!(running.runs()?, "it waits");
        running.signal("TERM")?;
        running.ended()?.expect(DONE, &[" stopped | "]);
    }
    command.write(&shop.config())?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_limited_number_of_retries_ends_a_run() -> Tested {
    let Some(shop) = Shop::open("limited")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let head = shop.head_of("postgresql://app@127.0.0.1:1/shop").replace("[source]", "retries = 1\n[source]");
    command.write(&(head + &shop.sink()))?;
    command.call(&["run"])?.expect(FAILED, &["Connection refused"]);
    Ok(())
}

#[test]
fn users_and_databases_that_are_not_there_are_named() -> Tested {
    let Some(shop) = Shop::open("accounts")? else { return Ok(()) };
    let (port, db) = (shop.source.port(), shop.name.clone());
    shop.on_source(&format!("CREATE ROLE {db} LOGIN REPLICATION PASSWORD '{SECRET}'"))?;
    for (user, database, parts) in [
        (format!("nobody:{SECRET}"), &db, &["source.url: ", "password authentication failed for user \"nobody\""][..]),
        (
            format!("{db}:{SECRET}-not"),
            &db,
            &["source.url: ", "password authentication failed", "check the user and the password"],
        ),
        (db.clone(), &db, &["source.url: ", "the server asks for a password", "set password"]),
        (
            "postgres".to_owned(),
            &"no_such_shop".to_owned(),
            &["source.url: ", "database \"no_such_shop\" does not exist"],
        ),
    ] {
        let url = format!("postgresql://{user}@127.0.0.1:{port}/{database}");
        both_refuse(&shop, &(shop.head_of(&url) + &shop.sink()), CONFIGURATION, parts)?;
    }
    let Some(mut command) = shop.command()? else { return Ok(()) };
    let url = format!("postgresql://{db}@127.0.0.1:{port}/{db}");
    command.write(&(shop.head_of(&url) + "password = \"env:SHOP_PASSWORD\"\n" + &shop.sink()))?;
    command.env("SHOP_PASSWORD", SECRET);
    command.env("ANABRANCH_LOG", "trace");
    command.check()?.expect(CONFIGURATION, &["only a superuser can create one for all tables"]);
    shop.on_source(&format!("CREATE PUBLICATION {db} FOR TABLE orders; GRANT SELECT ON orders TO {db}"))?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn each_missing_right_comes_with_the_statement_that_grants_it() -> Tested {
    let Some(shop) = Shop::open("granted")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let (port, db) = (shop.source.port(), &shop.name);
    shop.on_source(&format!("CREATE ROLE {db} LOGIN PASSWORD '{SECRET}'; REVOKE ALL ON SCHEMA public FROM public"))?;
    let url = format!("postgresql://{db}:{SECRET}@127.0.0.1:{port}/{db}");
    let head = shop.head_of(&url);
    command.write(&(head.clone() + "tables = [\"orders\"]\n" + &shop.sink()))?;

    let replication = format!("ALTER ROLE \"{db}\" REPLICATION;");
    command.check()?.expect(CONFIGURATION, &["source.url: ", &replication]);
    shop.on_source(&replication)?;

    let publication = format!(
        "CREATE PUBLICATION \"{db}\" FOR TABLE \"public\".\"orders\" WITH (publish_via_partition_root = true);"
    );
    command.drain()?.expect(CONFIGURATION, &[&publication]);
    command.write(&(head + "tables = [\"orders\"]\ncreate = false\n" + &shop.sink()))?;
    command.check()?.expect(CONFIGURATION, &["source.publication: there is no publication", &publication]);
    shop.on_source(&publication)?;

    let select = format!("GRANT SELECT ON \"public\".\"orders\" TO \"{db}\";");
    let usage = format!("GRANT USAGE ON SCHEMA \"public\" TO \"{db}\";");
    command.check()?.expect(CONFIGURATION, &["source.publication: ", &select, &usage]);
    shop.on_source(&format!("{select}{usage}"))?;

    let slot = format!("SELECT pg_create_logical_replication_slot('{db}', 'pgoutput');");
    command.check()?.expect(CONFIGURATION, &["source.slot: there is no slot", &slot]);
    shop.on_source(&slot)?;
    command.check()?.expect(DONE, &["\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_table_that_is_not_there_is_named() -> Tested {
    let Some(shop) = Shop::open("ordrs")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&(shop.head() + "tables = [\"ordrs\"]\n" + &shop.sink()))?;
    command.drain()?.expect(CONFIGURATION, &["ordrs"]);
    command.write(&(shop.head() + "tables = [\"orders\"]\n" + &shop.sink()))?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_publication_that_had_no_tables_gets_them_copied_later() -> Tested {
    let Some(shop) = Shop::open("empty")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_source(&format!("CREATE PUBLICATION {}", shop.name))?;
    command.drain()?.expect(DONE, &["the publication has no tables"]);
    shop.on_source(&format!("ALTER PUBLICATION {} ADD TABLE orders", shop.name))?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_table_that_is_published_while_it_runs_is_copied_whole() -> Tested {
    let Some(shop) = Shop::open("added")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_source(&format!(
        "CREATE TABLE first (id int PRIMARY KEY); CREATE PUBLICATION {} FOR TABLE first",
        shop.name
    ))?;
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    shop.on_source(&format!("ALTER PUBLICATION {} ADD TABLE orders", shop.name))?;
    // The rows that were there before come with the first change.
    shop.on_source("UPDATE orders SET total = -1 WHERE id = 3")?;
    running.says("the table public.orders is new: it is copied first")?;
    shop.until_same()?;
    running.signal("INT")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}

#[test]
fn a_published_table_without_a_key_is_refused_until_it_sends_whole_rows() -> Tested {
    let Some(shop) = Shop::open("keyless")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_source("ALTER TABLE orders DROP CONSTRAINT orders_pkey")?;
    command.write(&(shop.head() + "tables = [\"orders\"]\n" + &shop.sink()))?;
    let mend = "ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL;";
    command.drain()?.expect(CONFIGURATION, &["source.publication: ", mend]);
    shop.on_source(mend)?;
    command.drain()?.expect(DONE, &[]);
    // Two equal rows: one of them goes.
    shop.on_source("INSERT INTO orders VALUES (77, 'twice', 1, null), (77, 'twice', 1, null)")?;
    shop.on_source("DELETE FROM orders WHERE ctid = (SELECT max(ctid) FROM orders WHERE id = 77)")?;
    shop.on_source("UPDATE orders SET total = 9 WHERE id = 5")?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_server_that_is_not_set_up_for_replication_says_what_to_set() -> Tested {
    let Some(shop) = Shop::open("limits")? else { return Ok(()) };
    let options = PgOptions::new(PgVersion::Any).setting("wal_level", "replica");
    let options = options.setting("max_replication_slots", "1").setting("max_wal_senders", "1");
    let Some(server) = with_passwords(options).start()? else { return Ok(()) };
    server.create_db("shop")?;
    server.exec("shop", ORDERS)?;
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&(shop.head_of(&server.url("shop")) + &shop.sink()))?;
    command.check()?.expect(CONFIGURATION, &["wal_level", "ALTER SYSTEM SET wal_level = logical"]);
    server.set("wal_level", "logical")?;
    server.stop()?;
    server.start()?;
    server.exec("shop", "SELECT pg_create_physical_replication_slot('taken')")?;
    command
        .drain()?
        .expect(CONFIGURATION, &["slots that max_replication_slots allows are in use", "drop unused slots"]);
    server.exec("shop", "SELECT pg_drop_replication_slot('taken')")?;

    // One slot and one sender are too few: a copy needs a second one, and so does the look at the server.
    let mut running = command.spawn(&["run", "--until-drained"])?;
    until("it says which limit to raise", || {
        let log = running.log();
        Ok(log.contains("max_replication_slots") || log.contains("max_wal_senders"))
    })?;
    if running.runs()? {
        running.signal("TERM")?;
    }
    let said = running.ended()?;
    assert!(matches!(said.code, Some(DONE | CONFIGURATION)), "{}", said.all());
    for limit in ["max_replication_slots", "max_wal_senders"] {
        server.exec("postgres", &format!("ALTER SYSTEM SET {limit} = '10'"))?;
    }
    server.stop()?;
    server.start()?;
    command.drain()?.expect(DONE, &[]);
    let there = shop.target.value(&shop.name, "SELECT count(*) FROM orders")?;
    assert_eq!(there.as_deref(), Some("50"));
    Ok(())
}

#[test]
fn a_slot_that_was_dropped_or_read_by_somebody_else_is_a_gap_and_is_repaired_by_a_new_copy() -> Tested {
    let mends: [(&str, &str, &[&str]); 3] = [
        ("dropped", "SELECT pg_drop_replication_slot('{}')", &["does not exist any more", "copy the tables again"]),
        (
            "advanced",
            "SELECT pg_replication_slot_advance('{}', pg_current_wal_flush_lsn())",
            &["consumed by somebody else", "copy the tables again"],
        ),
        (
            "recreated",
            "SELECT pg_drop_replication_slot('{}'); SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
            &["created anew", "copy the tables again"],
        ),
    ];
    for (what, sql, parts) in mends {
        let Some(shop) = Shop::open(what)? else { return Ok(()) };
        let Some(command) = shop.command()? else { return Ok(()) };
        command.drain()?.expect(DONE, &[]);
        shop.on_source("UPDATE orders SET total = 4711 WHERE id = 1")?;
        for statement in sql.replace("{}", &shop.name).split("; ") {
            shop.on_source(statement)?;
        }
        shop.on_source("UPDATE orders SET total = 4712 WHERE id = 2")?;
        command.drain()?.expect(OPERATOR, parts);
        assert!(!shop.same()?, "nothing was applied over the gap");
        // As the message says: a fresh checkpoint, and the tables copied again.
        shop.on_target("DROP SCHEMA anabranch CASCADE; DROP TABLE orders")?;
        command.drain()?.expect(DONE, &[]);
        shop.assert_same()?;
    }
    Ok(())
}

#[test]
fn another_source_under_the_same_name_is_refused() -> Tested {
    let (Some(shop), Some(other)) = (Shop::open("mine")?, Shop::open("other")?) else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    let url = other.source.url(&other.name);
    for config in [
        shop.head_of(&url),
        shop.head_of(&other.target.url(&other.name)),
        shop.head().replace("slot = \"", "slot = \"x"),
        shop.head().replace("publication = \"", "publication = \"x"),
    ] {
        command.write(&(config + &shop.sink()))?;
        command.drain()?.expect(OPERATOR, &["the checkpoint belongs to another ", "fresh checkpoint"]);
    }
    command.write(&shop.config())?;
    shop.on_source("DELETE FROM orders WHERE id = 1")?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}
