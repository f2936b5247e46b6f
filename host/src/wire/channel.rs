//! What a primary and its workers say to each other, over a pair of SOCK_SEQPACKET sockets.
//!
//! A frame is one packet: a version byte, then the message as JSON, [`MAX_FRAME`] bytes at most. Descriptors travel
//! beside a frame as SCM_RIGHTS. The two ends have types of their own, so neither can say what only the other may.

#[cfg(test)]
mod fuzz;

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::unistd::{getpgrp, getpid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest frame, version byte included.
pub(crate) const MAX_FRAME: usize = 64 * 1024;
/// Longest error text in a frame; what is longer is cut.
pub(crate) const MAX_ERROR: usize = 4 * 1024;
/// The version that is spoken, and the oldest that is understood: the ends may be of two releases while a host is upgraded.
const VERSION: u8 = 2;
const OLDEST: u8 = 2;
/// Frames that a worker may leave unread.
pub(crate) const MAX_UNREAD: u64 = 64;

/// A message, with the number of descriptors that may come beside it. Where none are expected the kernel discards
/// them; the frame then counts as truncated.
pub(crate) trait Message: DeserializeOwned {
    const MAX_DESCRIPTORS: usize;
}

/// Why a frame could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpcError {
    #[error("does not read its messages: its queue is full")]
    Full,
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    #[error("a frame is over the limit of {MAX_FRAME} bytes or carries too many descriptors")]
    Truncated,
    #[error("a frame of version {0}, expected {OLDEST} to {VERSION}")]
    Version(u8),
    #[error("a frame does not parse: {0}")]
    Malformed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<serde_json::Error> for IpcError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<Errno> for IpcError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN => Self::Full,
            other => Self::Io(other.into()),
        }
    }
}

/// One end of the pair, which sends `S` and receives `R`.
#[derive(Debug)]
pub(crate) struct Channel<S, R> {
    fd: OwnedFd,
    messages: PhantomData<fn(S) -> R>,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Received<R> {
    /// A message and what came beside it.
    Message(R, Vec<OwnedFd>),
    /// The other side is gone.
    Closed,
    /// Nothing yet; only when asked not to wait.
    Nothing,
}

/// Whether to wait for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Yes,
    No,
}

/// A connected pair; both ends close on exec.
pub(crate) fn pair<A, B>() -> io::Result<(Channel<A, B>, Channel<B, A>)> {
    let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((Channel::from(one), Channel::from(other)))
}

impl<S, R> From<OwnedFd> for Channel<S, R> {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, messages: PhantomData }
    }
}

impl<S, R> From<Channel<S, R>> for OwnedFd {
    fn from(channel: Channel<S, R>) -> Self {
        channel.fd
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<S, R> AsRawFd for Channel<S, R> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl<S, R> Channel<S, R> {
    /// Lets the executor, on which this must be called, tell when something can be received.
    pub(crate) fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: a channel owns its descriptor, reports the same one for life, and closes it only when it drops.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }.map_err(io::Error::from)
    }
}

impl<S: Serialize, R: Message> Channel<S, R> {
    /// Sends without waiting: a side that does not read is an error, not a stop.
    pub(crate) fn send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let frame = encode(message)?;
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let beside = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(&frame)], beside, flags, None)?;
        Ok(())
    }

    /// The next message.
    pub(crate) fn receive(&self, wait: Wait) -> Result<Received<R>, IpcError> {
        let mut frame = vec![0; MAX_FRAME];
        // One header, which has room for a descriptor, and the further descriptors behind it.
        let mut space = vec![0; cmsg_space!(RawFd).len() + R::MAX_DESCRIPTORS * size_of::<RawFd>()];
        let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
        if wait == Wait::No {
            flags |= MsgFlags::MSG_DONTWAIT;
        }
        let (length, received_flags, descriptors) = loop {
            let mut buffers = [IoSliceMut::new(&mut frame)];
            let beside = if R::MAX_DESCRIPTORS > 0 { Some(&mut space[..]) } else { None };
            match recvmsg::<()>(self.fd.as_fd().as_raw_fd(), &mut buffers, beside, flags) {
                Ok(message) => break (message.bytes, message.flags, take_descriptors(&message)?),
                // A side that died with unread frames is reported once, before the frames that it had sent.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(errno) => return Err(errno.into()),
            }
        };
        if length == 0 {
            return Ok(Received::Closed);
        }
        if received_flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(IpcError::Truncated);
        }
        Ok(Received::Message(decode(&frame[..length])?, descriptors))
    }
}

/// The next message, with what came beside it; None when the other side is gone.
pub(crate) async fn next<S: Serialize, R: Message>(
    channel: &AsyncFd<Channel<S, R>>,
) -> Result<Option<(R, Vec<OwnedFd>)>, IpcError> {
    loop {
        let mut ready = channel.readable().await?;
        match channel.get_ref().receive(Wait::No)? {
            Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
            Received::Closed => return Ok(None),
            Received::Nothing => ready.clear_ready(),
        }
    }
}

/// Ends this process, which answers one question, as soon as whoever asked is gone: nobody waits for the answer any more.
pub(crate) fn end_with<S, R>(peer: Arc<Channel<S, R>>)
where
    S: Serialize + Send + Sync + 'static,
    R: Message + Send + Sync + 'static,
{
    std::thread::spawn(move || {
        while let Ok(Received::Message(..)) = peer.receive(Wait::Yes) {}
        // It leads a process group of its own, if it was started as our children are: what it started ends with it.
        if getpgrp() == getpid() {
            let _ = killpg(getpgrp(), Signal::SIGKILL);
        }
        #[expect(
            clippy::exit,
            reason = "a process of one question holds nothing that a destructor would have to save"
        )]
        std::process::exit(1);
    });
}

fn take_descriptors<A>(message: &nix::sys::socket::RecvMsg<'_, '_, A>) -> Result<Vec<OwnedFd>, IpcError> {
    let mut descriptors = Vec::new();
    // Fails where descriptors were cut off.
    for control in message.cmsgs().map_err(|_| IpcError::Truncated)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel made these descriptors for this message, and nothing else knows them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(descriptors)
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, IpcError> {
    let mut frame = vec![VERSION];
    serde_json::to_writer(&mut frame, message)?;
    if frame.len() > MAX_FRAME { Err(IpcError::TooLong(frame.len())) } else { Ok(frame) }
}

fn decode<R: DeserializeOwned>(frame: &[u8]) -> Result<R, IpcError> {
    match frame {
        [OLDEST..=VERSION, message @ ..] => Ok(serde_json::from_slice(message)?),
        [version, ..] => Err(IpcError::Version(*version)),
        [] => Err(IpcError::Truncated),
    }
}

/// Cuts a text that goes into a frame.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::send;

    use super::*;
    use crate::os::listener::{Entrance, Security};
    use crate::wire::ids::{Generation, Slot, WorkerId};
    use crate::wire::messages::{Identity, Inherited, PrimaryEnd, ToPrimary, ToWorker, WorkerEnd};

    fn received(channel: &PrimaryEnd) -> Result<Received<ToPrimary>, IpcError> {
        channel.receive(Wait::No)
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        let identity = Identity {
            worker: WorkerId(3),
            slot: Slot(1),
            generation: Generation(2),
            digest: "sha256:00".into(),
            workers: 4,
        };
        let (reader, _writer) = std::io::pipe().unwrap();
        let inherited =
            vec![Inherited::Log, Inherited::Listener(Entrance { security: Security::Tls, takes_proxy: true })];
        let start = ToWorker::Start { identity: identity.clone(), inherited: inherited.clone() };
        primary.send(&start, &[reader.as_fd(), reader.as_fd()]).unwrap();
        match worker.receive(Wait::Yes).unwrap() {
            Received::Message(ToWorker::Start { identity: got, inherited: named }, descriptors) => {
                assert_eq!((got, named), (identity, inherited));
                assert_eq!(descriptors.len(), 2);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_and_absence_are_told_apart() {
        let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        assert!(matches!(received(&primary), Ok(Received::Nothing)));
        drop(worker);
        assert!(matches!(received(&primary), Ok(Received::Closed)));
    }

    #[test]
    fn bad_frames_are_errors() {
        let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        let say = |bytes: &[u8]| send(worker.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
        for version in [OLDEST - 1, VERSION + 1] {
            say(&[version, b'{', b'}']);
            assert!(matches!(received(&primary), Err(IpcError::Version(unknown)) if unknown == version));
        }
        say(b"\x02{\"Nonsense\":1}");
        assert!(matches!(received(&primary), Err(IpcError::Malformed(_))));
        say(b"\x02\xff\xfe");
        assert!(matches!(received(&primary), Err(IpcError::Malformed(_))));
        say(&vec![VERSION; MAX_FRAME + 1]);
        assert!(matches!(received(&primary), Err(IpcError::Truncated)));
        worker.send(&ToPrimary::Ready, &[]).unwrap();
        assert!(matches!(received(&primary), Ok(Received::Message(ToPrimary::Ready, _))));
    }

    #[test]
    fn descriptors_that_nobody_expects_are_not_kept() {
        let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        worker.send(&ToPrimary::Ready, &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(received(&primary), Err(IpcError::Truncated)));
        // The last writer is gone: reading ends.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    }

    #[test]
    fn last_words_are_heard() {
        let (primary, worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        primary.send(&ToWorker::StartAccepting, &[]).unwrap();
        worker.send(&ToPrimary::Ready, &[]).unwrap();
        drop(worker);
        assert!(matches!(received(&primary), Ok(Received::Message(ToPrimary::Ready, _))));
        assert!(matches!(received(&primary), Ok(Received::Closed)));
    }

    #[test]
    fn sending_to_a_side_that_does_not_read_never_blocks() {
        let (primary, _worker): (PrimaryEnd, WorkerEnd) = pair().unwrap();
        let failure = (0..100_000).find_map(|_| primary.send(&ToWorker::StartAccepting, &[]).err());
        assert!(matches!(failure, Some(IpcError::Full)));
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        let cut = bounded("é".repeat(MAX_ERROR));
        assert!(cut.len() <= MAX_ERROR + '…'.len_utf8() && cut.ends_with('…'));
        assert_eq!(bounded("short".into()), "short");
    }
}
