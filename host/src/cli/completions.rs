//! `wasmcluster completions`: prints a script that completes commands and flags in a shell.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::exit::Failure;
use super::output::print;

pub(super) fn completions(args: CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wasmcluster", &mut script);
    Ok(print(&script)?)
}
