//! What a preflight found: for a person to read, and for the pipeline to go by.

use std::collections::HashMap;
use std::fmt;

use super::{Contract, Fidelity};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Column, TableName, TableSchema};
use crate::sink::Sink;

/// What a [`preflight`](super::preflight::preflight) found. Its text is a table of every column.
#[derive(Debug, Clone, Default)]
pub struct Preflight {
    /// One report for each table of the source, in its order.
    pub tables: Vec<TableReport>,
    /// What a start would run on the source, for people to read. Only
    /// [`Pipeline::check`](crate::Pipeline::check) fills it.
    pub source_statements: Vec<String>,
}

/// What was found about one table.
#[derive(Debug, Clone)]
pub struct TableReport {
    /// Its name as the sink is given it.
    pub source: TableName,
    /// Its name in the target.
    pub target: TableName,
    /// Whether it is there.
    pub exists: bool,
    /// The table to create, with the statement that would, if it is missing and may be created.
    pub create: Option<(TableSchema, String)>,
    /// Its columns, in the source's order.
    pub columns: Vec<ColumnReport>,
    /// What must be mended before anything can be written.
    pub problems: Vec<Problem>,
    /// What an operator should know.
    pub notes: Vec<String>,
    /// Unique keys of the target besides the one that identifies a row.
    pub unique: Vec<Vec<String>>,
    /// Tables of the target that its foreign keys refer to.
    pub references: Vec<TableName>,
}

/// What becomes of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnReport {
    /// Its name.
    pub name: String,
    /// The source's type.
    pub source_type: String,
    /// The target's type; empty if the target has no such column.
    pub target_type: String,
    /// How faithfully it is stored; `None` if it is not written.
    pub fidelity: Option<Fidelity>,
    /// What is lost, or how it is represented.
    pub note: String,
    /// Whether `[mapping] lossy` accepts what is lost.
    pub consented: bool,
}

/// Something to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The table, or the column, by the source's name.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What mends it; empty if the problem says it.
    pub fix: String,
}

impl Preflight {
    /// An error that lists every problem with what mends it.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if there is any problem.
    pub fn verdict(&self) -> Result<()> {
        let problems: Vec<&Problem> = self.tables.iter().flat_map(|t| &t.problems).collect();
        match problems.as_slice() {
            [] => Ok(()),
            [one] => {
                let error = Error::config(&one.key, &one.problem);
                Err(if one.fix.is_empty() { error } else { error.hint(one.fix.clone()) })
            }
            many => {
                let lines: String = many.iter().map(|p| format!("\n  {p}")).collect();
                let text = format!("the target does not fit the source in {} places:{lines}", many.len());
                Err(Error::new(ErrorKind::Config, text))
            }
        }
    }

    /// Creates the tables that are missing and may be created, in order.
    ///
    /// # Errors
    /// What the target says.
    pub async fn create_missing(&self, sink: &dyn Sink) -> Result<()> {
        let Some(target) = sink.target() else { return Ok(()) };
        for (table, _) in self.tables.iter().filter_map(|t| t.create.as_ref()) {
            target.create(table).await?;
        }
        Ok(())
    }

    /// Tables whose changes must stay in the order of the source, by the source's names, each with
    /// its group: those with more unique keys than the one that identifies a row, and those that
    /// foreign keys connect, which share a group. An order by key gives a group to one lane.
    ///
    /// A group is named by a hash of the first of its tables' names, and not by counting, so that a
    /// further table leaves the lanes of the others as they are.
    pub fn pinned_groups(&self) -> HashMap<TableName, u32> {
        let mut parents: Vec<usize> = (0..self.tables.len()).collect();
        let mut pinned: Vec<bool> = self.tables.iter().map(|t| !t.unique.is_empty()).collect();
        let by_target: HashMap<&TableName, usize> =
            self.tables.iter().enumerate().map(|(at, t)| (&t.target, at)).collect();
        for (at, table) in self.tables.iter().enumerate() {
            for other in table.references.iter().filter_map(|name| by_target.get(name).copied()) {
                (pinned[at], pinned[other]) = (true, true);
                let (a, b) = (root(&mut parents, at), root(&mut parents, other));
                parents[a] = b;
            }
        }
        let mut first: HashMap<usize, &TableName> = HashMap::new();
        let members: Vec<(usize, usize)> =
            (0..parents.len()).filter(|&at| pinned[at]).map(|at| (at, root(&mut parents, at))).collect();
        for &(at, root) in &members {
            let name = first.entry(root).or_insert(&self.tables[at].source);
            *name = (*name).min(&self.tables[at].source);
        }
        members.iter().map(|(at, root)| (self.tables[*at].source.clone(), hash(first[root]))).collect()
    }
}

fn root(parents: &mut [usize], mut at: usize) -> usize {
    while parents[at] != at {
        parents[at] = parents[parents[at]];
        at = parents[at];
    }
    at
}

/// FNV-1a, 32 bits, of `schema \0 name`: the same on every machine and in every version.
fn hash(name: &TableName) -> u32 {
    let bytes = name.schema.bytes().chain([0]).chain(name.name.bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl ColumnReport {
    pub(super) fn new(column: &Column, contract: Contract, consented: bool) -> Self {
        Self {
            name: column.name.clone(),
            source_type: column.native.clone(),
            target_type: contract.native,
            fidelity: Some(contract.fidelity),
            note: contract.note,
            consented,
        }
    }

    pub(super) fn without_target(column: &Column) -> Self {
        Self {
            name: column.name.clone(),
            source_type: column.native.clone(),
            target_type: String::new(),
            fidelity: None,
            note: "missing in the target".to_owned(),
            consented: false,
        }
    }

    pub(super) fn computed(column: &Column, there: &Column) -> Self {
        Self {
            target_type: there.native.clone(),
            note: "computed by the target, not written".to_owned(),
            ..Self::without_target(column)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, " ({})", self.fix) }
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["table", "column", "source type", "target type", "fidelity", "note"].map(str::to_owned)];
        for table in &self.tables {
            for (i, column) in table.columns.iter().enumerate() {
                rows.push(row(table, i == 0, column));
            }
        }
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            writeln!(f, "{}", line.trim_end())?;
        }
        for table in &self.tables {
            if let Some((_, statement)) = &table.create {
                writeln!(f, "\n{} will be created:\n{statement}", table.target)?;
            }
        }
        let notes = self.tables.iter().flat_map(|t| t.notes.iter().map(move |n| format!("{}: {n}", t.source)));
        section(f, "notes", notes)?;
        section(f, "problems", self.tables.iter().flat_map(|t| &t.problems).map(Problem::to_string))
    }
}

fn row(table: &TableReport, first: bool, column: &ColumnReport) -> [String; 6] {
    let name = match (first, table.target.name == table.source.name) {
        (false, _) => String::new(),
        (true, true) => table.source.to_string(),
        (true, false) => format!("{} -> {}", table.source, table.target),
    };
    let fidelity = match column.fidelity {
        Some(fidelity) if column.consented => format!("{fidelity} (accepted)"),
        Some(fidelity) => fidelity.to_string(),
        None => "-".to_owned(),
    };
    let target_type = match (column.target_type.as_str(), column.fidelity) {
        ("", Some(_)) => "(untyped)".to_owned(),
        ("", None) => "-".to_owned(),
        (name, _) => name.to_owned(),
    };
    [name, column.name.clone(), column.source_type.clone(), target_type, fidelity, column.note.clone()]
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, lines: impl Iterator<Item = String>) -> fmt::Result {
    for (i, line) in lines.enumerate() {
        if i == 0 {
            writeln!(f, "\n{title}:")?;
        }
        writeln!(f, "  {line}")?;
    }
    Ok(())
}
