//! Before the first row: does the target have what the source sends, and what is lost on the way?

use std::collections::{BTreeMap, HashMap};

use super::consent::base;
use super::{Contract, Fidelity, TargetSchema, TargetTable};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Column, TableName, TableSchema};
use crate::sink::Sink;

pub use super::consent::LossyConsent;
pub use super::report::{ColumnReport, Preflight, Problem, TableReport};

/// Compares each of `tables`, as the sink will be given them, with what the target has. With
/// `create_tables`, a missing table is planned ([`Preflight::create_missing`] creates it).
///
/// What is wrong is in the report and not an error: [`Preflight::verdict`] makes one of it.
///
/// # Errors
/// Only if the target cannot be asked.
pub async fn preflight(
    tables: &[TableSchema],
    sink: &dyn Sink,
    consent: &LossyConsent,
    create_tables: bool,
) -> Result<Preflight> {
    let mut reports = Vec::with_capacity(tables.len());
    for table in tables {
        let mut report = TableReport::new(table, sink.info().schemas);
        match sink.target() {
            None => {
                report.notes.push(format!("{} does not describe its tables: nothing was checked", sink.info().name))
            }
            Some(target) => match target.describe(&table.name).await {
                Ok(Some(found)) => existing(&mut report, table, target, &found, consent),
                Ok(None) => {
                    missing(&mut report, table, target, consent, create_tables);
                    if create_tables {
                        match target.may_create(table).await {
                            Err(error) if error.kind() == ErrorKind::Config => report.refused(&error),
                            asked => asked?,
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Config => report.refused(&error),
                Err(error) => return Err(error.context(format!("cannot describe {} in the target", table.name))),
            },
        }
        if table.key.is_empty() {
            report
                .notes
                .push("no key: changes are applied one by one, and a row is found by its whole old image".to_owned());
        }
        reports.push(report);
    }
    same_targets(&mut reports, sink.info().schemas);
    Ok(Preflight { tables: reports, source_statements: Vec::new() })
}

/// A table that is there.
fn existing(
    report: &mut TableReport,
    table: &TableSchema,
    target: &dyn TargetSchema,
    found: &TargetTable,
    consent: &LossyConsent,
) {
    report.target = found.schema.name.clone();
    report.exists = true;
    report.unique.clone_from(&found.unique);
    report.references.clone_from(&found.references);
    report.notes.extend(found.warnings.iter().cloned());
    for column in &table.columns {
        let key = format!("{}.{}", table.name, column.name);
        let Some(there) = found.schema.columns.iter().find(|c| c.name == column.name) else {
            if target.takes_any_column() {
                judge(report, table, column, target.contract(column, None), consent);
                continue;
            }
            let near = found.schema.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&column.name));
            let fix = match near {
                Some(near) => format!("the target has {}, which differs in case: rename one of them", near.name),
                None => "add the column to the target, or leave it out with a transform".to_owned(),
            };
            report.columns.push(ColumnReport::without_target(column));
            report.problem(key, format!("{} has no such column", found.schema.name), fix);
            continue;
        };
        if there.generated {
            report.columns.push(ColumnReport::computed(column, there));
            if !column.generated {
                let fix = "make it an ordinary column, or leave it out with a transform";
                report.problem(key, "the target computes this column itself", fix);
            }
        } else {
            let mut contract = target.contract(column, Some(there));
            if column.nullable && !there.nullable {
                let note = "the target does not take NULL";
                contract.note =
                    if contract.note.is_empty() { note.to_owned() } else { format!("{}; {note}", contract.note) };
            }
            judge(report, table, column, contract, consent);
        }
    }
    for extra in found.schema.columns.iter().filter(|c| table.index_of(&c.name).is_none()) {
        if found.required.contains(&extra.name) {
            let problem = "is NOT NULL without a default, and the source does not send it";
            report.problem(
                format!("{}.{}", found.schema.name, extra.name),
                problem,
                "give it a default, or allow NULL",
            );
        }
    }
    check_key(report, table, found);
}

/// An upsert needs a unique key on exactly the columns by which the source identifies a row.
fn check_key(report: &mut TableReport, table: &TableSchema, found: &TargetTable) {
    let wanted: Vec<&str> = table.key_columns().map(|c| c.name.as_str()).collect();
    if wanted.is_empty() {
        if !found.schema.key.is_empty() {
            report.notes.push("the target has a primary key that the source does not have".to_owned());
        }
        return;
    }
    let same = |have: &[&str]| have.len() == wanted.len() && wanted.iter().all(|c| have.contains(c));
    let primary: Vec<&str> = found.schema.key_columns().map(|c| c.name.as_str()).collect();
    if same(&primary) {
        return;
    }
    let names = |columns: &[&str]| if columns.is_empty() { "none".to_owned() } else { columns.join(", ") };
    let unique = found.unique.iter().any(|u| same(&u.iter().map(String::as_str).collect::<Vec<_>>()));
    if unique {
        report.notes.push(format!(
            "rows are found by the unique key ({}); the primary key is ({})",
            names(&wanted),
            names(&primary)
        ));
        // Then it is what the primary key usually is, and the primary key one more unique key.
        report.unique.retain(|u| !same(&u.iter().map(String::as_str).collect::<Vec<_>>()));
        if !primary.is_empty() {
            report.unique.push(primary.iter().map(|c| (*c).to_owned()).collect());
        }
        return;
    }
    let problem = format!(
        "the source's key is ({}), the primary key of {} is ({})",
        names(&wanted),
        found.schema.name,
        names(&primary)
    );
    let fix = format!("make a primary key or a unique key on exactly ({}) in the target", names(&wanted));
    report.problem(table.name.to_string(), problem, fix);
}

/// A table that is not there.
fn missing(
    report: &mut TableReport,
    table: &TableSchema,
    target: &dyn TargetSchema,
    consent: &LossyConsent,
    create_tables: bool,
) {
    for (index, column) in table.columns.iter().enumerate() {
        judge(report, table, column, target.planned(table, index), consent);
    }
    match target.create_statement(table) {
        Ok(_) if !create_tables => {
            let problem = format!("the target has no table {}", report.target);
            report.problem(table.name.to_string(), problem, "create it, or set create_tables = true in [sink]");
        }
        Ok(statement) => report.create = Some((table.clone(), statement)),
        Err(error) => report.refused(&error),
    }
}

/// Adds a column with its contract, and a problem if it is not acceptable.
fn judge(report: &mut TableReport, table: &TableSchema, column: &Column, contract: Contract, consent: &LossyConsent) {
    let key = format!("{}.{}", table.name, column.name);
    let consented = contract.fidelity == Fidelity::Lossy && consent.covers(&table.name, column);
    let what = |verb: &str| {
        let note = if contract.note.is_empty() { String::new() } else { format!(": {}", contract.note) };
        format!("{} {verb} {}{note}", column.native, contract.native)
    };
    match contract.fidelity {
        Fidelity::Unsupported => {
            let fix = "change the column in the target, or leave it out with a transform";
            report.problem(key, what("cannot be stored in"), fix);
        }
        Fidelity::Lossy if !consented => {
            let fix = format!(
                "[mapping] lossy = [\"{}.{}\"] accepts it (or \"type:{}\" wherever it is), or change the target",
                table.name,
                column.name,
                base(&column.native)
            );
            report.problem(key, what("loses something in"), fix);
        }
        _ => {}
    }
    report.columns.push(ColumnReport::new(column, contract, consented));
}

/// Two source tables must not meet in one target table: each would take the other's rows for its own.
fn same_targets(reports: &mut [TableReport], schemas: bool) {
    let mut by_target: BTreeMap<TableName, Vec<usize>> = BTreeMap::new();
    let mut by_folded: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, report) in reports.iter().enumerate() {
        by_target.entry(report.target.clone()).or_default().push(at);
        by_folded.entry(report.target.name.to_lowercase()).or_default().push(at);
    }
    for (target, places) in by_target.into_iter().filter(|(_, places)| places.len() > 1) {
        let names: Vec<String> = places.iter().map(|&at| reports[at].source.to_string()).collect();
        let problem = format!("{} all map to the table {target} of the target", names.join(" and "));
        // Said once, for the first of them.
        let key = reports[places[0]].source.to_string();
        reports[places[0]].problem(key, problem, "rename all but one of them with a transform");
    }
    if schemas {
        return;
    }
    for places in by_folded.values().filter(|places| places.len() > 1) {
        for &at in places {
            let mine = reports[at].target.name.clone();
            let other = places.iter().map(|&o| &reports[o].target.name).find(|other| **other != mine).cloned();
            if let Some(other) = other {
                reports[at]
                    .notes
                    .push(format!("differs from {other} only in case: not every database tells them apart"));
            }
        }
    }
}

impl TableReport {
    fn new(table: &TableSchema, schemas: bool) -> Self {
        let target = if schemas { table.name.clone() } else { TableName::new("", &table.name.name) };
        Self {
            source: table.name.clone(),
            target,
            exists: false,
            create: None,
            columns: Vec::with_capacity(table.columns.len()),
            problems: Vec::new(),
            notes: Vec::new(),
            unique: Vec::new(),
            references: Vec::new(),
        }
    }

    fn problem(&mut self, key: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), problem: problem.into(), fix: fix.into() });
    }

    /// The connector itself says why it cannot be.
    fn refused(&mut self, error: &Error) {
        self.problems.push(Problem { key: self.source.to_string(), problem: error.report(), fix: String::new() });
    }
}
