//! What PostgreSQL itself offers: `pg_recvlogical` and subscriptions.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anabranch_servers::{PgServer, PgVersion, find};

use crate::Result;
use crate::process::{Used, used, wait};

/// How often a server is asked whether it is done.
const POLL: Duration = Duration::from_millis(20);

/// Reads a slot up to `end` into nothing: the server decodes, the network carries, nothing is applied.
/// `None` if the program is not installed.
pub(crate) fn receive(source: &PgServer, db: &str, slot: &str, end: &str) -> Result<Option<(Duration, Used)>> {
    let Some(program) = recvlogical(source) else {
        eprintln!("skipped: pg_recvlogical is not installed");
        return Ok(None);
    };
    let begin = Instant::now();
    let url = source.url(db);
    let child = Command::new(program)
        .args(["-d", &url, "--slot", slot, "--start", "--endpos", end, "--file", "/dev/null", "--no-loop"])
        .args(["-o", "proto_version=1", "-o", "publication_names=bench"])
        .stderr(Stdio::inherit())
        .spawn()?;
    wait(child, begin).map(Some)
}

fn recvlogical(source: &PgServer) -> Option<PathBuf> {
    let beside = [Some(source.bin_dir().to_owned()), find::postgres(PgVersion::V15)];
    beside.into_iter().flatten().map(|bin| bin.join("pg_recvlogical")).find(|program| program.is_file())
}

/// A subscription of `target` to a slot of `source`.
pub(crate) struct Subscription<'a> {
    pub(crate) source: &'a PgServer,
    pub(crate) target: &'a PgServer,
    pub(crate) db: &'a str,
    pub(crate) slot: &'a str,
    /// `streaming` of the subscription: `off`, `on`, `parallel`.
    pub(crate) streaming: &'a str,
}

impl Subscription<'_> {
    /// Applies until `done`, a query, gives `t` on the target. The rows must not be there before.
    pub(crate) fn apply(&self, done: &str) -> Result<(Duration, Used)> {
        let (name, url, db) = (self.slot, self.source.url(self.db), self.db);
        let options =
            format!("create_slot = false, copy_data = false, enabled = false, streaming = {}", self.streaming);
        self.target
            .exec(db, &format!("CREATE SUBSCRIPTION {name} CONNECTION '{url}' PUBLICATION bench WITH ({options})"))?;
        let begin = Instant::now();
        self.target.exec(db, &format!("ALTER SUBSCRIPTION {name} ENABLE"))?;
        let (took, used) = self.until(begin, done)?;
        self.target.exec(db, &format!("ALTER SUBSCRIPTION {name} DISABLE"))?;
        self.target.exec(db, &format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"))?;
        self.target.exec(db, &format!("DROP SUBSCRIPTION {name}"))?;
        Ok((took, used))
    }

    /// Copies every table, until all of them are ready.
    pub(crate) fn copy(&self) -> Result<(Duration, Used)> {
        let (name, url, db) = (self.slot, self.source.url(self.db), self.db);
        let begin = Instant::now();
        self.target.exec(db, &format!("CREATE SUBSCRIPTION {name} CONNECTION '{url}' PUBLICATION bench"))?;
        let ready = "SELECT count(*) > 0 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel";
        let (took, _) = self.until(begin, ready)?;
        self.target.exec(db, &format!("DROP SUBSCRIPTION {name}"))?;
        // The worker that copied is gone, and its figures with it.
        Ok((took, Used::default()))
    }

    /// Waits for `done`; what its workers used is what they had used when they were last seen.
    fn until(&self, begin: Instant, done: &str) -> Result<(Duration, Used)> {
        let workers =
            format!("SELECT pid FROM pg_stat_subscription WHERE subname = '{}' AND pid IS NOT NULL", self.slot);
        loop {
            if self.target.value(self.db, done)?.as_deref() == Some("t") {
                break;
            }
            sleep(POLL);
        }
        let took = begin.elapsed();
        let mut total = Used::default();
        for pid in self.target.exec(self.db, &workers)?.into_iter().flatten().flatten() {
            // Not its memory: what it has touched of the server's shared buffers counts there too.
            total.cpu_seconds += used(&pid).unwrap_or_default().cpu_seconds;
        }
        Ok((took, total))
    }
}
