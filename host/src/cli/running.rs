//! What the commands for a running cluster share: the client of its control socket, and an executor to wait on.

use std::future::Future;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::args::ClusterArgs;
use crate::control::client::{Client, CommandError};
use crate::settings::paths::running_control;

/// The client of the named cluster. It connects with its first request.
pub(super) fn client(cluster: ClusterArgs) -> Client {
    Client(running_control(&cluster.name, cluster.control))
}

/// The lines of an answer, as they come.
pub(super) struct AnswerLines {
    body: Incoming,
    unread: Vec<u8>,
}

impl AnswerLines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, unread: Vec::new() }
    }

    /// The next line, with its end; None if the primary has ended, or the answer has. Can be dropped and called again without
    /// loss.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                return Some(self.unread.drain(..=end).collect());
            }
            let frame = self.body.frame().await?.ok()?;
            self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}

pub(super) fn block_on<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(command)
}
