//! Messages of the protocol (PostgreSQL's manual, "Frontend/Backend Protocol").

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A message: its tag and its body.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn new(tag: u8, body: impl Into<Vec<u8>>) -> Self {
        Self { tag, body: body.into() }
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.body.len() + 5);
        bytes.push(self.tag);
        bytes.extend_from_slice(&(self.body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let tag = from.read_u8().await?;
        Ok(Self { tag, body: body(from).await? })
    }

    pub(crate) fn error(code: &str, message: &str) -> Self {
        let mut body = Vec::new();
        for (kind, text) in [(b'S', "ERROR"), (b'V', "ERROR"), (b'C', code), (b'M', message)] {
            body.push(kind);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        Self::new(b'E', body)
    }

    pub(crate) fn ready() -> Self {
        Self::new(b'Z', *b"I")
    }

    pub(crate) fn complete(tag: &str) -> Self {
        Self::new(b'C', text(tag))
    }

    /// A field of an ErrorResponse.
    pub(crate) fn field(&self, kind: u8) -> Option<String> {
        let fields = self.body.split(|b| *b == 0).filter_map(|f| f.split_first());
        fields.into_iter().find(|(k, _)| **k == kind).map(|(_, text)| String::from_utf8_lossy(text).into_owned())
    }
}

/// A length and as many bytes.
pub(crate) async fn body(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await? as usize;
    let mut body = vec![0; length.saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok(body)
}

/// A row description and a row, of texts.
pub(crate) fn row(columns: &[(&str, Option<&str>)]) -> [Message; 2] {
    let mut description = (columns.len() as u16).to_be_bytes().to_vec();
    let mut data = description.clone();
    for (name, value) in columns {
        description.extend_from_slice(&text(name));
        description.extend_from_slice(&[0; 6]);
        description.extend_from_slice(&25_u32.to_be_bytes());
        description.extend_from_slice(&(-1_i16).to_be_bytes());
        description.extend_from_slice(&(-1_i32).to_be_bytes());
        description.extend_from_slice(&[0; 2]);
        match value {
            Some(value) => {
                data.extend_from_slice(&(value.len() as u32).to_be_bytes());
                data.extend_from_slice(value.as_bytes());
            }
            None => data.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    [Message::new(b'T', description), Message::new(b'D', data)]
}

/// With the zero at its end.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The text before the first zero, and what follows.
pub(crate) fn split_text(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes.get(end + 1..).unwrap_or_default())
}

pub(crate) fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
