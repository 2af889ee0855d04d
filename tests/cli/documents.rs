//! The documents say what the code does: metrics, and which pair of databases was tested by what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anabranch::metrics::{ALL, Kind};
use serde::Deserialize;

use super::Tested;

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn read(path: &str) -> Tested<String> {
    fs::read_to_string(root().join(path)).map_err(|e| format!("{path}: {e}").into())
}

/// The cells of the rows of every table of a page.
fn rows(page: &str) -> impl Iterator<Item = Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with("| ") || line.starts_with("|-"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
}

#[test]
fn every_metric_is_explained_and_every_explanation_is_of_a_metric() -> Tested {
    let page = read("docs/metrics.md")?;
    let explained: BTreeMap<String, Vec<String>> = rows(&page)
        .filter(|row| row[0].starts_with("`anabranch_"))
        .map(|row| (row[0].trim_matches('`').to_owned(), row))
        .collect();
    assert!(ALL.len() > 20, "the list is not read");
    for metric in ALL {
        let row = explained.get(metric.name).ok_or_else(|| format!("docs/metrics.md lacks {}", metric.name))?;
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        assert_eq!((row[1].as_str(), row[2].as_str()), (kind, labels.join(", ").as_str()), "{}", metric.name);
        assert_eq!(row[3], metric.help, "{}", metric.name);
    }
    let known: BTreeSet<&str> = ALL.iter().map(|m| m.name).collect();
    assert_eq!(known.len(), ALL.len(), "a name is there twice");
    for name in explained.keys() {
        assert!(known.contains(name.as_str()), "docs/metrics.md explains {name}, which is not there");
    }
    Ok(())
}

/// Every constant of the list is set somewhere, and nowhere is a metric named that is not in the list.
#[test]
fn every_metric_is_given_by_the_code() -> Tested {
    let list = read("core/src/metrics/mod.rs")?;
    let code = read("core/src/metrics/meters.rs")? + &read("core/src/metrics/pulse.rs")?;
    let constants: Vec<&str> =
        list.lines().filter_map(|line| line.trim().split_once(" = \"anabranch_").map(|(name, _)| name)).collect();
    assert_eq!(constants.len(), ALL.len());
    for name in constants {
        let used = code.match_indices(name).any(|(at, _)| {
            let after = code[at + name.len()..].chars().next();
            let before = code[..at].chars().next_back();
            let inside = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            !inside(after) && !inside(before) && !code[..at].ends_with("use super::")
        });
        assert!(used, "{name} is in the list, and is never given");
    }
    assert!(!code.contains("\"anabranch_"), "a name stands beside the list");
    Ok(())
}

/// `docs/pairs.toml`
#[derive(Deserialize)]
struct Pairs {
    pair: Vec<Pair>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    source: String,
    target: String,
    orders: String,
    how: String,
    tested_on: String,
    /// `file: test`, or `file` for all of it.
    tests: Vec<String>,
}

#[test]
fn the_guarantee_sheet_is_what_the_tests_run() -> Tested {
    let pairs: Pairs = toml::from_str(&read("docs/pairs.toml")?)?;
    let mut sheet =
        String::from("| source | target | orders | atomic, exactly once by | tested on |\n|---|---|---|---|---|\n");
    for p in &pairs.pair {
        assert!(!p.tests.is_empty(), "{} to {} is proven by no test", p.source, p.target);
        sheet += &format!("| {} | {} | {} | {} | {} |\n", p.source, p.target, p.orders, p.how, p.tested_on);
    }
    let readme = read("README.md")?;
    let (before, rest) = readme.split_once("<!-- pairs:begin -->\n").ok_or("README.md has no <!-- pairs:begin -->")?;
    let (there, after) = rest.split_once("<!-- pairs:end -->").ok_or("README.md has no <!-- pairs:end -->")?;
    if there != sheet && std::env::var_os("UPDATE_README").is_some() {
        fs::write(root().join("README.md"), format!("{before}<!-- pairs:begin -->\n{sheet}<!-- pairs:end -->{after}"))?;
        return Ok(());
    }
    assert_eq!(there, sheet, "README.md does not say what docs/pairs.toml says: UPDATE_README=1 writes it");

    // Every test that is named is there and not left out, and every run between databases is named.
    let mut named: BTreeSet<(String, String)> = BTreeSet::new();
    for test in pairs.pair.iter().flat_map(|p| &p.tests) {
        let (file, name) = test.split_once(": ").unwrap_or((test, ""));
        let all = tests_of(&root().join(file)).map_err(|e| format!("docs/pairs.toml: {file}: {e}"))?;
        let chosen: Vec<&String> = all.iter().filter(|t| name.is_empty() || t.as_str() == name).collect();
        assert!(!chosen.is_empty(), "docs/pairs.toml: {test} is not a test, or is ignored");
        named.extend(chosen.into_iter().map(|name| (file.to_owned(), name.clone())));
    }
    let runs = "tests/pipelines/crash.rs";
    let crash = tests_of(&root().join(runs))?;
    assert!(crash.len() >= 4, "the crash runs are not found");
    for name in crash {
        assert!(
            named.contains(&(runs.to_owned(), name.clone())),
            "{runs}: {name} stands for no pair in docs/pairs.toml"
        );
    }
    Ok(())
}

/// The tests of a file that are not ignored.
fn tests_of(path: &Path) -> Tested<Vec<String>> {
    let text = fs::read_to_string(path)?;
    let mut found = Vec::new();
    let (mut is_test, mut ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            ignored = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            if is_test && !ignored {
                found.extend(rest.split('(').next().map(str::to_owned));
            }
            (is_test, ignored) = (false, false);
        }
    }
    Ok(found)
}
