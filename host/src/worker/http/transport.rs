//! What carries the bytes of a connection.

use std::future::Future;
use std::io::{self, IoSlice, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// What is known of a client's side without asking the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Open,
    /// Nothing comes behind what is still to be read. The client may have left, or read on.
    Shut,
    /// The connection is broken.
    Gone,
}

impl Side {
    fn of(ready: impl Future<Output = io::Result<Ready>>) -> Self {
        // Nobody is woken by it.
        match pin!(ready).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(ready)) if ready.is_write_closed() => Self::Gone,
            Poll::Ready(Ok(ready)) if ready.is_read_closed() => Self::Shut,
            Poll::Ready(Err(_)) => Self::Gone,
            Poll::Ready(Ok(_)) | Poll::Pending => Self::Open,
        }
    }
}

/// What carries a connection's bytes.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// By what the kernel last said of its readiness, which has the ends of both directions.
    fn side(&self) -> Side;

    /// Has the client see its end as an error, not as the end of what was sent.
    fn reset_at_close(&self);
}

/// Of what is asked for, these are told: PRIORITY comes with the end of what can be read, and is nothing that is
/// registered for by itself; WRITABLE with that of what can be written.
const ENDS: Interest = Interest::PRIORITY.add(Interest::WRITABLE);

/// So short an answer is put together before it is written: to copy it costs less than `writev` takes for its parts.
const PUT_TOGETHER: usize = 1024;

/// Writes several parts as one, as far as the kernel takes them.
pub(super) fn poll_write_together<S: Transport>(
    stream: Pin<&mut S>,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [only] = slices {
        return stream.poll_write(context, only);
    }
    let length: usize = slices.iter().map(|slice| slice.len()).sum();
    if length > PUT_TOGETHER {
        return stream.poll_write_vectored(context, slices);
    }
    let mut whole = [0; PUT_TOGETHER];
    let length = (&mut whole[..]).write_vectored(slices)?;
    stream.poll_write(context, &whole[..length])
}

impl Transport for TcpStream {
    fn side(&self) -> Side {
        Side::of(self.ready(ENDS))
    }

    fn reset_at_close(&self) {
        // Without it the connection ends as if all was well, which cannot be helped then.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Transport for UnixStream {
    fn side(&self) -> Side {
        Side::of(self.ready(ENDS))
    }

    fn reset_at_close(&self) {
        // Without it the connection ends as if all was well, which cannot be helped then.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}
