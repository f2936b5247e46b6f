//! A body of either direction: bytes known in full, the body of the incoming request, or a stream of chunks.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use send_wrapper::SendWrapper;

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

    /// Whatever another crate calls a body, with its trailers.
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
        Self::of(Kind::Other(Box::pin(Foreign(SendWrapper::new(Box::pin(body))))))
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

    #[cfg(target_arch = "wasm32")]
    pub(crate) const fn incoming(incoming: Incoming) -> Self {
        Self::of(Kind::Incoming(incoming))
    }

    /// As a server has sent it that the guest asked.
    pub(crate) fn fetched(mut self) -> Self {
        self.is_fetched = true;
        self
    }

    /// What to answer when its contents are wrong, if it is `status` where the client has sent it.
    pub(crate) fn blame(&self, status: StatusCode) -> StatusCode {
        if self.is_fetched { StatusCode::BAD_GATEWAY } else { status }
    }

    /// The next chunk, never empty; `None` at the end. Trailers are passed over: `http_body::Body` yields them.
    ///
    /// ```
    /// # use wasmcluster_guest::{Request, Result, testing};
    /// async fn count(request: Request) -> Result<String> {
    ///     let (mut body, mut bytes) = (request.into_body(), 0);
    ///     while let Some(chunk) = body.chunk().await? {
    ///         bytes += chunk.len();
    ///     }
    ///     Ok(format!("{bytes} bytes"))
    /// }
    /// # assert_eq!(testing::call(count, Request::new("text".into())).text(), "4 bytes");
    /// ```
    ///
    /// # Errors
    ///
    /// When the body ends before it is complete, because the client left for example.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await;
            match frame.transpose().map_err(BodyError::into_inner)? {
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
    /// ```
    /// # use wasmcluster_guest::{Body, TooLarge, testing};
    /// # testing::block_on(async {
    /// assert_eq!(Body::from("text").bytes(4).await.unwrap(), "text");
    /// let error = Body::from("text").bytes(3).await.unwrap_err();
    /// assert_eq!((error.status().as_u16(), error.downcast_ref()), (413, Some(&TooLarge { limit: 3 })));
    /// # });
    /// ```
    ///
    /// # Errors
    ///
    /// [`TooLarge`] with status 413, as soon as the body is known to exceed the limit; otherwise those of [`Body::chunk`].
    /// The status is 502 where the body is that of a response which was [fetched](crate::fetch).
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes> {
        let status = self.blame(StatusCode::PAYLOAD_TOO_LARGE);
        let too_large = || Error::new(status, TooLarge { limit });
        if self.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        if first.len() > limit {
            return Err(too_large());
        }
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if chunk.len() > limit - whole.len() {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
            next = self.chunk().await?;
        }
        Ok(whole.freeze())
    }

    /// The whole body as text, if it has at most `limit` bytes.
    ///
    /// ```
    /// # use wasmcluster_guest::{Body, testing};
    /// # testing::block_on(async {
    /// assert_eq!(Body::from("text").text(64).await.unwrap(), "text");
    /// # });
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Body::bytes`], and one with status 400, or 502, when the body is not UTF-8.
    pub async fn text(self, limit: usize) -> Result<String> {
        let status = self.blame(StatusCode::BAD_REQUEST);
        String::from_utf8(self.bytes(limit).await?.into()).map_err(|error| Error::new(status, error))
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

/// A body of another crate, with its errors converted.
struct Foreign<B>(SendWrapper<Pin<Box<B>>>);

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
        self.0.as_mut().poll_frame(context).map_err(|error| BodyError(error.into()))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
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

/// A body ended before it was complete: an [`Error`] as a [`std::error::Error`], which is what other crates want of a
/// body's.
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

/// A body was longer than the handler was ready to read.
///
/// ```
/// use wasmcluster_guest::TooLarge;
/// assert_eq!(TooLarge { limit: 3 }.to_string(), "the body is larger than 3 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// How many bytes would have been read.
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body is larger than {} bytes", self.limit)
    }
}

impl StdError for TooLarge {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::testing::block_on;

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

    #[test]
    fn a_fetched_body_is_not_the_client_s_fault() {
        let status = |body: Body| block_on(body.text(3)).expect_err("wrong").status();
        assert_eq!(
            (status("abcd".into()), status(vec![0xff].into())),
            (StatusCode::PAYLOAD_TOO_LARGE, StatusCode::BAD_REQUEST)
        );
        let fetched = |bytes: &'static [u8]| status(Body::from(Bytes::from_static(bytes)).fetched());
        assert_eq!((fetched(b"abcd"), fetched(b"\xff")), (StatusCode::BAD_GATEWAY, StatusCode::BAD_GATEWAY));
    }

    #[test]
    fn only_bytes_in_hand_are_known() {
        assert_eq!(Body::from("abc").size_hint().exact(), Some(3));
        assert!(Body::from("abc").known().is_ok());
        assert_eq!(streamed(&["abc"]).size_hint().exact(), None);
        assert!(streamed(&["abc"]).known().is_err());
    }
}
