//! The source of a run: the workload's tables, and the history that the source itself keeps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anabranch_servers::{PgOptions, PgServer, PgVersion};
use anabranch_testkit::history::{
    Change, Checker, Commit, Options, Row, Workload, audit_query, commits_query, source_ddl,
};
use tokio_postgres::{Client, NoTls};

use super::Tested;

/// The database of the workload, on both sides.
pub(super) const DB: &str = "shop";

/// A source that forces its commits to disk, with the workload's tables, loaded. `None`: skipped.
pub(super) async fn start(version: PgVersion, seed: u64, options: Options) -> Tested<Option<Arc<PgServer>>> {
    let Some(server) = start_empty(version).await? else { return Ok(None) };
    load(&server, seed, options).await?;
    Ok(Some(server))
}

/// As [`start`], with empty tables: [`load`] fills them.
pub(super) async fn start_empty(version: PgVersion) -> Tested<Option<Arc<PgServer>>> {
    let Some(server) = PgOptions::new(version).fsync(true).start()? else { return Ok(None) };
    server.create_db(DB)?;
    let client = connect(&server.url(DB), "set-up").await?;
    for script in source_ddl() {
        client.batch_execute(&script).await?;
    }
    Ok(Some(Arc::new(server)))
}

/// The rows that the workload begins with.
pub(super) async fn load(server: &PgServer, seed: u64, options: Options) -> Tested {
    let client = connect(&server.url(DB), "set-up").await?;
    Ok(client.batch_execute(&Workload::load(seed, options).sql).await?)
}

/// Connects under an application name, so that faults can tell whose session it is.
pub(super) async fn connect(url: &str, application: &str) -> Tested<Client> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.application_name(application);
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// Reads the source's commits in their order.
pub(super) struct History {
    url: String,
    client: Option<Client>,
    known: HashSet<String>,
}

impl History {
    pub(super) fn new(server: &PgServer) -> Self {
        Self { url: server.url(DB), client: None, known: HashSet::new() }
    }

    /// Gives the checker every commit up to now. An error (the source is down) loses nothing: call
    /// it again.
    pub(super) async fn catch_up(&mut self, checker: &mut Checker) -> Tested {
        let result = self.read(checker).await;
        if result.is_err() {
            self.client = None;
        }
        result
    }

    async fn read(&mut self, checker: &mut Checker) -> Tested {
        if self.client.is_none() {
            self.client = Some(connect(&self.url, "history").await?);
        }
        let Some(client) = &self.client else { return Ok(()) };
        // Once: with writers at work there is always something new, and what an observation shows
        // was there before this call.
        let rows = client.query(commits_query(), &[]).await?;
        let Some(end) = rows.last().map(|row| row.get::<_, String>(1)) else { return Ok(()) };
        let xids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        // A crash of the source forgets that the slot was advanced.
        let xids: Vec<String> = xids.into_iter().filter(|xid| !self.known.contains(xid)).collect();
        until_visible(client, &xids).await?;
        let mut commits = audit(client, &xids).await?;
        for xid in xids {
            if let Some(commit) = commits.remove(&xid) {
                checker.commit(commit);
            }
            self.known.insert(xid);
        }
        client.execute("SELECT pg_replication_slot_advance('history', $1::text::pg_lsn)", &[&end]).await?;
        Ok(())
    }
}

/// A commit can be decoded a moment before it can be seen.
async fn until_visible(client: &Client, xids: &[String]) -> Tested {
    let sql = "SELECT bool_and(pg_visible_in_snapshot(x::xid8, pg_current_snapshot())) FROM unnest($1::text[]) x";
    loop {
        let visible: Option<bool> = client.query_one(sql, &[&xids]).await?.get(0);
        if visible != Some(false) {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}

async fn audit(client: &Client, xids: &[String]) -> Tested<HashMap<String, Commit>> {
    let mut commits: HashMap<String, Commit> = HashMap::new();
    for row in client.query(audit_query(), &[&xids]).await? {
        let table: i32 = row.get(1);
        let table = usize::try_from(table)?;
        let change = Change { table, old: canonical(table, row.get(2)), new: canonical(table, row.get(3)) };
        commits.entry(row.get(0)).or_default().changes.push(change);
    }
    Ok(commits)
}

fn canonical(table: usize, row: Option<Row>) -> Option<Row> {
    row.map(|row| super::targets::canonical_row(table, row))
}
