//! The contract of anabranch: plain data, four traits, and the runtime between them.

pub mod checkpointer;
pub mod dead_letter;
mod durable_file;
mod error;
pub mod mapping;
pub mod memory;
mod model;
pub mod net_effect;
pub mod orderer;
mod secret;
mod sink;
mod source;
pub mod transform;

pub use checkpointer::{Checkpointer, Saved, Version};
pub use dead_letter::{DeadLetter, DeadLetterStore, LetterClass, LetterState};
pub use error::{Error, ErrorKind, Result};
pub use mapping::{Contract, Fidelity, TargetSchema, TargetTable};
pub use model::*;
pub use orderer::Orderer;
pub use secret::{Exposed, Secret};
pub use sink::{
    Claim, Durability, Lane, LaneProgress, LanePurpose, ProgressStore, RejectedChange, Sink, SinkInfo, SinkWriter,
    Written,
};
pub use source::{
    ChangeReader, Chunk, HEARTBEAT, Marker, Next, Retention, RetentionLeft, Snapshot, Snapshotter, Source, SourceInfo,
    SourceOrder, StartFrom,
};
pub use transform::Transform;
