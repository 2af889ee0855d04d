//! A replication connection: what tokio-postgres cannot do, on postgres-protocol's messages.
//!
//! One owner reads and writes. Everything that was received or is still to be sent lies in this
//! struct, so every future here may be dropped at any await.

mod binding;
pub(crate) mod inbox;
mod startup;
mod stream;

pub(crate) use startup::CANONICAL;

use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anabranch_core::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connect::Endpoint;
use crate::error::{ServerError, protocol, socket};
use inbox::Inbox;
use stream::Stream;

/// CopyBothResponse, which postgres-protocol does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// How long the server may take to end a session: it first sends what it is at.
const FAREWELL: Duration = Duration::from_secs(2);

/// A row of a simple query, as text.
pub(crate) type TextRow = Vec<Option<String>>;

/// A connection with `replication=database`.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    inbox: Inbox,
    outbox: BytesMut,
    /// The server closed its side.
    ended: bool,
}

/// What the server sends while it replicates.
#[derive(Debug)]
pub(crate) enum Event {
    /// A CopyData message; [`Connection::body`] gives its bytes.
    Data(Range<usize>),
    /// The server ended the copy in an orderly way: it is shutting down.
    Done,
}

impl Connection {
    /// Connects, authenticates and waits until the server is ready.
    pub(crate) async fn open(endpoint: &Endpoint, application_name: &str) -> Result<Self> {
        startup::open(endpoint, application_name).await
    }

    fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, inbox: Inbox::new(), outbox: BytesMut::new(), ended: false }
    }

    /// Runs one statement of the replication grammar and gives its rows.
    pub(crate) async fn query(&mut self, sql: &str, what: &str) -> Result<Vec<TextRow>> {
        self.send(|out| frontend::query(sql, out))?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                backend::DATA_ROW_TAG => rows.push(text_row(self.inbox.body(body))?),
                backend::ERROR_RESPONSE_TAG => failure = Some(server_error(self.inbox.body(body)).into_error(what)),
                backend::READY_FOR_QUERY_TAG => return failure.map_or(Ok(rows), Err),
                // Row descriptions, completions, notices and parameters carry nothing that is needed.
                _ => {}
            }
        }
    }

    /// Sends START_REPLICATION and waits until the server streams.
    pub(crate) async fn start_replication(&mut self, sql: &str, what: &str) -> Result<()> {
        self.send(|out| frontend::query(sql, out))?;
        loop {
            let (tag, body) = self.read_message().await?;
            match tag {
                COPY_BOTH_RESPONSE_TAG => return Ok(()),
                backend::ERROR_RESPONSE_TAG => return Err(server_error(self.inbox.body(body)).into_error(what)),
                backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => {}
                other => {
                    return Err(protocol(format!("{what}: the server answered with message {:?}", char::from(other))));
                }
            }
        }
    }

    /// The next event that has already been received whole.
    pub(crate) fn buffered(&mut self) -> Result<Option<Event>> {
        while let Some((tag, body)) = self.inbox.message()? {
            match tag {
                backend::COPY_DATA_TAG => return Ok(Some(Event::Data(body))),
                backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG => return Ok(Some(Event::Done)),
                backend::ERROR_RESPONSE_TAG => {
                    let mut e = server_error(self.inbox.body(body));
                    if e.code == "42704" && e.message.contains("publication") {
                        // The server reads the publication as it was when the change was made.
                        e.hint =
                            Some("the slot is older than the publication: drop the slot and start anew".to_owned());
                    }
                    return Err(e.into_error("the server ended the replication"));
                }
                backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG | backend::READY_FOR_QUERY_TAG => {}
                other => {
                    return Err(protocol(format!("unexpected message {:?} while replicating", char::from(other))));
                }
            }
        }
        Ok(None)
    }

    /// The bytes of a [`Event::Data`], until more is received.
    pub(crate) fn body(&self, range: Range<usize>) -> &[u8] {
        self.inbox.body(range)
    }

    /// Sends what is queued as far as the socket takes it, and receives at least one byte.
    pub(crate) async fn fill(&mut self) -> Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// As [`Connection::fill`], if there is something to receive now; else 0, without waiting.
    pub(crate) async fn fill_now(&mut self) -> Result<usize> {
        poll_fn(|cx| match self.poll_fill(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Ready(Ok(0)),
        })
        .await
    }

    /// Queues a CopyData message.
    pub(crate) fn queue_copy_data(&mut self, body: &[u8]) {
        self.outbox.extend_from_slice(&[backend::COPY_DATA_TAG]);
        self.outbox.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        self.outbox.extend_from_slice(body);
    }

    /// Sends what is queued as far as the socket takes it now; the rest goes with the next call.
    ///
    /// It does not wait: the server may itself be waiting for us to receive.
    pub(crate) async fn send_now(&mut self) -> Result<()> {
        poll_fn(|cx| match self.poll_send(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Ends the session, and waits a moment for the server to notice, so that the slot is free on return.
    pub(crate) async fn close(mut self) {
        frontend::terminate(&mut self.outbox);
        let ended = async {
            while self.fill().await.is_ok() {
                while let Ok(Some(_)) = self.inbox.message() {}
            }
        };
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }

    /// The next message, whatever it is.
    async fn read_message(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            if let Some(message) = self.inbox.message()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    fn send(&mut self, build: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
        build(&mut self.outbox).map_err(|e| Error::fatal("a message cannot be sent").because(e))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.outbox.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outbox)) {
                Ok(0) => return Poll::Ready(Err(lost())),
                Ok(sent) => drop(self.outbox.split_to(sent)),
                Err(e) => return Poll::Ready(Err(socket(e, "the connection to the server was lost"))),
            }
        }
        // TLS keeps records back until it is flushed.
        Pin::new(&mut self.stream).poll_flush(cx).map_err(|e| socket(e, "the connection to the server was lost"))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        // Reading must go on when writing has to wait, or both sides could wait for each other.
        if let Poll::Ready(Err(e)) = self.poll_send(cx) {
            return Poll::Ready(Err(e));
        }
        if self.ended {
            return Poll::Ready(Err(lost()));
        }
        let mut space = ReadBuf::new(self.inbox.space());
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space)) {
            Ok(()) => {
                let count = space.filled().len();
                self.inbox.filled(count);
                self.ended = count == 0;
                Poll::Ready(if count == 0 { Err(lost()) } else { Ok(count) })
            }
            Err(e) => Poll::Ready(Err(socket(e, "the connection to the server was lost"))),
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("ended", &self.ended).finish_non_exhaustive()
    }
}

fn lost() -> Error {
    Error::transient("the server closed the connection")
}

/// The fields of an ErrorResponse; what cannot be read is left out.
fn server_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|b| *b == 0) {
        let Some((&kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
    error
}

fn text_row(body: &[u8]) -> Result<TextRow> {
    let broken = || protocol("the server sent a broken row");
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(broken)?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
        rest = after;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            row.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length).ok_or_else(broken)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_errors_are_read_field_by_field() {
        let e = server_error(b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0Dd\0Hh\0\0");
        assert_eq!((e.code.as_str(), e.detail.as_deref(), e.hint.as_deref()), ("28P01", Some("d"), Some("h")));
        assert_eq!(server_error(b""), ServerError::default());
    }

    #[test]
    fn broken_rows_are_errors() {
        assert_eq!(text_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff").unwrap(), [Some("a".to_owned()), None]);
        for broken in [&b""[..], b"\0", b"\0\x01", b"\0\x01\0\0\0\x05abc", b"\0\x01\x7f\xff\xff\xff"] {
            assert!(text_row(broken).is_err(), "{broken:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bodies_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            server_error(&bytes);
            if let Ok(row) = text_row(&bytes) {
                assert!(row.len() * 4 <= bytes.len());
            }
        }
    }
}
