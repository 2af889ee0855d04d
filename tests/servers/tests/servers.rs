//! Real servers: start, ask, crash, start again, leave nothing behind.

use std::path::PathBuf;
use std::process::Command;

use anabranch_servers::{MariaOptions, PgOptions, PgVersion, SpannerDialect, dynamodb, mariadb, postgres, spanner};

type Tested = Result<(), Box<dyn std::error::Error>>;

fn survives_a_crash(version: PgVersion, expected: &[&str]) -> Tested {
    let Some(server) = PgOptions::new(version).fsync(true).setting("work_mem", "2MB").start()? else { return Ok(()) };
    let number = server.value("postgres", "SHOW server_version_num")?.unwrap_or_default();
    assert!(expected.iter().any(|e| number.starts_with(e)), "{number}");
    assert_eq!(server.value("postgres", "SHOW work_mem")?.as_deref(), Some("2MB"));
    assert_eq!(server.value("postgres", "SHOW wal_level")?.as_deref(), Some("logical"));
    server.create_db("Shop \"1\"")?;
    server.exec("Shop \"1\"", "CREATE TABLE t (i int, s text); INSERT INTO t VALUES (1, NULL), (2, 'ü')")?;
    for _ in 0..3 {
        server.kill9()?;
        assert!(server.exec("postgres", "SELECT 1").is_err());
        server.start()?;
        let rows = server.exec("Shop \"1\"", "SELECT i, s FROM t ORDER BY i")?;
        let text = |v: &str| Some(v.to_owned());
        assert_eq!(rows, [vec![text("1"), None], vec![text("2"), text("ü")]]);
    }
    server.stop()?;
    server.start()?;
    assert!(server.exec("postgres", "SELECT 1/0").is_err_and(|e| e.to_string().contains("division by zero")));
    let folder: PathBuf = server.data_dir().into();
    let pid = server.pid();
    drop(server);
    assert!(!folder.exists());
    assert!(pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
    Ok(())
}

#[test]
fn postgres_15_survives_a_crash() -> Tested {
    survives_a_crash(PgVersion::V15, &["15", "16"])
}

#[test]
fn postgres_18_survives_a_crash() -> Tested {
    survives_a_crash(PgVersion::V18, &["18"])
}

#[test]
fn a_setting_changes_while_it_runs() -> Tested {
    let Some(server) = postgres(PgVersion::Any) else { return Ok(()) };
    server.set("wal_sender_timeout", "3s")?;
    server.stop()?;
    server.start()?;
    assert_eq!(server.value("postgres", "SHOW wal_sender_timeout")?.as_deref(), Some("3s"));
    Ok(())
}

#[test]
fn tls_and_passwords_are_asked_for() -> Tested {
    for version in [PgVersion::V15, PgVersion::V18] {
        let options = PgOptions::new(version).tls().hba("hostssl all app 127.0.0.1/32 scram-sha-256");
        let options = options.hba("hostnossl all app 127.0.0.1/32 reject").hba("hostssl all certified 0.0.0.0/0 cert");
        let Some(server) = options.start()? else { continue };
        server.exec("postgres", "CREATE ROLE app LOGIN PASSWORD 'pass'")?;
        let psql = |mode: &str, password: &str| {
            let tls = server.tls().expect("TLS is on");
            let text = format!(
                "host=localhost hostaddr=127.0.0.1 port={} user=app dbname=postgres sslmode={mode} sslrootcert={}",
                server.port(),
                tls.ca.display()
            );
            let out = Command::new("psql").args([&text, "-Atc", "SELECT 1"]).env("PGPASSWORD", password).output();
            out.map(|o| o.status.success())
        };
        match psql("verify-full", "pass") {
            Err(e) => println!("skipped: psql: {e}"),
            Ok(connected) => {
                assert!(connected, "{}", server.log());
                assert!(!psql("verify-full", "wrong")?);
                assert!(!psql("disable", "pass")?);
            }
        }
    }
    Ok(())
}

#[test]
fn mariadb_survives_a_crash() -> Tested {
    let Some(server) = MariaOptions::new().fsync(true).setting("max-connections", "33").start()? else { return Ok(()) };
    server.create_db("shop")?;
    server.exec("shop", "CREATE TABLE t (i int PRIMARY KEY, s text); INSERT INTO t VALUES (1, NULL), (2, 'ü')")?;
    for _ in 0..2 {
        server.kill9()?;
        assert!(server.exec("shop", "SELECT 1").is_err());
        server.start()?;
        let rows = server.exec("shop", "SELECT i, s FROM t ORDER BY i")?;
        let text = |v: &str| Some(v.to_owned());
        assert_eq!(rows, [vec![text("1"), None], vec![text("2"), text("ü")]]);
    }
    assert_eq!(server.exec("", "SELECT @@max_connections")?, [vec![Some("33".to_owned())]]);
    let mut tcp = Command::new("mariadb");
    tcp.args(["--no-defaults", "--protocol=tcp", "-h127.0.0.1", "-uroot"]).arg(format!("-P{}", server.port()));
    tcp.args(["-e", "SELECT 1"]);
    assert!(tcp.output()?.status.success(), "root connects over TCP");
    Ok(())
}

/// What DynamoDB Local answered is there after a kill, also one in the middle of writes.
#[test]
fn dynamodb_survives_a_crash() -> Tested {
    let Some(server) = dynamodb() else { return Ok(()) };
    let table = r#"{"TableName":"items","BillingMode":"PAY_PER_REQUEST","KeySchema":[{"AttributeName":"k","KeyType":"HASH"}],
        "AttributeDefinitions":[{"AttributeName":"k","AttributeType":"S"}]}"#;
    server.call("CreateTable", table)?;
    let mut answered = 0;
    for _ in 0..5 {
        let before = answered;
        answered += std::thread::scope(|scope| -> Result<usize, Box<dyn std::error::Error>> {
            let writer = scope.spawn(|| {
                let put = |n: usize| format!(r#"{{"TableName":"items","Item":{{"k":{{"S":"{n}"}}}}}}"#);
                (before..).take_while(|n| server.call("PutItem", &put(*n)).is_ok()).count()
            });
            let seen =
                |n: usize| server.call("GetItem", &format!(r#"{{"TableName":"items","Key":{{"k":{{"S":"{n}"}}}}}}"#));
            while !seen(before + 20)?.contains("Item") {}
            server.kill9()?;
            assert!(server.call("ListTables", "{}").is_err());
            Ok(writer.join().map_err(|_| "the writer panicked")?)
        })?;
        server.start()?;
        let scan = r#"{"TableName":"items","Select":"COUNT","ConsistentRead":true}"#;
        let count = server.call("Scan", scan)?;
        let there = |n: usize| count.contains(&format!("\"Count\":{n},"));
        // The write that the kill interrupted may be there or not.
        assert!(there(answered) || there(answered + 1), "{answered} answered: {count}");
    }
    assert!(server.call("NoSuchThing", "{}").is_err());
    Ok(())
}

#[test]
fn servers_run_side_by_side_and_outlive_the_thread_that_started_them() -> Tested {
    let started: Vec<_> = (0..3).map(|_| std::thread::spawn(|| postgres(PgVersion::Any))).collect();
    let servers: Vec<_> = started.into_iter().filter_map(|t| t.join().ok().flatten()).collect();
    for server in &servers {
        assert_eq!(server.value("postgres", "SELECT 1")?.as_deref(), Some("1"));
    }
    if let Some(server) = std::thread::spawn(mariadb).join().ok().flatten() {
        assert_eq!(server.exec("", "SELECT 1")?.len(), 1);
    }
    Ok(())
}

#[test]
fn the_spanner_emulator_forgets_everything_in_a_crash() -> Tested {
    let Some(server) = spanner() else { return Ok(()) };
    let google = ["CREATE TABLE T (Id INT64 NOT NULL, Note STRING(MAX)) PRIMARY KEY (Id)"];
    let postgres = ["CREATE TABLE t (id bigint PRIMARY KEY, note text)"];
    for (dialect, ddl) in [(SpannerDialect::GoogleSql, google), (SpannerDialect::PostgreSql, postgres)] {
        let db = server.create_db(dialect, &ddl)?;
        let insert = |n: i64| format!("INSERT INTO t (id, note) VALUES ({n}, 'one'), ({}, NULL)", n + 1);
        server.transaction(&db, &[&insert(1), &insert(3)])?;
        assert!(server.transaction(&db, &[&insert(5), &insert(1)]).is_err(), "{}", server.log());
        let rows = server.exec(&db, "SELECT id, note FROM t ORDER BY id")?;
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[..2], [vec![Some("1".to_owned()), Some("one".to_owned())], vec![Some("2".to_owned()), None]]);
    }
    let host = server.host();
    server.kill9()?;
    assert!(server.exec("projects/test/instances/test/databases/db1", "SELECT 1").is_err());
    server.start()?;
    assert_eq!(server.host(), host);
    assert!(server.exec("projects/test/instances/test/databases/db1", "SELECT 1").is_err());
    let db = server.create_db(SpannerDialect::GoogleSql, &google)?;
    assert_eq!(server.exec(&db, "SELECT COUNT(*) FROM t")?, [vec![Some("0".to_owned())]]);
    Ok(())
}
