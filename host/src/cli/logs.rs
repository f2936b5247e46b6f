//! `wasmcluster logs`: prints the latest lines of a running cluster, and follows it.

use std::io::{self, IsTerminal};

use http_body_util::BodyExt;

use super::args::LogsArgs;
use super::exit::Failure;
use super::output::{Harmless, Uncoloured, print};
use super::running::{block_on, client};
use crate::control::client::{Client, CommandError};
use crate::control::query::{LogForm, LogsRequest};
use crate::logging::has_colours;

pub(super) fn logs(args: LogsArgs) -> Result<(), Failure> {
    let form = if args.json { LogForm::Json } else { LogForm::Text };
    let request = LogsRequest { follow: args.follow, worker: args.worker, request: args.request, form };
    Ok(block_on(follow(&client(args.cluster), &request))?)
}

/// Prints lines as they come, until there are no more or stdout is closed.
async fn follow(client: &Client, request: &LogsRequest) -> Result<(), CommandError> {
    let mut pieces = client.logs(request).await?;
    let stdout = io::stdout();
    // A cluster whose output is a terminal has colours in its lines, and guests may have anything.
    let mut harmless = stdout.is_terminal().then(Harmless::default);
    let mut uncoloured = (!has_colours(&stdout)).then(Uncoloured::default);
    while let Some(Ok(frame)) = pieces.frame().await {
        let Some(piece) = frame.data_ref() else { continue };
        let mut text = piece.to_vec();
        if let Some(harmless) = &mut harmless {
            text = harmless.filter(&text);
        }
        if let Some(uncoloured) = &mut uncoloured {
            text = uncoloured.strip(&text);
        }
        if print(&text).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
