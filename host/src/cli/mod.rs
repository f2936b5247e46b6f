//! The command line: parses it, hands it to the command, and turns a failure into a message and an exit code. The same
//! binary has roles that no user calls: the processes that `serve` starts.

mod args;
mod build;
mod clusters;
mod compile;
mod completions;
mod component;
mod config;
mod doctor;
mod events;
mod exit;
mod hints;
mod inspect;
mod logs;
mod manual;
mod new;
mod output;
mod push;
mod reload;
mod rollback;
mod running;
mod scale;
mod serve;
mod status;
mod stop;
mod top;
mod version;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::component::compiler;
use crate::keyvalue::keeper;
use crate::{admin, build as builder, exporter, logging, registry, worker};
use args::{Cli, Command};
use exit::Failure;

/// How long a server that failed tries to print why, before it ends anyway.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The whole program.
pub fn main() -> ExitCode {
    if let Some(ended) = role() {
        return end(ended.map_err(Failure::Error), Duration::MAX);
    }
    let command = match Cli::try_parse().map_err(hints::improve) {
        Ok(cli) => cli.command,
        Err(error) => {
            // Nothing can be done if the output is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    // A server that failed must end even if its terminal is stopped and takes no output: a service manager waits for it.
    let patience = if matches!(command, Command::Serve(_)) { TOLD_WITHIN } else { Duration::MAX };
    end(run(command), patience)
}

/// Runs the role of a process that `serve` started. Roles are not commands: clap neither lists, completes nor suggests them.
fn role() -> Option<anyhow::Result<()>> {
    match std::env::args_os().nth(1)?.to_str()? {
        "worker" => Some(worker::worker_main()),
        "compiler" => Some(compiler::compiler_main(worker::check_links)),
        "builder" => Some(builder::builder_main()),
        "keeper" => Some(keeper::keeper_main()),
        "admin" => Some(admin::admin_main()),
        "exporter" => Some(exporter::exporter_main()),
        "puller" => Some(registry::puller_main()),
        _ => None,
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::serve(*args),
        Command::New(args) => new::new(&args),
        Command::Build(args) => build::build(args),
        Command::Compile(args) => compile::compile(args),
        Command::Push(args) => push::push(args),
        Command::Status(args) => status::status(args),
        Command::Inspect(args) => inspect::inspect(*args),
        Command::Reload(args) => reload::reload(args),
        Command::Rollback(args) => rollback::rollback(args),
        Command::Events(args) => events::events(args),
        Command::Logs(args) => logs::logs(args),
        Command::Top(args) => top::top(args),
        Command::Scale(args) => scale::scale(args),
        Command::Stop(args) => stop::stop(args),
        Command::Config(args) => config::config(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions(args) => completions::completions(args),
        Command::Man(args) => manual::man(&args),
    }
}

/// Prints what failed, for at most `patience`, and returns the exit code.
fn end(ended: Result<(), Failure>, patience: Duration) -> ExitCode {
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    let (message, code) = failure.report();
    let (told, is_told) = std::sync::mpsc::channel();
    let line = message.clone();
    // On a thread of its own: a write to a stopped terminal blocks.
    let started = std::thread::Builder::new().spawn(move || {
        logging::complain(&line);
        let _ = told.send(());
    });
    match started {
        Ok(_) => drop(is_told.recv_timeout(patience)),
        // Where no thread can be started, which may be what failed, this one writes, however long it takes.
        Err(_) => logging::complain(&message),
    }
    ExitCode::from(code)
}
