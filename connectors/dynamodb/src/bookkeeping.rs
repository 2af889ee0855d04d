//! Attributes that this library adds to items. Both sides know them: the sink writes them, the
//! source recognises them and leaves them out of the rows that it gives.

/// The source position that wrote the item last; a later write must have a larger one.
pub const VERSION: &str = "anabranch:version";

/// Who wrote the item, and as of which version ([`origin`]): so that a pipeline in the other direction
/// can leave its writes out.
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

/// The value of [`ORIGIN`]: `pipeline@version`. The version within tells a write of the pipeline from
/// a later one by an application, which changes other attributes and leaves this one as it was.
pub fn origin(pipeline: &str, version: &str) -> String {
    format!("{pipeline}@{version}")
}

/// The pipeline in the value of [`ORIGIN`] after a write, if that write made it; `before` is the value
/// that was there.
pub fn written_by<'a>(after: Option<&'a str>, before: Option<&str>) -> Option<&'a str> {
    let after = after.filter(|after| Some(*after) != before)?;
    Some(after.rsplit_once('@').map_or(after, |(pipeline, _)| pipeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_that_was_there_before_is_not_of_this_write() {
        let (first, second) = (origin("a@b", "01"), origin("a@b", "02"));
        assert_eq!(written_by(Some(&first), None), Some("a@b"));
        assert_eq!(written_by(Some(&second), Some(&first)), Some("a@b"));
        assert_eq!(written_by(Some(&first), Some(&first)), None);
        assert_eq!(written_by(None, Some(&first)), None);
        assert_eq!(written_by(Some("by hand"), None), Some("by hand"));
    }
}
