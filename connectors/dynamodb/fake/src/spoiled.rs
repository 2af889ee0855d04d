//! Answers that do not arrive as they were sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame};

/// What happens to a good answer on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoiled {
    /// The connection is lost in the middle of it.
    Torn,
    /// Something on the way answers with a page of its own.
    Replaced,
    /// It ends early, and nothing else tells.
    Cut,
}

/// The answer as it arrives.
pub(crate) fn body(answer: Vec<u8>, spoiled: Option<Spoiled>) -> BoxBody<Bytes, std::io::Error> {
    let half = Bytes::copy_from_slice(&answer[..answer.len() / 2]);
    let whole = |bytes: Bytes| Full::new(bytes).map_err(|never: Infallible| match never {}).boxed();
    match spoiled {
        None => whole(Bytes::from(answer)),
        Some(Spoiled::Torn) => Torn(Some(half)).boxed(),
        Some(Spoiled::Replaced) => whole(Bytes::from_static(b"<html>try again later</html>")),
        Some(Spoiled::Cut) => whole(half),
    }
}

/// Some bytes, and then no more.
struct Torn(Option<Bytes>);

impl Body for Torn {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let lost = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        Poll::Ready(Some(self.0.take().map(Frame::data).ok_or_else(lost)))
    }
}
