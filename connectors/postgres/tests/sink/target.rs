//! The target's tables.

use anabranch_core::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_described_as_the_catalog_has_it() {
    for db in databases() {
        db.exec(
            r#"CREATE SCHEMA "My Shop"; CREATE DOMAIN "My Shop".code AS varchar(5); CREATE DOMAIN "My Shop".code2 AS "My Shop".code;
               CREATE TYPE "My Shop".mood AS ENUM ('a', 'b');
               CREATE TABLE "My Shop".parent (id bigint PRIMARY KEY);
               CREATE TABLE "My Shop"."Order ""Lines""" (
                   "Line" integer, order_id bigint REFERENCES "My Shop".parent, price numeric(10,2) NOT NULL,
                   mood "My Shop".mood, moods "My Shop".mood[], at timestamp(3) with time zone,
                   total numeric GENERATED ALWAYS AS (price * 2) STORED, email text, dropped text, code "My Shop".code2,
                   PRIMARY KEY (order_id, "Line"), UNIQUE (email, price));
               ALTER TABLE "My Shop"."Order ""Lines""" DROP COLUMN dropped;
               CREATE UNIQUE INDEX ON "My Shop"."Order ""Lines""" (lower(email));
               CREATE RULE ignore AS ON DELETE TO "My Shop".parent DO INSTEAD NOTHING"#,
        );
        let sink = db.sink();
        let target = sink.target().unwrap();
        let table = target.describe(&TableName::new("My Shop", "Order \"Lines\"")).await.unwrap().unwrap();
        let columns: Vec<_> = table
            .schema
            .columns
            .iter()
            .map(|c| (c.name.as_str(), c.native.as_str(), c.nullable, c.generated))
            .collect();
        assert_eq!(
            columns,
            [
                ("Line", "integer", false, false),
                ("order_id", "bigint", false, false),
                ("price", "numeric(10,2)", false, false),
                ("mood", "\"My Shop\".mood", true, false),
                ("moods", "\"My Shop\".mood[]", true, false),
                ("at", "timestamp(3) with time zone", true, false),
                ("total", "numeric", true, true),
                ("email", "text", true, false),
                ("code", "\"My Shop\".code2", true, false),
            ]
        );
        assert_eq!(table.schema.key, [1, 0]);
        assert_eq!(table.schema.columns[3].data_type, DataType::Enum { labels: vec!["a".into(), "b".into()] });
        assert_eq!(table.schema.columns[5].data_type, DataType::TimestampTz);
        assert_eq!(table.schema.columns[8].data_type, DataType::Text { max_chars: Some(5) });
        assert_eq!(table.unique, [vec!["email".to_owned(), "price".to_owned()], vec![]]);
        assert_eq!(table.references, [TableName::new("My Shop", "parent")]);
        let parent = target.describe(&TableName::new("My Shop", "parent")).await.unwrap().unwrap();
        assert!(parent.warnings.iter().any(|w| w.contains("rule ignore")), "{:?}", parent.warnings);
        assert_eq!(target.describe(&TableName::new("My Shop", "PARENT")).await.unwrap(), None);
        // A source without schemas: found by the search path.
        db.exec("CREATE TABLE plain (id bigint PRIMARY KEY)");
        let plain = target.describe(&TableName::new("", "plain")).await.unwrap().unwrap();
        assert_eq!(plain.schema.name, TableName::new("public", "plain"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_created_emptied_and_found_empty() {
    for db in databases() {
        let sink = db.sink();
        let target = sink.target().unwrap();
        let mood = Column {
            native: "far.mood".into(),
            ..Column::new("mood", DataType::Enum { labels: vec!["it's".into(), "b".into()] })
        };
        let schema = TableSchema {
            name: TableName::new("New \"Schema\"", "T"),
            columns: vec![
                Column { nullable: false, ..Column::new("Id", DataType::Int64) },
                Column { native: "tinyint(1)".into(), ..Column::new("flag", DataType::Bool) },
                mood.clone(),
                Column { name: "mood2".into(), ..mood.clone() },
                Column {
                    name: "moods".into(),
                    native: "far.mood[]".into(),
                    data_type: DataType::Array(Box::new(mood.data_type)),
                    ..mood
                },
                Column { generated: true, ..Column::new("sum", DataType::Int64) },
            ],
            key: vec![0],
        };
        let statement = target.create_statement(&schema).unwrap();
        assert!(
            statement.contains("\"Id\" bigint NOT NULL") && statement.contains("PRIMARY KEY (\"Id\")"),
            "{statement}"
        );
        target.create(&schema).await.unwrap();
        assert!(target.create(&schema).await.is_err(), "created twice");
        let there = target.describe(&schema.name).await.unwrap().unwrap();
        let native: Vec<_> = there.schema.columns.iter().map(|c| c.native.as_str()).collect();
        assert_eq!(native, ["bigint", "boolean", "far.mood", "far.mood", "far.mood[]"]);
        for (column, there) in schema.columns.iter().zip(&there.schema.columns) {
            assert_eq!(target.contract(column, Some(there)).fidelity, Fidelity::Exact, "{}", column.name);
        }
        assert!(target.is_empty(&schema.name).await.unwrap());
        db.exec(
            "INSERT INTO \"New \"\"Schema\"\"\".\"T\" VALUES (1, true, 'it''s', 'b', '{b}'); \
                 CREATE TABLE refers (id bigint REFERENCES \"New \"\"Schema\"\"\".\"T\")",
        );
        assert!(!target.is_empty(&schema.name).await.unwrap());
        target.clear(&schema.name).await.unwrap();
        assert!(target.is_empty(&schema.name).await.unwrap());
    }
}
