//! What the commands for a running cluster share: the client of its control socket, and an executor to wait on.

use std::future::Future;

use super::args::ClusterArgs;
use crate::control::client::{Client, CommandError};
use crate::settings::paths::control_path;

/// The client of the named cluster. It connects with its first request.
pub(super) fn client(cluster: ClusterArgs) -> Client {
    Client(control_path(&cluster.name, cluster.control))
}

pub(super) fn block_on<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(command)
}
