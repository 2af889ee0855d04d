//! Triggers and rules of the target that leave rows out, without an error.

use anabranch_core::{ErrorKind, Sink};
use anabranch_postgres::Privilege;

use crate::support::*;

const KEEP_OUT: &str = "CREATE TABLE t (id bigint PRIMARY KEY, x text);
     CREATE TABLE log (x text);
     CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       IF TG_OP = 'DELETE' THEN IF OLD.x = 'kept' THEN RETURN NULL; END IF; RETURN OLD; END IF;
       IF NEW.x IN ('out', 'lost') THEN RETURN NULL; END IF;
       RETURN NEW; END $$;
     CREATE TRIGGER keep_out BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION keep_out();
     CREATE TRIGGER keep_out BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION keep_out()";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_leaves_out_is_refused() {
    for db in databases() {
        db.exec(KEEP_OUT);
        let (t, log) = (table("t", &[("id", INT), ("x", TEXT)], 1), table("log", &[("x", TEXT)], 0));
        let sink = db.sink().replica_role(Privilege::Off);
        let mut w = db.writer(&sink, 1).await;
        let rows = Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "kept"]).insert(&t, &["3", "c"]);
        write(&mut w, &rows.unit()).await;
        let units = [
            (Changes::new().insert(&t, &["4", "d"]).insert(&t, &["5", "out"]).unit(), "(id = 5)"),
            (Changes::new().update(&t, None, &["1", "lost"]).unit(), "(id = 1)"),
            (Changes::new().delete(&t, &["3", "?"]).delete(&t, &["2", "?"]).unit(), "(id = 2)"),
            (Changes::new().insert(&log, &["b"]).insert(&log, &["out"]).unit(), "a row"),
        ];
        for (unit, row) in &units {
            let said = refused(&mut w, unit, ErrorKind::Rejected, "a trigger or a rule of the target left").await;
            assert!(said.contains(row), "{said}");
        }
        w.close().await.unwrap();
        // Rows of a copy go by another way.
        let mut copy = sink.open(db.snapshot_lane(1)).await.unwrap();
        let unit = Changes::new().insert(&t, &["6", "f"]).insert(&t, &["7", "out"]).snapshot();
        refused(&mut copy, &unit, ErrorKind::Rejected, "(id = 7)").await;
        copy.close().await.unwrap();
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|a", "2|kept", "3|c"]);
        assert!(db.rows("SELECT * FROM log").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_rule_leaves_out_is_refused() {
    for db in databases() {
        db.exec(
            "CREATE TABLE t (id bigint PRIMARY KEY, x text); INSERT INTO t VALUES (1, 'a');
             CREATE RULE no_new AS ON INSERT TO t DO INSTEAD NOTHING;
             CREATE TABLE d (id bigint PRIMARY KEY, x text); INSERT INTO d VALUES (1, 'a');
             CREATE RULE no_delete AS ON DELETE TO d DO INSTEAD NOTHING",
        );
        let (t, d) = (table("t", &[("id", INT), ("x", TEXT)], 1), table("d", &[("id", INT), ("x", TEXT)], 1));
        let mut w = db.writer(&db.sink().replica_role(Privilege::Off), 1).await;
        let inserted = w.write(&Changes::new().insert(&t, &["2", "b"]).unit()).await;
        assert!(inserted.is_err(), "the row is not in the target");
        let deleted = Changes::new().delete(&d, &["1", "?"]).unit();
        refused(&mut w, &deleted, ErrorKind::Rejected, "a trigger or a rule of the target left").await;
        w.close().await.unwrap();
    }
}

/// Triggers that leave out what changes nothing are in use, and take nothing away.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_changes_nothing_may_be_left_out() {
    for db in databases() {
        db.exec(
            "CREATE TABLE own (id bigint PRIMARY KEY, x text, y numeric(4,1));
             CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW IS NOT DISTINCT FROM OLD THEN RETURN NULL; END IF; RETURN NEW; END $$;
             CREATE TRIGGER same BEFORE UPDATE ON own FOR EACH ROW EXECUTE FUNCTION same();
             CREATE TABLE theirs (LIKE own INCLUDING ALL);
             CREATE TRIGGER z BEFORE UPDATE ON theirs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        );
        for name in ["own", "theirs"] {
            let t = table(name, &[("id", INT), ("x", TEXT), ("y", TEXT)], 1);
            let mut w = db.writer(&db.sink().replica_role(Privilege::Off), if name == "own" { 1 } else { 2 }).await;
            write(&mut w, &Changes::new().insert(&t, &["1", "a", "1.5"]).insert(&t, &["2", "b", "~"]).unit()).await;
            let again = Changes::new().update(&t, None, &["1", "a", "1.50"]).update(&t, None, &["2", "c", "~"]).unit();
            write(&mut w, &again).await;
            write(&mut w, &Changes::new().delete(&t, &["1", "?", "?"]).delete(&t, &["9", "?", "?"]).unit()).await;
            w.close().await.unwrap();
            assert_eq!(db.rows(&format!("SELECT * FROM {name}")), ["2|c|~"]);
        }
    }
}
