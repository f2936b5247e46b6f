//! One connection to another server: HTTP/1.1, or HTTP/2 where that was agreed on in the handshake of TLS. A task drives it
//! until it is closed; requests are sent through a handle.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use wasmtime_wasi_http::Error;

use super::failure;
use super::upload::Begun;

/// What is agreed on in a handshake of TLS, in the order in which it is liked.
pub(crate) const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A TCP stream whose end is seen by those who do not read it, too.
#[derive(Clone)]
pub(crate) struct Wire(Arc<TcpStream>);

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Whether the other side is there, and has said nothing: what an idle connection must be.
    fn is_silent(&self) -> bool {
        let looked = recv(self.0.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        looked == Err(Errno::EAGAIN)
    }

    fn poll_try(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // What most requests are. To the kernel, that is less work than a list.
            [only] => self.poll_write(context, only),
            several => self.poll_try(context, |stream| stream.try_write_vectored(several)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}

/// Who is told how a connection ends, while it carries their request.
type Awaiter = Arc<Mutex<Option<oneshot::Sender<Error>>>>;

/// Requests that share a connection of HTTP/2. Beyond that, another is opened: one that stops reading stops the others only
/// when the window of all is full.
const MAX_SHARED: usize = 32;
/// Bytes of an answer that wait for the guest, over HTTP/2; and of all answers of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_SHARED as u32;

/// A handle of a connection.
pub(crate) struct Upstream {
    sender: Sender,
    wire: Wire,
    /// Of HTTP/2, nobody: each request has its own answer.
    awaiter: Awaiter,
}

enum Sender {
    Http1(http1::SendRequest<Begun>),
    Http2 {
        sender: http2::SendRequest<Begun>,
        shared: Arc<Sharing>,
        /// For a request, unless it is there to be shared.
        _place: Option<SharedPlace>,
    },
}

/// What the handles of a connection know of each other.
struct Sharing {
    requests: AtomicUsize,
    /// So many it may have: what the other side permits, if that is less than our own bound.
    most: AtomicUsize,
    /// It takes no more requests, though it may have some.
    is_retired: AtomicBool,
}

/// One of the requests of a connection.
struct SharedPlace(Arc<Sharing>);

impl SharedPlace {
    fn take(shared: &Arc<Sharing>) -> Self {
        shared.requests.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for SharedPlace {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstream {
    /// Speaks HTTP on a stream, over which its bytes go to `wire`.
    pub(crate) async fn begin<S>(stream: S, wire: Wire, is_http2: bool, max_head: usize) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, awaiter) = (TokioIo::new(stream), Awaiter::default());
        let sender = if is_http2 {
            let mut http = http2::Builder::new(TokioExecutor::new());
            http.max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX));
            http.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
            let (sender, mut connection) = http.handshake(stream).await.map_err(failure)?;
            let most = AtomicUsize::new(MAX_SHARED);
            let shared = Arc::new(Sharing { requests: AtomicUsize::new(0), most, is_retired: AtomicBool::new(false) });
            let told = shared.clone();
            tokio::spawn(async move {
                let ended = poll_fn(|context| {
                    let polled = Pin::new(&mut connection).poll(context);
                    told.most.store(MAX_SHARED.min(connection.current_max_send_streams()), Ordering::Relaxed);
                    polled
                });
                if let Err(error) = ended.await {
                    tracing::debug!("an outbound connection ended early: {error}");
                }
            });
            let place = SharedPlace::take(&shared);
            Sender::Http2 { sender, shared, _place: Some(place) }
        } else {
            let mut http = http1::Builder::new();
            http.max_buf_size(max_head);
            let (sender, connection) = http.handshake(stream).await.map_err(failure)?;
            tokio::spawn(drive(connection, awaiter.clone()));
            Sender::Http1(sender)
        };
        Ok(Self { sender, wire, awaiter })
    }

    /// A handle to be shared, if several requests may be under way at the same time.
    pub(crate) fn share(&self) -> Option<Self> {
        self.another(|_| None)
    }

    /// A handle for another request, if several may be under way at the same time.
    pub(crate) fn join(&self) -> Option<Self> {
        self.another(|shared| Some(SharedPlace::take(shared)))
    }

    fn another(&self, place: impl Fn(&Arc<Sharing>) -> Option<SharedPlace>) -> Option<Self> {
        let Sender::Http2 { sender, shared, .. } = &self.sender else { return None };
        let sender = Sender::Http2 { sender: sender.clone(), shared: shared.clone(), _place: place(shared) };
        Some(Self { sender, wire: self.wire.clone(), awaiter: Awaiter::default() })
    }

    /// Whether it will never take another request.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2 { sender, shared, .. } => sender.is_closed() || shared.is_retired.load(Ordering::Relaxed),
        }
    }

    /// Whether it takes another request now, as far as can be told.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready() && self.wire.is_silent(),
            Sender::Http2 { shared, .. } => {
                !self.is_closed() && shared.requests.load(Ordering::Relaxed) < shared.most.load(Ordering::Relaxed)
            }
        }
    }

    /// Has it take no more requests.
    pub(crate) fn retire(&self) {
        if let Sender::Http2 { shared, .. } = &self.sender {
            shared.is_retired.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2 { .. })
    }

    /// Sends a request. It comes back with the error if it surely was not sent.
    pub(crate) async fn send(
        &mut self,
        request: http::Request<Begun>,
    ) -> Result<http::Response<Incoming>, TrySendError<http::Request<Begun>>> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2 { sender, .. } => sender.try_send_request(request).await,
        }
    }

    /// What becomes of the request that is sent next: an error comes here, or nothing if all is well.
    pub(crate) fn watch(&self) -> oneshot::Receiver<Error> {
        let (tell, told) = oneshot::channel();
        *self.awaiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        told
    }

    /// The exchange is over, whatever becomes of the connection.
    pub(crate) fn rests(&self) {
        self.awaiter.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Whether the other side says that it has not begun with a request, and will not (RFC 9113, section 8.7).
pub(crate) fn is_unprocessed(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    let is = |reason| error.is_remote() && error.reason() == Some(reason);
    (error.is_reset() && is(h2::Reason::REFUSED_STREAM)) || (error.is_go_away() && is(h2::Reason::NO_ERROR))
}

/// Drives a connection of HTTP/1.1 to its end. What becomes of an answer's body, the body tells; here counts what becomes of
/// the request. A server that says more than its answer (RFC 9112, section 6.3: a body behind an answer that has none)
/// loses the connection and nothing else.
async fn drive<S>(connection: http1::Connection<TokioIo<S>, Begun>, awaiter: Awaiter)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let ended = connection.await;
    let waiting = awaiter.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Err(error), Some(waiting)) = (ended, waiting)
        && (error.is_user() || error.is_body_write_aborted() || error.is_incomplete_message())
    {
        let _ = waiting.send(failure(error));
    }
}
