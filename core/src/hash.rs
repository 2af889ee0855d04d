//! A hash that is stored, and decides where things go.

/// The 64-bit FNV-1a hash, <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>. Small, and
/// stable over versions and machines, as the hashers of the standard library are not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    #[must_use]
    pub(crate) fn with(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    pub(crate) fn modulo(self, lanes: u32) -> u32 {
        (self.0 % u64::from(lanes.max(1))) as u32
    }
}
