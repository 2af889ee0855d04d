//! What a target's constraints refuse row by row, and what they must not refuse.

use anabranch_core::*;
use anabranch_postgres::{PostgresSink, Privilege};

use crate::support::*;

/// Sinks whose rows do, and do not, set off foreign keys and triggers.
fn sinks(db: &Db) -> [PostgresSink; 2] {
    [Privilege::Required, Privilege::Off].map(|p| db.sink().replica_role(p))
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_swap_and_move_along_chains() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE, note text, here text DEFAULT 'default')");
        let t = table("t", &[("id", INT), ("name", TEXT), ("note", TEXT)], 1);
        for (n, sink) in sinks(&db).iter().enumerate() {
            db.exec(
                "TRUNCATE t; INSERT INTO t VALUES (1, 'a', 'n1', 'kept'), \
                 (2, 'b', 'n2', default), (3, 'c', 'n3', default), (4, 'd', 'n4', default)",
            );
            let mut w = db.writer(sink, n as u64 + 1).await;
            // A swap over a third value; one of the notes is not sent.
            let swap = Changes::new().update(&t, None, &["1", "free", "?"]).update(&t, None, &["2", "a", "m2"]).update(
                &t,
                None,
                &["1", "b", "?"],
            );
            write(&mut w, &swap.unit()).await;
            let found = || db.rows("SELECT * FROM t ORDER BY id");
            assert_eq!(found(), ["1|b|n1|kept", "2|a|m2|default", "3|c|n3|default", "4|d|n4|default"]);
            // A chain: each takes the value of the next, the last a new one; the order of keys is against it.
            let chain = Changes::new()
                .update(&t, None, &["4", "e", "n4"])
                .update(&t, None, &["3", "d", "n3"])
                .update(&t, None, &["2", "c", "?"])
                .update(&t, None, &["1", "a", "?"]);
            write(&mut w, &chain.unit()).await;
            assert_eq!(found(), ["1|a|n1|kept", "2|c|m2|default", "3|d|n3|default", "4|e|n4|default"]);
            // Deleted, and its value taken by a new row; and a row that moves to another key.
            let moved = Changes::new()
                .delete(&t, &["4", "?", "?"])
                .insert(&t, &["5", "e", "new"])
                .update(&t, Some(&["3", "?", "?"]), &["4", "d", "moved"])
                .update(&t, Some(&["1", "?", "?"]), &["9", "a", "?"]);
            write(&mut w, &moved.unit()).await;
            assert_eq!(found(), ["2|c|m2|default", "4|d|moved|default", "5|e|new|default", "9|a|n1|kept"]);
            w.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_to_the_target_since_survives_a_swap() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE)");
        let t = table("t", &[("id", INT), ("name", TEXT)], 1);
        for (n, sink) in sinks(&db).iter().enumerate() {
            let mut w = db.writer(sink, n as u64 + 1).await;
            write(&mut w, &Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "b"]).unit()).await;
            // The writer has looked at the table before: a column, and rows that a delete would take along.
            db.exec(
                "ALTER TABLE t ADD own text; UPDATE t SET own = 'kept'; \
                 CREATE TABLE c (id bigint REFERENCES t ON DELETE CASCADE); INSERT INTO c VALUES (1), (2)",
            );
            let swap = Changes::new().update(&t, None, &["1", "free"]).update(&t, None, &["2", "a"]).update(
                &t,
                None,
                &["1", "b"],
            );
            write(&mut w, &swap.unit()).await;
            assert_eq!(db.rows("SELECT t.* FROM t JOIN c USING (id) ORDER BY id"), ["1|b|kept", "2|a|kept"]);
            w.close().await.unwrap();
            db.exec("DROP TABLE c; ALTER TABLE t DROP COLUMN own; DELETE FROM t");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_somebody_else_has_is_rejected_whole() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, 'taken')");
        let t = table("t", &[("id", INT), ("name", TEXT)], 1);
        for (n, sink) in sinks(&db).iter().enumerate() {
            db.exec("DELETE FROM t WHERE id = 2");
            let mut w = db.writer(sink, n as u64 + 1).await;
            let unit = Changes::new().insert(&t, &["2", "free"]).commit().insert(&t, &["3", "taken"]).unit();
            let said = refused(&mut w, &unit, ErrorKind::Rejected, "t_name_key").await;
            assert!(said.contains("(name)=(taken)"), "{said}");
            assert_eq!(db.rows("SELECT * FROM t"), ["1|taken"]);
            let units = unit.split_by_transaction();
            write(&mut w, &units[0]).await;
            refused(&mut w, &units[1], ErrorKind::Rejected, "t_name_key").await;
            assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|taken", "2|free"]);
            assert_eq!(db.stored(sink).await.counters.changes, 1 + n as u64);
            w.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_and_go_in_any_order_of_their_tables() {
    for db in databases() {
        let mut epoch = 0;
        for (deferrable, action) in
            [("", ""), ("DEFERRABLE", ""), ("", "ON DELETE CASCADE"), ("", "ON DELETE SET NULL")]
        {
            db.exec(&format!(
                "DROP TABLE IF EXISTS c, p; CREATE TABLE p (id bigint PRIMARY KEY); \
                 CREATE TABLE c (id bigint PRIMARY KEY, p bigint REFERENCES p {action} {deferrable}, long text, \
                 self bigint REFERENCES c {deferrable})"
            ));
            let p = table("p", &[("id", INT)], 1);
            let c = table("c", &[("id", INT), ("p", INT), ("long", TEXT), ("self", INT)], 1);
            for (n, sink) in sinks(&db).iter().enumerate() {
                epoch += 1;
                let mut w = db.writer(sink, epoch).await;
                // The child's table comes first in the unit; the source's constraint was deferred.
                let unit = Changes::new().insert(&c, &["1", "1", "l1", "2"]).insert(&c, &["2", "1", "l2", "~"]);
                write(&mut w, &unit.insert(&p, &["1"]).insert(&p, &["2"]).unit()).await;
                // The parent goes after its children moved away, one of them with a column that was not sent.
                let unit = Changes::new()
                    .update(&c, None, &["1", "2", "?", "2"])
                    .update(&c, None, &["2", "2", "l2b", "~"])
                    .delete(&p, &["1"]);
                write(&mut w, &unit.unit()).await;
                let rows = || db.rows("SELECT c.*, (SELECT string_agg(id::text, ',') FROM p) FROM c ORDER BY id");
                assert_eq!(rows(), ["1|2|l1|2|2", "2|2|l2b|~|2"], "{action} {deferrable} {n}");
                // All go, as the source's cascade logged it: the parent first.
                let unit = Changes::new().delete(&p, &["2"]).delete(&c, &["1", "?", "?", "?"]);
                write(&mut w, &unit.delete(&c, &["2", "?", "?", "?"]).unit()).await;
                assert_eq!(rows(), [""; 0]);
                w.close().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_of_the_target_takes_no_row_that_the_source_kept() {
    for db in databases() {
        db.exec(
            "CREATE TABLE p (id bigint PRIMARY KEY, name text UNIQUE); \
             CREATE TABLE c (id bigint PRIMARY KEY, p bigint REFERENCES p ON DELETE CASCADE, name text UNIQUE); \
             CREATE TABLE g (id bigint PRIMARY KEY, c bigint REFERENCES c ON DELETE CASCADE)",
        );
        let p = table("p", &[("id", INT), ("name", TEXT)], 1);
        let c = table("c", &[("id", INT), ("p", INT), ("name", TEXT)], 1);
        for (n, sink) in sinks(&db).iter().enumerate() {
            db.exec(
                "TRUNCATE p, c, g; INSERT INTO p VALUES (1, 'x'), (2, 'y'); \
                 INSERT INTO c VALUES (10, 1, 'a'), (11, 2, 'b'); INSERT INTO g VALUES (100, 10), (101, 11)",
            );
            let mut w = db.writer(sink, n as u64 + 1).await;
            // Moved, then the parent deleted: the grandchild was not touched and must stay.
            let unit = Changes::new().update(&c, None, &["10", "2", "a"]).delete(&p, &["1", "?"]);
            write(&mut w, &unit.unit()).await;
            assert_eq!(db.rows("SELECT g.id, c.p FROM g JOIN c ON c.id = g.c ORDER BY 1"), ["100|2", "101|2"]);
            // A swap of unique values in a table that others refer to: no delete may stand in for it.
            let unit = Changes::new()
                .update(&c, None, &["10", "2", "free"])
                .update(&c, None, &["11", "2", "a"])
                .update(&c, None, &["10", "2", "b"]);
            write(&mut w, &unit.unit()).await;
            assert_eq!(db.rows("SELECT g.id, c.name FROM g JOIN c ON c.id = g.c ORDER BY 1"), ["100|b", "101|a"]);
            // A new parent takes the name of the deleted one, to which a moved child referred.
            let unit = Changes::new()
                .insert(&p, &["3", "z"])
                .update(&c, None, &["10", "3", "?"])
                .update(&c, None, &["11", "3", "?"])
                .delete(&p, &["2", "?"])
                .update(&p, None, &["3", "y"]);
            write(&mut w, &unit.unit()).await;
            assert_eq!(
                db.rows("SELECT g.id, c.name, p.name FROM g JOIN c ON c.id = g.c JOIN p ON p.id = c.p ORDER BY 1"),
                ["100|b|y", "101|a|y"]
            );
            w.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_waits_refuses_at_the_commit() {
    for db in databases() {
        db.exec(
            "CREATE TABLE p (id bigint PRIMARY KEY); \
             CREATE TABLE c (id bigint PRIMARY KEY, p bigint REFERENCES p DEFERRABLE, u bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        );
        let (p, c) = (table("p", &[("id", INT)], 1), table("c", &[("id", INT), ("p", INT), ("u", INT)], 1));
        let sink = db.sink().replica_role(Privilege::Off);
        let mut w = db.writer(&sink, 1).await;
        let orphan = Changes::new().insert(&c, &["1", "7", "1"]).unit();
        refused(&mut w, &orphan, ErrorKind::Rejected, "c_p_fkey").await;
        let twice = Changes::new().insert(&p, &["7"]).insert(&c, &["1", "7", "1"]).insert(&c, &["2", "7", "1"]).unit();
        refused(&mut w, &twice, ErrorKind::Rejected, "c_u_key").await;
        write(&mut w, &Changes::new().insert(&p, &["7"]).insert(&c, &["1", "7", "1"]).unit()).await;
        assert_eq!(db.rows("SELECT * FROM c"), ["1|7|1"]);
        assert_eq!(db.stored(&sink).await.counters.transactions, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferrable_key_is_no_arbiter_and_still_a_key() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY DEFERRABLE, v text, here text)");
        let t = table("t", &[("id", INT), ("v", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        write(&mut w, &Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "b"]).unit()).await;
        db.exec("UPDATE t SET here = 'kept'");
        write(&mut w, &Changes::new().insert(&t, &["2", "c"]).insert(&t, &["3", "d"]).unit()).await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|a|kept", "2|c|kept", "3|d|~"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_updates_match_one_row_each() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, a text, b text, c text)");
        let t = table("t", &[("id", INT), ("a", TEXT), ("b", TEXT), ("c", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let rows = Changes::new().insert(&t, &["1", "a", "b", "c"]).insert(&t, &["2", "a", "b", "c"]);
        write(&mut w, &rows.insert(&t, &["3", "a", "b", "c"]).unit()).await;
        let unit = Changes::new()
            .update(&t, None, &["1", "A", "?", "?"])
            .update(&t, None, &["2", "?", "~", "?"])
            .update(&t, None, &["3", "?", "?", "?"])
            .update(&t, None, &["1", "?", "B", "?"]);
        write(&mut w, &unit.unit()).await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|A|B|c", "2|a|~|c", "3|a|b|c"]);
        let unit = Changes::new().update(&t, None, &["1", "x", "?", "?"]).update(&t, None, &["9", "x", "?", "?"]);
        let said = refused(&mut w, &unit.unit(), ErrorKind::Rejected, "id = 9").await;
        assert!(said.contains("public.t"), "{said}");
        let unit = Changes::new().update(&t, None, &["9", "?", "?", "?"]);
        refused(&mut w, &unit.unit(), ErrorKind::Rejected, "id = 9").await;
        let unit = Changes::new().update(&t, Some(&["9", "?", "?", "?"]), &["8", "x", "?", "?"]);
        refused(&mut w, &unit.unit(), ErrorKind::Rejected, "id = 9").await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|A|B|c", "2|a|~|c", "3|a|b|c"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_without_a_key_change_one_at_a_time() {
    for db in databases() {
        db.exec(
            "CREATE TABLE t (a numeric, b json, c text) PARTITION BY LIST (c); \
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN ('x'); CREATE TABLE t2 PARTITION OF t DEFAULT",
        );
        let t = table("t", &[("a", TEXT), ("b", TEXT), ("c", TEXT)], 0);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let twice = Changes::new().insert(&t, &["1.0", "{}", "x"]).insert(&t, &["1.00", "{}", "x"]);
        let twice = twice.insert(&t, &["1.0", "{}", "x"]).insert(&t, &["~", "~", "~"]).insert(&t, &["~", "~", "~"]);
        write(&mut w, &twice.unit()).await;
        let unit = Changes::new()
            .delete(&t, &["1.00", "{}", "x"])
            .update(&t, Some(&["1.0", "{}", "x"]), &["2", "?", "y"])
            .delete(&t, &["~", "~", "~"]);
        write(&mut w, &unit.unit()).await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY a"), ["1.0|{}|x", "2|{}|y", "~|~|~"]);
        let unit = Changes::new().delete(&t, &["1.000", "{}", "x"]).unit();
        refused(&mut w, &unit, ErrorKind::Rejected, "public.t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_truncated_in_their_place() {
    for db in databases() {
        db.exec(
            "CREATE TABLE p (id bigint PRIMARY KEY); CREATE TABLE c (id bigint PRIMARY KEY, p bigint REFERENCES p); \
             CREATE TABLE outside (p bigint REFERENCES p); CREATE USER writer",
        );
        db.exec(&format!(
            "GRANT CREATE ON DATABASE {} TO writer; GRANT SELECT, INSERT, UPDATE, DELETE ON p, c TO writer",
            db.name
        ));
        let (p, c) = (table("p", &[("id", INT)], 1), table("c", &[("id", INT), ("p", INT)], 1));
        // The owner may truncate but for the table outside; the other user may not truncate at all.
        for (n, sink) in [db.sink(), PostgresSink::new(db.url_as("writer")).schema("mine")].iter().enumerate() {
            let mut w = db.writer(sink, n as u64 + 1).await;
            write(&mut w, &Changes::new().insert(&p, &["1"]).insert(&c, &["1", "1"]).unit()).await;
            let unit = Changes::new().insert(&p, &["2"]).truncate(&p).truncate(&c).insert(&p, &["3"]);
            write(&mut w, &unit.insert(&c, &["3", "3"]).unit()).await;
            assert_eq!(db.rows("SELECT p.id, c.id FROM p FULL JOIN c ON c.p = p.id"), ["3|3"]);
            write(&mut w, &Changes::new().truncate(&c).delete(&p, &["3"]).unit()).await;
            assert_eq!(db.rows("SELECT id FROM p UNION ALL SELECT id FROM c"), [""; 0]);
            w.close().await.unwrap();
        }
        db.exec("DROP OWNED BY writer CASCADE; DROP USER writer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_generated_columns() {
    for db in databases() {
        db.exec(
            "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v integer, \
             twice integer GENERATED ALWAYS AS (v * 2) STORED, own integer GENERATED BY DEFAULT AS IDENTITY)",
        );
        let mut with_generated = TableSchema::clone(&table("t", &[("id", INT), ("v", INT), ("twice", INT)], 1));
        with_generated.columns[2].generated = true;
        let t = std::sync::Arc::new(with_generated);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let unit = Changes::new().insert(&t, &["7", "1", "2"]).insert(&t, &["8", "2", "4"]).unit();
        write(&mut w, &unit).await;
        let unit = Changes::new()
            .update(&t, None, &["7", "5", "10"])
            .update(&t, Some(&["8", "?", "?"]), &["9", "3", "6"])
            .update(&t, None, &["7", "?", "?"]);
        write(&mut w, &unit.unit()).await;
        assert_eq!(db.rows("SELECT id, v, twice FROM t ORDER BY id"), ["7|5|10", "9|3|6"]);
        let mut s = sink.open(db.snapshot_lane(1)).await.unwrap();
        write(&mut s, &Changes::new().insert(&t, &["20", "1", "2"]).snapshot()).await;
        assert_eq!(db.rows("SELECT id, twice FROM t WHERE id = 20"), ["20|2"]);
        // An ordinary source column has nowhere to go.
        let plain = table("t", &[("id", INT), ("v", INT), ("twice", INT)], 1);
        let unit = Changes::new().insert(&plain, &["1", "1", "2"]).unit();
        refused(&mut w, &unit, ErrorKind::Config, "twice").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_do_not_match_are_configuration_errors() {
    for db in databases() {
        db.exec(
            "CREATE TABLE nokey (id bigint); CREATE TABLE narrow (id bigint PRIMARY KEY); \
             CREATE TABLE strict (id bigint PRIMARY KEY, must integer NOT NULL); \
             CREATE TABLE late (id bigint PRIMARY KEY, v text)",
        );
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let spec = [("id", INT), ("v", TEXT)];
        for (name, columns, part) in [
            ("absent", &spec[..], "does not exist"),
            ("nokey", &spec[..1], "ADD PRIMARY KEY (\"id\")"),
            ("narrow", &spec[..], "ADD COLUMN \"v\" text"),
            ("strict", &spec[..1], "column must"),
        ] {
            let t = table(name, columns, 1);
            let unit = Changes::new().insert(&t, &["1", "x"][..columns.len()]).unit();
            refused(&mut w, &unit, ErrorKind::Config, part).await;
        }
        // A column that goes away under the writer, and comes back: seen at the second try.
        let late = table("late", &spec, 1);
        let unit = |id: &str| Changes::new().insert(&late, &[id, "x"]).unit();
        write(&mut w, &unit("1")).await;
        db.exec("ALTER TABLE late DROP COLUMN v");
        refused(&mut w, &unit("2"), ErrorKind::Transient, "not as they were").await;
        refused(&mut w, &unit("2"), ErrorKind::Config, "column v").await;
        db.exec("ALTER TABLE late ADD COLUMN v varchar(10)");
        write(&mut w, &unit("2")).await;
        // A wider schema arrives in the stream after the target was altered.
        let wide = table("late", &[("id", INT), ("v", TEXT), ("w", INT)], 1);
        db.exec("ALTER TABLE late ADD COLUMN w bigint");
        write(&mut w, &Changes::new().insert(&late, &["3", "y"]).schema(&wide).insert(&wide, &["4", "z", "5"]).unit())
            .await;
        assert_eq!(db.rows("SELECT id, v, w FROM late ORDER BY id"), ["1|~|~", "2|x|~", "3|y|~", "4|z|5"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_only_where_they_must() {
    for db in databases() {
        db.exec(
            "CREATE TABLE t (id bigint PRIMARY KEY, v text UNIQUE); CREATE TABLE log (op text); \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN coalesce(NEW, OLD); END $$; \
             CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note()",
        );
        let t = table("t", &[("id", INT), ("v", TEXT)], 1);
        let [replica, origin] = sinks(&db);
        assert_eq!(replica.target().unwrap().describe(&t.name).await.unwrap().unwrap().warnings, [""; 0]);
        let warnings = origin.target().unwrap().describe(&t.name).await.unwrap().unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("trigger audit"), "{warnings:?}");
        let mut w = db.writer(&replica, 1).await;
        write(&mut w, &Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "b"]).unit()).await;
        assert_eq!(db.rows("SELECT * FROM log"), [""; 0]);
        w.close().await.unwrap();
        // A swap is applied as the source did it: the audit sees no deletes that nobody made.
        let mut w = db.writer(&origin, 2).await;
        let swap =
            Changes::new().update(&t, None, &["1", "free"]).update(&t, None, &["2", "a"]).update(&t, None, &["1", "b"]);
        write(&mut w, &swap.unit()).await;
        assert_eq!(db.rows("SELECT op, count(*) FROM log GROUP BY op"), ["UPDATE|3"]);
        db.exec("ALTER TABLE t ENABLE ALWAYS TRIGGER audit");
        let warnings = db.sink().target().unwrap().describe(&t.name).await.unwrap().unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("ALWAYS"), "{warnings:?}");
    }
}

/// New rows are inserted as such; one that is there after all (put there by somebody, or copied) is
/// overwritten as by an upsert, and keeps what only the target knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_row_that_is_there_already_is_overwritten() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE, here text DEFAULT 'default')");
        let t = table("t", &[("id", INT), ("name", TEXT)], 1);
        for (n, sink) in sinks(&db).iter().enumerate() {
            db.exec("TRUNCATE t; INSERT INTO t VALUES (2, 'somebody', 'kept')");
            let mut w = db.writer(sink, n as u64 + 1).await;
            let unit = Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "b"]).update(&t, None, &["1", "c"]);
            write(&mut w, &unit.unit()).await;
            let found = || db.rows("SELECT * FROM t ORDER BY id");
            assert_eq!(found(), ["1|c|default", "2|b|kept"]);
            // Its unique value taken by a row that this unit moves to another one.
            let unit = Changes::new().update(&t, None, &["2", "d"]).insert(&t, &["3", "b"]);
            write(&mut w, &unit.unit()).await;
            assert_eq!(found(), ["1|c|default", "2|d|kept", "3|b|default"]);
            // Deleted and inserted again within the unit: not new.
            let unit = Changes::new().delete(&t, &["3", "?"]).insert(&t, &["3", "e"]);
            write(&mut w, &unit.unit()).await;
            assert_eq!(found(), ["1|c|default", "2|d|kept", "3|e|default"]);
            assert_eq!(db.rows("SELECT changes FROM anabranch.lane"), [(7 * (n + 1)).to_string()]);
            w.close().await.unwrap();
        }
    }
}

/// A row that an update brought into a row filter comes as an insert without the long values that the update did
/// not touch: with NULL in their place it would be wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_row_that_lacks_values_is_refused() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, a text, b text); CREATE TABLE n (a text, b text)");
        let (t, n) =
            (table("t", &[("id", INT), ("a", TEXT), ("b", TEXT)], 1), table("n", &[("a", TEXT), ("b", TEXT)], 0));
        let mut w = db.writer(&db.sink(), 1).await;
        let lacking = |row: &[&str]| Changes::new().insert(&t, &["1", "x", "y"]).insert(&t, row).unit();
        refused(&mut w, &lacking(&["2", "x", "?"]), ErrorKind::Rejected, "public.t lacks b (id = 2)").await;
        let keyless = Changes::new().insert(&n, &["?", "y"]).unit();
        refused(&mut w, &keyless, ErrorKind::Rejected, "public.n lacks a").await;
        // Changed again, and still not whole; in any mode.
        let changed = Changes::new().insert(&t, &["2", "x", "?"]).update(&t, None, &["2", "z", "?"]);
        refused(&mut w, &changed.unit(), ErrorKind::Rejected, "REPLICA IDENTITY FULL").await;
        assert_eq!(db.rows("SELECT * FROM t"), Vec::<String>::new());
        // Whole by what follows.
        let whole = Changes::new().insert(&t, &["2", "x", "?"]).update(&t, None, &["2", "?", "w"]);
        write(&mut w, &whole.unit()).await;
        assert_eq!(db.rows("SELECT * FROM t"), ["2|x|w"]);
    }
}

/// Rows of a table that inherits from another one are that table's, though a plain statement takes them along.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_heirs_are_not_those_of_the_table() {
    for db in databases() {
        db.exec(
            "CREATE TABLE p (id bigint PRIMARY KEY, v text UNIQUE); CREATE TABLE h (PRIMARY KEY (id)) INHERITS (p); \
             CREATE TABLE n (v text, w text); CREATE TABLE nh () INHERITS (n)",
        );
        let [p, h] = ["p", "h"].map(|name| table(name, &[("id", INT), ("v", TEXT)], 1));
        let n = table("n", &[("v", TEXT), ("w", TEXT)], 0);
        db.exec("INSERT INTO h SELECT i, 'heir' || i FROM generate_series(1, 4) i; INSERT INTO nh VALUES ('a', 'b')");
        let sink = db.sink();
        assert!(sink.target().unwrap().is_empty(&p.name).await.unwrap());
        let mut w = db.writer(&sink, 1).await;
        let rows = (1..=4).fold(Changes::new(), |c, i| c.insert(&p, &[&i.to_string(), &format!("v{i}")]));
        write(&mut w, &rows.insert(&n, &["a", "b"]).unit()).await;
        let heirs = "SELECT id, v FROM ONLY h ORDER BY id";
        let before = db.rows(heirs);
        // In bulk, partly, by swapping, one by one, by image.
        let unit = Changes::new()
            .update(&p, None, &["1", "v2"])
            .update(&p, None, &["2", "v1"])
            .update(&p, Some(&["3", "?"]), &["7", "?"])
            .delete(&p, &["4", "?"])
            .update(&n, Some(&["a", "b"]), &["a", "c"]);
        write(&mut w, &unit.unit()).await;
        assert_eq!(db.rows("SELECT id, v FROM ONLY p ORDER BY id"), ["1|v2", "2|v1", "7|v3"]);
        assert_eq!(db.rows("SELECT * FROM ONLY n"), ["a|c"]);
        write(&mut w, &Changes::new().update(&p, None, &["1", "?"]).unit()).await;
        refused(&mut w, &Changes::new().update(&p, None, &["3", "?"]).unit(), ErrorKind::Rejected, "id = 3").await;
        write(&mut w, &Changes::new().delete(&n, &["a", "c"]).unit()).await;
        let mut read = sink.verifier().unwrap().rows(&p, None).await.unwrap();
        assert_eq!(read.next().await.unwrap().unwrap().len(), 3);
        write(&mut w, &Changes::new().truncate(&p).unit()).await;
        assert_eq!(db.rows("SELECT id FROM ONLY p"), Vec::<String>::new());
        sink.target().unwrap().clear(&p.name).await.unwrap();
        assert_eq!(db.rows(heirs), before);
        assert_eq!(db.rows("SELECT * FROM ONLY nh"), ["a|b"]);
        write(&mut w, &Changes::new().delete(&h, &["4", "?"]).unit()).await;
        assert_eq!(db.rows("SELECT count(*) FROM h"), ["3"]);
        w.close().await.unwrap();

        // A trigger of the target, if it fires, puts the table's own rows into its heirs.
        db.exec(
            "CREATE TABLE r (id bigint PRIMARY KEY, v text); CREATE TABLE rh (PRIMARY KEY (id)) INHERITS (r);
             CREATE FUNCTION route() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO rh VALUES (NEW.*); RETURN NULL; END';
             CREATE TRIGGER route BEFORE INSERT ON r FOR EACH ROW EXECUTE FUNCTION route()",
        );
        let r = table("r", &[("id", INT), ("v", TEXT)], 1);
        for (role, place) in [(Privilege::Off, "rh"), (Privilege::Auto, "ONLY r")] {
            let mut w = db.writer(&db.sink().replica_role(role), 2).await;
            write(&mut w, &Changes::new().insert(&r, &["1", "a"]).unit()).await;
            assert_eq!(db.rows(&format!("SELECT * FROM {place}")), ["1|a"]);
            write(&mut w, &Changes::new().delete(&r, &["1", "?"]).unit()).await;
            assert_eq!(db.rows("SELECT * FROM r"), Vec::<String>::new());
            w.close().await.unwrap();
        }
    }
}

/// A key of the target that ignores case: rows of the source that differ in nothing else are not merged.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_target_does_not_tell_apart_are_refused() {
    let ci = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    for db in databases() {
        for (made_by, of, role) in [
            (ci, "text COLLATE ci", Privilege::Auto),
            ("CREATE EXTENSION citext", "citext", Privilege::Auto),
            ("SELECT 1", "citext", Privilege::Off),
        ] {
            if db.server.exec(&db.name, made_by).is_err() {
                println!("skipped: this server cannot {made_by}");
                continue;
            }
            db.exec(&format!(
                "DROP TABLE IF EXISTS c, k, p; CREATE TABLE p (k {of} PRIMARY KEY, v text); CREATE TABLE k (k {of} PRIMARY KEY);
                 CREATE TABLE c (p {of} REFERENCES p)"
            ));
            let (p, k) = (table("p", &[("k", TEXT), ("v", TEXT)], 1), table("k", &[("k", TEXT)], 1));
            let sink = db.sink().replica_role(role);
            let described = sink.target().unwrap().describe(&k.name).await.unwrap().unwrap();
            assert!(described.warnings.iter().any(|w| w.contains("key column k")), "{:?}", described.warnings);
            let mut w = db.writer(&sink, 1).await;
            write(&mut w, &Changes::new().insert(&p, &["a", "1"]).insert(&k, &["a"]).unit()).await;
            for unit in [
                Changes::new().insert(&p, &["A", "2"]),
                Changes::new().update(&p, None, &["A", "2"]),
                Changes::new().insert(&p, &["b", "3"]).insert(&p, &["B", "4"]),
                Changes::new().insert(&k, &["A"]),
                Changes::new().insert(&k, &["b"]).insert(&k, &["B"]),
            ] {
                refused(&mut w, &unit.unit(), ErrorKind::Rejected, "public.").await;
            }
            // What names another row does nothing to this one.
            write(&mut w, &Changes::new().delete(&p, &["A", "?"]).delete(&k, &["A"]).unit()).await;
            let partial = Changes::new().update(&p, None, &["A", "?"]).unit();
            refused(&mut w, &partial, ErrorKind::Rejected, "(k = A)").await;
            assert_eq!(db.rows("SELECT * FROM p"), ["a|1"], "{of}");
            assert_eq!(db.rows("SELECT * FROM k"), ["a"], "{of}");
            // Its own key may change its case, and another row may take it.
            write(&mut w, &Changes::new().update(&p, Some(&["a", "?"]), &["A", "5"]).unit()).await;
            assert_eq!(db.rows("SELECT * FROM p"), ["A|5"], "{of}");
            write(&mut w, &Changes::new().delete(&p, &["A", "?"]).insert(&p, &["a", "6"]).unit()).await;
            write(&mut w, &Changes::new().update(&p, None, &["a", "7"]).unit()).await;
            assert_eq!(db.rows("SELECT * FROM p"), ["a|7"], "{of}");
            w.close().await.unwrap();
        }
    }
}
