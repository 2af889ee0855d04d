//! The documented exit codes.

use anabranch::ErrorKind;

pub(crate) const DONE: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const CONFIGURATION: u8 = 2;
pub(crate) const OPERATOR: u8 = 3;

/// The code of an error of this kind.
pub(crate) fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Config => CONFIGURATION,
        ErrorKind::Rejected | ErrorKind::Fatal => OPERATOR,
        _ => FAILED,
    }
}
