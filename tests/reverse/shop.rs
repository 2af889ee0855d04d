//! A shop in one database, whose orders once came from two.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anabranch_servers::{MariaOptions, MariaServer, PgOptions, PgServer, PgVersion, Row};

use super::Tested;
use super::command::{Anabranch, until};

const SOURCE: &str = r#"
    CREATE TABLE "Customers" (migration_shard_id text, "Id" bigint, "FullName" text, PRIMARY KEY (migration_shard_id, "Id"));
    CREATE TABLE "Orders" (migration_shard_id text, "Id" bigint, "Total" numeric(10,2), "At" timestamptz,
                           PRIMARY KEY (migration_shard_id, "Id"));
    CREATE TABLE "Scratch" ("Id" bigint PRIMARY KEY)"#;

pub(super) const SHARD: &str = "
    CREATE TABLE customers (customer_id bigint PRIMARY KEY, name varchar(100) CHARACTER SET utf8mb4);
    CREATE TABLE orders (order_id bigint PRIMARY KEY, amount decimal(10,2), placed_at datetime(6))";

pub(super) const SESSION: &str = r#"{
  "SpSchema": {
    "t1": {"Name": "Customers", "ShardIdColumn": "c9",
      "ColDefs": {"c1": {"Name": "Id"}, "c2": {"Name": "FullName"}, "c9": {"Name": "migration_shard_id"}}},
    "t2": {"Name": "Orders", "ShardIdColumn": "c9",
      "ColDefs": {"c1": {"Name": "Id"}, "c2": {"Name": "Total"}, "c3": {"Name": "At"}, "c9": {"Name": "migration_shard_id"}}}
  },
  "SrcSchema": {
    "t1": {"Name": "customers", "PrimaryKeys": [{"ColId": "c1", "Order": 1}],
      "ColDefs": {"c1": {"Name": "customer_id"}, "c2": {"Name": "name"}}},
    "t2": {"Name": "orders", "PrimaryKeys": [{"ColId": "c1", "Order": 1}],
      "ColDefs": {"c1": {"Name": "order_id"}, "c2": {"Name": "amount"}, "c3": {"Name": "placed_at"}}}
  },
  "SyntheticPKeys": {}
}"#;

pub(super) struct Shop {
    pub(super) source: &'static PgServer,
    /// The servers of the shards `one` and `two`.
    pub(super) shards: [MariaServer; 2],
    pub(super) name: String,
}

fn source() -> Option<&'static PgServer> {
    static SERVER: OnceLock<Option<PgServer>> = OnceLock::new();
    let start = || PgOptions::new(PgVersion::Any).start().unwrap_or_else(|e| panic!("{e}"));
    SERVER.get_or_init(start).as_ref()
}

impl Shop {
    /// `None`: skipped.
    pub(super) fn open(what: &str) -> Tested<Option<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let Some(source) = source() else { return Ok(None) };
        let (Some(one), Some(two)) = (MariaOptions::new().start()?, MariaOptions::new().start()?) else {
            return Ok(None);
        };
        let name = format!("{what}_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        source.create_db(&name)?;
        source.exec(&name, SOURCE)?;
        let shop = Self { source, shards: [one, two], name };
        for shard in &shop.shards {
            shard.create_db("shop")?;
            for statement in SHARD.split(';') {
                shard.exec("shop", statement)?;
            }
        }
        Ok(Some(shop))
    }

    /// The configuration, with these further keys.
    pub(super) fn config(&self, order: &str, letters: &str) -> String {
        let (name, url) = (&self.name, self.source.url(&self.name));
        format!(
            "[pipeline]\nname = \"{name}\"\norder = \"{order}\"\n\
             [source]\ntype = \"postgres\"\nurl = \"{url}\"\npublication = \"{name}\"\nslot = \"{name}\"\nsnapshot = \"never\"\n\
             [sink]\ntype = \"sharded\"\nshards_file = \"shards.json\"\nmax_connections_per_shard = 4\n\
             [sink.shard]\naccept_relaxed_durability = true\n\
             [checkpoint]\ntype = \"sqlite\"\npath = \"state.db\"\n\
             [dead_letters]\ntype = \"sqlite\"\npath = \"letters.db\"\n{letters}\n\
             [[transform]]\ntype = \"forward_migration\"\n\
             [[transform]]\ntype = \"session\"\nfile = \"session.json\"\n"
        )
    }

    /// The command, in a folder with both files. `None`: skipped.
    pub(super) fn command(&self, config: &str) -> Tested<Option<Anabranch>> {
        let Some(command) = Anabranch::new(config)? else { return Ok(None) };
        fs::write(command.folder().join("session.json"), SESSION)?;
        fs::write(command.folder().join("shards.json"), self.shards_file())?;
        Ok(Some(command))
    }

    pub(super) fn shards_file(&self) -> String {
        shards_file(&self.shards)
    }

    pub(super) fn write(&self, sql: &str) -> Tested {
        Ok(self.source.exec(&self.name, sql).map(drop)?)
    }

    /// Transactions over both shards and both tables: rows `from` to `to`, some of which change and go.
    pub(super) fn trade(&self, from: u32, to: u32) -> Tested {
        for id in from..to {
            let (mine, other) = if id % 2 == 0 { ("one", "two") } else { ("two", "one") };
            let mut sql = format!(
                "BEGIN; INSERT INTO \"Customers\" VALUES ('{mine}', {id}, 'customer {id}'), ('{other}', {id}, 'ö {id}'); \
                 INSERT INTO \"Orders\" VALUES ('{mine}', {id}, {id}.25, '2024-02-29 12:00:00.123456+00');"
            );
            if id > from + 3 {
                sql += &format!("UPDATE \"Customers\" SET \"FullName\" = 'changed {id}' WHERE \"Id\" = {};", id - 2);
                sql += &format!("DELETE FROM \"Orders\" WHERE \"Id\" = {};", id - 3);
            }
            self.write(&(sql + "COMMIT"))?;
        }
        Ok(())
    }

    /// Both shards, and what they should have.
    fn sides(&self, at: usize) -> Tested<(Vec<Row>, Vec<Row>)> {
        let (server, name) = (&self.shards[at], ["one", "two"][at]);
        let mut wanted = self.source.exec(
            &self.name,
            &format!("SELECT \"Id\", \"FullName\" FROM \"Customers\" WHERE migration_shard_id = '{name}' ORDER BY 1"),
        )?;
        wanted.extend(self.source.exec(
            &self.name,
            &format!(
                "SELECT \"Id\", \"Total\", to_char(\"At\" AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') \
                 FROM \"Orders\" WHERE migration_shard_id = '{name}' ORDER BY 1"
            ),
        )?);
        let mut there = server.exec("shop", "SELECT customer_id, name FROM customers ORDER BY 1")?;
        there.extend(server.exec("shop", "SELECT order_id, amount, placed_at FROM orders ORDER BY 1")?);
        Ok((wanted, there))
    }

    pub(super) fn assert_same(&self) -> Tested {
        for at in 0..2 {
            let (wanted, there) = self.sides(at)?;
            assert!(!wanted.is_empty());
            assert_eq!(wanted, there, "shard {at}");
        }
        Ok(())
    }

    /// Waits until a shard has what it should.
    pub(super) fn until_same(&self, at: usize) -> Tested {
        until("the shard is as the source", || {
            let (wanted, there) = self.sides(at)?;
            Ok(wanted == there)
        })
    }
}

/// The shards file of these servers.
pub(super) fn shards_file(shards: &[MariaServer; 2]) -> String {
    let shard = |name: &str, server: &MariaServer| {
        format!(
            r#"{{"logicalShardId":"{name}","host":"127.0.0.1","port":"{}","user":"root","password":"","dbName":"shop"}}"#,
            server.port()
        )
    };
    format!(r#"{{"shardConfigs":[{},{}]}}"#, shard("one", &shards[0]), shard("two", &shards[1]))
}

/// What `status --json` says.
pub(super) fn status(command: &Anabranch) -> Tested<serde_json::Value> {
    let said = command.call(&["status", "--json"])?;
    Ok(serde_json::from_str(&said.stdout)?)
}

/// The job that writes window files into the shards.
pub(crate) fn writer_job(files: &str) -> String {
    format!(
        "[pipeline]\nname = \"shop-write\"\norder = \"transaction\"\neach_shard = true\n\
         [source]\ntype = \"files\"\npath = \"{files}\"\nrun = \"shop\"\nsnapshot = \"never\"\npoll_seconds = 0.1\n\
         [sink]\ntype = \"sharded\"\nshards_file = \"shards.json\"\n\
         [sink.shard]\naccept_relaxed_durability = true\n"
    )
}
