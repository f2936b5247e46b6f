//! Bodies that a function writes. The function runs only while the body is polled for its next frame, and waits when one
//! frame is written and not taken: nothing else is buffered.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use send_wrapper::SendWrapper;

use super::{Body, BodyError, Kind};
use crate::{Error, Result};

impl Body {
    /// What `write` gives to its [`Writer`]. It runs while the body is asked for more: a write is done when the host has
    /// taken what was written before. An error ends the body so that the client sees it was cut short.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, testing};
    /// let body = Body::from_writer(|mut out| async move { out.write("text").await });
    /// # assert_eq!(testing::block_on(body.text(64)).unwrap(), "text");
    /// ```
    pub fn from_writer<W, F>(write: W) -> Self
    where
        W: FnOnce(Writer) -> F,
        F: Future<Output = Result<()>> + 'static,
    {
        let slot = Rc::<Slot>::default();
        let writing = Writing::Going(Box::pin(write(Writer(SendWrapper::new(slot.clone())))));
        Self::of(Kind::Other(Box::pin(Written(SendWrapper::new((slot, writing))))))
    }
}

/// Where the function of [`Body::from_writer`] writes.
///
/// ```
/// use wasmcluster_guest::http::{HeaderMap, HeaderValue};
/// use wasmcluster_guest::{Body, Request, Response, Result};
///
/// async fn handle(_: Request) -> Result<Response> {
///     let body = Body::from_writer(|mut out| async move {
///         out.write("chunk").await?;
///         out.finish(HeaderMap::from_iter([("x-chunks".parse()?, HeaderValue::from(1))])).await
///     });
///     Ok(Response::builder().header("trailer", "x-chunks").body(body)?)
/// }
/// # use wasmcluster_guest::testing;
/// # assert_eq!(testing::call(handle, Request::default()).trailers().unwrap()["x-chunks"], "1");
/// ```
pub struct Writer(SendWrapper<Rc<Slot>>);

/// What was written last and not taken yet, and who waits until it is.
type Slot = RefCell<(Option<Frame<Bytes>>, Option<Waker>)>;

impl Writer {
    /// Sends a chunk, when the one before it has been taken.
    ///
    /// # Errors
    ///
    /// None so far: when the client leaves, the whole function is dropped.
    pub async fn write(&mut self, chunk: impl Into<Bytes>) -> Result<()> {
        let chunk = chunk.into();
        if !chunk.is_empty() {
            self.send(Frame::data(chunk)).await;
        }
        Ok(())
    }

    /// Ends the body with trailers. HTTP/1.1 clients see those that the header `trailer` has announced.
    ///
    /// # Errors
    ///
    /// None so far.
    pub async fn finish(mut self, trailers: HeaderMap) -> Result<()> {
        self.send(Frame::trailers(trailers)).await;
        Ok(())
    }

    fn send(&mut self, frame: Frame<Bytes>) -> impl Future<Output = ()> + Send {
        let slot = self.0.clone();
        let mut frame = Some(frame);
        SendWrapper::new(poll_fn(move |context| {
            // What was there drops outside the borrow: a waker is foreign code.
            let _previous = match &mut *slot.borrow_mut() {
                (Some(_), waiting) => waiting.replace(context.waker().clone()),
                (free, _) => {
                    *free = frame.take();
                    return Poll::Ready(());
                }
            };
            Poll::Pending
        }))
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

/// A body that a function writes.
struct Written(SendWrapper<(Rc<Slot>, Writing)>);

enum Writing {
    Going(Pin<Box<dyn Future<Output = Result<()>>>>),
    /// With an error that is to follow what was written.
    Ended(Option<Error>),
}

impl HttpBody for Written {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (slot, writing) = &mut *self.0;
        if let Writing::Going(write) = writing
            && let Poll::Ready(ended) = write.as_mut().poll(context)
        {
            *writing = Writing::Ended(ended.err());
        }
        let (frame, waiting) = slot.take();
        // The writing function is polled again with the next frame. What waits inside of it may want to be woken for that,
        // as in a `FuturesUnordered`.
        if let Some(waker) = waiting.filter(|waker| !waker.will_wake(context.waker())) {
            waker.wake();
        }
        match (frame, writing) {
            (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
            (None, Writing::Going(_)) => Poll::Pending,
            (None, Writing::Ended(error)) => Poll::Ready(error.take().map(|error| Err(BodyError(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let (slot, writing) = &*self.0;
        matches!(writing, Writing::Ended(None)) && slot.borrow().0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::testing::block_on;

    #[test]
    fn an_error_follows_what_was_written_before_it() {
        let mut body = Body::from_writer(|mut out| async move {
            out.write("a").await?;
            out.write("b").await?;
            Err("broken".into())
        });
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "a");
        assert_eq!(block_on(body.chunk()).expect("readable").expect("a chunk"), "b");
        assert_eq!(block_on(body.chunk()).expect_err("broken").to_string(), "broken");
        assert!(block_on(body.chunk()).expect("readable").is_none());
    }

    #[test]
    fn a_writer_is_asked_no_sooner_than_the_chunk_before_was_taken() {
        let written = Rc::new(RefCell::new(0));
        let count = written.clone();
        let mut body = Body::from_writer(|mut out| async move {
            loop {
                *count.borrow_mut() += 1;
                out.write("x").await?;
            }
        });
        assert_eq!(*written.borrow(), 0);
        for taken in 1..=3 {
            block_on(body.chunk()).expect("readable").expect("a chunk");
            assert_eq!(*written.borrow(), taken + 1);
        }
    }

    /// As futures in a `FuturesUnordered` are polled.
    #[test]
    fn a_write_that_waits_is_woken() {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let body = Body::from_writer(|mut out| async move {
            let mut writing = Box::pin(async move {
                out.write("a").await?;
                out.write("b").await
            });
            let woken = Arc::new(Flag(AtomicBool::new(true)));
            poll_fn(|_| {
                if !woken.0.swap(false, Ordering::Relaxed) {
                    return Poll::Pending;
                }
                writing.as_mut().poll(&mut Context::from_waker(&woken.clone().into()))
            })
            .await
        });
        assert_eq!(block_on(body.text(8)).expect("readable"), "ab");
    }
}
