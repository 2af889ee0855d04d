//! Copies rows of a snapshot with `COPY ... FROM STDIN`, in its text format (PostgreSQL manual, COPY).

use std::pin::pin;
use std::sync::Arc;

use anabranch_core::{Op, RowRef, Unit};
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;

use super::apply::{Applier, Expect, Values};
use super::failure::Failure;
use super::params::text_of;
use super::plan::Plan;

/// Bytes handed to the connection at a time.
const CHUNK: usize = 256 << 10;

impl Applier<'_> {
    /// Copies the rows of `unit`, table by table.
    pub(crate) async fn copy(&mut self, unit: &Unit) -> Result<(), Failure> {
        let mut rows: Vec<RowRef<'_>> = Vec::new();
        let mut current: Option<Arc<Plan>> = None;
        for change in unit.changes() {
            let (Op::Insert, Some(row)) = (change.op(), change.new_row()) else { continue };
            let plan = match &current {
                Some(plan) if Arc::ptr_eq(&plan.source, change.schema()) => Arc::clone(plan),
                _ => self.plan(change.schema())?,
            };
            if let Some(before) = current.replace(Arc::clone(&plan)).filter(|p| p.id != plan.id) {
                self.copy_rows(&before, &rows).await?;
                rows.clear();
            }
            rows.push(row);
        }
        match current {
            Some(plan) => self.copy_rows(&plan, &rows).await,
            None => Ok(()),
        }
    }

    async fn copy_rows(&mut self, plan: &Arc<Plan>, rows: &[RowRef<'_>]) -> Result<(), Failure> {
        let refused = |error| Failure::Refused { error, plan: Some(Arc::clone(plan)) };
        let columns = &plan.written;
        let sink = self.client.copy_in::<_, Bytes>(&plan.copy(columns)).await.map_err(refused)?;
        let mut sink = pin!(sink);
        let mut buffer = BytesMut::with_capacity(CHUNK + (CHUNK >> 2));
        let mut scratch = String::new();
        for row in rows {
            for (n, &c) in columns.iter().enumerate() {
                if n > 0 {
                    buffer.extend_from_slice(b"\t");
                }
                match text_of(row.value(c), plan.encoding(c), &mut scratch) {
                    Some(text) => escape(&mut buffer, text),
                    None => buffer.extend_from_slice(b"\\N"),
                }
            }
            buffer.extend_from_slice(b"\n");
            if buffer.len() >= CHUNK {
                sink.send(buffer.split().freeze()).await.map_err(refused)?;
                buffer.reserve(CHUNK + (CHUNK >> 2));
            }
        }
        if !buffer.is_empty() {
            sink.send(buffer.freeze()).await.map_err(refused)?;
        }
        let stored = sink.finish().await.map_err(refused)?;
        match plan.stored(rows.len() as u64) {
            Expect::Stored(expected) if stored != expected => {
                Err(Failure::LeftOut { plan: Arc::clone(plan), what: None })
            }
            _ => Ok(()),
        }
    }
}

fn escape(out: &mut BytesMut, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'\n' | b'\r' | b'\t')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\t",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_copy_would_read_as_syntax_is_escaped() {
        let mut out = BytesMut::new();
        escape(&mut out, "a\tb\\N\r\n\\.");
        assert_eq!(&out[..], b"a\\tb\\\\N\\r\\n\\\\.");
    }
}
