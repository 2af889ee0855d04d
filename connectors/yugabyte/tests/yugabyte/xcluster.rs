//! `yb-admin` is a script that prints what the manual shows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::pipeline::Phase;
use anabranch_core::{ErrorKind, Timestamp};
use anabranch_yugabyte::xcluster::{self, XClusterConfig, YbAdmin};
use tempfile::TempDir;

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

/// A program that answers as `yb-admin` does, and notes how it was called.
fn script(body: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("yb-admin");
    fs::write(&path, format!("#!/bin/sh\necho \"$@\" >> '{}/calls'\n{body}\n", folder.path().display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

fn answers(text: &str) -> (TempDir, PathBuf) {
    script(&format!("cat <<'EOF'\n{text}\nEOF"))
}

#[tokio::test]
async fn status_is_that_of_a_pipeline() {
    let (folder, program) = answers(SAFE_TIME);
    let target = YbAdmin::new(program, "10.2.0.1:7100,10.2.0.2:7100").certs_dir("/certs");
    let found = xcluster::status(&target).await.unwrap();
    assert_eq!(found.len(), 1);
    let status = &found[0];
    assert_eq!((status.pipeline.as_str(), status.phase), ("dr_db3", Phase::Streaming));
    assert_eq!(status.safe_time, Some(Timestamp::from_micros(1_686_265_971_651_318)));
    assert_eq!((status.lag_seconds, status.skew_seconds), (Some(24.87), Some(1.16)));
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(json["pipeline"], "dr_db3", "as the status of a pipeline reads");
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    let expected = "-master_addresses 10.2.0.1:7100,10.2.0.2:7100 -certs_dir_name /certs get_xcluster_safe_time include_lag_and_skew\n";
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn drains_are_told() {
    let (_folder, program) = answers("All replications are caught-up.");
    let source = YbAdmin::new(program, "a:7100");
    let streams = ["56bf".to_owned(), "77".to_owned()];
    let at = Timestamp::from_micros(1_665_548_814_177_072);
    assert_eq!(xcluster::undrained(&source, &streams, at).await.unwrap(), []);
    let text = "Found undrained replications:\n- Under Stream b730:\n  - Tablet: 04dd\n  - Tablet: ebc0";
    let (folder, program) = answers(text);
    let left = xcluster::undrained(&YbAdmin::new(program, "a:7100"), &streams, at).await.unwrap();
    assert_eq!((left.len(), left[0].tablets.len()), (1, 2));
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(calls, "-master_addresses a:7100 wait_for_replication_drain 56bf,77 1665548814177072\n");
}

#[tokio::test]
async fn failures_say_what_happened() {
    let (_folder, program) = answers("Error running get_xcluster_safe_time: Timed out");
    let error = xcluster::status(&YbAdmin::new(program, "a:7100")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.report().contains("Timed out"), "{}", error.report());

    let (_folder, program) = script("echo 'no leader' >&2; exit 1");
    let error = xcluster::status(&YbAdmin::new(program, "a:7100")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.report().contains("no leader"), "{}", error.report());

    let error = xcluster::status(&YbAdmin::new("/nowhere/yb-admin", "a:7100")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.report().starts_with("xcluster.yb_admin: /nowhere/yb-admin"), "{}", error.report());

    let (_folder, program) = script("exec sleep 60");
    let slow = YbAdmin::new(program, "a:7100").patience(Duration::from_millis(50));
    assert_eq!(xcluster::status(&slow).await.unwrap_err().kind(), ErrorKind::Transient);

    let config = |masters: &str| XClusterConfig {
        yb_admin: "yb-admin".into(),
        master_addresses: masters.into(),
        certs_dir: None,
    };
    assert!(config("10.2.0.1:7100").target().is_ok());
    for broken in ["", "10.2.0.1", "a:7100,", "a:x"] {
        let error = config(broken).target().unwrap_err();
        assert!(error.report().starts_with("xcluster.master_addresses"), "{}", error.report());
    }
}
