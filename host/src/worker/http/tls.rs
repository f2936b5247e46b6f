//! TLS on a stream: the handshake, with a bound on how many are under way, and what is read and written behind it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustls::ServerConnection;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::transport::{Side, Transport, poll_write_together};
use crate::tls::credentials::Credentials;

/// The first byte of every TLS connection: a record of the kind "handshake" (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;
/// How long a handshake may take at least, when others want its place.
const CHANCE: Duration = Duration::from_secs(1);
/// Encrypted bytes of a connection that wait for the kernel. Rustls would keep 64 KiB.
const MAX_OUTGOING: usize = 32 * 1024;

/// What handshakes of a worker share.
#[derive(Debug)]
pub(crate) struct Handshakes {
    credentials: Arc<Credentials>,
    /// One for each that may be under way.
    places: Semaphore,
    /// Those that are under way, in the order in which they began. Notified, one gives its place to another.
    underway: RefCell<BTreeMap<u64, (Instant, Rc<Notify>)>>,
    last: Cell<u64>,
    /// Held while a signature is made, and until everybody else had a turn behind it. A flood of handshakes then adds one
    /// signature to the time of each request, not as many as there are places.
    turn: Semaphore,
}

impl Handshakes {
    pub(crate) fn new(credentials: Arc<Credentials>, max: usize) -> Self {
        let (places, turn) = (Semaphore::new(max), Semaphore::new(1));
        Self { credentials, places, underway: RefCell::default(), last: Cell::new(0), turn }
    }

    /// A place among those that are under way. The one that has taken longest makes room for others when it has had its
    /// chance: else a few clients that go no further would keep everybody out.
    async fn begin(&self) -> Underway<'_> {
        let mut place = pin!(self.places.acquire());
        let place = loop {
            tokio::select! {
                biased;
                place = &mut place => break place.expect("the places are never closed"),
                () = tokio::time::sleep(self.makes_room_in()) => self.make_room(),
            }
        };
        let (number, given_up) = (self.last.get() + 1, Rc::new(Notify::new()));
        self.last.set(number);
        self.underway.borrow_mut().insert(number, (Instant::now(), given_up.clone()));
        Underway { handshakes: self, number, given_up, _place: place }
    }

    /// Ends the one that has taken longest, unless another that waits has ended that by now.
    fn make_room(&self) {
        if self.makes_room_in().is_zero()
            && let Some((_, (_, given_up))) = self.underway.borrow_mut().pop_first()
        {
            given_up.notify_one();
        }
    }

    /// When the one that has taken longest has had its chance.
    fn makes_room_in(&self) -> Duration {
        let underway = self.underway.borrow();
        underway.first_key_value().map_or(CHANCE, |(_, (since, _))| CHANCE.saturating_sub(since.elapsed()))
    }
}

/// A handshake that has a place, until this is dropped.
struct Underway<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    /// Notified when it is to make room.
    given_up: Rc<Notify>,
    _place: SemaphorePermit<'a>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.handshakes.underway.borrow_mut().remove(&self.number);
    }
}

/// Why there is no encrypted stream.
#[derive(Debug)]
pub(super) enum NoHandshake {
    /// The client left before it said a word.
    Silence,
    ClearText(TcpStream),
    Failed(io::Error),
}

impl From<io::Error> for NoHandshake {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// The handshake. Sets `has_begun` at the first byte.
///
/// A client that is silent, or sends its first message bit by bit, holds no place.
pub(super) async fn negotiate(
    stream: TcpStream,
    handshakes: &Handshakes,
    has_begun: &Cell<bool>,
) -> Result<SecureStream, NoHandshake> {
    let mut first = [0];
    // Left in the socket: rustls would answer clear text with an alert.
    if stream.peek(&mut first).await? == 0 {
        return Err(NoHandshake::Silence);
    }
    has_begun.set(true);
    if first != [HANDSHAKE] {
        return Err(NoHandshake::ClearText(stream));
    }
    let address = stream.local_addr()?.ip().to_canonical();
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Records(stream)).await?;
    let underway = handshakes.begin().await;
    let turn = handshakes.turn.acquire().await;
    let config = handshakes.credentials.config(address);
    // This signs, and the first poll sends what was signed.
    let mut accepting = hello.into_stream_with(config, |session| session.set_buffer_limit(Some(MAX_OUTGOING)));
    let accepted = poll_fn(|context| Poll::Ready(Pin::new(&mut accepting).poll(context))).await;
    tokio::task::yield_now().await;
    drop(turn);
    if let Poll::Ready(accepted) = accepted {
        return Ok(SecureStream(accepted?));
    }
    tokio::select! {
        biased;
        accepted = accepting => Ok(SecureStream(accepted?)),
        () = underway.given_up.notified() => Err(io::Error::new(io::ErrorKind::TimedOut, "it made room for another").into()),
    }
}

/// What encrypted bytes go through. rustls hands its records over as parts, of which a short answer has one.
#[derive(Debug)]
struct Records(TcpStream);

impl AsyncRead for Records {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Records {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_together(Pin::new(&mut self.0), context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// An encrypted stream. What is written is in the kernel only when it was flushed.
#[derive(Debug)]
pub(super) struct SecureStream(TlsStream<Records>);

impl SecureStream {
    /// What was agreed on.
    pub(super) fn session(&self) -> &ServerConnection {
        self.0.get_ref().1
    }
}

impl Transport for SecureStream {
    fn side(&self) -> Side {
        self.0.get_ref().0.0.side()
    }

    fn reset_at_close(&self) {
        self.0.get_ref().0.0.reset_at_close();
    }
}

impl AsyncRead for SecureStream {
    /// An end without a `close_notify` is one like any other: a request that was cut shows in its framing.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(context, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
