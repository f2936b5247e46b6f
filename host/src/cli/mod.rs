//! The command line: what it looks like, and which part of the program each command is.

mod commands;
mod status;

use std::future::Future;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{DEFAULT_NAME, Options, Settings, colours, control_path};
use crate::primary::{Client, CommandError};
use crate::{artifact, primary, worker};

/// Exit codes; those of `reload` will be added here.
mod exit {
    /// It was tried and failed.
    pub(super) const ERROR: u8 = 1;
    /// The command line or the configuration is wrong.
    pub(super) const USAGE: u8 = 2;
    /// No server is running under that name.
    pub(super) const NO_SERVER: u8 = 7;
}

#[derive(Debug, Parser)]
#[command(
    name = "wasmcluster",
    version,
    about = "Serves a WebAssembly component on every core",
    long_about = "Serves a WebAssembly component that handles HTTP (wasi:http 0.2 or 0.3) on every core: each core gets \
                  a worker process of its own, all behind one port, kept alive by a primary that never touches a request.",
    after_help = "Examples:\n  \
                  wasmcluster serve app.wasm\n  \
                  wasmcluster serve --listen 0.0.0.0:80 --workers 4 app.wasm\n  \
                  wasmcluster status\n  \
                  wasmcluster events\n  \
                  wasmcluster scale 8\n  \
                  wasmcluster stop",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a component until SIGTERM or Ctrl-C
    Serve(Box<ServeArgs>),
    /// Show what a running cluster does
    Status(StatusArgs),
    /// Follow what happens in a running cluster, as a line of JSON an event
    Events(EventsArgs),
    /// Change the number of workers, and wait until it is so
    Scale(ScaleArgs),
    /// Stop a running cluster, and wait until it has stopped
    Stop(StopArgs),
    /// Show or change the configuration of a running cluster
    Config(ConfigArgs),
    /// A worker process; started by `serve`
    #[command(hide = true)]
    Worker,
    /// A compiler process; started by `serve`
    #[command(hide = true)]
    Compiler,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster serve app.wasm\n  \
    wasmcluster serve --listen 127.0.0.1:0 --workers 1 app.wasm\n  \
    wasmcluster serve --listen [::]:8080 --listen unix:/run/app.sock --env GREETING=hello app.wasm\n\n\
    Flags can also stand in a file, by the same names; the command line wins:\n  \
    listen = [\"0.0.0.0:8080\"]\n  \
    workers = 4\n  \
    [env]\n  \
    GREETING = \"hello\"")]
struct ServeArgs {
    /// The component to serve, as .wasm or .wat
    #[arg(value_name = "APP")]
    app: PathBuf,

    /// Configuration file [default: wasmcluster.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

/// Which cluster a command is for.
#[derive(Debug, Args)]
struct ClusterArgs {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    name: String,

    /// Path of the control socket [default: $WASMCLUSTER_CONTROL, or NAME.sock in the user's runtime folder]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  wasmcluster scale 8\n  wasmcluster scale 2 --name shop")]
struct ScaleArgs {
    /// How many workers there shall be
    #[arg(value_name = "N")]
    workers: NonZeroU32,

    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Requests that were begun are finished, within the cluster's --shutdown-timeout.")]
struct StopArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Kill the workers without finishing requests
    #[arg(long)]
    now: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wasmcluster events\n  wasmcluster events | jq 'select(.event == \"worker_crashed\")'"
)]
struct EventsArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster config get\n  \
    wasmcluster config get wasmcluster.log-level\n  \
    wasmcluster config set wasmcluster.log-level=debug")]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print all keys with their values, or the value of one key
    Get {
        #[arg(value_name = "KEY")]
        key: Option<String>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Change values in every worker, without a restart; all of them, or none
    Set {
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse_entry)]
        entries: Vec<(String, String)>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

fn parse_entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// How a command failed.
enum Failure {
    Usage(anyhow::Error),
    Error(anyhow::Error),
    Command(CommandError),
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Whoever closed our output does not want to read it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let (message, code) = match run(cli.command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (format!("{error:#}"), exit::USAGE),
        Err(Failure::Error(error)) => (format!("{error:#}"), exit::ERROR),
        Err(Failure::Command(error @ CommandError::NoServer(_))) => (error.to_string(), exit::NO_SERVER),
        Err(Failure::Command(error)) => (format!("{error:#}"), exit::ERROR),
    };
    let label = if colours() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    let _ = writeln!(io::stderr(), "{label} {message}");
    ExitCode::from(code)
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => {
            let settings = settings(*args).map_err(Failure::Usage)?;
            primary::serve(settings).map_err(Failure::Error)
        }
        Command::Status(args) => {
            let status = block_on(client(args.cluster)?.status())?;
            status::print(&status, args.json).map_err(Failure::Error)
        }
        Command::Scale(args) => Ok(block_on(commands::scale(&client(args.cluster)?, args.workers))?),
        Command::Stop(args) => Ok(block_on(commands::stop(&client(args.cluster)?, args.now))?),
        Command::Events(args) => Ok(block_on(commands::events(&client(args.cluster)?))?),
        Command::Config(ConfigArgs { command: ConfigCommand::Get { key, cluster } }) => {
            Ok(block_on(commands::config_get(&client(cluster)?, key.as_deref()))?)
        }
        Command::Config(ConfigArgs { command: ConfigCommand::Set { entries, cluster } }) => {
            Ok(block_on(commands::config_set(&client(cluster)?, entries))?)
        }
        Command::Worker => worker::worker_main().map_err(Failure::Error),
        Command::Compiler => artifact::compiler_main().map_err(Failure::Error),
    }
}

fn client(cluster: ClusterArgs) -> Result<Client, Failure> {
    control_path(&cluster.name, cluster.control).map(Client).map_err(Failure::Usage)
}

fn block_on<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(command)
}

fn settings(args: ServeArgs) -> anyhow::Result<Settings> {
    let file = Options::from_file(args.config.as_deref())?;
    Settings::new(args.app, args.options.or(file))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
