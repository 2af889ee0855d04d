//! Where what was copied is of no use, the table is copied whole: nobody may notice but by the time it takes.

use anabranch::ErrorKind;
use anabranch_testkit::faults::Fault;

use super::Tested;
use super::bed::{Bed, Side};

const FATAL: Fault = Fault::Fail(ErrorKind::Fatal);

/// What happens to `docs` between two points, statement by statement.
const BETWEEN: [(&str, &[&str]); 12] = [
    (
        "truncate",
        &[
            "TRUNCATE docs",
            "INSERT INTO docs SELECT i, 'c' || i, 'b', i, repeat('p', 700) FROM generate_series(50, 90) i",
        ],
    ),
    ("vacuum full", &["DELETE FROM docs WHERE id % 2 = 0", "VACUUM FULL docs"]),
    ("cluster", &["CLUSTER docs USING docs_code_key"]),
    ("column", &["ALTER TABLE docs ADD extra int DEFAULT 7", "ALTER TABLE docs DROP extra"]),
    ("rewrite", &["ALTER TABLE docs ALTER n TYPE bigint", "ALTER TABLE docs ALTER n TYPE int"]),
    (
        "renamed",
        &[
            "ALTER TABLE docs RENAME TO other",
            "UPDATE other SET n = 0 WHERE id = 6",
            "ALTER TABLE other RENAME TO docs",
        ],
    ),
    (
        "identity",
        &[
            "ALTER TABLE docs REPLICA IDENTITY USING INDEX docs_code_key",
            "UPDATE docs SET n = 0 WHERE id = 6",
            "ALTER TABLE docs REPLICA IDENTITY DEFAULT",
        ],
    ),
    ("nothing", &["ALTER TABLE docs REPLICA IDENTITY NOTHING", "ALTER TABLE docs REPLICA IDENTITY DEFAULT"]),
    (
        "unpublished",
        &[
            "ALTER PUBLICATION pub DROP TABLE docs",
            "UPDATE docs SET n = 0 WHERE id = 6",
            "ALTER PUBLICATION pub ADD TABLE docs",
        ],
    ),
    (
        "operations",
        &[
            "ALTER PUBLICATION pub SET (publish = 'insert')",
            "UPDATE docs SET n = 0 WHERE id = 6",
            "ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
        ],
    ),
    (
        "publication",
        &[
            "DROP PUBLICATION pub",
            "UPDATE docs SET n = 0 WHERE id = 6",
            "CREATE PUBLICATION pub FOR TABLE docs, parts, \"full Rows\", scoded, keyless \
                       WITH (publish_via_partition_root = true)",
        ],
    ),
    ("key", &["ALTER TABLE docs DROP CONSTRAINT docs_pkey", "ALTER TABLE docs ADD PRIMARY KEY (id)"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_table_begins_anew_where_its_copy_is_of_no_use() -> Tested {
    let Some(mut bed) = Bed::start(Side::sqlite()?).await? else { return Ok(()) };
    for (what, between) in BETWEEN {
        bed.anew().await?;
        bed.interrupted(1, 6, FATAL).await?;
        // In a chunk that is done: were it not copied anew, it would be counted twice.
        bed.change(&["UPDATE docs SET n = -5 WHERE id = 5"])?;
        bed.change(between)?;
        bed.finished(1).await?;
        begun_anew(&bed, what).await?;
        // The stream has its own word about changed definitions.
        if ["truncate", "vacuum full", "cluster", "unpublished", "operations"].contains(&what) {
            bed.streams(&["UPDATE docs SET n = n + 1"]).await?;
        }
    }
    Ok(())
}

async fn begun_anew(bed: &Bed, what: &str) -> Tested {
    bed.compare(what)?;
    assert_eq!(bed.table("docs").await?.rows, bed.count("docs")?, "{what}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_leaves_a_table_alone_leaves_its_copy_alone() -> Tested {
    let Some(mut bed) = Bed::start(Side::sqlite()?).await? else { return Ok(()) };
    let harmless: [&[&str]; 4] = [
        &["VACUUM (FREEZE, ANALYZE) docs"],
        &["CREATE INDEX docs_n ON docs (n)", "ANALYZE docs", "DROP INDEX docs_n"],
        &[
            "CREATE TABLE more (id int PRIMARY KEY)",
            "ALTER PUBLICATION pub ADD TABLE more",
            "ALTER PUBLICATION pub DROP TABLE more",
        ],
        &["BEGIN; UPDATE docs SET n = 0; ROLLBACK", "TRUNCATE \"full Rows\""],
    ];
    for between in harmless {
        bed.anew().await?;
        bed.interrupted(1, 6, FATAL).await?;
        bed.change(&["UPDATE docs SET n = -5 WHERE id = 5"])?;
        bed.change(between)?;
        bed.finished(1).await?;
        bed.compare("harmless")?;
        let rows = bed.table("docs").await?.rows;
        assert_eq!(rows, bed.count("docs")? + 1, "{between:?}: it was copied anew");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_target_or_a_transform_may_be_in_the_way() -> Tested {
    let Some(mut bed) = Bed::start(Side::sqlite()?).await? else { return Ok(()) };
    let trigger = "CREATE TRIGGER fires AFTER DELETE ON docs BEGIN DELETE FROM docs WHERE id < 50; END";
    for (what, in_target) in
        [("a trigger", trigger), ("it was emptied", "DELETE FROM docs"), ("a transform", "SELECT 1")]
    {
        bed.custom = what == "a transform";
        bed.anew().await?;
        bed.interrupted(1, 6, FATAL).await?;
        bed.change(&["UPDATE docs SET n = -5 WHERE id = 5"])?;
        bed.side.run(in_target)?;
        bed.finished(1).await?;
        begun_anew(&bed, what).await?;
    }
    Ok(())
}

/// A foreign key of the target that acts would take rows of other tables along.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn foreign_keys_that_act_are_in_the_way() -> Tested {
    let Some(server) = anabranch_servers::postgres(anabranch_servers::PgVersion::V18) else { return Ok(()) };
    let Some(mut bed) = Bed::start(Side::Postgres(server)).await? else { return Ok(()) };
    for acts in [false, true] {
        bed.anew().await?;
        bed.interrupted(1, 6, FATAL).await?;
        bed.change(&["UPDATE docs SET n = -5 WHERE id = 5"])?;
        let refers = "CREATE TABLE refers (id int PRIMARY KEY, doc int REFERENCES docs ON DELETE CASCADE)";
        bed.side.run(refers)?;
        bed.side.run("INSERT INTO refers VALUES (1, 5)")?;
        if acts {
            // As clearing would: the point is that the rows are not deleted one by one.
            bed.side.run("TRUNCATE refers; DROP TABLE refers")?;
            bed.side.run("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")?;
            bed.side.run("CREATE TRIGGER keeps BEFORE DELETE ON docs FOR EACH ROW EXECUTE FUNCTION f()")?;
            bed.side.run("ALTER TABLE docs ENABLE ALWAYS TRIGGER keeps")?;
        }
        bed.finished(1).await?;
        bed.compare("foreign keys")?;
        let rows = bed.table("docs").await?.rows;
        assert_eq!(rows, bed.count("docs")? + u64::from(!acts), "acts: {acts}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn partitions_that_come_and_go_are_noticed() -> Tested {
    let Some(mut bed) = Bed::start(Side::sqlite()?).await? else { return Ok(()) };
    bed.anew().await?;
    let total = bed.writes_before("parts").await?;
    bed.interrupted(1, total + 4, FATAL).await?;
    assert_eq!(bed.table("parts").await?.done, 3);
    bed.change(&[
        "UPDATE parts SET v = 'new' WHERE b = 5",
        "ALTER TABLE parts DETACH PARTITION \"Parts High\"",
        "DELETE FROM \"Parts High\" WHERE b = 70",
        "ALTER TABLE parts ATTACH PARTITION \"Parts High\" FOR VALUES FROM (60) TO (MAXVALUE)",
    ])?;
    bed.finished(1).await?;
    bed.compare("partitions")?;
    assert_eq!(bed.table("parts").await?.rows, bed.count("parts")?);
    bed.streams(&["UPDATE parts SET b = b + 100"]).await?;

    // Rows that move from one partition to another are changed rows.
    bed.anew().await?;
    bed.interrupted(1, total + 4, FATAL).await?;
    bed.change(&["UPDATE parts SET b = b + 59 WHERE b IN (1, 2, 3)", "UPDATE parts SET b = 0 WHERE b = 99"])?;
    bed.finished(2).await?;
    bed.compare("moved between partitions")?;
    assert!(bed.table("parts").await?.rows > bed.count("parts")?);
    bed.streams(&["DELETE FROM parts"]).await
}
