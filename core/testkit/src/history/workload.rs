//! Random transactions, from a seed.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the workload may do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether NaN and infinities occur: not every target can hold them.
    pub nonfinite: bool,
    /// How many rows a table starts with, about. Documents have several kilobytes each.
    pub rows: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { nonfinite: true, rows: 40 }
    }
}

/// One transaction.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Its statements, `BEGIN` and `COMMIT` (or `ROLLBACK`) included. It may fail as a whole, for
    /// other writers are at the same rows: then it has to be rolled back, and the next one comes.
    pub sql: String,
    /// Whether it means to commit.
    pub commits: bool,
}

/// Makes the transactions of one writer.
#[derive(Debug)]
pub struct Workload {
    rng: StdRng,
    writer: u32,
    seq: u64,
    options: Options,
}

/// Rows of the journal that a writer leaves of its own.
const JOURNAL_KEPT: u64 = 50;

type Action = fn(&mut Workload, &mut String);

/// What a transaction may consist of.
const ACTIONS: &[Action] = &[
    Workload::transfer,
    Workload::transfer,
    Workload::bump,
    Workload::bump,
    Workload::swap_codes,
    Workload::rotate_places,
    Workload::swap_ids,
    Workload::reinsert,
    Workload::reuse_key,
    Workload::change_key,
    Workload::family,
    Workload::retitle,
    Workload::rewrite,
    Workload::measure,
    Workload::mixed_case,
    Workload::log,
    Workload::savepoint,
];

impl Workload {
    /// The transactions of writer `writer` (from 1) under `seed`.
    pub fn new(seed: u64, writer: u32, options: Options) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(writer)));
        Self { rng, writer, seq: 0, options }
    }

    /// The transaction that fills the empty tables; it comes before all others, once.
    pub fn load(seed: u64, options: Options) -> Transaction {
        let mut load = Self::new(seed, 0, options);
        let n = options.rows;
        let mut sql = format!(
            "BEGIN; INSERT INTO journal VALUES (0, 0);
             INSERT INTO accounts SELECT i, 'owner ' || i, 1000 FROM generate_series(1, {n}) i;
             INSERT INTO ledger SELECT i, 0, NULL FROM generate_series(1, {n}) i;
             INSERT INTO items SELECT i, 'code ' || i, i, i + 0.25 FROM generate_series(1, {n}) i;
             INSERT INTO parents SELECT i, 'parent ' || i FROM generate_series(1, {n}) i;
             INSERT INTO children SELECT i, 1 + i % {n}, NULL FROM generate_series(1, {n}) i;
             INSERT INTO measures SELECT i, i / 4.0, '2026-01-01 00:00:00Z', true FROM generate_series(1, {n}) i;
             INSERT INTO \"Mixed Case\" SELECT 'a ''value'' ' || i, 'Region ' || i % 3, i FROM generate_series(1, {n}) i;
             INSERT INTO log_lines SELECT 0, 'line' FROM generate_series(1, {n}) i;\n"
        );
        for id in 1..=n / 2 {
            let (body, hex) = (load.text(6_000), load.hex(3_000));
            let _ = writeln!(sql, "INSERT INTO documents VALUES ({id}, 'title {id}', '{body}', '\\x{hex}', 0);");
        }
        sql.push_str("COMMIT");
        Transaction { sql, commits: true }
    }

    /// The next one.
    pub fn next_transaction(&mut self) -> Transaction {
        self.seq += 1;
        let (writer, seq) = (self.writer, self.seq);
        let mut sql = format!("BEGIN; INSERT INTO journal VALUES ({writer}, {seq});\n");
        if let Some(old) = seq.checked_sub(JOURNAL_KEPT) {
            let _ = writeln!(sql, "DELETE FROM journal WHERE writer = {writer} AND seq <= {old};");
        }
        for _ in 0..self.rng.random_range(1..=3) {
            self.action(&mut sql);
        }
        if self.rng.random_ratio(1, 100) {
            self.flood(&mut sql);
        }
        if self.rng.random_ratio(1, 10) {
            // Others commit in between: the order of commits is not that of beginnings.
            let pause = self.rng.random_range(1..30);
            let _ = writeln!(sql, "SELECT pg_sleep(0.0{pause:02});");
        }
        let commits = !self.rng.random_ratio(1, 30);
        sql.push_str(if commits { "COMMIT" } else { "ROLLBACK" });
        Transaction { sql, commits }
    }

    fn action(&mut self, sql: &mut String) {
        let action = ACTIONS[self.rng.random_range(0..ACTIONS.len())];
        action(self, sql);
    }

    fn transfer(&mut self, sql: &mut String) {
        let (from, to, amount) = (self.row(), self.row(), self.rng.random_range(1..100));
        let change = |id, by: i64| format!("UPDATE accounts SET balance = balance + {by} WHERE id = {id};\n");
        // In the order of ids, so that two transfers rarely wait for each other.
        let mut both = [(from, change(from, -amount)), (to, change(to, amount))];
        both.sort();
        both.iter().for_each(|(_, statement)| sql.push_str(statement));
    }

    fn bump(&mut self, sql: &mut String) {
        let (first, count, note) = (self.row(), self.rng.random_range(0..4), self.text(12));
        let rows = format!("id BETWEEN {first} AND {}", first + count);
        let _ = writeln!(sql, "UPDATE ledger SET version = version + 1, note = '{note}' WHERE {rows};");
    }

    fn swap_codes(&mut self, sql: &mut String) {
        let _ = writeln!(sql, "SELECT history.swap_codes({}, {});", self.row(), self.row());
    }

    fn rotate_places(&mut self, sql: &mut String) {
        let _ = writeln!(sql, "SELECT history.rotate_places({}, {}, {});", self.row(), self.row(), self.row());
    }

    fn swap_ids(&mut self, sql: &mut String) {
        let _ = writeln!(sql, "SELECT history.swap_ids({}, {});", self.row(), self.row());
    }

    fn reinsert(&mut self, sql: &mut String) {
        let (from, to) = (self.row(), self.row() + self.options.rows);
        let (from, to) = if self.rng.random() { (from, to) } else { (to, from) };
        let _ = writeln!(sql, "SELECT history.reinsert({from}, {to});");
    }

    fn reuse_key(&mut self, sql: &mut String) {
        let (id, price) = (self.row(), self.rng.random_range(0..10_000));
        let code = format!("new {} {}", self.writer, self.rng.random_range(0..1_000_000));
        let _ = writeln!(sql, "DELETE FROM items WHERE id = {id};");
        let _ = writeln!(sql, "INSERT INTO items VALUES ({id}, '{code}', NULL, {price} / 100.0);");
    }

    fn change_key(&mut self, sql: &mut String) {
        let (from, to) = (self.row(), self.row() + 100);
        let (from, to) = if self.rng.random() { (from, to) } else { (to, from) };
        let free = |table: &str, to: u32| format!("NOT EXISTS (SELECT 1 FROM {table} WHERE id = {to})");
        let _ = writeln!(sql, "UPDATE measures SET id = {to} WHERE id = {from} AND {};", free("measures", to));
        let _ = writeln!(sql, "UPDATE documents SET id = {to} WHERE id = {from} AND {};", free("documents", to));
    }

    fn family(&mut self, sql: &mut String) {
        let (parent, child) = (self.row() + 200, self.rng.random_range(1_000..1_200));
        if self.rng.random_ratio(1, 3) {
            // The parent first: its children are orphans until the next statement.
            let _ = writeln!(sql, "DELETE FROM parents WHERE id = {parent};");
            let _ = writeln!(sql, "DELETE FROM children WHERE parent_id = {parent};");
            return;
        }
        let note = self.text(8);
        let _ = writeln!(sql, "INSERT INTO children VALUES ({child}, {parent}, '{note}')");
        sql.push_str("ON CONFLICT (id) DO UPDATE SET parent_id = excluded.parent_id, note = excluded.note;\n");
        let _ = writeln!(sql, "INSERT INTO parents VALUES ({parent}, 'late') ON CONFLICT DO NOTHING;");
    }

    fn retitle(&mut self, sql: &mut String) {
        let (id, title) = (self.row(), self.text(20));
        let _ = writeln!(sql, "UPDATE documents SET title = '{title}', revision = revision + 1 WHERE id = {id};");
    }

    fn rewrite(&mut self, sql: &mut String) {
        let id = self.row();
        let body = if self.rng.random_ratio(1, 4) { "NULL".to_owned() } else { format!("'{}'", self.text(5_000)) };
        let _ = writeln!(sql, "UPDATE documents SET body = {body}, revision = revision + 1 WHERE id = {id};");
    }

    fn measure(&mut self, sql: &mut String) {
        let (id, second) = (self.row(), self.rng.random_range(0..60));
        let reading = match self.rng.random_range(0..6) {
            0 if self.options.nonfinite => "'NaN'".to_owned(),
            1 if self.options.nonfinite => "'Infinity'".to_owned(),
            2 if self.options.nonfinite => "'-Infinity'".to_owned(),
            3 => "NULL".to_owned(),
            _ => format!("{}", f64::from(self.rng.random_range(-4_000_i32..4_000)) / 8.0),
        };
        let at = format!("'2026-02-03 04:05:{second:02}.{:03}Z'", self.rng.random_range(0..1000));
        let _ = writeln!(sql, "UPDATE measures SET reading = {reading}, at = {at}, good = NOT good WHERE id = {id};");
    }

    fn mixed_case(&mut self, sql: &mut String) {
        let (region, number, text) = (self.rng.random_range(0..4), self.row(), self.text(10));
        if self.rng.random_ratio(1, 4) {
            let _ = writeln!(sql, r#"DELETE FROM "Mixed Case" WHERE "select" = {number};"#);
            return;
        }
        let value = format!("it''s \"{text}\" \\ ü €");
        let _ = writeln!(sql, r#"INSERT INTO "Mixed Case" VALUES ('{value}', 'Region {region}', {number})"#);
        let column = r#""the ""value""""#;
        let _ = writeln!(sql, r#"ON CONFLICT ("Region", "select") DO UPDATE SET {column} = excluded.{column};"#);
    }

    fn log(&mut self, sql: &mut String) {
        let (writer, line) = (self.writer, self.rng.random_range(0..10));
        let _ = writeln!(sql, "INSERT INTO log_lines VALUES ({writer}, 'line {line}');");
    }

    fn savepoint(&mut self, sql: &mut String) {
        sql.push_str("SAVEPOINT outer_one;\n");
        self.action(sql);
        sql.push_str("SAVEPOINT inner_one;\n");
        self.action(sql);
        sql.push_str(if self.rng.random() { "RELEASE inner_one;\n" } else { "ROLLBACK TO inner_one;\n" });
        self.action(sql);
        sql.push_str(if self.rng.random() { "RELEASE outer_one;\n" } else { "ROLLBACK TO outer_one;\n" });
    }

    /// A transaction of some hundred rows: what was added is removed again by a later one.
    fn flood(&mut self, sql: &mut String) {
        let base = 10_000 + 1_000 * self.writer;
        let note = self.text(8);
        let _ = writeln!(sql, "DELETE FROM ledger WHERE id >= {base} AND id < {};", base + 1_000);
        let rows = self.rng.random_range(0..400);
        let _ = writeln!(sql, "INSERT INTO ledger SELECT {base} + i, {}, '{note}'", self.seq);
        let _ = writeln!(sql, "FROM generate_series(0, {rows}) i;");
    }

    fn row(&mut self) -> u32 {
        self.rng.random_range(1..=self.options.rows)
    }

    fn text(&mut self, length: usize) -> String {
        (0..length).map(|_| char::from(self.rng.random_range(b'a'..=b'z'))).collect()
    }

    fn hex(&mut self, bytes: usize) -> String {
        (0..bytes).map(|_| format!("{:02x}", self.rng.random::<u8>())).collect()
    }
}
