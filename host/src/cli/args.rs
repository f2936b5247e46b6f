//! What the command line looks like: the commands, their flags and their help. What a command does is in its own file;
//! the flags of `serve` that can stand in a configuration file too are in `settings`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::control::protocol::Scale;
use crate::settings::{DEFAULT_NAME, Options, Percent, Span};

#[derive(Debug, Parser)]
#[command(
    name = "wasmcluster",
    version,
    about = "Serves a WebAssembly component on every core",
    long_about = "Serves a WebAssembly component that handles HTTP (wasi:http 0.2 or 0.3) on every core: each core gets \
                  a worker process of its own, all behind one port, kept alive by a primary that never touches a request.",
    after_help = "Examples:\n  \
                  wasmcluster new shop\n  \
                  wasmcluster serve app.wasm\n  \
                  wasmcluster serve --listen 0.0.0.0:80 --workers 4 app.wasm\n  \
                  wasmcluster serve --watch shop\n  \
                  wasmcluster status\n  \
                  wasmcluster reload app.wasm\n  \
                  wasmcluster events\n  \
                  wasmcluster scale 8\n  \
                  wasmcluster stop",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve a component until SIGTERM or Ctrl-C
    #[command(visible_alias = "start")]
    Serve(Box<ServeArgs>),
    /// Write a new project
    New(NewArgs),
    /// Build the component of a folder
    Build(BuildArgs),
    /// Compile a component into an artifact store, for a container image or a machine that must start quickly
    Compile(CompileArgs),
    /// Show what a running cluster does
    #[command(visible_alias = "ls")]
    Status(StatusArgs),
    /// Show what a component is, what it asks for, and the limits it would run with
    Inspect(Box<InspectArgs>),
    /// Bring a running cluster to a new version, without losing a request
    #[command(visible_alias = "restart")]
    Reload(ReloadArgs),
    /// Bring a running cluster back to the version before
    Rollback(RollbackArgs),
    /// Follow what happens in a running cluster: one line of JSON per event
    Events(EventsArgs),
    /// Change the number of workers, and wait until they are ready
    Scale(ScaleArgs),
    /// Stop a running cluster, and wait until it has stopped
    Stop(StopArgs),
    /// Show or change the configuration of a running cluster
    Config(ConfigArgs),
    /// Print a script that completes commands and flags in a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster serve app.wasm\n  \
    wasmcluster serve --listen 127.0.0.1:0 --workers 1 app.wasm\n  \
    wasmcluster serve --watch .\n  \
    wasmcluster serve --listen [::]:8080 --listen unix:/run/app.sock --env GREETING=hello app.wasm\n\n\
    A folder is built first, as by `wasmcluster build`.\n\n\
    Flags can also stand in a file, by the same names; the command line wins:\n  \
    listen = [\"0.0.0.0:8080\"]\n  \
    workers = 4\n  \
    [env]\n  \
    GREETING = \"hello\"")]
pub(super) struct ServeArgs {
    /// The component to serve, as .wasm or .wat, or a folder to build it from [default: the current folder, if it can be
    /// built]
    #[arg(value_name = "APP")]
    pub(super) app: Option<PathBuf>,

    /// Configuration file [default: wasmcluster.toml, of the folder that is served or else of the current one]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) options: Options,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster new shop\n  \
    wasmcluster new shop --template stream\n\n\
    The project is named after its folder, and comes with a test.")]
pub(super) struct NewArgs {
    /// The folder to make; if it is there, it must be empty
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,

    /// What to begin with
    #[arg(long, value_name = "TEMPLATE", value_enum, default_value = "hello")]
    pub(super) template: Template,
}

/// What a project begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Template {
    /// Rust: one function that answers every request
    Hello,
    /// Rust: an axum application with two routes
    Axum,
    /// Rust: a JSON API, with axum
    Api,
    /// Rust: server-sent events
    Stream,
    /// JavaScript, with Node and npm
    Js,
    /// Python
    Python,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster build\n  \
    wasmcluster build shop && wasmcluster inspect shop\n  \
    wasmcluster build --watch shop\n\n\
    A folder with a Cargo.toml is built by cargo, for wasm32-wasip2. In other languages, or to do something else, \
    wasmcluster.toml in the folder says how; it comes first:\n  \
    [build]\n  \
    command = \"npm run build\"\n  \
    component = \"dist/app.wasm\"")]
pub(super) struct BuildArgs {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    pub(super) folder: PathBuf,

    /// Build again whenever the sources change, until Ctrl-C
    #[arg(long)]
    pub(super) watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:\n  \
    0 the store has it\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, is no component, does not link or \
    does not compile\n\n\
    Examples:\n  \
    wasmcluster compile app.wasm\n  \
    wasmcluster compile app.wasm -o /srv/store && wasmcluster serve app.wasm --store /srv/store\n\n\
    Native code is for one version of wasmcluster and the features of one CPU: on another machine `serve` compiles anew.")]
pub(super) struct CompileArgs {
    /// The component, as .wasm or .wat, or a folder to build it from [default: the current folder, if it can be built]
    #[arg(value_name = "APP")]
    pub(super) app: Option<PathBuf>,

    /// A store that every user may read, and use if it is root's [default: the store of `serve`, which is for its owner]
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster inspect app.wasm\n  \
    wasmcluster inspect app.wasm --json | jq .grants\n\n\
    Takes the flags and the configuration file of `serve`, and shows the limits for requests and guests that follow \
    from them. Exits with 1 if the component could not be served.")]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub(super) serve: ServeArgs,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which cluster a command is for.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    pub(super) name: String,

    /// Path of the control socket [default: $WASMCLUSTER_CONTROL, or NAME.sock in the user's runtime folder]
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster status\n  \
    wasmcluster status --json | jq .workers\n  \
    wasmcluster status --wait-ready 1m && run-the-tests")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,

    /// List all clusters of this user; of all users, for root
    #[arg(long, conflicts_with_all = ["name", "control"])]
    pub(super) all: bool,

    /// Wait until the cluster serves, for at most TIME [default: 30s]; exit with 0 only if it does
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", conflicts_with = "all")]
    pub(super) wait_ready: Option<Span>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  wasmcluster scale 8\n  wasmcluster scale +1\n  wasmcluster scale -1 --name shop")]
pub(super) struct ScaleArgs {
    /// The number of workers; with a sign, how many more or fewer
    #[arg(value_name = "[+-]N", allow_negative_numbers = true)]
    pub(super) scale: Scale,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:\n  \
    0 committed\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, is no component, does not link or \
    does not compile\n  4 it did worse than the old version, and was rolled back\n  5 timed out, rolled back\n  \
    6 the cluster is busy with another change\n  7 no cluster is running under that name\n  8 served, but not written to \
    the state folder: --resume would start the version before\n\n\
    Examples:\n  \
    wasmcluster reload\n  \
    wasmcluster reload app-v2.wasm --timeout 1m\n  \
    wasmcluster reload shop\n  \
    wasmcluster reload app.wasm --max-error-increase 2")]
pub(super) struct ReloadArgs {
    /// The component to serve from now on, or a folder to build it from [default: the same as before: the file is read
    /// again, or the folder built again]
    #[arg(value_name = "APP")]
    pub(super) app: Option<PathBuf>,

    #[command(flatten)]
    pub(super) terms: TermsArgs,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "An earlier version comes back as a new generation, after a short canary and without a soak. \
    Repeated, it goes further back. Exit codes as of `reload`.\n\n\
    Examples:\n  \
    wasmcluster rollback\n  \
    wasmcluster rollback --to 3")]
pub(super) struct RollbackArgs {
    /// The generation to bring back; the last 8 are kept [default: the one before]
    #[arg(long, value_name = "GENERATION", value_parser = generation)]
    pub(super) to: Option<u64>,

    #[command(flatten)]
    pub(super) terms: TermsArgs,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

/// How a change of the version may go.
#[derive(Debug, Args)]
pub(super) struct TermsArgs {
    /// How long it may take, from the command to the commit, before it is rolled back [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub(super) timeout: Option<Span>,

    /// Ignore crashes and errors once the first worker of the new version is well: for a fix in the middle of an attack
    #[arg(long)]
    pub(super) force: bool,

    /// Roll back if the share of errors (5xx, traps) is so many percentage points above the old version's, after 20 answers;
    /// 100 never does [default: what `serve` was told, or 5]
    #[arg(long, value_name = "PERCENT")]
    pub(super) max_error_increase: Option<Percent>,

    /// Print JSON, an object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Requests that were begun are finished, within the cluster's --shutdown-timeout.\n\n\
    Examples:\n  \
    wasmcluster stop\n  \
    wasmcluster stop --name shop --now")]
pub(super) struct StopArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,

    /// Kill the workers without finishing requests
    #[arg(long)]
    pub(super) now: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wasmcluster events\n  wasmcluster events | jq 'select(.event == \"worker_crashed\")'"
)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster config get\n  \
    wasmcluster config get wasmcluster.log-level\n  \
    wasmcluster config set wasmcluster.log-level=debug")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print all keys with their values, or the value of one key
    #[command(after_help = "Example: wasmcluster config get wasmcluster.log-level")]
    Get {
        /// The key whose value to print [default: all]
        #[arg(value_name = "KEY")]
        key: Option<String>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Change values in every worker, without a restart; all of them, or none
    #[command(after_help = "Example: wasmcluster config set wasmcluster.log-level=debug")]
    Set {
        /// What to change; `wasmcluster config get` lists the keys
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse_entry)]
        entries: Vec<(String, String)>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster completions bash > ~/.local/share/bash-completion/completions/wasmcluster\n  \
    wasmcluster completions zsh > \"${fpath[1]}/_wasmcluster\"\n  \
    wasmcluster completions fish > ~/.config/fish/completions/wasmcluster.fish")]
pub(super) struct CompletionsArgs {
    #[arg(value_name = "SHELL", value_enum)]
    pub(super) shell: clap_complete::Shell,
}

fn generation(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected the number of a generation, as `wasmcluster status` shows it".into())
}

fn parse_entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
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
