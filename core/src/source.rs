//! Where changes come from.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::by_shard::ByShard;
use crate::error::Result;
use crate::model::{
    ChangeBatch, Checkpoint, Partition, PartitionId, Position, SourceIdentity, TableName, TableSchema, TableSnapshot,
    Timestamp,
};
use crate::verifier::Verifier;

/// A database whose committed changes can be read.
///
/// The runtime calls [`Source::prepare`] once at every start, before everything else; then
/// [`Source::tables`], the snapshotter if a snapshot is due, [`Source::partitions`], and
/// [`Source::open`] for each partition whose parents are done. Calls may overlap, except `prepare`.
#[async_trait]
pub trait Source: Debug + Send + Sync + 'static {
    /// What it is and what it guarantees. Constant; needs no connection.
    fn info(&self) -> SourceInfo;

    /// Connects, creates what is missing and allowed (slot, publication, change stream), and checks
    /// that this still is the source that `resume` came from, without a gap.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for rights and settings, with the statement that mends
    /// them; [`Fatal`](crate::ErrorKind::Fatal) for a gap: what was lost and how to repair it.
    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity>;

    /// Everything that [`Source::prepare`] checks, without creating anything. Gives the statements
    /// that `prepare` would run, in order, for people to read.
    ///
    /// [`Pipeline::check`](crate::Pipeline::check) calls it in place of `prepare`.
    ///
    /// # Errors
    /// As `prepare`: what is an error there before anything is created is one here.
    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>>;

    /// The tables that it sends, as they are now. After [`Source::check`], where what selects them
    /// (a publication) does not exist yet: those that it would send.
    async fn tables(&self) -> Result<Vec<TableSchema>>;

    /// The partitions known now. Asked at the start; later ones come from readers that close.
    ///
    /// A partition that came from a reader is forgotten once it is finished and all that followed it are
    /// being read: it must not be listed here at a later start, or it would be read again.
    ///
    /// A partition that is finished is forgotten if it is not among these at the next start. So a
    /// source names a partition always, or never again after it was named by a reader that closed.
    async fn partitions(&self) -> Result<Vec<Partition>>;

    /// Whether it comes to an end: once every partition is finished nothing follows, and the pipeline
    /// ends by itself. Otherwise a pipeline waits for what may come.
    fn ends(&self) -> bool {
        false
    }

    /// A reader of one partition. At most one is open for a partition at a time.
    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>>;

    /// Copies tables as they were at one point, if this source can.
    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        None
    }

    /// Marks the present, for [`drain`](crate::RunningPipeline::drain), if this source can.
    fn marker(&self) -> Option<&dyn Marker> {
        None
    }

    /// Tells how long the source will keep what the pipeline still needs, if it knows.
    fn retention(&self) -> Option<&dyn Retention> {
        None
    }

    /// Reads rows for a comparison with the target, if this source can. Without it they are read by
    /// the [`Snapshotter`], whole tables each time.
    fn verifier(&self) -> Option<&dyn Verifier> {
        None
    }

    /// Reads each shard by itself, if this source keeps them apart.
    fn by_shard(&self) -> Option<&dyn ByShard> {
        None
    }

    /// A position as its users write it (an LSN, a time), for status and errors.
    fn describe(&self, position: &Position) -> String {
        format!("{:?}", position.rank)
    }
}

/// What a source is.
#[derive(Debug, Clone)]
pub struct SourceInfo {
    /// The connector's name: `postgres`.
    pub name: &'static str,
    /// The order in which its partitions give changes.
    pub order: SourceOrder,
}

/// What a source guarantees about the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceOrder {
    /// One partition gives whole transactions, one after another, in commit order.
    Transactions,
    /// Several partitions, each in commit-time order; a transaction may be spread over them.
    CommitTimePerPartition,
    /// Each partition keeps the order of changes of one key, and nothing more.
    Key,
}

/// Where a reader starts.
#[derive(Debug, Clone, Default)]
pub struct StartFrom {
    /// After this position; `None`: where the partition starts. Changes at or before it may be given
    /// again (a whole transaction whose beginning lies there, an inclusive read): the runtime drops them
    /// by their ranks. An empty token, of a place within a partition's first transaction, means where
    /// the partition starts too.
    pub position: Option<Position>,
    /// The points at which tables were copied. Changes of a table that its copy already has must
    /// not be given again.
    pub snapshots: BTreeMap<TableName, TableSnapshot>,
}

/// Reads one partition. One owner.
#[async_trait]
pub trait ChangeReader: Send {
    /// The next batch, or why there is none.
    ///
    /// Cancel safe: dropping the future loses nothing. On a quiet source it gives an empty batch
    /// (a heartbeat) at least every few seconds, so that safe time moves and acknowledgements advance.
    async fn next(&mut self) -> Result<Next>;

    /// Everything through here is durable downstream, and recorded so that a restart resumes at or
    /// after it: the source may forget it.
    ///
    /// Called when that moves, and at least every [`HEARTBEAT`] also when it does not, in place of
    /// `next` while the pipeline has no room: send what keeps the connection alive.
    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()>;

    /// Ends the reading in an orderly way. Dropping a reader is safe too.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// How often [`ChangeReader::acknowledge`] is called at least. PostgreSQL's default
/// `wal_sender_timeout` is 60 s; a twelfth of it leaves room for a slow network.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(5);

/// What a reader gives.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are batches")]
pub enum Next {
    /// Changes, or an empty heartbeat.
    Batch(ChangeBatch),
    /// The partition ended. Its children are stored before it counts as finished.
    Closed {
        /// The partitions that go on where it ended.
        children: Vec<Partition>,
    },
    /// The reading ended but the partition did not: open it again from the last position.
    Stopped,
}

/// Copies tables as they were at one point in time.
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// Fixes a point in time and plans the copying of `tables` under it, in chunks.
    ///
    /// Called again after an interruption with the tables that were not finished: the point is then
    /// a later one, and the reader of the stream skips what the copies already have.
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>>;

    /// Goes on with copies that were interrupted, if what was copied stays valid: where the stream
    /// brings every change since the first [`Snapshotter::begin`], and rows are not bound to one
    /// point. `tables` are those that are not finished, `before` is how far each was planned and
    /// copied; the chunks that it has are not copied again, so the same ones must be planned.
    /// [`Snapshot::goes_on`] tells of each table how it goes on.
    ///
    /// It may take long: it may be dropped, and is called again at the next start.
    ///
    /// `None`, the default: the interrupted tables are emptied, and [`Snapshotter::begin`] is called.
    async fn resume(
        &self,
        _tables: &[TableSchema],
        _before: &BTreeMap<TableName, TableSnapshot>,
    ) -> Result<Option<Box<dyn Snapshot>>> {
        Ok(None)
    }
}

/// A fixed point in time and the chunks to copy under it. It stays open until it is dropped.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// The point: changes at or before it are in the copied rows.
    fn point(&self) -> Position;

    /// The chunks, in the order to copy them.
    fn chunks(&self) -> &[Chunk];

    /// A reader of one chunk, which must be one of [`Snapshot::chunks`] or of [`Snapshot::goes_on`];
    /// several are open at a time. Its batches are inserts of one table, and those of
    /// [`ChangedRows::keys`] are deletes; it closes without children.
    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>>;

    /// What [`Snapshotter::resume`] needs to know of how a table was planned, to go on with it: kept as
    /// [`TableSnapshot::plan`] until the table is copied.
    fn plan(&self, _table: &TableName) -> Option<String> {
        None
    }

    /// How the interrupted copy of a table goes on; asked of what [`Snapshotter::resume`] gave, for the
    /// tables of which a copy was planned before.
    fn goes_on(&self, _table: &TableName) -> GoesOn {
        GoesOn::AsItWas
    }
}

/// How a copy that was interrupted goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GoesOn {
    /// The chunks that are left are copied. The table keeps its point: the stream brings all that
    /// changed since, and rows are not bound to one point.
    AsItWas,
    /// What was copied stays, but for the rows that changed since the table's point, which are copied
    /// under the new one. Then the whole table is as it was at the new point.
    ///
    /// The table keeps its old point until it is whole: a copy that is interrupted again asks again for
    /// everything that changed since then, whatever of this was done.
    But(ChangedRows),
    /// It is emptied and copied whole, under the new point.
    Anew,
}

/// The rows of a table that changed since a part of it was copied.
///
/// Each row of the table at the new point is in a chunk that was copied before and unchanged since, in
/// a chunk that was not, or in `rows`. Some are in two of these, or in the target already (a chunk may
/// be durable and not recorded): they are the same there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedRows {
    /// Deletes of every key that a changed row has now or had since then, wherever it lies. Some are
    /// not in the target. All are applied before any row is copied: until then a unique value that
    /// moved between rows may be in the way.
    pub keys: Vec<Chunk>,
    /// The rows that have these keys at the new point. Copied last.
    pub rows: Vec<Chunk>,
}

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The table, as the source calls it.
    pub table: TableName,
    /// Its number within the table, from 0.
    pub index: u32,
    /// What the connector needs to read it.
    pub token: String,
    /// About how many rows it has, where that is known.
    pub rows: Option<u64>,
}

/// Marks the present on a source.
#[async_trait]
pub trait Marker: Send + Sync {
    /// For each partition a position such that everything committed before this call lies at or before it.
    /// It may write to the source, so that the position is reached on an idle one too.
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>>;
}

/// How long a source keeps what a pipeline needs.
#[async_trait]
pub trait Retention: Send + Sync {
    /// What is left, now.
    async fn left(&self) -> Result<RetentionLeft>;
}

/// What is left before a source drops what the pipeline still needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RetentionLeft {
    /// Bytes of log the source keeps for this pipeline now.
    pub held_bytes: Option<u64>,
    /// Bytes more that it may write before it drops what is needed. `None`: no limit.
    pub bytes: Option<u64>,
    /// The time until then, where the source limits time.
    pub seconds: Option<f64>,
    /// Bytes of log that the source has written after what the pipeline has acknowledged.
    #[serde(default)]
    pub unread_bytes: Option<u64>,
    /// About the seconds until [`RetentionLeft::bytes`] are used up: at the rate at which the source has
    /// written since the pipeline's safe time. Filled in by the pipeline, where both are known.
    #[serde(default)]
    pub estimated_seconds: Option<f64>,
    /// Why what is needed is gone already: the pipeline can never go on from where it is.
    #[serde(default)]
    pub lost: Option<String>,
    /// The source's clock when it was asked.
    pub at: Option<Timestamp>,
}

/// Less than this behind, in seconds, a rate since the safe time is the rate of a moment.
const LEAST_LAG: f64 = 2.0;

impl RetentionLeft {
    /// With the estimate of [`RetentionLeft::estimated_seconds`], of a pipeline with this safe time.
    #[must_use]
    pub fn counted_down(mut self, safe_time: Option<Timestamp>) -> Self {
        let lag = self.at.zip(safe_time).map(|(at, safe)| at.micros_since(safe) as f64 / 1e6);
        let rate =
            self.unread_bytes.zip(lag).filter(|(_, lag)| *lag >= LEAST_LAG).map(|(bytes, lag)| bytes as f64 / lag);
        self.estimated_seconds = rate.filter(|rate| *rate > 0.0).zip(self.bytes).map(|(rate, left)| left as f64 / rate);
        self
    }
}

impl fmt::Display for RetentionLeft {
    /// `48.2 MB held, 16.0 MB more until what is needed is dropped: in about 3 h 12 min`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(lost) = &self.lost {
            return write!(f, "LOST: {lost}");
        }
        let mut parts = Vec::new();
        if let Some(held) = self.held_bytes {
            parts.push(format!("{} held", megabytes(held)));
        }
        match (self.bytes, self.estimated_seconds) {
            (Some(left), Some(seconds)) => parts.push(format!(
                "{} more until what is needed is dropped: in about {} at the rate of late",
                megabytes(left),
                spell(seconds)
            )),
            (Some(left), None) => parts.push(format!("{} more until what is needed is dropped", megabytes(left))),
            (None, _) => {}
        }
        if let Some(seconds) = self.seconds {
            parts.push(format!("what is needed is dropped in {}", spell(seconds)));
        } else if self.bytes.is_none() {
            parts.push("no limit".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn spell(seconds: f64) -> String {
    let minutes = (seconds / 60.0) as u64;
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{minutes} min"),
        ..172_800.0 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} days", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_down_at_the_rate_since_the_safe_time() {
        let at = |seconds: i64| Some(Timestamp::from_micros(seconds * 1_000_000));
        let left = RetentionLeft {
            held_bytes: Some(48_200_000),
            bytes: Some(16_000_000),
            unread_bytes: Some(10_000_000),
            at: at(110),
            ..RetentionLeft::default()
        };
        let told = left.clone().counted_down(at(10));
        assert_eq!(told.estimated_seconds, Some(160.0));
        let text = "48.2 MB held, 16.0 MB more until what is needed is dropped: in about 2 min at the rate of late";
        assert_eq!(told.to_string(), text);
        assert_eq!(left.clone().counted_down(at(109)).estimated_seconds, None, "of a moment");
        assert_eq!(left.clone().counted_down(None).estimated_seconds, None);
        let lost = RetentionLeft { lost: Some("it was too slow".to_owned()), ..left };
        assert_eq!(lost.to_string(), "LOST: it was too slow");
        assert_eq!(RetentionLeft::default().to_string(), "no limit");
        let timed = RetentionLeft { seconds: Some(11_520.0), ..RetentionLeft::default() };
        assert_eq!(timed.to_string(), "what is needed is dropped in 3 h 12 min");
    }
}
