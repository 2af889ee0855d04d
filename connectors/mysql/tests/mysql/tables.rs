//! Tables are described, created, checked.

use anabranch_core::memory::MemorySource;
use anabranch_core::{DataType as T, ErrorKind, Pipeline, Sink, TableName, TableSchema, Value};

use crate::server::{Do, Maker, TEXT, database, keyed, table};
use crate::{row, server};

#[tokio::test]
async fn a_table_is_described_in_the_targets_terms() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE other (id INT PRIMARY KEY)").await;
    db.run(
        "CREATE TABLE `od``d t` (b INT NOT NULL, a VARCHAR(20) COLLATE utf8mb4_general_ci NOT NULL, u INT, w INT, \
         g INT AS (b + 1) STORED, p TEXT, o INT, at TIMESTAMP NULL ON UPDATE CURRENT_TIMESTAMP, \
         PRIMARY KEY (a, b), UNIQUE uw (w, u), UNIQUE pre (p(10)), FOREIGN KEY (o) REFERENCES other (id)) \
         CHARSET utf8mb4",
    )
    .await;
    db.run("CREATE TRIGGER tr BEFORE INSERT ON `od``d t` FOR EACH ROW SET NEW.u = NEW.u").await;
    let sink = db.sink();
    let target = sink.target().expect("tables");
    let t = target.describe(&TableName::new("public", "od`d t")).await.expect("describe").expect("there");
    assert_eq!(t.schema.name, TableName::new("", "od`d t"));
    let names: Vec<_> = t.schema.key_columns().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(t.schema.columns[1].native, "varchar(20) COLLATE utf8mb4_general_ci");
    assert!(t.schema.columns[4].generated && !t.schema.columns[0].generated);
    assert!(!t.schema.columns[0].nullable && t.schema.columns[2].nullable);
    assert_eq!(t.unique, [Vec::<String>::new(), vec!["w".into(), "u".into()]]);
    assert_eq!(t.references, [TableName::new("", "other")]);
    for part in ["trigger tr (BEFORE INSERT)", "at has ON UPDATE", "key column a has the collation", "foreign keys"] {
        assert!(t.warnings.iter().any(|w| w.contains(part)), "{part}: {:?}", t.warnings);
    }
    assert_eq!(target.describe(&TableName::new("public", "OD`D T")).await.expect("describe"), None);
}

#[tokio::test]
async fn keys_fit_and_rows_fit() {
    let mut db = database(server!()).await;
    let sink = db.sink();
    let target = sink.target().expect("tables");
    let text = T::Text { max_chars: Some(1000) };
    let wide: Vec<(String, T)> = (0..60).map(|n| (format!("c{n}"), text.clone())).collect();
    let wide: Vec<(&str, T)> = wide.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    let tables = [
        keyed("k1", &[("a", TEXT), ("b", TEXT)], &[0]),
        keyed("k2", &[("a", TEXT), ("b", T::Bytes), ("c", T::Int64)], &[0, 1, 2]),
        keyed("k3", &[("a", T::Uuid), ("b", T::Decimal { precision: None, scale: None }), ("c", T::Json)], &[0, 1]),
        keyed("k4", &wide, &[0]),
        keyed(
            "k5",
            &[("a", T::TimestampTz), ("b", T::Other("inet".into())), ("c", T::Array(Box::new(TEXT)))],
            &[0, 1, 2],
        ),
        keyed("k6", &[("a", TEXT)], &[]),
    ];
    let _ = target.is_empty(&TableName::new("", "none")).await;
    for t in &tables {
        let planned: Vec<_> = (0..t.columns.len()).map(|n| target.planned(t, n)).collect();
        target.create(t).await.unwrap_or_else(|e| panic!("{}: {}", t.name, e.report()));
        let there = target.describe(&t.name).await.expect("describe").expect("there");
        assert_eq!(there.schema.key, t.key, "{}", t.name);
        for (n, planned) in planned.into_iter().enumerate() {
            let found = target.contract(&t.columns[n], Some(&there.schema.columns[n]));
            assert_eq!((found.fidelity, found.note), (planned.fidelity, planned.note), "{} column {n}", t.name);
        }
        assert!(there.warnings.iter().all(|w| !w.contains("collation")), "{:?}", there.warnings);
    }
    assert_eq!(
        db.lines(
            "SELECT COLUMN_TYPE FROM information_schema.COLUMNS WHERE TABLE_NAME = 'k1' AND \
                         TABLE_SCHEMA = DATABASE() ORDER BY ORDINAL_POSITION"
        )
        .await,
        ["varchar(768)", "longtext"]
    );
    let error = target.create(&tables[0]).await.expect_err("it is there");
    assert_eq!(error.kind(), ErrorKind::Config);
    // A key that is too long is refused, not cut.
    let mut writer = db.writer(1).await;
    let long = "x".repeat(769);
    let unit = Maker::default().stream(&[(&tables[0], Do::Insert(row![long.as_str(), Value::Null]))]);
    assert_eq!(writer.write(&unit).await.expect_err("too long").kind(), ErrorKind::Rejected);
}

#[tokio::test]
async fn tables_are_cleared() {
    let mut db = database(server!()).await;
    let sink = db.sink();
    let target = sink.target().expect("tables");
    let t = table("t", &[("k", T::Int64)]);
    target.create(&t).await.expect("create");
    db.run("CREATE TABLE child (k BIGINT PRIMARY KEY, FOREIGN KEY (k) REFERENCES t (k))").await;
    assert!(target.is_empty(&t.name).await.expect("is_empty"));
    db.run("INSERT INTO t VALUES (1), (2)").await;
    assert!(!target.is_empty(&t.name).await.expect("is_empty"));
    target.clear(&t.name).await.expect("clear, though a foreign key refers to it");
    assert!(target.is_empty(&t.name).await.expect("is_empty"));
}

#[tokio::test]
async fn a_target_that_does_not_fit_is_a_configuration_error() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE myisam (k BIGINT PRIMARY KEY) ENGINE=MyISAM").await;
    db.run("CREATE TABLE lacks (k BIGINT PRIMARY KEY)").await;
    db.run("CREATE TABLE computes (k BIGINT PRIMARY KEY, v BIGINT AS (k + 1))").await;
    db.run("CREATE TABLE wrong (k BIGINT PRIMARY KEY, v POINT)").await;
    db.run("CREATE TABLE needs (k BIGINT PRIMARY KEY, v BIGINT, more INT NOT NULL)").await;
    db.run("CREATE VIEW view AS SELECT 1 AS k, 2 AS v").await;
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    for (name, part) in [
        ("myisam", "MyISAM has no transactions"),
        ("lacks", "column v"),
        ("computes", "computes it"),
        ("wrong", "cannot be stored"),
        ("needs", "more"),
        ("view", "is a view"),
        ("none", "no such table"),
    ] {
        let t = table(name, &[("k", T::Int64), ("v", T::Int64)]);
        let error = writer.write(&m.stream(&[(&t, Do::Insert(row![1, 2]))])).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Config, "{name}: {}", error.report());
        assert!(error.report().contains(part) && error.report().contains(name), "{}", error.report());
    }
    // A table that is mended is described anew.
    db.run("ALTER TABLE lacks ADD v BIGINT").await;
    let t = table("lacks", &[("k", T::Int64), ("v", T::Int64)]);
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![1, 2]))])).await.expect("mended");
    // So is one that was changed behind our back.
    db.run("ALTER TABLE lacks DROP v, ADD v VARCHAR(9)").await;
    let _ = writer.write(&m.stream(&[(&t, Do::Schema), (&t, Do::Insert(row![2, 3]))])).await.expect("changed");
    assert_eq!(db.lines("SELECT k, v FROM lacks ORDER BY k").await, ["1|~", "2|3"]);
}

#[tokio::test]
async fn names_that_the_server_folds_are_told() {
    let options = crate::server::options().setting("lower-case-table-names", "1");
    let Some(server) = options.start().expect("starts") else { return };
    let mut db = database(&server).await;
    db.run("CREATE TABLE orders (k BIGINT PRIMARY KEY)").await;
    let sink = db.sink();
    let target = sink.target().expect("tables");
    assert!(target.describe(&TableName::new("", "orders")).await.expect("describe").is_some());
    let error = target.describe(&TableName::new("", "Orders")).await.expect_err("folded");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.report().contains("without case"), "{}", error.report());
}

#[test]
fn settings_are_checked_by_name() {
    use anabranch_mysql::{MySql, MySqlConfig};
    let check = |json: &str| -> String {
        let config: MySqlConfig = serde_json::from_str(json).expect("keys");
        MySql::try_from(config).expect_err("wrong").report()
    };
    assert!(check(r#"{"url": "nonsense"}"#).starts_with("sink.url: "));
    assert!(check(r#"{"url": "mysql://root:secret@h"}"#).contains("names no database"));
    assert!(!check(r#"{"url": "mysql://root:secret@h:x/d"}"#).contains("secret"));
    assert!(check(r#"{"url": "mysql://h/d", "tls": "verify", "tls_ca": "/none"}"#).starts_with("sink.tls_ca: "));
    assert!(check(r#"{"url": "mysql://h/d", "tls_ca": "/none"}"#).starts_with("sink.tls: "));
    assert!(check(r#"{"url": "mysql://h/d", "password": "env:NONE_SUCH"}"#).starts_with("sink.password: "));
    assert!(serde_json::from_str::<MySqlConfig>(r#"{"url": "mysql://h/d", "speed": 1}"#).is_err());
    let ok: MySqlConfig = serde_json::from_str(r#"{"url": "mysql://h/d", "local_infile": "off"}"#).expect("keys");
    assert!(MySql::try_from(ok).is_ok());
}

#[tokio::test]
async fn tls_is_checked() {
    let Some(server) = crate::server::options().tls().start().expect("starts") else { return };
    let files = server.tls().expect("certificates");
    let db = database(&server).await;
    let name = TableName::new("", "none");
    let describe = async |sink: anabranch_mysql::MySql| {
        let found = sink.target().expect("tables").describe(&name).await;
        found.map(|_| ())
    };
    use anabranch_mysql::Tls;
    describe(db.sink().tls(Tls::Verify).tls_ca(&files.ca)).await.expect("trusted");
    describe(db.sink().tls(Tls::Insecure)).await.expect("anyone");
    let error = describe(db.sink().tls(Tls::Verify)).await.expect_err("nobody's certificate");
    assert_eq!(error.kind(), ErrorKind::Config, "{}", error.report());
}

#[tokio::test]
async fn a_check_makes_no_table() {
    let mut db = database(server!()).await;
    let source = MemorySource::new("db").table(TableSchema::clone(&keyed("t", &[("id", T::Int64)], &[0])));
    let builder = Pipeline::builder("check").source(source).sink(db.sink()).create_tables(true);
    let pipeline = builder.build().expect("a pipeline");
    let checked = pipeline.check().await.expect("check");
    assert!(checked.tables[0].create.is_some(), "{checked}");
    assert!(pipeline.stored_status().await.expect("status").is_none());
    assert_eq!(db.lines("SHOW TABLES").await, Vec::<String>::new());
}
