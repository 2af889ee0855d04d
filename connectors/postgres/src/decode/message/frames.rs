//! Builds messages as the server does, for tests.

/// Starts with a tag; fields follow.
#[derive(Clone)]
pub(crate) struct Frame(pub(crate) Vec<u8>);

impl Frame {
    pub(crate) fn new(tag: u8) -> Self {
        Self(vec![tag])
    }
    pub(crate) fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }
    pub(crate) fn u16(mut self, v: u16) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    pub(crate) fn u32(mut self, v: u32) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    pub(crate) fn text(mut self, v: &str) -> Self {
        self.0.extend_from_slice(v.as_bytes());
        self.u8(0)
    }
    /// `None` is NULL, `Some("\u{1}")` an unchanged value.
    pub(crate) fn row(mut self, values: &[Option<&str>]) -> Self {
        self = self.u16(values.len() as u16);
        for v in values {
            self = match v {
                None => self.u8(b'n'),
                Some("\u{1}") => self.u8(b'u'),
                Some(v) => {
                    let mut f = self.u8(b't').u32(v.len() as u32);
                    f.0.extend_from_slice(v.as_bytes());
                    f
                }
            };
        }
        self
    }
}

pub(crate) fn begin(commit_lsn: u64) -> Vec<u8> {
    Frame::new(b'B').u64(commit_lsn).u64(1_000_000).u32(700).0
}

pub(crate) fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    Frame::new(b'C').u8(0).u64(commit_lsn).u64(end_lsn).u64(1_000_000).0
}

/// Columns are (key, name, type).
pub(crate) fn relation(oid: u32, name: &str, identity: u8, columns: &[(bool, &str, u32)]) -> Vec<u8> {
    let mut f = Frame::new(b'R').u32(oid).text("public").text(name).u8(identity).u16(columns.len() as u16);
    for (key, name, type_oid) in columns {
        f = f.u8(u8::from(*key)).text(name).u32(*type_oid).u32(u32::MAX);
    }
    f.0
}

pub(crate) fn insert(oid: u32, row: &[Option<&str>]) -> Vec<u8> {
    Frame::new(b'I').u32(oid).u8(b'N').row(row).0
}

pub(crate) fn update(oid: u32, old: Option<(u8, &[Option<&str>])>, new: &[Option<&str>]) -> Vec<u8> {
    let mut f = Frame::new(b'U').u32(oid);
    if let Some((kind, old)) = old {
        f = f.u8(kind).row(old);
    }
    f.u8(b'N').row(new).0
}

pub(crate) fn delete(oid: u32, kind: u8, old: &[Option<&str>]) -> Vec<u8> {
    Frame::new(b'D').u32(oid).u8(kind).row(old).0
}
