//! The query of a change stream's partition.

use super::catalog::Dialect;
use crate::client::{Instant, Kind, SpannerValue, Statement};

/// What one query reads.
#[derive(Debug, Clone)]
pub(crate) struct Window<'a> {
    pub(crate) stream: &'a str,
    pub(crate) dialect: Dialect,
    pub(crate) mutable: bool,
    /// `None`: the initial partitions.
    pub(crate) token: Option<&'a str>,
    /// Inclusive.
    pub(crate) start: Instant,
    /// Inclusive.
    pub(crate) end: Option<Instant>,
    pub(crate) heartbeat_ms: u32,
}

impl Window<'_> {
    /// The statement. A statement on a change stream must be just this call.
    pub(crate) fn statement(&self) -> Statement {
        let sql = match (self.dialect, self.mutable) {
            (Dialect::GoogleSql, _) => format!(
                "SELECT ChangeRecord FROM {}(start_timestamp => @p1, end_timestamp => @p2, partition_token => @p3, \
                 heartbeat_milliseconds => @p4)",
                self.dialect.quoted(&format!("READ_{}", self.stream))
            ),
            (Dialect::PostgreSql, mutable) => {
                let form = if mutable { "read_proto_bytes" } else { "read_json" };
                let function = self.dialect.quoted(&format!("{form}_{}", self.stream));
                format!("SELECT * FROM \"spanner\".{function}($1, $2, $3, $4, null)")
            }
        };
        let end: SpannerValue = self.end.map(|end| end.to_string()).into();
        let token: SpannerValue = self.token.into();
        Statement::new(sql)
            .bind("p1", Kind::Timestamp, self.start.to_string().into())
            .bind("p2", Kind::Timestamp, end)
            .bind("p3", Kind::String, token)
            .bind("p4", Kind::Int64, i64::from(self.heartbeat_ms).into())
    }
}
