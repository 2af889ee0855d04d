//! The two databases that the shop came from, in one MariaDB.

use anabranch_servers::{MariaServer, Row, mariadb};

use crate::shop::{Kind, SHARDS, Shop, TABLES, Table};
use crate::tell::Done;

const DATABASES: [&str; 2] = ["shop_north", "shop_south"];

const SCHEMA: &str = "
    CREATE TABLE customer (customer_no bigint PRIMARY KEY, name varchar(100), created datetime(6));
    CREATE TABLE purchase (purchase_no bigint PRIMARY KEY, customer_no bigint, amount decimal(38,9), paid tinyint(1),
        placed_at datetime(6), remark text, CONSTRAINT buyer FOREIGN KEY (customer_no) REFERENCES customer (customer_no));
    CREATE TABLE purchase_line (purchase_no bigint, line_no bigint, quantity bigint, picture varbinary(16),
        PRIMARY KEY (purchase_no, line_no),
        CONSTRAINT of_purchase FOREIGN KEY (purchase_no) REFERENCES purchase (purchase_no) ON DELETE CASCADE)";

/// Both of them.
pub(crate) struct Shards {
    server: MariaServer,
}

impl Shards {
    /// `None` if MariaDB is not installed.
    pub(crate) fn start() -> Done<Option<Self>> {
        let Some(server) = mariadb() else { return Ok(None) };
        for database in DATABASES {
            server.create_db(database)?;
            server.exec(database, SCHEMA)?;
        }
        Ok(Some(Self { server }))
    }

    pub(crate) fn databases(&self) -> [&'static str; 2] {
        DATABASES
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port()
    }

    /// What the migration to Spanner started from.
    pub(crate) fn fill(&self, shop: &Shop) -> Done {
        for (shard, database) in SHARDS.iter().zip(DATABASES) {
            for table in TABLES {
                let rows = shop.read(table, shard)?;
                let values: Vec<String> = rows.iter().map(|row| format!("({})", literals(table, row))).collect();
                let columns: Vec<&str> = table.columns.iter().map(|c| c.there).collect();
                let sql = format!("INSERT INTO {} ({}) VALUES {}", table.there, columns.join(", "), values.join(", "));
                self.server.exec(database, &sql)?;
            }
        }
        Ok(())
    }

    /// The newest order that is in both shards.
    pub(crate) fn newest(&self) -> Done<u64> {
        let newest = |database: &str| format!("SELECT coalesce(max(purchase_no), 0) AS n FROM {database}.purchase");
        let sql = format!("SELECT min(n) FROM ({} UNION ALL {}) t", newest(DATABASES[0]), newest(DATABASES[1]));
        let rows = self.server.exec("", &sql)?;
        let newest: u64 = rows.first().and_then(|r| r.first().cloned().flatten()).unwrap_or_default().parse()?;
        Ok(newest.saturating_sub(crate::shop::ORDERS))
    }

    /// All rows of a table, by key.
    pub(crate) fn read(&self, at: usize, table: &Table) -> Done<Vec<Row>> {
        let column = |c: &crate::shop::Column| match c.kind {
            Kind::Bytes => format!("lower(hex({}))", c.there),
            _ => c.there.to_owned(),
        };
        let columns: Vec<String> = table.columns.iter().map(column).collect();
        let sql = format!("SELECT {} FROM {} ORDER BY 1, 2", columns.join(", "), table.there);
        Ok(self.server.exec(DATABASES[at], &sql)?)
    }
}

fn literals(table: &Table, row: &Row) -> String {
    let one = |(column, value): (&crate::shop::Column, &Option<String>)| match (column.kind, value) {
        (_, None) => "NULL".to_owned(),
        (Kind::Plain, Some(v)) => v.clone(),
        (Kind::Bytes, Some(v)) => format!("x'{v}'"),
        (Kind::Instant, Some(v)) => format!("'{}'", v.trim_end_matches('Z').replace('T', " ")),
        (Kind::Text, Some(v)) => format!("'{}'", v.replace('\'', "''")),
    };
    table.columns.iter().zip(row).map(one).collect::<Vec<_>>().join(", ")
}
