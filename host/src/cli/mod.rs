//! The command line: what it looks like, and which part of the program each command is.

mod status;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{DEFAULT_NAME, Options, Settings, colours, control_path};
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
                  wasmcluster status",
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
    Serve(ServeArgs),
    /// Show what a running cluster does
    Status(StatusArgs),
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

#[derive(Debug, Args)]
struct StatusArgs {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    name: String,

    /// Path of the control socket [default: $WASMCLUSTER_CONTROL, or NAME.sock in the user's runtime folder]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a command failed.
enum Failure {
    Usage(anyhow::Error),
    Error(anyhow::Error),
    NoServer(String),
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
        Err(Failure::NoServer(message)) => (message, exit::NO_SERVER),
    };
    let label = if colours() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    let _ = writeln!(io::stderr(), "{label} {message}");
    ExitCode::from(code)
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => {
            let settings = settings(args).map_err(Failure::Usage)?;
            primary::serve(settings).map_err(Failure::Error)
        }
        Command::Status(args) => {
            let path = control_path(&args.name, args.control).map_err(Failure::Usage)?;
            let status = status::fetch(&path).map_err(Failure::Error)?;
            let status = status.ok_or_else(|| {
                Failure::NoServer(format!(
                    "no cluster is running with the control socket {}; start one with `wasmcluster serve`, or name \
                     another with --name or --control",
                    path.display()
                ))
            })?;
            status::print(&status, args.json).map_err(Failure::Error)
        }
        Command::Worker => worker::worker_main().map_err(Failure::Error),
        Command::Compiler => artifact::compiler_main().map_err(Failure::Error),
    }
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
