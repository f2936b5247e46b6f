//! Makes bodies of other crates' bodies and streams, and converts their errors.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use send_wrapper::SendWrapper;

use super::{Body, BodyError, Kind};
use crate::{Error, Result};

impl Body {
    /// A body of another crate, with its trailers.
    ///
    /// ```
    /// # use wasmcluster_guest::Body;
    /// let body = Body::new(wasmcluster_guest::Body::from("of another crate"));
    /// ```
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<Error>,
    {
        Self::of(Kind::Other(Box::pin(Foreign(SendWrapper::new(Some(Box::pin(body)))))))
    }

    /// The chunks of a stream. It is asked for the next chunk when the host has taken the one before; an error ends the
    /// body so that the client sees it was cut short.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, Error, testing};
    /// use futures_util::stream;
    /// let body = Body::from_stream(stream::iter(["a", "b"]).map(Ok::<_, Error>));
    /// # use futures_util::StreamExt as _;
    /// # assert_eq!(testing::block_on(body.text(64)).unwrap(), "ab");
    /// ```
    pub fn from_stream<S, B, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<B, E>> + 'static,
        B: Into<Bytes> + 'static,
        E: Into<Error> + 'static,
    {
        Self::of(Kind::Other(Box::pin(Chunks(SendWrapper::new(Box::pin(stream))))))
    }
}

/// A body of another crate, with its errors converted; `None` after its end.
struct Foreign<B>(SendWrapper<Option<Pin<Box<B>>>>);

impl<B> HttpBody for Foreign<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Error>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut *self.0 else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(context));
        // Trailers are the last frame, and servers do not poll again after them. tonic's body relies on that: polled again after
        // the trailers of an error, it waits for the rest of the request.
        if !matches!(&frame, Some(Ok(frame)) if !frame.is_trailers()) {
            *self.0 = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
    }
}

/// A stream as a body without trailers.
struct Chunks<S>(SendWrapper<Pin<Box<S>>>);

impl<S, B, E> HttpBody for Chunks<S>
where
    S: Stream<Item = Result<B, E>>,
    B: Into<Bytes>,
    E: Into<Error>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = ready!(self.0.as_mut().poll_next(context));
        Poll::Ready(
            next.map(|chunk| chunk.map(|chunk| Frame::data(chunk.into())).map_err(|error| BodyError(error.into()))),
        )
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::HeaderMap;

    use super::*;
    use crate::testing::block_on;

    #[test]
    fn an_error_of_the_stream_is_the_body_s() {
        let mut body = Body::from_stream(stream::iter([Err::<Bytes, _>("broken")]));
        assert_eq!(block_on(body.chunk()).expect_err("broken").to_string(), "broken");
    }

    #[test]
    fn trailers_end_a_body_that_would_go_on() {
        struct GoesOn(bool);
        impl HttpBody for GoesOn {
            type Data = Bytes;
            type Error = Error;

            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
                if std::mem::replace(&mut self.0, true) {
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))))
            }
        }
        let mut body = Body::new(GoesOn(false));
        assert!(!body.is_end_stream());
        assert!(block_on(body.chunk()).expect("readable").is_none());
        assert!(body.is_end_stream());
    }
}
