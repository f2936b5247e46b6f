//! A child process that helps the cluster: the keeper of key-value stores, the admin server.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use super::execute::{Environment, execute};
use crate::os::child::Child;
use crate::wire::channel::{self, Channel, IpcError, Message};

/// A running helper, which is told `T` and tells `F`. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct HelperProcess<T, F> {
    pub(crate) child: Child,
    channel: AsyncFd<Channel<T, F>>,
}

/// What came of a helper.
#[derive(Debug)]
pub(crate) enum HelperNews<F> {
    Said(F),
    /// It broke the protocol.
    Nonsense(IpcError),
    Ended(String),
}

impl<T: Message + Serialize, F: Message> HelperProcess<T, F> {
    /// Must be called on the executor.
    pub(crate) fn spawn(role: &str) -> io::Result<Self> {
        let (ours, theirs) = channel::pair::<T, F>()?;
        let channel = ours.into_async()?;
        let child = execute(role, Environment::Bare, OwnedFd::from(theirs), Stdio::null(), Stdio::inherit())?;
        Ok(Self { child, channel })
    }

    pub(crate) fn tell(&self, message: &T, beside: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        self.channel.get_ref().send(message, beside)
    }

    /// Lets it end.
    pub(crate) fn hang_up(&self) {
        // It may have ended already.
        let _ = shutdown(self.channel.get_ref().as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// What is next. After its end there is nothing more.
    pub(crate) async fn next(&self) -> HelperNews<F> {
        tokio::select! {
            said = channel::next(&self.channel) => match said {
                Ok(Some((said, _))) => HelperNews::Said(said),
                Ok(None) => HelperNews::Ended(self.child.end().await),
                Err(error) => HelperNews::Nonsense(error),
            },
            how = self.child.end() => HelperNews::Ended(how),
        }
    }
}
