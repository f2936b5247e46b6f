//! `wasmcluster events`: prints what has happened in a running cluster, and follows what happens.

use http_body_util::BodyExt;

use super::args::EventsArgs;
use super::exit::Failure;
use super::output::print;
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::control::query::EventsRequest;

pub(super) fn events(args: EventsArgs) -> Result<(), Failure> {
    let request = EventsRequest { since: args.since, follow: !args.no_follow };
    Ok(block_on(follow(&client(args.cluster), &request))?)
}

/// Prints events as they come, until there are no more or stdout is closed.
async fn follow(client: &Client, request: &EventsRequest) -> Result<(), CommandError> {
    let mut lines = client.events(request).await?;
    while let Some(Ok(frame)) = lines.frame().await {
        if let Some(line) = frame.data_ref()
            && print(line).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}
