//! The body of an outbound request, on its way from the guest.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::{Error, WasiBody};

/// Frames without a byte that are passed over, before one that tells whether a body is empty.
const MAX_EMPTY_FRAMES: usize = 8;

/// The body of a request, which its guest may have ended before there is a connection. Then it is known to be empty, and
/// is sent as such: guests of WASI 0.2 open a body before they know whether they have one.
pub(crate) struct Begun {
    first: Option<Result<Frame<Bytes>, Error>>,
    rest: Option<WasiBody>,
}

impl Begun {
    pub(crate) fn new(body: WasiBody) -> Self {
        Self { first: None, rest: Some(body) }
    }

    pub(crate) fn empty() -> Self {
        Self { first: None, rest: None }
    }

    /// Takes the first frame, or learns that there is none.
    pub(crate) fn begin(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..MAX_EMPTY_FRAMES {
            let (None, Some(rest)) = (&self.first, &mut self.rest) else { break };
            match ready!(Pin::new(rest).poll_frame(context)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(first) => self.first = Some(first),
                None => self.rest = None,
            }
        }
        Poll::Ready(())
    }
}

impl Body for Begun {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.first, &self.rest) {
            (None, None) => SizeHint::with_exact(0),
            (None, Some(rest)) => rest.size_hint(),
            (Some(_), _) => SizeHint::default(),
        }
    }
}
