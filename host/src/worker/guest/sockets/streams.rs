//! The two sides of a connection, as streams of WASI 0.2 and 0.3.

use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime::{AsContextMut, StoreContextMut};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi::sockets::ErrorCode;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError};

use super::SocketPlaces;

/// Bytes that a guest gets or gives at once, by WASI 0.2. So many of a connection's are the host's to keep.
const MAX_PIECE: usize = 64 * 1024;
/// What WASI 0.3 reads into where the guest has no room of its own yet.
const BUFFER: usize = 8 * 1024;

/// A connection, for its socket and its two sides.
pub(super) struct SocketStream {
    stream: TcpStream,
    _places: SocketPlaces,
}

impl Deref for SocketStream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl SocketStream {
    pub(super) fn new(stream: TcpStream, places: SocketPlaces) -> Self {
        Self { stream, _places: places }
    }

    /// What has come by now can still be read.
    pub(super) fn end_receiving(&self) {
        // It may have ended already.
        let _ = shutdown(self.as_raw_fd(), Shutdown::Read);
    }

    fn end_sending(&self) {
        let _ = shutdown(self.as_raw_fd(), Shutdown::Write);
    }

    fn poll_read(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.poll_read_ready(context))?,
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.poll_write_ready(context))?,
                other => return Poll::Ready(other),
            }
        }
    }

    async fn write_all(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            self.writable().await?;
            match self.try_write(&bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What comes, by WASI 0.2.
pub(super) struct SocketInput(pub(super) Arc<SocketStream>);

#[async_trait]
impl InputStream for SocketInput {
    fn read(&mut self, size: usize) -> Result<Bytes, StreamError> {
        let mut buffer = BytesMut::zeroed(size.min(MAX_PIECE));
        match self.0.try_read(&mut buffer) {
            Ok(0) if size > 0 => Err(StreamError::Closed),
            Ok(length) => {
                buffer.truncate(length);
                Ok(buffer.freeze())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Bytes::new()),
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}

#[async_trait]
impl Pollable for SocketInput {
    async fn ready(&mut self) {
        // An error shows with the next read.
        let _ = self.0.readable().await;
    }
}

/// What a guest writes, by WASI 0.2. What the kernel has no room for is written by a task, which ends with this.
#[derive(Clone)]
pub(super) struct SocketOutput(Arc<Mutex<Writing>>);

struct Writing {
    stream: Arc<SocketStream>,
    rest: Option<AbortOnDropJoinHandle<io::Result<()>>>,
    /// Nothing more can be written; with an error that was not told yet.
    over: Option<Option<io::Error>>,
}

impl SocketOutput {
    pub(super) fn new(stream: Arc<SocketStream>) -> Self {
        Self(Arc::new(Mutex::new(Writing { stream, rest: None, over: None })))
    }

    /// Ends it, behind what is written.
    pub(super) fn end(&self) {
        self.with(|writing| {
            writing.over.get_or_insert(None);
            let stream = writing.stream.clone();
            match writing.rest.take() {
                None => stream.end_sending(),
                Some(rest) => {
                    writing.rest = Some(spawn(async move {
                        let written = rest.await;
                        stream.end_sending();
                        written
                    }));
                }
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Writing) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Writing {
    fn write(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        self.check()?;
        if self.rest.is_some() || bytes.len() > MAX_PIECE {
            return Err(StreamError::trap("more was written than there was leave for"));
        }
        while !bytes.is_empty() {
            match self.stream.try_write(&bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let stream = self.stream.clone();
                    self.rest = Some(spawn(async move { stream.write_all(bytes).await }));
                    return Ok(());
                }
                Err(error) => {
                    self.over = Some(Some(error));
                    return self.check();
                }
            }
        }
        Ok(())
    }

    /// Whether it goes on. An error is told once.
    fn check(&mut self) -> Result<(), StreamError> {
        match &mut self.over {
            None => Ok(()),
            Some(error) => Err(match error.take() {
                Some(error) if error.kind() != ErrorKind::BrokenPipe => StreamError::LastOperationFailed(error.into()),
                _ => StreamError::Closed,
            }),
        }
    }

    /// Until something can be written, or nothing any more.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            let written = ready!(Pin::new(rest).poll(context));
            self.rest = None;
            if let Err(error) = written {
                self.over = Some(Some(error));
            }
        }
        if self.over.is_some() {
            return Poll::Ready(());
        }
        self.stream.poll_write_ready(context).map(|_| ())
    }
}

#[async_trait]
impl OutputStream for SocketOutput {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.with(|writing| writing.write(bytes))
    }

    /// The kernel and the task do what they can.
    fn flush(&mut self) -> Result<(), StreamError> {
        self.with(Writing::check)
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        self.with(|writing| {
            let is_ready = writing.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready();
            writing.check()?;
            Ok(if is_ready { MAX_PIECE } else { 0 })
        })
    }
}

#[async_trait]
impl Pollable for SocketOutput {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.with(|writing| writing.poll_ready(context))).await;
    }
}

/// One side of a connection, by WASI 0.3, and who is told how it ended.
struct SocketSide(Option<(Arc<SocketStream>, TellEnd)>);

type TellEnd = oneshot::Sender<Result<(), ErrorCode>>;

impl SocketSide {
    fn end(&mut self, how: Result<(), ErrorCode>) {
        if let Some((_, tell)) = self.0.take() {
            // The guest may not care.
            let _ = tell.send(how);
        }
    }
}

/// What comes, by WASI 0.3.
pub(super) struct SocketProducer(SocketSide);

impl SocketProducer {
    pub(super) fn new(stream: Arc<SocketStream>, tell: TellEnd) -> Self {
        Self(SocketSide(Some((stream, tell))))
    }
}

impl Drop for SocketProducer {
    fn drop(&mut self) {
        if let Some((stream, _)) = &self.0.0 {
            stream.end_receiving();
        }
        self.0.end(Ok(()));
    }
}

impl<D> StreamProducer<D> for SocketProducer {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some((stream, _)) = &self.0.0 else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        let done = if destination.remaining(store.as_context_mut()) == Some(0) {
            stream.poll_read_ready(context).map(|_| StreamResult::Completed)
        } else {
            let mut destination = destination.as_direct(store, BUFFER);
            stream.poll_read(context, destination.remaining()).map(|read| match read {
                Ok(length @ 1..) => {
                    destination.mark_written(length);
                    StreamResult::Completed
                }
                other => {
                    self.0.end(other.map(drop).map_err(Into::into));
                    StreamResult::Dropped
                }
            })
        };
        cancelled_if(finish, done)
    }
}

/// What a guest writes, by WASI 0.3. When it is over, the other side is told.
pub(super) struct SocketConsumer(SocketSide);

impl SocketConsumer {
    pub(super) fn new(stream: Arc<SocketStream>, tell: TellEnd) -> Self {
        Self(SocketSide(Some((stream, tell))))
    }
}

impl Drop for SocketConsumer {
    fn drop(&mut self) {
        if let Some((stream, _)) = &self.0.0 {
            stream.end_sending();
        }
        self.0.end(Ok(()));
    }
}

impl<D> StreamConsumer<D> for SocketConsumer {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        store: StoreContextMut<D>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some((stream, _)) = &self.0.0 else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        let mut source = source.as_direct(store);
        let done = if source.remaining().is_empty() {
            stream.poll_write_ready(context).map(|_| StreamResult::Completed)
        } else {
            stream.poll_write(context, source.remaining()).map(|written| match written {
                Ok(length) => {
                    source.mark_read(length);
                    StreamResult::Completed
                }
                Err(error) => {
                    self.0.end(Err(error.into()));
                    StreamResult::Dropped
                }
            })
        };
        cancelled_if(finish, done)
    }
}

/// A call that is to end now has done nothing if it would have to wait.
fn cancelled_if(finish: bool, done: Poll<StreamResult>) -> Poll<wasmtime::Result<StreamResult>> {
    match done {
        Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
        other => other.map(Ok),
    }
}
