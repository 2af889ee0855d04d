//! Plain data: no async, no I/O, no clock.

mod batch;
mod checkpoint;
mod datatype;
mod partition;
mod position;
mod schema;
mod time;
mod unit;
mod value;

pub use batch::{
    BatchBuilder, ChangeBatch, ChangeRef, LeftOut, OldImage, Op, Piece, RowRef, Transaction, TruncateOptions,
};
pub use checkpoint::{
    Checkpoint, Counters, LaneReached, PartitionProgress, PartitionStatus, Sharing, SnapshotPhase, SnapshotProgress,
    SourceIdentity, TableSnapshot,
};
pub use datatype::DataType;
pub use partition::{Partition, PartitionId};
pub use position::{Position, Rank};
pub use schema::{Column, TableName, TableSchema};
pub use time::Timestamp;
pub use unit::{BatchId, OrderedUnit, Part, Progress, Selection, Slice, Unit, UnitId, UnitKind, UnitSlice};
pub use value::{Value, ValueRef};
