//! Statements that go to the server together: one round trip for many, in one packet.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::Error;
use mysql_async::Row;
use mysql_async::prelude::Queryable;

use crate::connection::Link;
use crate::error::Failure;
use crate::literal::Scratch;
use crate::plan::{Plan, Values};

/// What a statement must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Whatever it does.
    Any,
    /// Match exactly one row, else the change cannot be applied.
    One,
    /// Match exactly one row, else another runner has taken the pipeline over.
    Ours,
}

#[derive(Debug)]
struct Mark {
    table: Option<Arc<str>>,
    expect: Expect,
    /// Where its condition stands, for messages.
    condition: Range<usize>,
}

/// What a statement did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Rows that it matched (for `INSERT`: rows it inserted).
    pub(crate) matched: u64,
    /// Rows that it gave.
    pub(crate) rows: Vec<Row>,
}

/// Statements on their way. They are sent when enough have come together, and with [`Script::settle`].
#[derive(Debug)]
pub(crate) struct Script<'l> {
    link: &'l mut Link,
    pub(crate) sql: Vec<u8>,
    pub(crate) scratch: Scratch,
    marks: Vec<Mark>,
    limit: usize,
    max: usize,
}

/// Room for the packet's header and for a closing clause.
const MARGIN: usize = 64;

impl<'l> Script<'l> {
    pub(crate) fn new(link: &'l mut Link) -> Self {
        let (limit, max) = (link.server.statement_limit(), link.server.max_packet.saturating_sub(MARGIN));
        Self { link, sql: Vec::new(), scratch: Scratch::default(), marks: Vec::new(), limit, max }
    }

    /// The connection. Settle first: what is not sent comes after what is done with it.
    pub(crate) fn link(&mut self) -> &mut Link {
        self.link
    }

    /// Forgets what was not sent.
    pub(crate) fn discard(&mut self) {
        self.sql.clear();
        self.marks.clear();
    }

    /// Begins a statement; its text goes to [`Script::sql`].
    pub(crate) fn begin(&mut self, plan: Option<&Plan>, expect: Expect) {
        if !self.sql.is_empty() {
            self.sql.push(b';');
        }
        let table = plan.map(|p| Arc::clone(&p.name));
        self.marks.push(Mark { table, expect, condition: 0..0 });
    }

    /// Adds a whole statement.
    pub(crate) fn add(&mut self, sql: &str, expect: Expect) {
        self.begin(None, expect);
        self.sql.extend_from_slice(sql.as_bytes());
    }

    /// The condition of the current statement starts here.
    pub(crate) fn condition(&mut self) {
        let at = self.sql.len();
        if let Some(mark) = self.marks.last_mut() {
            mark.condition = at..at;
        }
    }

    /// Ends the current statement; sends what is there if it is much.
    pub(crate) async fn end(&mut self) -> Result<(), Failure> {
        if let Some(mark) = self.marks.last_mut() {
            mark.condition.end = self.sql.len();
        }
        if self.is_long()? { self.settle().await } else { Ok(()) }
    }

    /// Whether it is time to send what is there.
    ///
    /// # Errors
    /// `Rejected` if it is too late: the last statement alone is too large.
    pub(crate) fn is_long(&self) -> Result<bool, Failure> {
        if self.sql.len() > self.max {
            let table = self.marks.last().and_then(|m| m.table.as_deref());
            return Err(too_large(table, self.sql.len(), self.max));
        }
        Ok(self.sql.len() >= self.limit)
    }

    /// Sends what is there. Afterwards all of it is done.
    pub(crate) async fn settle(&mut self) -> Result<(), Failure> {
        self.outcomes().await.map(|_| ())
    }

    /// Sends what is there, and gives what each statement since the last sending did.
    pub(crate) async fn outcomes(&mut self) -> Result<Vec<Outcome>, Failure> {
        let marks = std::mem::take(&mut self.marks);
        if marks.is_empty() {
            return Ok(Vec::new());
        }
        let sent = run(self.link, &self.sql, &marks).await;
        self.sql.clear();
        sent
    }

    /// Appends rows to statements `head (..),(..) tail`, as many as a packet takes well.
    pub(crate) async fn rows<R: Values>(
        &mut self,
        plan: &Plan,
        tail: &str,
        rows: impl Iterator<Item = R> + Send,
    ) -> Result<(), Failure> {
        let head = plan.insert.as_bytes();
        let mut open = false;
        for row in rows {
            if open && self.sql.len() >= self.limit {
                self.sql.extend_from_slice(tail.as_bytes());
                self.settle().await?;
                open = false;
            }
            if open {
                self.sql.push(b',');
            } else {
                self.begin(Some(plan), Expect::Any);
                self.sql.extend_from_slice(head);
            }
            let start = self.sql.len();
            plan.push_row(&row, &mut self.sql, &mut self.scratch)?;
            if self.sql.len() + tail.len() > self.max {
                let large = self.sql.split_off(start);
                self.cut_off(open, head.len(), tail);
                self.settle().await?;
                self.begin(Some(plan), Expect::Any);
                self.sql.extend_from_slice(head);
                self.sql.extend_from_slice(&large);
                if self.sql.len() + tail.len() > self.max {
                    return Err(too_large(Some(&plan.name), self.sql.len(), self.max));
                }
            }
            open = true;
        }
        if open {
            self.sql.extend_from_slice(tail.as_bytes());
            if self.sql.len() >= self.limit {
                self.settle().await?;
            }
        }
        Ok(())
    }

    /// Closes the statement before a row that goes into one of its own; drops it if it has no rows.
    fn cut_off(&mut self, has_rows: bool, head: usize, tail: &str) {
        if has_rows {
            self.sql.pop();
            self.sql.extend_from_slice(tail.as_bytes());
        } else {
            self.marks.pop();
            let separator = usize::from(!self.marks.is_empty());
            self.sql.truncate(self.sql.len() - head - separator);
        }
    }
}

fn too_large(table: Option<&str>, bytes: usize, max: usize) -> Failure {
    let table = table.unwrap_or("?");
    Error::rejected(format!(
        "table {table}: a change takes a statement of {bytes} bytes, the server's max_allowed_packet takes {max}"
    ))
    .hint("raise max_allowed_packet on the server; bytes take two digits each")
    .into()
}

async fn run(link: &mut Link, sql: &[u8], marks: &[Mark]) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::with_capacity(marks.len());
    let mut unmet = None;
    let done = statements(link, sql, marks, &mut outcomes, &mut unmet).await;
    // A runner that was fenced must hear that, whatever its later statements ran into.
    match unmet {
        Some(error) => Err(error.into()),
        None => done.map(|()| outcomes),
    }
}

async fn statements(
    link: &mut Link,
    sql: &[u8],
    marks: &[Mark],
    outcomes: &mut Vec<Outcome>,
    unmet: &mut Option<Error>,
) -> Result<(), Failure> {
    let fail = |at: usize, error: mysql_async::Error| Failure::Driver {
        error,
        table: marks.get(at).and_then(|m| m.table.as_ref()).map(|t| Cow::Owned(t.to_string())),
    };
    let mut result = link.conn.query_iter(sql).await.map_err(|e| fail(0, e))?;
    for (at, mark) in marks.iter().enumerate() {
        // Taken before the rows are read, for reading to the end moves on to the next statement's
        // result; used after, for this statement's error shows only then.
        let matched = result.affected_rows();
        let rows: Vec<Row> = result.collect().await.map_err(|e| fail(at, e))?;
        if unmet.is_none() && mark.expect != Expect::Any && matched != 1 {
            *unmet = Some(expectation(mark, matched, sql));
        }
        outcomes.push(Outcome { matched, rows });
    }
    result.drop_result().await.map_err(|e| fail(marks.len(), e))
}

fn expectation(mark: &Mark, matched: u64, sql: &[u8]) -> Error {
    if mark.expect == Expect::Ours {
        return Error::fenced("another runner has taken the pipeline over: the target has seen a newer epoch");
    }
    let table = mark.table.as_deref().unwrap_or("?");
    let condition: String = String::from_utf8_lossy(&sql[mark.condition.clone()]).chars().take(200).collect();
    Error::rejected(match matched {
        0 => format!(
            "table {table}: the target has no row with {condition}, and the source did not send all columns of it"
        ),
        n => format!("table {table}: the target has {n} rows with {condition}, one is meant"),
    })
}
