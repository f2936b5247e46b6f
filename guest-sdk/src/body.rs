//! A body of either direction: bytes known in full, the body of the incoming request, or a stream of chunks.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::incoming::Incoming;
use crate::{Error, Result};

/// The body of a request or a response, as a stream of chunks with optional trailers at its end.
pub struct Body(Kind);

enum Kind {
    /// What is left of a body that is known in full; empty when nothing is.
    Known(Bytes),
    Incoming(Incoming),
    Other(Box<dyn HttpBody<Data = Bytes, Error = Error> + Unpin>),
}

impl Body {
    /// No bytes at all.
    pub const fn empty() -> Self {
        Self(Kind::Known(Bytes::new()))
    }

    /// Whatever another crate calls a body, with its trailers.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<Error>,
    {
        Self(Kind::Other(Box::new(Foreign(Box::pin(body)))))
    }

    /// The chunks of a stream. It is asked for the next chunk when the host has taken the one before; an error ends the
    /// body so that the client sees it was cut short.
    pub fn from_stream<S, B, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<B, E>> + 'static,
        B: Into<Bytes> + 'static,
        E: Into<Error> + 'static,
    {
        Self(Kind::Other(Box::new(Chunks(Box::pin(stream)))))
    }

    pub(crate) const fn incoming(incoming: Incoming) -> Self {
        Self(Kind::Incoming(incoming))
    }

    /// The next chunk, never empty; `None` at the end. Trailers are passed over: `http_body::Body` yields them.
    ///
    /// # Errors
    ///
    /// When the body ends before it is complete, because the client left for example.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            match poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await.transpose()? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(chunk) = frame.into_data()
                        && !chunk.is_empty()
                    {
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`TooLarge`], as soon as the body is known to exceed the limit; otherwise those of [`Body::chunk`].
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes> {
        if self.size_hint().lower() > limit as u64 {
            return Err(TooLarge { limit }.into());
        }
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        if first.len() > limit {
            return Err(TooLarge { limit }.into());
        }
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if chunk.len() > limit - whole.len() {
                return Err(TooLarge { limit }.into());
            }
            whole.extend_from_slice(&chunk);
            next = self.chunk().await?;
        }
        Ok(whole.freeze())
    }

    /// The whole body as text, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Those of [`Body::bytes`], and when the body is not UTF-8.
    pub async fn text(self, limit: usize) -> Result<String> {
        Ok(String::from_utf8(self.bytes(limit).await?.into())?)
    }

    /// All the bytes, if they are known already.
    pub(crate) fn known(self) -> Result<Bytes, Self> {
        match self.0 {
            Kind::Known(bytes) => Ok(bytes),
            _ => Err(self),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Kind::Known(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Known(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Incoming(incoming) => incoming.poll_frame(context),
            Kind::Other(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Known(bytes) => bytes.is_empty(),
            Kind::Incoming(incoming) => incoming.is_end(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
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
        match &self.0 {
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
        Self(Kind::Known(bytes))
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

/// A body of another crate, with its errors converted.
struct Foreign<B>(Pin<Box<B>>);

impl<B> HttpBody for Foreign<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        self.0.as_mut().poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A stream as a body without trailers.
struct Chunks<S>(Pin<Box<S>>);

impl<S, B, E> HttpBody for Chunks<S>
where
    S: Stream<Item = Result<B, E>>,
    B: Into<Bytes>,
    E: Into<Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let next = ready!(self.0.as_mut().poll_next(context));
        Poll::Ready(next.map(|chunk| chunk.map(|chunk| Frame::data(chunk.into())).map_err(Into::into)))
    }
}

/// A body was longer than the handler was ready to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooLarge {
    /// How many bytes would have been read.
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body is larger than {} bytes", self.limit)
    }
}

impl std::error::Error for TooLarge {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::block_on;

    /// A stream of chunks without a crate for it.
    struct Iter<I>(I);

    impl<I: Iterator + Unpin> Stream for Iter<I> {
        type Item = I::Item;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
            Poll::Ready(self.0.next())
        }
    }

    fn streamed(chunks: &'static [&'static str]) -> Body {
        Body::from_stream(Iter(chunks.iter().copied().map(Ok::<_, Error>)))
    }

    #[track_caller]
    fn check(body: Body, limit: usize, expected: Option<&str>) {
        match (block_on(body.text(limit)), expected) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected),
            (Err(error), None) => assert_eq!(error.downcast_ref(), Some(&TooLarge { limit })),
            (result, _) => panic!("{result:?}"),
        }
    }

    #[test]
    fn a_body_is_read_up_to_its_limit() {
        check(().into(), 0, Some(""));
        check("abc".into(), 3, Some("abc"));
        check(vec![b'a'; 4].into(), 3, None);
        check(streamed(&[]), 0, Some(""));
        check(streamed(&["abc"]), 3, Some("abc"));
        check(streamed(&["abcd"]), 3, None);
        check(streamed(&["a", "", "b", "c"]), 3, Some("abc"));
        check(streamed(&["a", "b", "cd"]), 3, None);
        check(Body::new(Body::from(String::from("abc"))), 3, Some("abc"));
    }

    #[test]
    fn chunks_come_one_by_one_and_never_empty() {
        let mut body = streamed(&["a", "", "b"]);
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "a");
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "b");
        assert!(block_on(body.chunk()).expect("readable").is_none());
    }

    #[test]
    fn an_error_of_the_stream_is_the_body_s() {
        let mut body = Body::from_stream(Iter([Err::<Bytes, _>("broken")].into_iter()));
        assert_eq!(block_on(body.chunk()).expect_err("broken").to_string(), "broken");
    }

    #[test]
    fn only_bytes_in_hand_are_known() {
        assert_eq!(Body::from("abc").size_hint().exact(), Some(3));
        assert!(Body::from("abc").known().is_ok());
        assert_eq!(streamed(&["abc"]).size_hint().exact(), None);
        assert!(streamed(&["abc"]).known().is_err());
    }
}
