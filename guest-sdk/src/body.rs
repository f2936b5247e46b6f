//! A body of either direction: bytes known in full, the body of the incoming request, or a stream of chunks.
//!
//! Files: `read` reads a body, `foreign` makes one of another crate's body or stream, `writer` of a function that writes it.
//! How the incoming body is read from the host is in `host`.

mod foreign;
mod read;
mod writer;

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

pub use read::TooLarge;
pub use writer::Writer;

use crate::host::Incoming;
use crate::{Error, Result};

/// The body of a request or a response, as a stream of chunks with optional trailers at its end.
///
/// It is made from text, bytes, a stream, any [`http_body::Body`], or by a function that writes it. It is an
/// [`http_body::Body`] itself, and `Send`, so that it goes where axum wants one; guests have one thread.
///
/// ```
/// use wasmcluster_guest::Body;
///
/// let known = Body::from("text");
/// let written = Body::from_writer(|mut out| async move {
///     for number in 1..=3 {
///         out.write(format!("{number}\n")).await?;
///     }
///     Ok(())
/// });
/// # assert_eq!(wasmcluster_guest::testing::block_on(written.text(64)).unwrap(), "1\n2\n3\n");
/// # drop(known);
/// ```
pub struct Body {
    kind: Kind,
    /// Another server's: what is wrong with it is not the client's fault.
    is_fetched: bool,
}

enum Kind {
    /// What is left of a body that is known in full; empty when nothing is.
    Known(Bytes),
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "nothing comes in without a host"))]
    Incoming(Incoming),
    Other(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>),
}

impl Body {
    const fn of(kind: Kind) -> Self {
        Self { kind, is_fetched: false }
    }

    /// No bytes at all.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, Request};
    /// let request = Request::get("/").body(Body::empty()).unwrap();
    /// ```
    pub const fn empty() -> Self {
        Self::of(Kind::Known(Bytes::new()))
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) const fn incoming(incoming: Incoming) -> Self {
        Self::of(Kind::Incoming(incoming))
    }

    /// As a server has sent it that the guest asked.
    pub(crate) fn fetched(mut self) -> Self {
        self.is_fetched = true;
        self
    }

    /// The same once more, if it is known in full.
    pub(crate) fn copy(&self) -> Option<Self> {
        match &self.kind {
            Kind::Known(bytes) => Some(bytes.clone().into()),
            _ => None,
        }
    }

    /// All the bytes, if they are known already.
    #[cfg(any(test, all(target_arch = "wasm32", feature = "p2")))]
    pub(crate) fn known(self) -> Result<Bytes, Self> {
        match self.kind {
            Kind::Known(bytes) => Ok(bytes),
            _ => Err(self),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Known(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Known(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Incoming(incoming) => incoming.poll_frame(context).map_err(BodyError),
            Kind::Other(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Known(bytes) => bytes.is_empty(),
            Kind::Incoming(incoming) => incoming.is_end(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Known(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Known(bytes) => f.debug_tuple("Known").field(&bytes.len()).finish(),
            Kind::Incoming(_) => f.write_str("Incoming"),
            Kind::Other(_) => f.write_str("Other"),
        }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::of(Kind::Known(bytes))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

/// The error of a body that ended before it was complete: an [`Error`] as a [`std::error::Error`], which other crates
/// require.
///
/// ```
/// fn is_error<E: std::error::Error>() {}
/// is_error::<wasmcluster_guest::BodyError>();
/// ```
#[derive(Debug)]
pub struct BodyError(Error);

impl BodyError {
    /// The error itself.
    pub fn into_inner(self) -> Error {
        self.0
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for BodyError {}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    pub(super) fn streamed(chunks: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(chunks.iter().copied().map(Ok::<_, Error>)))
    }

    #[test]
    fn only_bytes_in_hand_are_known() {
        assert_eq!(Body::from("abc").size_hint().exact(), Some(3));
        assert!(Body::from("abc").known().is_ok());
        assert_eq!(streamed(&["abc"]).size_hint().exact(), None);
        assert!(streamed(&["abc"]).known().is_err());
    }
}
