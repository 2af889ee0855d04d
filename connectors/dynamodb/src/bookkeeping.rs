//! Attributes that this library adds to items. Both sides know them: the sink writes them, the
//! source recognises them and leaves them out of the rows that it gives.

/// The source position that wrote the item last; a later write must have a larger one.
pub const VERSION: &str = "anabranch:version";

/// Who wrote the item: so that a pipeline in the other direction can leave its writes out.
pub const ORIGIN: &str = "anabranch:origin";

/// The item is a tombstone: it stands for a deleted one, so that a late write cannot bring it back.
pub const DELETED: &str = "anabranch:deleted";

/// When DynamoDB's time to live removes a tombstone, in seconds since 1970.
pub const EXPIRES: &str = "anabranch:expires";

/// The item marks a place in the stream, for a drain. It never is a row.
pub const MARKER: &str = "anabranch:marker";

/// What every attribute of this library begins with.
pub const PREFIX: &str = "anabranch:";

/// What the attributes begin with that global tables (version 2017.11.29) add to items:
/// `aws:rep:deleting`, `aws:rep:updatetime`, `aws:rep:updateregion`.
pub const GLOBAL_TABLES: &str = "aws:rep:";
