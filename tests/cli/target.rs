//! Everything that may be wrong with the target.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, FAILED, OPERATOR, SECRET};
use super::shop::{Shop, mariadb};

const TABLE: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, total bigint, due date)";

/// A target table that does not fit is refused by `check` and by `run`; mended, the run completes.
fn unfit(what: &str, made: &str, parts: &[&str], mend: &str) -> Tested {
    let Some(shop) = Shop::open(what)? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_target(made)?;
    command.check()?.expect(CONFIGURATION, parts);
    command.drain()?.expect(CONFIGURATION, parts);
    shop.on_target(mend)?;
    command.check()?.expect(DONE, &["\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_missing_column_is_named() -> Tested {
    let made = "CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, due date)";
    unfit("column", made, &["public.orders.total: ", "no such column"], "ALTER TABLE orders ADD total bigint")
}

#[test]
fn a_column_that_differs_in_case_is_named() -> Tested {
    let made = TABLE.replace("total", "\"Total\"");
    unfit("case", &made, &["public.orders.total: ", "differs in case"], "ALTER TABLE orders RENAME \"Total\" TO total")
}

#[test]
fn another_key_is_named() -> Tested {
    let made = "CREATE TABLE orders (id int, customer varchar(40) PRIMARY KEY, total bigint, due date)";
    unfit("key", made, &["public.orders: the source's key is (id)", "(customer)"], "ALTER TABLE orders ADD UNIQUE (id)")
}

#[test]
fn no_key_is_named() -> Tested {
    let made = TABLE.replace(" PRIMARY KEY", "");
    unfit("nokey", &made, &["public.orders: the source's key is (id)"], "ALTER TABLE orders ADD PRIMARY KEY (id)")
}

#[test]
fn a_column_that_nobody_fills_is_named() -> Tested {
    let made = TABLE.replace(")", ", extra int NOT NULL)").replace("(40, extra int NOT NULL)", "(40)");
    let parts = ["orders.extra: is NOT NULL without a default", "give it a default"];
    unfit("extra", &made, &parts, "ALTER TABLE orders ALTER extra SET DEFAULT 5")
}

#[test]
fn a_missing_table_is_named() -> Tested {
    let Some(shop) = Shop::open("notable")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&shop.config().replace("create_tables = true\n", ""))?;
    let parts = ["public.orders: the target has no table public.orders", "create_tables = true"];
    command.check()?.expect(CONFIGURATION, &parts);
    command.drain()?.expect(CONFIGURATION, &parts);
    command.write(&shop.config())?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_type_that_loses_something_needs_consent() -> Tested {
    let Some(shop) = Shop::open("lossy")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_source(
        "CREATE TABLE readings (id int PRIMARY KEY, v double precision); INSERT INTO readings VALUES (1, 0.5)",
    )?;
    shop.on_target("CREATE TABLE readings (id int PRIMARY KEY, v real)")?;
    let parts = ["public.readings.v: ", "lossy = [\"public.readings.v\"]"];
    command.check()?.expect(CONFIGURATION, &parts);
    command.drain()?.expect(CONFIGURATION, &parts);
    command.write(&(shop.config() + "[mapping]\nlossy = [\"public.readings.v\"]\n"))?;
    command.check()?.expect(DONE, &["lossy (accepted)", "\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_type_that_does_not_fit_at_all_cannot_be_consented_to() -> Tested {
    let Some(shop) = Shop::open("unsupported")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_target(&TABLE.replace("customer varchar(40)", "customer bytea"))?;
    command.write(&(shop.config() + "[mapping]\nlossy = [\"orders.customer\"]\n"))?;
    command.check()?.expect(CONFIGURATION, &["public.orders.customer: "]);
    shop.on_target(&format!("DROP TABLE orders; {TABLE}"))?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_target_that_is_not_empty_is_left_alone() -> Tested {
    let Some(shop) = Shop::open("full")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_target(&format!("{TABLE}; INSERT INTO orders VALUES (1, 'somebody else''s', 2, null)"))?;
    command.drain()?.expect(CONFIGURATION, &["public.orders already has rows", "snapshot = \"never\""]);
    let kept = shop.target.value(&shop.name, "SELECT customer FROM orders")?;
    assert_eq!(kept.as_deref(), Some("somebody else's"));
    shop.on_target("TRUNCATE orders")?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_read_only_database_is_told_from_a_broken_one() -> Tested {
    let Some(shop) = Shop::open("readonly")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let set = |sql: &str| shop.target.exec("postgres", &format!("ALTER DATABASE {} {sql}", shop.name));
    set("SET default_transaction_read_only = on")?;
    command.check()?.expect(CONFIGURATION, &["sink.url: ", "default_transaction_read_only"]);
    command.drain()?.expect(CONFIGURATION, &["sink.url: ", "default_transaction_read_only"]);
    set("RESET default_transaction_read_only")?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_row_of_the_copy_that_is_refused_stops_it_and_the_copy_begins_again_once_it_fits() -> Tested {
    let Some(shop) = Shop::open("copyrefused")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_target(&TABLE.replace(")", ", CHECK (id <> 33))").replace("(40, CHECK (id <> 33))", "(40)"))?;
    command.drain()?.expect(OPERATOR, &["copying public.orders: ", "violates check constraint"]);
    shop.on_target("ALTER TABLE orders DROP CONSTRAINT orders_id_check")?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

/// A configuration with an SQLite file as the sink.
fn into_file(shop: &Shop, path: &Path) -> String {
    shop.head() + &format!("[sink]\ntype = \"sqlite\"\npath = \"{}\"\ncreate_tables = true\n", path.display())
}

fn rows_in(path: &Path) -> Tested<i64> {
    Ok(rusqlite::Connection::open(path)?.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?)
}

#[test]
fn a_file_that_cannot_be_a_target_is_named() -> Tested {
    let Some(shop) = Shop::open("file")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let nowhere = folder.path().join("nowhere/target.db");
    command.write(&into_file(&shop, &nowhere))?;
    command.check()?.expect(CONFIGURATION, &["sink.path: ", "nowhere does not exist", "create it"]);
    command.write(&into_file(&shop, folder.path()))?;
    command.check()?.expect(CONFIGURATION, &[&folder.path().display().to_string()]);
    let text = folder.path().join("notes.txt");
    fs::write(&text, "this is no database, and nobody may overwrite it\n".repeat(100))?;
    command.write(&into_file(&shop, &text))?;
    command.drain()?.expect(CONFIGURATION, &["notes.txt", "not an SQLite database"]);
    assert!(fs::read_to_string(&text)?.starts_with("this is no database"));
    fs::create_dir(folder.path().join("nowhere"))?;
    command.write(&into_file(&shop, &nowhere))?;
    command.drain()?.expect(DONE, &[]);
    assert_eq!(rows_in(&nowhere)?, 50);
    Ok(())
}

#[test]
fn a_file_that_may_not_be_written_is_named() -> Tested {
    let Some(shop) = Shop::open("rofile")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("target.db");
    rusqlite::Connection::open(&path)?.execute_batch("CREATE TABLE other (id)")?;
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
    mode(0o444)?;
    if fs::File::options().append(true).open(&path).is_ok() {
        println!("skipped: this account may write files that are read-only");
        return mode(0o644).map_err(Into::into);
    }
    command.write(&into_file(&shop, &path))?;
    command.drain()?.expect(CONFIGURATION, &["sink.path: ", "read-only", "writable"]);
    mode(0o644)?;
    command.drain()?.expect(DONE, &[]);
    assert_eq!(rows_in(&path)?, 50);
    Ok(())
}

/// A small file system of its own, taken away again when dropped.
struct Small(tempfile::TempDir);

impl Small {
    /// `None`: this account may not mount.
    fn mount(size: &str) -> Tested<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path());
        if !mount.output().is_ok_and(|out| out.status.success()) {
            println!("skipped: a small file system cannot be mounted here");
            return Ok(None);
        }
        Ok(Some(Self(folder)))
    }

    fn grow(&self, size: &str) -> Tested {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0.path()).status()?;
        if status.success() { Ok(()) } else { Err("it cannot be made larger".into()) }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_waited_for_and_nothing_is_lost() -> Tested {
    let Some(shop) = Shop::open("fulldisk")? else { return Ok(()) };
    let (Some(command), Some(small)) = (shop.command()?, Small::mount("256k")?) else { return Ok(()) };
    shop.on_source("INSERT INTO orders SELECT i, repeat('x', 40), i, null FROM generate_series(100, 20000) i")?;
    let path = small.0.path().join("target.db");
    command.write(&into_file(&shop, &path))?;
    let mut running = command.spawn(&["run", "--until-drained"])?;
    running.says("the disk is full: free some space")?;
    running.says(" retrying | ")?;
    small.grow("32m")?;
    running.ended()?.expect(DONE, &["drained: "]);
    assert_eq!(rows_in(&path)?, 50 + 19_901);
    Ok(())
}

/// A configuration with a MariaDB database as the sink.
fn into_mariadb(shop: &Shop, url: &str) -> String {
    shop.head()
        + &format!("[sink]\ntype = \"mysql\"\nurl = \"{url}\"\ncreate_tables = true\n")
        + "[mapping]\nlossy = [\"type:date\", \"type:character varying\"]\n"
}

#[test]
fn mariadb_says_who_is_refused_and_where() -> Tested {
    let (Some(shop), Some(server)) = (Shop::open("maria")?, mariadb()) else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let (db, port) = (&shop.name, server.port());
    server.exec("", &format!("CREATE USER {db}@'%' IDENTIFIED BY '{SECRET}'"))?;
    let refused = |url: &str, code: i32, parts: &[&str]| -> Tested {
        command.write(&into_mariadb(&shop, url))?;
        command.check()?.expect(code, parts);
        Ok(())
    };
    refused(
        &format!("mysql://{db}:{SECRET}@127.0.0.1:1/{db}"),
        FAILED,
        &["sink.url: cannot connect to mysql://", "Connection refused"],
    )?;
    refused(&format!("mysql://{db}:{SECRET}@nowhere.invalid/{db}"), FAILED, &["sink.url: ", "nowhere.invalid"])?;
    refused(
        &format!("mysql://{db}:{SECRET}x@127.0.0.1:{port}/{db}"),
        CONFIGURATION,
        &["sink.url", "Access denied", "check the user and the password"],
    )?;
    refused(&format!("mysql://root@127.0.0.1:{port}/{db}"), CONFIGURATION, &["sink.url", "Unknown database"])?;
    server.create_db(db)?;
    refused(
        &format!("mysql://{db}:{SECRET}@127.0.0.1:{port}/{db}"),
        CONFIGURATION,
        &["sink.url", "Access denied", "grant the right"],
    )?;
    command.write(
        &into_mariadb(&shop, &format!("mysql://{db}@127.0.0.1:{port}/{db}"))
            .replace("create_tables", &format!("password = \"{SECRET}\"\ncreate_tables")),
    )?;
    server.exec("", &format!("GRANT ALL ON {db}.* TO {db}@'%'"))?;
    command.drain()?.expect(DONE, &[]);
    assert_eq!(server.exec(db, "SELECT count(*) FROM orders")?, [[Some("50".to_owned())]]);
    Ok(())
}

#[test]
fn a_read_only_mariadb_says_so_and_is_not_waited_for() -> Tested {
    let Some(shop) = Shop::open("mariaro")? else { return Ok(()) };
    // Its own: the setting is the server's.
    let Some(server) = anabranch_servers::mariadb() else { return Ok(()) };
    let db = &shop.name;
    server.create_db(db)?;
    server.exec("", &format!("CREATE USER app@'%' IDENTIFIED BY '{SECRET}'; GRANT ALL ON {db}.* TO app@'%'"))?;
    let url = format!("mysql://app:{SECRET}@127.0.0.1:{}/{db}", server.port());
    let Some(command) = Anabranch::new(&into_mariadb(&shop, &url))? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    server.exec("", "SET GLOBAL read_only = 1")?;
    shop.on_source("UPDATE orders SET total = 17 WHERE id = 17")?;
    let says = ["sink.url: ", "read-only", "SET GLOBAL read_only = OFF"];
    command.check()?.expect(CONFIGURATION, &says);
    command.drain()?.expect(CONFIGURATION, &says);
    server.exec("", "SET GLOBAL read_only = 0")?;
    // In the middle of a run too.
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    server.exec("", "SET GLOBAL read_only = 1")?;
    shop.on_source("UPDATE orders SET total = 18 WHERE id = 18")?;
    running.ended()?.expect(CONFIGURATION, &["read-only", "SET GLOBAL read_only = OFF"]);
    server.exec("", "SET GLOBAL read_only = 0")?;
    command.drain()?.expect(DONE, &["drained: "]);
    assert_eq!(server.exec(db, "SELECT total FROM orders WHERE id = 17")?, [[Some("17".to_owned())]]);
    Ok(())
}
