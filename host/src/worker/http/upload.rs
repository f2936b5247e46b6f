//! The body of a request as its guest gets it: bounded, and known to those who wait for the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::Error;

use super::pace::Pace;
use super::peer::remove_forged;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UploadProgress {
    /// There may be more to come, and the guest has not asked for it.
    Expected,
    /// The guest has asked for more, and its client has yet to send that.
    Awaited,
    /// All of it is there, or there is none.
    Ended,
    /// It is longer than allowed.
    TooLarge,
}

/// What is known of a body; `None` of one that is not there.
#[derive(Debug)]
pub(crate) struct UploadState(Option<Arc<Arrival>>);

#[derive(Debug)]
struct Arrival {
    progress: AtomicU8,
    pace: Pace,
}

impl UploadState {
    pub(crate) fn is(&self, progress: UploadProgress) -> bool {
        let now = self.0.as_ref().map_or(UploadProgress::Ended as u8, |state| state.progress.load(Ordering::Relaxed));
        now == progress as u8
    }

    /// The answer's head is there: from now on its client's pace counts. Until then the request has its own time.
    pub(crate) fn counts(&self) {
        if let Some(arrival) = &self.0 {
            arrival.pace.begin();
        }
    }

    /// When its client will have been too slow, if nothing comes until then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref()?.pace.deadline()
    }
}

/// The body, as `B` brings it.
#[derive(Debug)]
pub(crate) struct Upload<B> {
    body: B,
    /// Bytes that may still come.
    left: u64,
    max: u64,
    state: Option<Arc<Arrival>>,
}

impl<B: Body> Upload<B> {
    /// Bounds the body of `request` to `max` bytes.
    pub(crate) fn wrap(request: Request<B>, max: u64, pace: Pace) -> (Request<Self>, UploadState) {
        let is_there = !request.body().is_end_stream();
        let progress = AtomicU8::new(UploadProgress::Expected as u8);
        let state = is_there.then(|| Arc::new(Arrival { progress, pace }));
        let known = UploadState(state.clone());
        (request.map(|body| Self { body, left: max, max, state }), known)
    }

    fn note(&self, progress: UploadProgress) {
        if let Some(state) = &self.state
            && state.progress.load(Ordering::Relaxed) != UploadProgress::TooLarge as u8
        {
            state.progress.store(progress as u8, Ordering::Relaxed);
            if progress == UploadProgress::Awaited {
                state.pace.waits();
            }
        }
    }

    fn came(&self, bytes: usize) {
        if let Some(state) = &self.state {
            state.pace.came(bytes);
        }
    }
}

impl<B> Drop for Upload<B> {
    /// Nobody waits for its client any more.
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.pace.came(0);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(polled) = Pin::new(&mut self.body).poll_frame(context) else {
            self.note(UploadProgress::Awaited);
            return Poll::Pending;
        };
        self.note(UploadProgress::Expected);
        let bytes = match &polled {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        self.came(bytes);
        let frame = match polled {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    remove_forged(trailers);
                }
                frame
            }
            // The client is gone, or makes no sense.
            Some(Err(_)) => return Poll::Ready(Some(Err(Error::ConnectionTerminated))),
            None => {
                self.note(UploadProgress::Ended);
                return Poll::Ready(None);
            }
        };
        let Some(left) = self.left.checked_sub(bytes as u64) else {
            self.note(UploadProgress::TooLarge);
            return Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(self.max)))));
        };
        self.left = left;
        if self.body.is_end_stream() {
            self.note(UploadProgress::Ended);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
