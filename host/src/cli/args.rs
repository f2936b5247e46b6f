//! What the command line looks like: the commands, their flags and their help. What a command does is in its own file;
//! the flags of `serve` that can stand in a configuration file too are in `settings`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::version;
use crate::control::protocol::Scale;
use crate::control::query::Since;
use crate::settings::{App, DEFAULT_NAME, ImageName, Options, Percent, Registries, Span};

#[derive(Debug, Parser)]
#[command(
    name = "wasmcluster",
    version,
    long_version = version::LONG.as_str(),
    about = "Serves a WebAssembly component on every core",
    long_about = "Serves a WebAssembly component over HTTP (wasi:http 0.2 or 0.3). Each core gets a worker process, and all \
                  workers share one port. A primary process replaces workers that die; it never touches a request.",
    after_help = "Examples:\n  \
                  wasmcluster new shop\n  \
                  wasmcluster serve app.wasm\n  \
                  wasmcluster serve --listen 0.0.0.0:80 --workers 4 app.wasm\n  \
                  wasmcluster serve --watch shop\n  \
                  wasmcluster status\n  \
                  wasmcluster top\n  \
                  wasmcluster reload app.wasm\n  \
                  wasmcluster events\n  \
                  wasmcluster logs --follow\n  \
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
    /// Create a new project
    New(NewArgs),
    /// Build a component from a folder of sources
    Build(BuildArgs),
    /// Compile a component ahead of time, so that `serve` starts without compiling
    Compile(CompileArgs),
    /// Put a component into a registry of container images
    Push(PushArgs),
    /// Show the state of a running cluster
    #[command(visible_alias = "ls")]
    Status(StatusArgs),
    /// Show what a component imports and exports, the flags that grant it, and the limits it would run with
    Inspect(Box<InspectArgs>),
    /// Deploy a new version to a running cluster, without failing a request
    #[command(visible_alias = "restart")]
    Reload(ReloadArgs),
    /// Roll a running cluster back to the previous version
    Rollback(RollbackArgs),
    /// Follow the events of a running cluster, one JSON object per line
    Events(EventsArgs),
    /// Show the latest lines of a running cluster's log, and what guests printed
    Logs(LogsArgs),
    /// Show a running cluster on the terminal, once a second, with keys to change it
    Top(TopArgs),
    /// Change the number of workers, and wait until they are ready
    Scale(ScaleArgs),
    /// Stop a running cluster, and wait until it has stopped
    Stop(StopArgs),
    /// Show or change the live configuration of a running cluster, or print the schema of the configuration file
    Config(ConfigArgs),
    /// Check whether this machine has what `serve` and `build` need
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the manual as pages for `man`
    Man(ManArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster serve app.wasm\n  \
    wasmcluster serve --listen 127.0.0.1:0 --workers 1 app.wasm\n  \
    wasmcluster serve --watch .\n  \
    wasmcluster serve oci://ghcr.io/acme/shop:1.2\n  \
    wasmcluster serve --listen [::]:8080 --listen unix:/run/app.sock --env GREETING=hello app.wasm\n\n\
    A folder is built first, as `wasmcluster build` does.\n\n\
    Flags can also be set in wasmcluster.toml, by the same names. The command line wins:\n  \
    listen = [\"0.0.0.0:8080\"]\n  \
    workers = 4\n  \
    [env]\n  \
    GREETING = \"hello\"")]
pub(super) struct ServeArgs {
    /// The component to serve: a file (.wasm or .wat), a folder to build it from, or oci://HOST/REPOSITORY:TAG [default:
    /// the current folder, if it can be built]
    #[arg(value_name = "APP", value_hint = ValueHint::AnyPath)]
    pub(super) app: Option<App>,

    /// Configuration file [default: wasmcluster.toml in the folder that is served, or else in the current one]
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
    /// The folder to create; if it exists, it must be empty
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,

    /// The template to start from
    #[arg(long, value_name = "TEMPLATE", value_enum, default_value = "hello")]
    pub(super) template: Template,

    /// Where the project has the SDK from, if the template is for Rust [default: sources, or registry if this binary is
    /// without them]
    #[arg(long, value_name = "ORIGIN", value_enum)]
    pub(super) sdk: Option<SdkOrigin>,
}

/// Where a project has the SDK from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SdkOrigin {
    /// A copy of its sources in the project, as new as this binary
    Sources,
    /// The version of this binary, from crates.io
    Registry,
}

/// The template of a project.
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
    A folder with a Cargo.toml is built with cargo, for wasm32-wasip2. For another language or another build, name the \
    command in the folder's wasmcluster.toml. It takes precedence over cargo:\n  \
    [build]\n  \
    command = \"npm run build\"\n  \
    component = \"dist/app.wasm\"")]
pub(super) struct BuildArgs {
    /// The folder to build
    #[arg(value_name = "DIR", default_value = ".")]
    pub(super) folder: PathBuf,

    /// Build again whenever the sources change, until Ctrl-C
    #[arg(long)]
    pub(super) watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:\n  \
    0 compiled, or already in the store\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, is not a \
    component, does not link, or does not compile\n\n\
    Examples:\n  \
    wasmcluster compile app.wasm\n  \
    wasmcluster compile app.wasm -o /srv/store && wasmcluster serve app.wasm --store /srv/store\n\n\
    Native code fits one version of wasmcluster and the features of one CPU. With another version or CPU, `serve` compiles \
    again.")]
pub(super) struct CompileArgs {
    /// The component: a file (.wasm or .wat), a folder to build it from, or oci://HOST/REPOSITORY:TAG [default: the
    /// current folder, if it can be built]
    #[arg(value_name = "APP", value_hint = ValueHint::AnyPath)]
    pub(super) app: Option<App>,

    /// A store that every user may read; others may use it if root owns it [default: the store of `serve`, which only its
    /// owner may read]
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,

    /// Compile the component as it is, for instances that do not start from a snapshot
    ///
    /// `serve` finds it only with the same flag.
    #[arg(long)]
    pub(super) no_snapshot: bool,

    #[command(flatten)]
    pub(super) registry: RegistryArgs,
}

/// How registries are spoken to.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Certificates to trust of registries, besides those that the machine trusts, as PEM
    #[arg(long, value_name = "FILE")]
    pub(super) registry_ca: Option<PathBuf>,

    /// Registry to speak to in clear text, as HOST or HOST:PORT; can be repeated
    #[arg(long, value_name = "HOST")]
    pub(super) registry_plain_http: Vec<String>,
}

impl RegistryArgs {
    /// What the command line says, and else what `said` does.
    pub(super) fn or(self, said: Registries) -> anyhow::Result<Registries> {
        let plain_http = if self.registry_plain_http.is_empty() { said.plain_http } else { self.registry_plain_http };
        Registries::new(self.registry_ca.or(said.ca), plain_http)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes:\n  \
    0 pushed\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, or is not a component\n\n\
    Examples:\n  \
    wasmcluster push app.wasm oci://ghcr.io/acme/shop:1.2\n  \
    wasmcluster push shop oci://localhost:5000/shop:dev --registry-plain-http localhost:5000\n  \
    wasmcluster push app.wasm oci://ghcr.io/acme/shop:1.2 --json | jq -r .reference\n\n\
    Credentials come from the files that `docker login` and `podman login` write, and from the helpers that these name. \
    REGISTRY_AUTH_FILE and DOCKER_CONFIG say where such a file is.",
    allow_missing_positional = true
)]
pub(super) struct PushArgs {
    /// The component: a file (.wasm or .wat), or a folder to build it from [default: the current folder, if it can be built]
    #[arg(value_name = "APP", value_hint = ValueHint::AnyPath)]
    pub(super) app: Option<App>,

    /// Where to put it: oci://HOST/REPOSITORY:TAG
    #[arg(value_name = "NAME", required = true)]
    pub(super) to: ImageName,

    #[command(flatten)]
    pub(super) registry: RegistryArgs,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster inspect app.wasm\n  \
    wasmcluster inspect app.wasm --json | jq .grants\n\n\
    Takes the flags and the configuration file of `serve`, and shows the limits that follow from them. Exits with 1 if \
    `serve` would refuse the component.")]
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

    /// List all clusters of this user; for root, of all users
    #[arg(long, conflicts_with_all = ["name", "control"])]
    pub(super) all: bool,

    /// Wait until a worker is ready, for at most TIME [default: 30s]; exit with 0 only then
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
    0 committed\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, is not a component, does not link, or \
    does not compile, or the settings are wrong\n  4 rolled back: it did worse than the old version\n  5 timed out and rolled back\n  6 the cluster is \
    busy: it is still starting, or another change is in progress\n  7 no cluster is running under that name\n  8 served, but \
    not saved in the state folder: `serve --resume` would start the previous version\n\n\
    Examples:\n  \
    wasmcluster reload\n  \
    wasmcluster reload --dry-run\n  \
    wasmcluster reload app-v2.wasm --timeout 1m\n  \
    wasmcluster reload oci://ghcr.io/acme/shop:1.3\n  \
    wasmcluster reload shop\n  \
    wasmcluster reload app.wasm --max-error-increase 2\n\n\
    The configuration file, secrets and certificates are read again too, and become part of the new version: a rollback \
    brings back the settings with the component. Addresses, name and other settings of the cluster itself keep until it is \
    started again; they are named if they have changed.")]
pub(super) struct ReloadArgs {
    /// The component to deploy: a file, a folder to build it from, or oci://HOST/REPOSITORY:TAG [default: the current one:
    /// its file is read again, its folder is built again, or what its tag names now is pulled]
    #[arg(value_name = "APP", value_hint = ValueHint::AnyPath)]
    pub(super) app: Option<App>,

    /// Only tell what would change: read settings, secrets and component, compile it, and leave the cluster as it is
    #[arg(long, conflicts_with_all = ["force", "max_error_increase"])]
    pub(super) dry_run: bool,

    /// Only read the certificates of --tls-cert again, and leave component and settings as they are
    #[arg(long, conflicts_with_all = ["app", "dry_run", "timeout", "force", "max_error_increase", "json"])]
    pub(super) tls: bool,

    #[command(flatten)]
    pub(super) terms: TermsArgs,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The earlier version becomes a new generation, after a short canary and without a soak. Run it again to \
    go back further. The exit codes are those of `reload`.\n\n\
    Examples:\n  \
    wasmcluster rollback\n  \
    wasmcluster rollback --to 3"
)]
pub(super) struct RollbackArgs {
    /// The generation to go back to; the last 8 that were committed are kept [default: the previous one]
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
    /// How long it may take, from the command to the commit, before it is rolled back [default: 5m; a reload also gets
    /// --min-ready and --soak]
    #[arg(long, value_name = "TIME")]
    pub(super) timeout: Option<Span>,

    /// Ignore crashes and errors once the first worker of the new version is healthy, to deploy a fix during an attack
    #[arg(long)]
    pub(super) force: bool,

    /// Roll back if the error rate (5xx, traps) is more than this many percentage points above the old version's, after 20
    /// responses; 100 never rolls back [default: the value given to `serve`, or 5]
    #[arg(long, value_name = "PERCENT")]
    pub(super) max_error_increase: Option<Percent>,

    /// Print JSON, one object per line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Requests in progress may finish, within the cluster's --shutdown-timeout.\n\n\
    Examples:\n  \
    wasmcluster stop\n  \
    wasmcluster stop --name shop --now")]
pub(super) struct StopArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,

    /// Kill the workers at once, without finishing requests
    #[arg(long)]
    pub(super) now: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster events\n  \
    wasmcluster events --since 10m --no-follow\n  \
    wasmcluster events | jq 'select(.event == \"worker_crashed\")'")]
pub(super) struct EventsArgs {
    /// Begin with the events since then: a time ago as 10m, a moment as 2026-11-30T12:00:00Z, or all; the cluster keeps
    /// its last 1000
    #[arg(long, value_name = "WHEN")]
    pub(super) since: Option<Since>,

    /// Print the events that are kept, and end
    #[arg(long)]
    pub(super) no_follow: bool,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster logs -f\n  \
    wasmcluster logs --worker 3\n  \
    wasmcluster logs --request 3-17\n  \
    wasmcluster logs --json | jq 'select(.level == \"ERROR\")'\n\n\
    The cluster keeps its latest 2000 lines, at most 1 MiB of them, wherever its output goes. A reader that is too slow is \
    told how many lines it missed.")]
pub(super) struct LogsArgs {
    /// Print what comes, until the cluster ends
    #[arg(short, long)]
    pub(super) follow: bool,

    /// Only lines of this worker, and those about it; `wasmcluster status` shows its number
    #[arg(long, value_name = "N")]
    pub(super) worker: Option<u64>,

    /// Only lines about this request, by its number as 3-17, or by the x-request-id that its client gave it
    #[arg(long, value_name = "ID")]
    pub(super) request: Option<String>,

    /// Print JSON, one object per line
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The key ? shows all keys; what changes the cluster asks first. NO_COLOR=1 shows everything without \
    colours.\n\n\
    Examples:\n  \
    wasmcluster top\n  \
    wasmcluster top --name shop"
)]
pub(super) struct TopArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster config get\n  \
    wasmcluster config get wasmcluster.log-level\n  \
    wasmcluster config set greeting=hello wasmcluster.log-level=debug\n  \
    wasmcluster config unset greeting\n  \
    wasmcluster config schema > wasmcluster.schema.json")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print all keys with their values, or the value of one key
    #[command(after_help = "Example: wasmcluster config get wasmcluster.log-level")]
    Get {
        /// The key to print [default: all]
        #[arg(value_name = "KEY")]
        key: Option<String>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Change values in every worker without a restart, all of them or none
    ///
    /// Keys that begin with `wasmcluster.` are the server's own: there is wasmcluster.log-level. All others are values for
    /// guests, which they get by wasi:config. New requests see them at once, and a cluster that is resumed starts with them.
    #[command(after_help = "Example: wasmcluster config set greeting=hello wasmcluster.log-level=debug")]
    Set {
        /// What to change; `wasmcluster config get` lists what is set
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse_entry)]
        entries: Vec<(String, String)>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove values for guests in every worker, all of them or none
    #[command(after_help = "Example: wasmcluster config unset greeting")]
    Unset {
        /// What to remove; `wasmcluster config get` lists what is set
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,

        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Print the JSON Schema of wasmcluster.toml, for editors and for checks
    #[command(after_help = "Example: wasmcluster config schema > wasmcluster.schema.json\n\n\
        Editors with support for TOML check a file whose first line is #:schema ./wasmcluster.schema.json")]
    Schema,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:\n  \
    0 no fault\n  1 a fault: `serve` would not start, or not serve\n  2 usage\n\n\
    Examples:\n  \
    wasmcluster doctor\n  \
    wasmcluster doctor --json | jq '.checks[] | select(.verdict != \"ok\")'\n  \
    systemd-run --pty --property=MemoryMax=512M wasmcluster doctor\n\n\
    Run it as the user who serves, and under the same limits. It changes nothing and makes no folders.")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,

    /// Compiled components [default: that of `serve`]
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,

    /// The state of the cluster [default: that of `serve`]
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster completions bash > ~/.local/share/bash-completion/completions/wasmcluster\n  \
    wasmcluster completions zsh > \"${fpath[1]}/_wasmcluster\"\n  \
    wasmcluster completions fish > ~/.config/fish/completions/wasmcluster.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    wasmcluster man ~/.local/share/man/man1 && man wasmcluster-serve\n\n\
    There is a page for each command. Packages have them already.")]
pub(super) struct ManArgs {
    /// The folder for the pages; it is made if there is none
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,
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
