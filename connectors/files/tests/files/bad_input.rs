//! Files that are not what they should be, and settings that are wrong.

use std::fs;

use anabranch_core::{ChangeReader, Checkpoint, ErrorKind, Next, PartitionProgress, Secret, Source};
use anabranch_files::{FilesSinkConfig, FilesSourceConfig, Location, WindowFiles, WindowSource};

use crate::support::*;

/// Three files of a shard, one transaction in each.
async fn three() -> (Folder, Vec<String>) {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    for n in 1..=3 {
        run.write(&[tx(n, 10 * n as i64, &[(n as i64, Some("eu"))])]).await;
    }
    run.safe_time(second(60)).await;
    let names = folder.names("eu");
    assert_eq!(names.len(), 3);
    (folder, names)
}

/// Reads until an error; gives it, and how many changes came before.
async fn fails(mut reader: Box<dyn ChangeReader>) -> (anabranch_core::Error, usize) {
    let mut count = 0;
    loop {
        match tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time") {
            Ok(Next::Batch(batch)) => count += batch.len(),
            Ok(other) => panic!("the reader gave {other:?}"),
            Err(e) => return (e, count),
        }
    }
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    for missing in 0..3 {
        let (folder, names) = three().await;
        fs::remove_file(folder.file("eu", &names[missing])).unwrap();
        let (error, before) = fails(open(&folder.source(), "eu", None).await).await;
        assert_eq!((error.kind(), before), (ErrorKind::Fatal, missing), "{}", error.report());
        let report = error.report();
        assert!(report.contains("missing") && (report.contains(&names[missing])), "{report}");
    }
}

#[tokio::test]
async fn a_malformed_line_is_named_and_kept() {
    type Spoil = fn(&str) -> String;
    let cases: [(&str, Spoil, &str); 9] = [
        ("not json", |line| line[..line.len() - 3].to_owned(), "EOF"),
        ("a value too few", |line| line.replace("\"row \\\"2\\\"\\n\",", ""), "has not 3 values"),
        ("an unknown table", |line| line.replace("\"t\":0", "\"t\":7"), "not described"),
        ("an unknown field", |line| line.replace("\"n\":1", "\"n\":1,\"x\":1"), "unknown field"),
        ("no number", |line| line.replace("\"n\":1,", ""), "without its number"),
        ("an unknown value", |line| line.replace("{\"bytes\":", "{\"date\":"), "expected one of"),
        ("bad digits", |line| line.replace("00ff", "00f"), "hexadecimal"),
        ("an insert without a row", |line| line.split(",\"new\"").next().unwrap().to_owned() + "}", "an insert has"),
        ("a huge number", |line| line.replace("[2,", "[99999999999999999999,"), ""),
    ];
    for (what, spoil, expected) in cases {
        let (folder, names) = three().await;
        let path = folder.file("eu", &names[1]);
        let lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        let at = lines.iter().position(|l| l.starts_with("{\"op\"")).unwrap();
        let mut spoiled = lines.clone();
        spoiled[at] = spoil(&lines[at]);
        assert_ne!(lines, spoiled, "{what}");
        fs::write(&path, spoiled.join("\n") + "\n").unwrap();

        let (error, before) = fails(open(&folder.source(), "eu", None).await).await;
        let report = error.report();
        assert_eq!((error.kind(), before), (ErrorKind::Fatal, 1), "{what}: {report}");
        assert!(report.contains(&names[1]) && report.contains(&format!("line {}", at + 1)), "{what}: {report}");
        assert!(report.contains(expected), "{what}: {report}");
        assert_eq!(fs::read_to_string(&path).unwrap(), spoiled.join("\n") + "\n", "the file is left as it was");
    }
}

#[tokio::test]
async fn a_file_that_is_cut_off_or_another_ones_is_damaged() {
    type Spoil = fn(String) -> String;
    let cases: [(&str, Spoil, ErrorKind, &str); 5] = [
        (
            "no last line",
            |text| text[..text.rfind("{\"end\"").unwrap()].to_owned(),
            ErrorKind::Fatal,
            "without its last line",
        ),
        ("empty", |_| "\n".to_owned(), ErrorKind::Fatal, "line 1"),
        ("of another shard", |text| text.replacen("\"eu\"", "\"us\"", 1), ErrorKind::Fatal, "the shard us"),
        ("of a newer format", |text| text.replacen("_window\":1", "_window\":2", 1), ErrorKind::Config, "format 2"),
        (
            "a change less",
            |text| text.lines().filter(|l| !l.starts_with("{\"op\"")).map(|l| format!("{l}\n")).collect(),
            ErrorKind::Fatal,
            "says that it has",
        ),
    ];
    for (what, spoil, kind, expected) in cases {
        let (folder, names) = three().await;
        let path = folder.file("eu", &names[1]);
        fs::write(&path, spoil(fs::read_to_string(&path).unwrap())).unwrap();
        let (error, _) = fails(open(&folder.source(), "eu", None).await).await;
        let report = error.report();
        assert_eq!(error.kind(), kind, "{what}: {report}");
        assert!(report.contains(&names[1]) && report.contains(expected), "{what}: {report}");
    }
}

#[tokio::test]
async fn another_run_of_the_same_name_is_noticed() {
    let (folder, _) = three().await;
    let source = folder.source();
    let identity = source.prepare(None).await.unwrap();
    let (_, end) = read(&mut *open(&source, "eu", None).await, 3).await;
    let mut checkpoint = Checkpoint { identity, ..Checkpoint::default() };
    let progress = PartitionProgress { position: Some(end), ..PartitionProgress::default() };
    checkpoint.partitions.insert(anabranch_core::PartitionId::new("eu"), progress);
    source.prepare(Some(&checkpoint)).await.unwrap();

    fs::remove_dir_all(folder.path.join("r")).unwrap();
    for _ in 0..2 {
        let error = source.prepare(Some(&checkpoint)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
        Run::begin(&files_in(&folder.path), 1).await;
    }
}

#[tokio::test]
async fn a_run_that_nobody_has_begun_is_waited_for() {
    let folder = Folder::new();
    for _ in 0..2 {
        let error = folder.source().prepare(None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
        assert!(error.to_string().contains("the run r"), "{error}");
        // Taken over, but its tables are not told yet.
        Run::begin(&folder.files, 1).await;
    }
    let run = Run::begin(&folder.files, 2).await;
    anabranch_core::Relay::tables(&run.files, 2, &[]).await.unwrap();
    folder.source().prepare(None).await.unwrap();
}

#[test]
fn settings_name_their_key() {
    let sink = |path: &str, more: &str| -> String {
        let json = format!("{{\"path\":{path:?}{more}}}");
        let config: Result<FilesSinkConfig, _> = serde_json::from_str(&json);
        match config {
            Ok(config) => WindowFiles::try_from(config).err().map_or_else(String::new, |e| e.report()),
            Err(e) => e.to_string(),
        }
    };
    for (path, more, expected) in [
        ("", "", "sink.path: is empty"),
        ("ftp://host/x", "", "sink.path: ftp:// is not known"),
        ("gs:///x", "", "sink.path: names no bucket"),
        ("s3://key:hunter2@bucket/x", "", "sink.path: must not hold credentials"),
        ("s3://bucket/x?a=b", "", "sink.path: must not have a part after ?"),
        ("/tmp/x", ",\"options\":{\"region\":\"eu\"}", "sink.options.region: a folder of the file system takes no"),
        ("s3://bucket/x", ",\"options\":{\"regoin\":\"eu\"}", "sink.options.regoin: s3 has no such option"),
        (
            "gs://bucket/x",
            ",\"options\":{\"service_account\":\"env:NOT_SET_ANYWHERE\"}",
            "sink.options.service_account",
        ),
        ("/tmp/x", ",\"window_seconds\":0", "sink.window_seconds: must be at least"),
        ("/tmp/x", ",\"max_file_mib\":0", "sink.max_file_mib"),
        ("/tmp/x", ",\"run\":\"\"", "sink.run: is empty"),
        ("/tmp/x", ",\"windows\":1", "unknown field `windows`"),
    ] {
        let report = sink(path, more);
        assert!(report.contains(expected), "{path} {more}: {report}");
        assert!(!report.contains("hunter2"), "{report}");
    }
    assert_eq!(sink("/tmp/x", ",\"ranks\":\"commit_time\",\"window_seconds\":0.5"), "");
    let config: FilesSourceConfig =
        serde_json::from_str("{\"path\":\"x\",\"shard\":\"a\",\"shards\":[\"b\"]}").unwrap();
    assert!(WindowSource::try_from(config).unwrap_err().to_string().starts_with("source.shard:"));
}

#[test]
fn secrets_are_not_shown() {
    let place = Location::new("s3://bucket/x").option("secret_access_key", Secret::new("hunter2"));
    let files = WindowFiles::new(place.clone());
    for shown in [format!("{place:?}"), format!("{files:?}"), format!("{:?}", files.source())] {
        assert!(!shown.contains("hunter2") && shown.contains("secret_access_key"), "{shown}");
    }
    let wrong = Location::new("s3://me:hunter2@bucket/x");
    assert!(!format!("{wrong:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_names_its_key() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    let error = anabranch_core::ProgressStore::take_over(&files_in(&folder.path().join("file/x")), &claim(1)).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{}", error.report());
    assert!(error.to_string().starts_with("sink.path"), "{error}");
}
