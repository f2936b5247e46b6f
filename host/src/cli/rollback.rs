//! `wasmcluster rollback`: brings back an earlier version, and shows its progress as `reload` does.

use super::args::RollbackArgs;
use super::exit::Failure;
use super::output::print;
use super::reload::{Show, follow, served, tell};
use super::running::{block_on, client};
use crate::control::client::Client;
use crate::control::protocol::{LastReload, ReloadRequest, ReloadResult};
use crate::wire::ids::Generation;

pub(super) fn rollback(args: RollbackArgs) -> Result<(), Failure> {
    let RollbackArgs { to, terms, cluster } = args;
    let (client, show) = (client(cluster), terms.show());
    let request = ReloadRequest { to: to.map(Generation), ..terms.request(None) };
    let ended = block_on(async { Ok(follow(client.rollback(&request).await?, show).await?) })?;
    if show == Show::Json { tell(ended, show) } else { tell_what_is_served(ended, &client) }
}

fn tell_what_is_served(ended: LastReload, client: &Client) -> Result<(), Failure> {
    if ended.result != ReloadResult::Committed {
        return Err(Failure::Reload(ended));
    }
    // The rollback is done even if this cannot be shown.
    if let Ok(status) = block_on(client.status()) {
        let _ = print(served(&status.generation).as_bytes());
    }
    Ok(())
}
