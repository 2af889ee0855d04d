//! The table of contracts: of every type, what becomes of it in each target.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anabranch::Fidelity;
use anabranch::mapping::preflight::{ColumnReport, Preflight};

use super::values::Kind;
use crate::pipelines::Tested;

const BEGIN: &str = "<!-- contract:begin -->";
const SIDES: [&str; 3] = ["PostgreSQL", "MySQL", "SQLite"];
const END: &str = "<!-- contract:end -->";

/// For each target, what its preflight said of each table's first own column, by the table's name.
pub(super) type Said = BTreeMap<&'static str, BTreeMap<String, ColumnReport>>;

/// The column `v` of each table.
pub(super) fn of(preflight: &Preflight) -> BTreeMap<String, ColumnReport> {
    let tables = preflight.tables.iter();
    tables.filter_map(|t| Some((t.source.name.clone(), t.columns.iter().find(|c| c.name == "v")?.clone()))).collect()
}

/// The table in Markdown: types of one fate share a line, and have a second one where a key is stored
/// otherwise. Types that not every server has are left out.
pub(super) fn table(kinds: &[Kind], said: &Said) -> String {
    let cells = |table: &str| -> Vec<String> {
        SIDES.iter().map(|side| said.get(side).and_then(|s| s.get(table)).map_or_else(String::new, cell)).collect()
    };
    let mut lines: Vec<(&str, Vec<String>, Vec<String>)> = Vec::new();
    let mut add = |what: &'static str, kind: &Kind, cells: Vec<String>| {
        let label = format!("`{}`", kind.label());
        match lines.iter_mut().find(|(w, _, c)| *w == what && *c == cells) {
            Some((_, labels, _)) => labels.push(label),
            None => lines.push((what, vec![label], cells)),
        }
    };
    for (n, kind) in kinds.iter().enumerate().filter(|(_, kind)| !kind.optional) {
        let plain = cells(&format!("t{n}"));
        let key = cells(&format!("k{n}"));
        add("", kind, plain.clone());
        if kind.key && key != plain {
            add("a key of ", kind, key);
        }
    }
    let mut text = format!("{BEGIN}\n| source type | {} |\n|---|---|---|---|\n", SIDES.join(" | "));
    for (what, labels, cells) in lines {
        text.push_str(&format!("| {what}{} | {} |\n", labels.join(", "), cells.join(" | ")));
    }
    text.push_str(END);
    text
}

fn cell(column: &ColumnReport) -> String {
    let fidelity = column.fidelity.map_or_else(|| "not written".to_owned(), |f| f.to_string());
    let note = if column.note.is_empty() { String::new() } else { format!("; {}", column.note.replace('|', "\\|")) };
    let same = column.source_type == column.target_type;
    let native = if same { "the same".to_owned() } else { format!("`{}`", column.target_type) };
    format!("{native}: {fidelity}{note}")
}

/// What is said of the tables once they are there is what was said when they were planned: a restart
/// meets the same contract.
pub(super) fn same(planned: &BTreeMap<String, ColumnReport>, there: &Preflight) -> Tested {
    let there = of(there);
    let differ = planned.iter().filter_map(|(table, plan)| {
        let now = there.get(table)?;
        let same = (now.fidelity, &now.note) == (plan.fidelity, &plan.note);
        (!same).then(|| format!("{table}: planned {plan:?}, found {now:?}"))
    });
    let differ: Vec<String> = differ.collect();
    assert_eq!(planned.len(), there.len());
    if differ.is_empty() { Ok(()) } else { Err(differ.join("\n").into()) }
}

/// Compares it with the table that people read, or writes that anew if `UPDATE_CONTRACT` is set.
pub(super) fn check(table: &str) -> Tested {
    let file = place()?;
    let text = fs::read_to_string(&file).unwrap_or_default();
    let written = text.find(BEGIN).zip(text.find(END)).map(|(from, to)| from..to + END.len());
    if env::var_os("UPDATE_CONTRACT").is_some() {
        let next = match written {
            Some(range) => format!("{}{table}{}", &text[..range.start], &text[range.end..]),
            None => format!("{table}\n"),
        };
        return Ok(fs::write(file, next)?);
    }
    let written = written.map_or("", |range| &text[range]);
    for (line, (now, then)) in table.lines().zip(written.lines().chain(std::iter::repeat(""))).enumerate() {
        assert_eq!(now, then, "line {line} of the contract in {}: UPDATE_CONTRACT=1 writes it anew", file.display());
    }
    assert_eq!(table, written, "the contract in {}", file.display());
    Ok(())
}

/// The README if it has the table, else a file of its own.
fn place() -> Tested<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = root.join("README.md");
    let there = fs::read_to_string(&readme).is_ok_and(|text| text.contains(BEGIN));
    Ok(if there { readme } else { root.join("tests/pipelines/contract.md") })
}

/// No type needs consent; what is refused is in the note.
pub(super) fn judge(kinds: &[Kind], said: &Said) {
    for (side, columns) in said {
        for (n, kind) in kinds.iter().enumerate() {
            for table in [format!("t{n}"), format!("k{n}")] {
                let Some(column) = columns.get(&table) else { continue };
                let lossless = column.fidelity.is_some_and(|f| f < Fidelity::Lossy);
                assert!(lossless, "{} in {side}, table {table}: {column:?}", kind.label());
                let refuses = !kind.refused.is_empty() && *side == "MySQL";
                assert!(!refuses || column.note.contains("refuses"), "{} in {side}: {column:?}", kind.label());
            }
        }
    }
}
