//! A source with a few rows, and targets for them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anabranch_servers::{MariaOptions, MariaServer, PgOptions, PgServer, PgVersion};

use super::Tested;
use super::command::{Anabranch, until};

/// The table of every shop: text, a number, a date, and nulls.
pub(super) const ORDERS: &str =
    "CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, total bigint, due date);
    INSERT INTO orders SELECT i, 'customer ' || i, CASE WHEN i % 3 > 0 THEN i * 100 END, DATE '2024-02-28' + i
    FROM generate_series(1, 50) i";
const ROWS: &str = "SELECT id, customer, total, due FROM orders ORDER BY id";

/// The source that most tests share. Its users have to give a password on TCP, but for `postgres`.
pub(super) fn source() -> Option<&'static PgServer> {
    static SERVER: OnceLock<Option<PgServer>> = OnceLock::new();
    SERVER.get_or_init(|| shared(PgOptions::new(PgVersion::Any))).as_ref()
}

/// The PostgreSQL target that most tests share.
pub(super) fn target() -> Option<&'static PgServer> {
    static SERVER: OnceLock<Option<PgServer>> = OnceLock::new();
    SERVER.get_or_init(|| shared(PgOptions::new(PgVersion::Any))).as_ref()
}

/// The MariaDB target that most tests share.
pub(super) fn mariadb() -> Option<&'static MariaServer> {
    static SERVER: OnceLock<Option<MariaServer>> = OnceLock::new();
    SERVER.get_or_init(|| MariaOptions::new().start().unwrap_or_else(|e| panic!("{e}"))).as_ref()
}

fn shared(options: PgOptions) -> Option<PgServer> {
    let options = options.setting("max_replication_slots", "100").setting("max_wal_senders", "100");
    let options = options.setting("max_connections", "300").setting("password_encryption", "scram-sha-256");
    with_passwords(options).start().unwrap_or_else(|e| panic!("{e}"))
}

/// On TCP everybody but `postgres` gives a password.
pub(super) fn with_passwords(mut options: PgOptions) -> PgOptions {
    for database in ["all", "replication"] {
        options = options.hba(format!("host {database} postgres 127.0.0.1/32 trust"));
        options = options.hba(format!("host {database} all 127.0.0.1/32 scram-sha-256"));
    }
    options
}

/// A name that no other test of this run has.
pub(super) fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{what}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A database of its own on the source with [`ORDERS`], and one on the target.
pub(super) struct Shop {
    pub(super) source: &'static PgServer,
    pub(super) target: &'static PgServer,
    /// The name of the databases, the slot, the publication and the pipeline.
    pub(super) name: String,
}

impl Shop {
    /// `None`: skipped.
    pub(super) fn open(what: &str) -> Tested<Option<Self>> {
        let (Some(source), Some(target)) = (source(), target()) else { return Ok(None) };
        let name = name(what);
        source.create_db(&name)?;
        target.create_db(&name)?;
        source.exec(&name, ORDERS)?;
        Ok(Some(Self { source, target, name }))
    }

    /// `[pipeline]` and `[source]`, which further keys of `[source]` may follow.
    pub(super) fn head(&self) -> String {
        self.head_of(&self.source.url(&self.name))
    }

    /// As [`Shop::head`], with another URL.
    pub(super) fn head_of(&self, url: &str) -> String {
        let name = &self.name;
        format!(
            "[pipeline]\nname = \"{name}\"\n[source]\ntype = \"postgres\"\nurl = \"{url}\"\n\
             publication = \"{name}\"\nslot = \"{name}\"\n"
        )
    }

    /// `[sink]`, which further keys may follow; tables are created.
    pub(super) fn sink(&self) -> String {
        format!("[sink]\ntype = \"postgres\"\nurl = \"{}\"\ncreate_tables = true\n", self.target.url(&self.name))
    }

    /// A configuration that is right.
    pub(super) fn config(&self) -> String {
        self.head() + &self.sink()
    }

    /// The command with a configuration that is right. `None`: skipped.
    pub(super) fn command(&self) -> Tested<Option<Anabranch>> {
        Anabranch::new(&self.config())
    }

    /// Runs statements on the source.
    pub(super) fn on_source(&self, sql: &str) -> Tested {
        Ok(self.source.exec(&self.name, sql).map(drop)?)
    }

    /// Runs statements on the target.
    pub(super) fn on_target(&self, sql: &str) -> Tested {
        Ok(self.target.exec(&self.name, sql).map(drop)?)
    }

    /// Whether both sides have the same orders now.
    pub(super) fn same(&self) -> Tested<bool> {
        let there = self.target.exec(&self.name, ROWS);
        Ok(there.is_ok_and(|rows| self.source.exec(&self.name, ROWS).is_ok_and(|wanted| wanted == rows)))
    }

    /// Asserts that both sides have the same orders now.
    #[track_caller]
    pub(super) fn assert_same(&self) -> Tested {
        let (here, there) = (self.source.exec(&self.name, ROWS)?, self.target.exec(&self.name, ROWS)?);
        assert!(!here.is_empty());
        assert_eq!(here, there);
        Ok(())
    }

    /// Waits until both sides have the same orders.
    pub(super) fn until_same(&self) -> Tested {
        until("the target is as the source", || self.same())
    }
}
