//! The keeper of key-value stores as a child process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;

use super::process::execute;
use crate::os::child::Child;
use crate::wire::channel::{self, Channel, IpcError};
use crate::wire::ids::WorkerId;
use crate::wire::messages::{FileStore, FromKeeper, ToKeeper};

/// A running keeper. It ends when this is dropped, and when it has served the workers that are left.
#[derive(Debug)]
pub(crate) struct KeeperProcess {
    pub(crate) child: Child,
    channel: AsyncFd<Channel<ToKeeper, FromKeeper>>,
}

/// What came of a keeper.
#[derive(Debug)]
pub(crate) enum KeeperNews {
    Said(FromKeeper),
    /// It broke the protocol.
    Nonsense(IpcError),
    Ended(String),
}

impl KeeperProcess {
    /// Must be called on the executor.
    pub(crate) fn spawn() -> io::Result<Self> {
        let (ours, theirs): (Channel<ToKeeper, FromKeeper>, _) = channel::pair::<ToKeeper, FromKeeper>()?;
        let channel = ours.into_async()?;
        let child = execute("keeper", OwnedFd::from(theirs), Stdio::null(), Stdio::inherit())?;
        Ok(Self { child, channel })
    }

    /// Has it serve a worker; the worker's end.
    pub(crate) fn serve(&self, worker: WorkerId, stores: Vec<FileStore>) -> Result<OwnedFd, IpcError> {
        let (ours, theirs) = UnixStream::pair()?;
        self.channel.get_ref().send(&ToKeeper::Serve { worker, stores }, &[ours.as_fd()])?;
        Ok(theirs.into())
    }

    /// Lets it end.
    pub(crate) fn hang_up(&self) {
        // It may have ended already.
        let _ = shutdown(self.channel.get_ref().as_fd().as_raw_fd(), Shutdown::Both);
    }

    pub(crate) fn tell_gone(&self, worker: WorkerId) -> Result<(), IpcError> {
        self.channel.get_ref().send(&ToKeeper::Gone { worker }, &[])
    }

    /// What is next. After its end there is nothing more.
    pub(crate) async fn next(&self) -> KeeperNews {
        tokio::select! {
            said = channel::next(&self.channel) => match said {
                Ok(Some((said, _))) => KeeperNews::Said(said),
                Ok(None) => KeeperNews::Ended(self.child.end().await),
                Err(error) => KeeperNews::Nonsense(error),
            },
            how = self.child.end() => KeeperNews::Ended(how),
        }
    }
}
