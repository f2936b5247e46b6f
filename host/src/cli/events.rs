//! `wasmcluster events`: follows what happens in a running cluster.

use http_body_util::BodyExt;

use super::args::EventsArgs;
use super::exit::Failure;
use super::output::print;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};

pub(super) fn events(args: EventsArgs) -> Result<(), Failure> {
    Ok(block_on(follow(&client(args.cluster)))?)
}

/// Prints events as they come, until the primary ends or stdout is closed.
async fn follow(client: &Client) -> Result<(), CommandError> {
    let mut lines = client.events().await?;
    while let Some(Ok(frame)) = lines.frame().await {
        if let Some(line) = frame.data_ref()
            && print(line).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}
