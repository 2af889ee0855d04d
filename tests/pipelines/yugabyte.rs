//! A crash run between two databases that behave as YugabyteDB does: proxies before PostgreSQL, see
//! `connectors/yugabyte/fake`. Beside the kills, the target refuses statements for now all the while.

use std::sync::Arc;
use std::time::Duration;

use anabranch_servers::PgVersion;
use anabranch_testkit::history::{Consistency, Observation, Options};
use anabranch_yugabyte_fake::{Fake, Options as FakeOptions};
use async_trait::async_trait;

use super::ending::Ending;
use super::faults::Faults;
use super::runner::{self, Runner};
use super::source::{self, DB, History};
use super::targets::{PgTarget, Target};
use super::watcher::Watcher;
use super::writers::Writers;
use super::{Tested, config};

/// Kills of a run unless `KILLS` says otherwise.
const KILLS: u32 = 12;
/// States of the source that a reader of the target has to have seen, or the run means too little.
const STATES: usize = 5;
/// Of so many statements of the sink, one is refused for now.
const REFUSE_ONE_OF: u32 = 150;

/// A PostgreSQL behind a proxy.
struct YugabyteTarget {
    fake: Fake,
    inner: PgTarget,
}

impl YugabyteTarget {
    async fn start(seed: u64) -> Tested<Option<Self>> {
        let Some(inner) = PgTarget::start(PgVersion::V18)? else { return Ok(None) };
        let options = FakeOptions { refuse_one_of: REFUSE_ONE_OF, seed, ..FakeOptions::default() };
        let fake = Fake::start(inner.server.port(), &[DB], options).await?;
        Ok(Some(Self { fake, inner }))
    }
}

#[async_trait]
impl Target for YugabyteTarget {
    fn sink(&self) -> String {
        format!("type = \"yugabyte\"\nurl = \"{}\"\ncreate_tables = true\n", self.fake.url(DB))
    }

    /// A table without a primary key is not in the stream.
    fn without(&self) -> &'static [&'static str] {
        &["log_lines"]
    }

    fn stored(&self) -> String {
        self.inner.stored()
    }

    async fn observe(&self) -> Option<Observation> {
        self.inner.observe().await
    }

    async fn crash(&self) -> Tested<bool> {
        self.inner.crash().await
    }

    async fn cut(&self) -> Tested<bool> {
        self.fake.cut();
        Ok(true)
    }
}

fn pipeline(source: &Fake, lsn_type: &str, target: &dyn Target) -> String {
    format!(
        "[pipeline]\nname = \"crash\"\norder = \"transaction\"\n\n\
         [source]\ntype = \"yugabyte\"\nurl = \"{}\"\npublication = \"workload\"\nslot = \"workload\"\n\
         lsn_type = \"{lsn_type}\"\nheartbeat_seconds = 0.5\n\n[sink]\n{}",
        source.url(DB),
        target.sink()
    )
}

async fn run(lsn_type: &str) -> Tested {
    let name = format!("yugabyte ({lsn_type}) to yugabyte");
    let Some(program) = runner::command() else { return Ok(()) };
    let seed = config::seed(&name);
    let options = Options::default();
    let Some(server) = source::start(PgVersion::V15, seed, options).await? else { return Ok(()) };
    let Some(target) = YugabyteTarget::start(seed).await? else { return Ok(()) };
    let target = Arc::new(target);
    server.exec(DB, "ALTER PUBLICATION workload DROP TABLE log_lines")?;
    let fake = Fake::start(server.port(), &[DB], FakeOptions { seed, ..FakeOptions::default() }).await?;

    let writers = Writers::start(&server, seed, options, 3, Duration::from_millis(10));
    let mut runner = Runner::new(program, &pipeline(&fake, lsn_type, target.as_ref()))?;
    runner.keep_running();
    // A PostgreSQL that is killed forgets its snapshots; YugabyteDB goes on reading at a hybrid time.
    runner.streams().await?;
    let watcher = Watcher::start(History::new(&server), target.clone(), seed, Consistency::Prefix);
    let mut faults = Faults::new(seed, server.clone(), target.clone());
    let kills = config::kills(KILLS);
    while faults.count() < kills && !watcher.found_something() && !runner.gave_up() {
        faults.strike(Some(&runner)).await?;
        if faults.count().is_multiple_of(4) {
            fake.cut();
        }
    }
    // What came of the kills is to be seen.
    watcher.sees(STATES, &runner).await;
    let committed = writers.stop().await?;
    // What is left may be one large transaction, of which hardly an attempt would be spared.
    target.fake.calm();
    println!("{name}: {} statements refused for now", target.fake.injected());
    let ending = Ending {
        name: &name,
        seed,
        faults: &faults,
        runner: &mut runner,
        target: target.as_ref(),
        watcher,
        committed,
        states: STATES,
    };
    ending.finish().await?;
    let asked = [fake.refused(), target.fake.refused()].concat();
    assert_eq!(asked, Vec::<String>::new(), "{name}: what YSQL does not have was asked for");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn yugabyte_by_sequence_survives_kills() -> Tested {
    run("sequence").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn yugabyte_by_hybrid_time_survives_kills() -> Tested {
    run("hybrid_time").await
}

/// What `yb-admin` writes, as YugabyteDB's manual shows it.
const SAFE_TIME: &str = r#"[
    {
        "namespace_id": "00004000000030008000000000000000",
        "namespace_name": "dr_db3",
        "safe_time": "2023-06-08 23:12:51.651318",
        "safe_time_epoch": "1686265971651318",
        "safe_time_lag_sec": "24.87",
        "safe_time_skew_sec": "1.16"
    }
]"#;

/// Whoever has only xCluster writes a file with one section and asks for its status.
#[tokio::test]
async fn xcluster_has_a_status() -> Tested {
    let Some(program) = runner::command() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (admin, file) = (folder.path().join("yb-admin"), folder.path().join("dr.toml"));
    std::fs::write(&admin, format!("#!/bin/sh\ncat <<'EOF'\n{SAFE_TIME}\nEOF\n"))?;
    std::fs::set_permissions(&admin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let ask = async |masters: &str, options: &[&str]| {
        let section = format!("[xcluster]\nyb_admin = {admin:?}\nmaster_addresses = \"{masters}\"\n");
        std::fs::write(&file, section)?;
        tokio::process::Command::new(&program).arg("status").arg(&file).args(options).output().await
    };
    let json = ask("10.2.0.1:7100", &["--json"]).await?;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!((&json[0]["pipeline"], &json[0]["phase"]), (&"dr_db3".into(), &"streaming".into()));
    assert_eq!((&json[0]["lag_seconds"], &json[0]["skew_seconds"]), (&24.87.into(), &1.16.into()));
    let text = String::from_utf8(ask("10.2.0.1:7100", &[]).await?.stdout)?;
    for line in [
        "pipeline      dr_db3",
        "safe time     2023-06-08T23:12:51.651318Z",
        "lag           24.9 s",
        "skew          1.2 s",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let wrong = ask("10.2.0.1", &[]).await?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && said.contains("xcluster.master_addresses"), "{said}");
    Ok(())
}
