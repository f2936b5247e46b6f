//! The command line: what it looks like, and which part of the program each command is.

mod clusters;
mod commands;
mod compile;
mod hints;
mod inspect;
mod new;
mod reload;
mod status;

use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::build::{self, NoPlan, Plan, Sources};
use crate::component::compiler;
use crate::control::client::{Client, CommandError};
use crate::control::protocol::{ReloadRequest, ReloadResult, Scale};
use crate::logging::{self, Relay};
use crate::os::files;
use crate::settings::paths::control_path;
use crate::settings::{DEFAULT_NAME, Options, Percent, Settings, SettingsFile, Span};
use crate::wire::ids::Generation;
use crate::{primary, worker};
use new::Template;
use reload::{Ended, Show};

/// Exit codes.
mod exit {
    /// It was tried and failed.
    pub(super) const ERROR: u8 = 1;
    /// The command line or the configuration is wrong.
    pub(super) const USAGE: u8 = 2;
    /// The component cannot be served: nothing was changed.
    pub(super) const REFUSED: u8 = 3;
    /// The new version did not stand a gate, and was rolled back.
    pub(super) const ROLLED_BACK: u8 = 4;
    /// It took too long, and was rolled back.
    pub(super) const TIMED_OUT: u8 = 5;
    /// Another change is under way.
    pub(super) const BUSY: u8 = 6;
    /// No server is running under that name.
    pub(super) const NO_SERVER: u8 = 7;
    /// The new version is served, but a restart with `--resume` would start the one before it.
    pub(super) const UNSAVED: u8 = 8;
}

/// How long a server that ends tries to say why.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

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
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
struct ServeArgs {
    /// The component to serve, as .wasm or .wat, or a folder to build it from [default: the current folder, if it can be
    /// built]
    #[arg(value_name = "APP")]
    app: Option<PathBuf>,

    /// Configuration file [default: wasmcluster.toml, of the folder that is served or else of the current one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster new shop\n  \
    wasmcluster new shop --template stream\n\n\
    The project is named after its folder, and comes with a test.")]
struct NewArgs {
    /// The folder to make; if it is there, it must be empty
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// What to begin with
    #[arg(long, value_name = "TEMPLATE", value_enum, default_value = "hello")]
    template: Template,
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
struct BuildArgs {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,

    /// Build again whenever the sources change, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes:\n  \
    0 the store has it\n  1 error\n  2 usage\n  3 refused: it cannot be read or built, is no component, does not link or \
    does not compile\n\n\
    Examples:\n  \
    wasmcluster compile app.wasm\n  \
    wasmcluster compile app.wasm -o /srv/store && wasmcluster serve app.wasm --store /srv/store\n\n\
    Native code is for one version of wasmcluster and the features of one CPU: on another machine `serve` compiles anew.")]
struct CompileArgs {
    /// The component, as .wasm or .wat, or a folder to build it from [default: the current folder, if it can be built]
    #[arg(value_name = "APP")]
    app: Option<PathBuf>,

    /// A store that every user may read, and use if it is root's [default: the store of `serve`, which is for its owner]
    #[arg(short = 'o', long, value_name = "DIR")]
    store: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster inspect app.wasm\n  \
    wasmcluster inspect app.wasm --json | jq .grants\n\n\
    Takes the flags and the configuration file of `serve`, and shows the limits for requests and guests that follow \
    from them. Exits with 1 if the component could not be served.")]
struct InspectArgs {
    #[command(flatten)]
    serve: ServeArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
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
#[command(after_help = "Examples:\n  \
    wasmcluster status\n  \
    wasmcluster status --json | jq .workers\n  \
    wasmcluster status --wait-ready 1m && run-the-tests")]
struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// List all clusters of this user; of all users, for root
    #[arg(long, conflicts_with_all = ["name", "control"])]
    all: bool,

    /// Wait until the cluster serves, for at most TIME [default: 30s]; exit with 0 only if it does
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", conflicts_with = "all")]
    wait_ready: Option<Span>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  wasmcluster scale 8\n  wasmcluster scale +1\n  wasmcluster scale -1 --name shop")]
struct ScaleArgs {
    /// The number of workers; with a sign, how many more or fewer
    #[arg(value_name = "[+-]N", allow_negative_numbers = true)]
    scale: Scale,

    #[command(flatten)]
    cluster: ClusterArgs,
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
struct ReloadArgs {
    /// The component to serve from now on, or a folder to build it from [default: the same as before: the file is read
    /// again, or the folder built again]
    #[arg(value_name = "APP")]
    app: Option<PathBuf>,

    #[command(flatten)]
    terms: TermsArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "An earlier version comes back as a new generation, after a short canary and without a soak. \
    Repeated, it goes further back. Exit codes as of `reload`.\n\n\
    Examples:\n  \
    wasmcluster rollback\n  \
    wasmcluster rollback --to 3")]
struct RollbackArgs {
    /// The generation to bring back; the last 8 are kept [default: the one before]
    #[arg(long, value_name = "GENERATION", value_parser = generation)]
    to: Option<u64>,

    #[command(flatten)]
    terms: TermsArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// How a change of the version may go.
#[derive(Debug, Args)]
struct TermsArgs {
    /// How long it may take, from the command to the commit, before it is rolled back [default: 5m]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,

    /// Ignore crashes and errors once the first worker of the new version is well: for a fix in the middle of an attack
    #[arg(long)]
    force: bool,

    /// Roll back if the share of errors (5xx, traps) is so many percentage points above the old version's, after 20 answers;
    /// 100 never does [default: what `serve` was told, or 5]
    #[arg(long, value_name = "PERCENT")]
    max_error_increase: Option<Percent>,

    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

impl TermsArgs {
    fn request(&self, app: Option<PathBuf>) -> ReloadRequest {
        ReloadRequest {
            app,
            timeout_ms: self.timeout.map(Span::as_millis),
            force: self.force,
            max_error_increase: self.max_error_increase.map(|it| f64::from(it.thousandths()) / 10.0),
            ..ReloadRequest::default()
        }
    }

    fn show(&self) -> Show {
        if self.json { Show::Json } else { Show::People }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Requests that were begun are finished, within the cluster's --shutdown-timeout.\n\n\
    Examples:\n  \
    wasmcluster stop\n  \
    wasmcluster stop --name shop --now")]
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

fn generation(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected the number of a generation, as `wasmcluster status` shows it".into())
}

fn parse_entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmcluster completions bash > ~/.local/share/bash-completion/completions/wasmcluster\n  \
    wasmcluster completions zsh > \"${fpath[1]}/_wasmcluster\"\n  \
    wasmcluster completions fish > ~/.config/fish/completions/wasmcluster.fish")]
struct CompletionsArgs {
    #[arg(value_name = "SHELL", value_enum)]
    shell: clap_complete::Shell,
}

/// How a command failed.
enum Failure {
    Usage(anyhow::Error),
    Error(anyhow::Error),
    Command(CommandError),
    Reload(Ended),
    /// The component cannot be served, and nothing depends on it.
    Refused(anyhow::Error),
}

impl From<NoPlan> for Failure {
    fn from(error: NoPlan) -> Self {
        match error {
            NoPlan::File(error) => Self::Usage(error),
            error => Self::Error(error.into()),
        }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl Failure {
    /// What cannot be built is not served, as what cannot be read.
    fn refuse(self) -> Self {
        match self {
            Self::Error(error) => {
                let reason = Some(format!("{error:#}"));
                Self::Reload(Ended { generation: None, result: ReloadResult::Refused, reason })
            }
            other => other,
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let mut is_server = false;
    let ended = match role() {
        Some(ended) => ended.map_err(Failure::Error),
        None => match Cli::try_parse().map_err(hints::improve) {
            Ok(cli) => {
                is_server = matches!(cli.command, Command::Serve(_));
                run(cli.command)
            }
            Err(error) => {
                // Whoever closed our output does not want to read it.
                let _ = error.print();
                return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
            }
        },
    };
    let (message, code) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (format!("{error:#}"), exit::USAGE),
        Err(Failure::Error(error)) => (format!("{error:#}"), exit::ERROR),
        Err(Failure::Command(error @ CommandError::NoServer(_))) => (error.to_string(), exit::NO_SERVER),
        Err(Failure::Command(error @ CommandError::Busy(_))) => (error.to_string(), exit::BUSY),
        Err(Failure::Reload(ended)) => explain(&ended),
        Err(Failure::Refused(error)) => (format!("{error:#}"), exit::REFUSED),
        Err(Failure::Command(error)) => (format!("{error:#}"), exit::ERROR),
    };
    // A server that has failed must end, though its terminal takes nothing any more: a service manager waits for that.
    let (told, is_told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        logging::complain(&message);
        let _ = told.send(());
    });
    let _ = is_told.recv_timeout(if is_server { TOLD_WITHIN } else { Duration::MAX });
    ExitCode::from(code)
}

/// What a process that `serve` started does. These are no commands for people: nothing lists, completes or suggests them.
fn role() -> Option<anyhow::Result<()>> {
    match std::env::args_os().nth(1)?.to_str()? {
        "worker" => Some(worker::worker_main()),
        "compiler" => Some(compiler::compiler_main(worker::check_links)),
        "builder" => Some(build::builder_main()),
        _ => None,
    }
}

/// What to say of a reload that did not go well, and with which exit code.
fn explain(ended: &Ended) -> (String, u8) {
    let reason = ended.reason.as_deref().unwrap_or("no reason was given");
    match ended.result {
        ReloadResult::Refused => (format!("refused, nothing was changed: {reason}"), exit::REFUSED),
        ReloadResult::RolledBack => (format!("rolled back: {reason}"), exit::ROLLED_BACK),
        ReloadResult::TimedOut => (format!("timed out, the old version is served: {reason}"), exit::TIMED_OUT),
        ReloadResult::CommittedUnsaved => {
            let generation = ended.generation.unwrap_or_default();
            let what = "what is kept for `serve --resume` is still the version before it";
            (format!("generation {generation} is served, but {what}: {reason}"), exit::UNSAVED)
        }
        ReloadResult::Committed | ReloadResult::Unchanged | ReloadResult::Failed => {
            (format!("the reload failed: {reason}"), exit::ERROR)
        }
    }
}

fn reloaded(ended: Ended, show: Show) -> Result<(), Failure> {
    let generation = ended.generation.unwrap_or_default();
    let said = match (ended.result, &ended.reason) {
        (ReloadResult::Committed, None) => format!("generation {generation} is served\n"),
        (ReloadResult::Committed, Some(remark)) => format!("generation {generation} is served: {remark}\n"),
        (ReloadResult::Unchanged, _) => format!("unchanged: it is what generation {generation} serves already\n"),
        _ => return Err(Failure::Reload(ended)),
    };
    if show == Show::People {
        // It is done, whoever reads that.
        let _ = print(said.as_bytes());
    }
    Ok(())
}

fn rolled_back(ended: Ended, client: &Client) -> Result<(), Failure> {
    if ended.result != ReloadResult::Committed {
        return Err(Failure::Reload(ended));
    }
    // It is done, whether that can be told or not.
    if let Ok(status) = block_on(client.status()) {
        let _ = print(reload::served(&status.generation).as_bytes());
    }
    Ok(())
}

fn print(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => {
            if std::process::id() == 1 {
                // Process 1 ignores what it does not handle: what comes from now on is kept for when it does.
                primary::hold_signals().map_err(|error| Failure::Error(error.into()))?;
            }
            logging::speak(args.options.log_format.unwrap_or_default());
            let settings = settings(*args).map_err(Failure::Usage)?;
            logging::speak(settings.logging.format);
            if settings.app.is_dir() {
                // What cannot be built is a mistake in the command line, told before anything is started.
                Plan::read(&settings.app)?;
            }
            primary::serve(settings).map_err(Failure::Error)
        }
        Command::New(NewArgs { folder, template }) => new::new(&folder, template).map_err(Failure::Error),
        Command::Build(BuildArgs { folder, watch: false }) => build_folder(&folder).map(drop),
        Command::Build(BuildArgs { folder, watch: true }) => {
            let sources = Sources::of(&Plan::read(&folder)?);
            match build::watch(&folder, sources, None).map_err(Failure::Error)? {}
        }
        Command::Compile(CompileArgs { app, store }) => compile::compile(app, store),
        Command::Status(args) if args.all => Ok(block_on(async { Ok(clusters::print(args.json).await?) })?),
        Command::Status(args) => {
            let client = client(args.cluster)?;
            let status = match args.wait_ready {
                Some(patience) => block_on(commands::wait_ready(&client, patience.into()))?,
                None => block_on(client.status())?,
            };
            status::print(&status, args.json).map_err(Failure::Error)
        }
        Command::Inspect(args) => {
            let settings = built(settings(args.serve).map_err(Failure::Usage)?)?;
            inspect::inspect(&settings, args.json).map_err(Failure::Error)
        }
        Command::Scale(args) => Ok(block_on(commands::scale(&client(args.cluster)?, args.scale))?),
        Command::Stop(args) => Ok(block_on(commands::stop(&client(args.cluster)?, args.now))?),
        Command::Reload(ReloadArgs { app, terms, cluster }) => {
            let client = client(cluster)?;
            // Nothing is built for a cluster that does not run.
            let folder = match &app {
                Some(app) if !app.is_dir() => None,
                Some(folder) => block_on(client.status()).map(|_| Some(folder.clone()))?,
                None => block_on(client.status())?.generation.folder,
            };
            // What is built may turn out the same; a file is named by somebody who wants its workers anew.
            let if_new = folder.is_some() && !terms.force;
            let app = match folder {
                Some(folder) => Some(build_folder(&folder).map_err(Failure::refuse)?),
                None => app,
            };
            let app = app.as_deref().map(files::absolute).transpose().map_err(|error| Failure::Usage(error.into()))?;
            let (request, show) = (ReloadRequest { if_new, ..terms.request(app) }, terms.show());
            reloaded(block_on(reload::reload(&client, &request, show))?, show)
        }
        Command::Rollback(RollbackArgs { to, terms, cluster }) => {
            let (client, show) = (client(cluster)?, terms.show());
            let request = ReloadRequest { to: to.map(Generation), ..terms.request(None) };
            let ended = block_on(reload::rollback(&client, &request, show))?;
            if show == Show::Json { reloaded(ended, show) } else { rolled_back(ended, &client) }
        }
        Command::Events(args) => Ok(block_on(commands::events(&client(args.cluster)?))?),
        Command::Config(ConfigArgs { command: ConfigCommand::Get { key, cluster } }) => {
            Ok(block_on(commands::config_get(&client(cluster)?, key.as_deref()))?)
        }
        Command::Config(ConfigArgs { command: ConfigCommand::Set { entries, cluster } }) => {
            Ok(block_on(commands::config_set(&client(cluster)?, entries))?)
        }
        Command::Completions(CompletionsArgs { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wasmcluster", &mut script);
            print(&script).map_err(|error| Failure::Error(error.into()))
        }
    }
}

fn client(cluster: ClusterArgs) -> Result<Client, Failure> {
    Ok(Client(control_path(&cluster.name, cluster.control)))
}

fn block_on<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(command)
}

fn settings(args: ServeArgs) -> anyhow::Result<Settings> {
    let app = app_or_project(args.app)?;
    let (options, file) = match &args.config {
        Some(file) => (Options::from_file(file)?, SettingsFile::at(file)?),
        None => (Options::from_default_file(&app)?, SettingsFile::default_for(&app)?),
    };
    let options = args.options.or(options);
    let is_development = options.watch && app.is_dir();
    let settings = Settings::new(app, if is_development { options.for_development() } else { options });
    let settings = settings.map_err(|error| file.locate(error))?;
    Ok(Settings { file: Some(file), ..settings })
}

/// What was given, or the folder where we are if that is a project.
fn app_or_project(app: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let Some(app) = app else {
        let here = PathBuf::from(".");
        return match Plan::read(&here) {
            Ok(_) => Ok(here),
            Err(NoPlan::File(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!(
                "name the component to use: a .wasm file, or the folder of a project. The current folder is not a project: it has \
                 neither a Cargo.toml nor a wasmcluster.toml with a [build] section"
            )),
        };
    };
    Ok(app)
}

/// Of a folder, the component is built and takes its place.
fn built(settings: Settings) -> Result<Settings, Failure> {
    if !settings.app.is_dir() {
        return Ok(settings);
    }
    Plan::read(&settings.app)?;
    let relay = Relay::start().map_err(|error| Failure::Error(error.into()))?;
    let built = build::build_once(&settings.app, false).map_err(Failure::Error)?;
    drop(relay);
    build::tell(&built.component);
    let folder = files::absolute(&settings.app).map_err(|error| Failure::Error(error.into()))?;
    Ok(Settings { app: built.component, folder: Some(folder), ..settings })
}

fn build_folder(folder: &Path) -> Result<PathBuf, Failure> {
    let component = Plan::read(folder)?.carry_out().component.map_err(Failure::Error)?;
    build::tell(&component);
    Ok(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
