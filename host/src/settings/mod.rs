//! What a user asks for: the flags of `serve` and the file that says the same, merged and checked.
//!
//! The command line wins over the file, the file over the defaults. The file's keys are the flags' names.

mod doubts;
mod file;
#[cfg(test)]
mod fuzz;
mod granted;
mod limits;
mod live;
pub(crate) mod paths;
mod policy;
mod settings_file;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::grants::{AllowHost, DirGrant};
use crate::logging::{LogFormat, LogLevel, Logging, colours};
use crate::os::files;
use crate::os::listener::{ListenAddr, MAX_LISTENERS};
use crate::os::resources::{Shares, memory_of_this_machine, workers_for_this_machine};

pub(crate) use file::OTHER_WORDS;
pub(crate) use granted::Granted;
pub(crate) use limits::*;
pub(crate) use live::LiveConfig;
use paths::control_path;
pub(crate) use policy::{Policy, Recycle};
pub(crate) use settings_file::SettingsFile;

/// Read when no `--config` is given: the one of the folder that is served, or else of the current one.
pub(crate) const DEFAULT_FILE: &str = "wasmcluster.toml";
/// More workers than any machine has cores are a typing error.
pub(crate) const MAX_WORKERS: u32 = 1024;
/// Longest time that can be asked for: no sum of such times overflows.
const MAX_SPAN: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// An executor shows twice a second that it turns.
const MIN_HANG_TIMEOUT: Duration = Duration::from_secs(2);
/// Workers that live shorter would do little but start.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// A worker that serves nothing has many times more.
const MIN_RSS: u64 = 1 << 20;
/// What a drain has beside the time that a request may take.
const DRAIN_RESERVE: Duration = Duration::from_secs(5);
/// What `docker stop` waits before it kills, less a second to end in.
const CONTAINER_GRACE: Duration = Duration::from_secs(9);
/// A machine too small for so many workers shall still serve: what instances may have by default, in bytes.
const MIN_MEMORY: u64 = 16 << 20;

/// Headings of `serve --help`.
const CLUSTER: &str = "Cluster";
const GRANTS: &str = "What guests may use";
const TIMEOUTS: &str = "Timeouts";
const LIMITS: &str = "Limits";
const INSTANCES: &str = "Reuse of instances";
const DRAIN: &str = "Drain and stop";
const VERSIONS: &str = "Health and new versions";
const RECYCLING: &str = "Replacement of old workers";
const LOGGING: &str = "Logging";

/// Everything that flags and the file can say; `None` and empty mean unsaid.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Address to listen on: HOST:PORT, [IPV6]:PORT or unix:PATH; can be repeated [default: 127.0.0.1:8080]
    ///
    /// Port 0 picks a free port. 127.0.0.1 is reachable from this machine only, 0.0.0.0 and [::] from everywhere.
    #[arg(long, value_name = "ADDR", help_heading = CLUSTER)]
    pub(crate) listen: Vec<ListenAddr>,

    /// Number of worker processes [default: the CPUs this process may use, or fewer where memory is short]
    #[arg(long, short, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = CLUSTER)]
    pub(crate) workers: Option<NonZeroU32>,

    /// Pin each worker to one CPU
    ///
    /// This keeps caches warm on a machine with little else to do. A pinned worker cannot move away from other load on
    /// its CPU, so do not run more workers than CPUs.
    #[arg(long, help_heading = CLUSTER)]
    pub(crate) pin_cpus: bool,

    /// Connections that the kernel queues per address until a worker accepts them [default: 1024]
    ///
    /// The kernel caps it at net.core.somaxconn.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = CLUSTER)]
    pub(crate) backlog: Option<NonZeroU32>,

    /// Name of this cluster, for the commands that talk to it [default: default]
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    pub(crate) name: Option<String>,

    /// Path of the control socket [default: $WASMCLUSTER_CONTROL, or NAME.sock in the user's runtime folder]
    #[arg(long, value_name = "PATH", help_heading = CLUSTER)]
    pub(crate) control: Option<PathBuf>,

    /// Folder for compiled components [default: $CACHE_DIRECTORY, or wasmcluster in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR", help_heading = CLUSTER)]
    pub(crate) store: Option<PathBuf>,

    /// Folder for state that outlives the cluster [default: $STATE_DIRECTORY, or wasmcluster in $XDG_STATE_HOME or ~/.local/state]
    ///
    /// It records which version was committed last, for --resume.
    #[arg(long, value_name = "DIR", help_heading = CLUSTER)]
    pub(crate) state_dir: Option<PathBuf>,

    /// Environment variable for guests; can be repeated
    ///
    /// In the configuration file, it is the table [env].
    #[arg(long, value_name = "K=V", value_parser = parse_variable, help_heading = GRANTS)]
    #[serde(deserialize_with = "variables")]
    pub(crate) env: Vec<(String, String)>,

    /// Environment variable to pass on from this process to guests; can be repeated
    #[arg(long, value_name = "K", help_heading = GRANTS)]
    pub(crate) env_inherit: Vec<String>,

    /// Folder HOST that guests may open as GUEST; :ro makes it read-only; can be repeated
    ///
    /// For example --dir ./data::/data, or --dir ./static::/static:ro.
    #[arg(long, value_name = "HOST::GUEST[:ro]", help_heading = GRANTS)]
    pub(crate) dir: Vec<DirGrant>,

    /// Host that guests may send requests to; can be repeated
    ///
    /// For example https://api.example.com, https://*.example.com for every name below it, http://10.1.2.3:8080 for
    /// an address, http://10.0.0.0:8080/8 for a network. Port * stands for any port.
    #[arg(long, value_name = "URL", help_heading = GRANTS)]
    pub(crate) allow_host: Vec<AllowHost>,

    /// Longest time from a request's headers to the headers of its response; past it, 504 [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
    pub(crate) request_timeout: Option<Span>,

    /// Longest time without progress while a response body is sent; past it, the connection is cut [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
    pub(crate) stream_timeout: Option<Span>,

    /// Longest time a client may take to send a request's headers; past it, 408 [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
    pub(crate) header_timeout: Option<Span>,

    /// Longest time a connection may be idle before it is closed [default: 75s]
    #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
    pub(crate) keep_alive_timeout: Option<Span>,

    /// Longest time without a heartbeat before a worker is killed and replaced [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
    pub(crate) hang_timeout: Option<Span>,

    /// Requests that a worker handles at the same time [default: 256]
    ///
    /// As many again may wait; more get 503.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
    pub(crate) max_in_flight: Option<NonZeroU32>,

    /// Connections that a worker keeps open [default: 4096]
    ///
    /// When one more arrives, the connection that has been idle longest is closed.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
    pub(crate) max_connections: Option<NonZeroU32>,

    /// Largest body of a request; a larger one gets 413 [default: 64MiB]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    pub(crate) max_body: Option<Size>,

    /// Largest size of a request's headers; more get 431 [default: 64KiB]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    pub(crate) max_header_bytes: Option<Size>,

    /// Largest number of header fields in a request; more get 431 [default: 100]
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
    pub(crate) max_headers: Option<NonZeroU32>,

    /// Memory limit of one instance [default: 128MiB, or less where a worker has less]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    pub(crate) max_memory: Option<Size>,

    /// Memory limit of all instances of a worker together [default: its share of the machine's memory, or of the control group's]
    ///
    /// The default is 80 % of the memory of the machine or of the control group, less the compiler's share, divided by the
    /// number of workers plus one.
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    pub(crate) max_worker_memory: Option<Size>,

    /// Requests that an instance serves before it is dropped [default: 1 with WASI 0.2, 128 with 0.3]
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = INSTANCES)]
    pub(crate) max_instance_reuse_count: Option<NonZeroU32>,

    /// Requests that an instance serves at the same time, with WASI 0.3 [default: 1]
    ///
    /// A trap in one of them ends all of them, and while one computes the others wait.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = INSTANCES)]
    pub(crate) max_instance_concurrent_reuse_count: Option<NonZeroU32>,

    /// Time a draining worker has to finish its requests before it cuts them [default: 5s more than
    /// --request-timeout]
    #[arg(long, value_name = "TIME", help_heading = DRAIN)]
    pub(crate) drain_timeout: Option<Span>,

    /// Time workers have to finish their requests when the cluster stops [default: 5s more than
    /// --request-timeout; 9s as process 1 of a container]
    ///
    /// Requests that are left then are cut, and the log says how many. If Docker or Kubernetes kills the cluster earlier,
    /// nothing is logged: give `docker stop` or Kubernetes a grace period longer than this plus --shutdown-delay.
    #[arg(long, value_name = "TIME", help_heading = DRAIN)]
    pub(crate) shutdown_timeout: Option<Span>,

    /// Time to keep serving after the cluster was told to stop, so that load balancers notice [default: 0s]
    #[arg(long, value_name = "TIME", help_heading = DRAIN)]
    pub(crate) shutdown_delay: Option<Span>,

    /// Time idle connections stay open after a drain began, for requests already on their way [default: 2s]
    #[arg(long, value_name = "TIME", help_heading = DRAIN)]
    pub(crate) drain_idle_grace: Option<Span>,

    /// Path of the health check: a worker is ready once its component answers a GET with 2xx [default: no check]
    #[arg(long, value_name = "PATH", help_heading = VERSIONS)]
    pub(crate) health_path: Option<HealthPath>,

    /// Time the first worker of a new version must stay healthy before it may serve [default: 1s]
    #[arg(long, value_name = "TIME", help_heading = VERSIONS)]
    pub(crate) min_ready: Option<Span>,

    /// Time a new version must do well in all workers before it is committed [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = VERSIONS)]
    pub(crate) soak: Option<Span>,

    /// Percentage points by which the error rate may rise before a new version is rolled back [default: 5]
    ///
    /// The new version's error rate (5xx, traps) is compared with that of the old version's latest responses, once the new
    /// version has given 20 responses. 100 never rolls back.
    #[arg(long, value_name = "PERCENT", help_heading = VERSIONS)]
    pub(crate) max_error_increase: Option<Percent>,

    /// Reload when the component's file changes; build a folder again when its sources change
    ///
    /// For a folder, --min-ready and --soak are 0s unless they are given, so that a rebuild shows at once.
    #[arg(long, help_heading = VERSIONS)]
    pub(crate) watch: bool,

    /// Start the version that was committed last under this name, even if the file has changed since
    #[arg(long, help_heading = VERSIONS)]
    pub(crate) resume: bool,

    /// Replace a worker after about this many requests [default: never]
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, help_heading = RECYCLING)]
    pub(crate) max_worker_requests: Option<NonZeroU64>,

    /// Replace a worker at about this age [default: never]
    #[arg(long, value_name = "TIME", help_heading = RECYCLING)]
    pub(crate) max_worker_lifetime: Option<Span>,

    /// Replace a worker when its resident memory has grown to about this size [default: never]
    #[arg(long, value_name = "SIZE", help_heading = RECYCLING)]
    pub(crate) max_worker_rss: Option<Size>,

    /// Log level [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = LOGGING)]
    pub(crate) log_level: Option<LogLevel>,

    /// Log format [default: pretty]
    #[arg(long, value_name = "FORMAT", help_heading = LOGGING)]
    pub(crate) log_format: Option<LogFormat>,

    /// Only in the file, and for the folder that it is in: the table [build]
    #[arg(skip)]
    pub(crate) build: Option<Recipe>,
}

/// How the component of a folder is made by other means than cargo.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Recipe {
    /// For `sh`, in the folder.
    pub(crate) command: String,
    /// What the command makes, as a path in the folder.
    pub(crate) component: PathBuf,
}

/// A time as people write it: `500ms`, `30s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(Duration);

impl Span {
    pub(crate) fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span =
            humantime::parse_duration(text).map_err(|_| "expected a time with its unit; write 500ms, 30s or 2m")?;
        if span > MAX_SPAN { Err(format!("the limit is {} days", MAX_SPAN.as_secs() / 86_400)) } else { Ok(Self(span)) }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A part of a hundred, in tenths of one: `5`, `2.5` or `5%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub(crate) struct Percent(u32);

impl Percent {
    /// The nearest one that there is.
    pub(crate) fn clamped(percent: f64) -> Self {
        Self((percent.clamp(0.0, 100.0) * 10.0).round() as u32)
    }

    pub(crate) fn thousandths(self) -> u32 {
        self.0
    }

    fn new(percent: f64) -> Result<Self, String> {
        if (0.0..=100.0).contains(&percent) {
            Ok(Self::clamped(percent))
        } else {
            Err("expected a number from 0 to 100".into())
        }
    }
}

/// By how many points the share of errors of a new version may be above the old version's.
impl Default for Percent {
    fn default() -> Self {
        Self(50)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text.strip_suffix('%').unwrap_or(text).trim_end().parse().unwrap_or(f64::NAN))
    }
}

/// As files say a number that may have a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl TryFrom<NumberOrText> for Percent {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        match value {
            NumberOrText::Number(percent) => Self::new(percent),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

/// A path, and perhaps a query, that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HealthPath(http::uri::PathAndQuery);

impl HealthPath {
    pub(crate) fn as_uri(&self) -> http::Uri {
        self.0.clone().into()
    }
}

impl FromStr for HealthPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("expected a path that begins with /".into());
        }
        text.parse().map(Self).map_err(|error| format!("{error}; write /health"))
    }
}

impl TryFrom<String> for HealthPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HealthPath> for String {
    fn from(path: HealthPath) -> Self {
        path.0.to_string()
    }
}

/// A number of things of which there is at least one; what the parser says of 0 helps nobody.
pub(crate) fn count<N: FromStr>(text: &str) -> Result<N, String> {
    let is_too_large =
        || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.contains(|c| c != '0');
    text.parse().map_err(|_| match is_too_large() {
        true => "the number is too large".into(),
        false => "expected a whole number, 1 or more".into(),
    })
}

/// A size as people write it: `64KiB`, `10MiB`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_) => Err("expected a size; write 64KiB, 10MiB or 1GiB".into()),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    check_variable(name, value)?;
    Ok((name.into(), value.into()))
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    match name {
        "" => Err("the variable has no name".into()),
        _ if name.contains(['=', '\0']) => Err(format!("{name:?} cannot be the name of a variable")),
        _ if value.contains('\0') => Err(format!("the value of {name} has a NUL byte in it")),
        _ => Ok(()),
    }
}

fn variables<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(from)?;
    for (name, value) in &table {
        check_variable(name, value).map_err(serde::de::Error::custom)?;
    }
    Ok(table.into_iter().collect())
}

impl Options {
    /// What the file says that belongs to `app`: the default file in it, if it is a folder that has one, or else the one
    /// in the current folder, if there is one.
    pub(crate) fn from_default_file(app: &Path) -> anyhow::Result<Self> {
        let files = [app.join(DEFAULT_FILE), DEFAULT_FILE.into()];
        files.iter().find(|file| file.exists()).map_or_else(|| Ok(Self::default()), |file| Self::from_file(file))
    }

    pub(crate) fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = read_trusted(path).with_context(|| format!("cannot read {}", path.display()))?;
        file::parse(&text).map_err(|reason| anyhow::anyhow!("{}, {reason}", path.display()))
    }

    /// These options for somebody who changes the sources and wants to see what comes of it: new versions are served at
    /// once, unless it is said otherwise.
    pub(crate) fn for_development(self) -> Self {
        let at_once = Some(Span(Duration::ZERO));
        Self { min_ready: self.min_ready.or(at_once), soak: self.soak.or(at_once), ..self }
    }

    /// These options, and from `other` what they leave unsaid; environment variables are merged by name.
    pub(crate) fn or(self, other: Self) -> Self {
        let mut env: BTreeMap<String, String> = other.env.into_iter().collect();
        env.extend(self.env);
        Self {
            listen: first(self.listen, other.listen),
            backlog: self.backlog.or(other.backlog),
            workers: self.workers.or(other.workers),
            pin_cpus: self.pin_cpus || other.pin_cpus,
            name: self.name.or(other.name),
            control: self.control.or(other.control),
            store: self.store.or(other.store),
            state_dir: self.state_dir.or(other.state_dir),
            env: env.into_iter().collect(),
            env_inherit: first(self.env_inherit, other.env_inherit),
            dir: first(self.dir, other.dir),
            allow_host: first(self.allow_host, other.allow_host),
            request_timeout: self.request_timeout.or(other.request_timeout),
            stream_timeout: self.stream_timeout.or(other.stream_timeout),
            header_timeout: self.header_timeout.or(other.header_timeout),
            keep_alive_timeout: self.keep_alive_timeout.or(other.keep_alive_timeout),
            max_in_flight: self.max_in_flight.or(other.max_in_flight),
            max_connections: self.max_connections.or(other.max_connections),
            max_body: self.max_body.or(other.max_body),
            max_header_bytes: self.max_header_bytes.or(other.max_header_bytes),
            max_headers: self.max_headers.or(other.max_headers),
            max_memory: self.max_memory.or(other.max_memory),
            max_worker_memory: self.max_worker_memory.or(other.max_worker_memory),
            max_instance_reuse_count: self.max_instance_reuse_count.or(other.max_instance_reuse_count),
            max_instance_concurrent_reuse_count: self
                .max_instance_concurrent_reuse_count
                .or(other.max_instance_concurrent_reuse_count),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            shutdown_timeout: self.shutdown_timeout.or(other.shutdown_timeout),
            shutdown_delay: self.shutdown_delay.or(other.shutdown_delay),
            drain_idle_grace: self.drain_idle_grace.or(other.drain_idle_grace),
            hang_timeout: self.hang_timeout.or(other.hang_timeout),
            min_ready: self.min_ready.or(other.min_ready),
            soak: self.soak.or(other.soak),
            max_error_increase: self.max_error_increase.or(other.max_error_increase),
            health_path: self.health_path.or(other.health_path),
            max_worker_requests: self.max_worker_requests.or(other.max_worker_requests),
            max_worker_lifetime: self.max_worker_lifetime.or(other.max_worker_lifetime),
            max_worker_rss: self.max_worker_rss.or(other.max_worker_rss),
            watch: self.watch || other.watch,
            resume: self.resume || other.resume,
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
            build: self.build.or(other.build),
        }
    }
}

/// A file that others could have written is not gone by: it says what is run, and what it may do.
fn read_trusted(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path)?;
    files::check_trusted(&file.metadata()?)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The first of two lists that says anything.
fn first<T>(list: Vec<T>, or: Vec<T>) -> Vec<T> {
    if list.is_empty() { or } else { list }
}

/// What `serve` runs with: options checked, defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) app: PathBuf,
    /// The folder that it was built from, as an absolute path.
    pub(crate) folder: Option<PathBuf>,
    /// Where they come from, as far as they do not come from the command line.
    pub(crate) file: Option<SettingsFile>,
    pub(crate) listen: Vec<ListenAddr>,
    pub(crate) backlog: i32,
    pub(crate) workers: u32,
    pub(crate) pin_cpus: bool,
    pub(crate) name: String,
    pub(crate) control: PathBuf,
    pub(crate) store: PathBuf,
    /// None if there is no place for it: then nothing is kept.
    pub(crate) state_dir: Option<PathBuf>,
    /// Start the version that was committed last, not the file as it is now.
    pub(crate) resume: bool,
    /// Reload when the file changes.
    pub(crate) watch: bool,
    pub(crate) granted: Granted,
    pub(crate) policy: Policy,
    /// By how much the share of errors of a new version may be above the old version's.
    pub(crate) max_error_increase: Percent,
    pub(crate) drain_idle_grace: Duration,
    pub(crate) health_path: Option<HealthPath>,
    pub(crate) limits: Limits,
    /// None is what is usual for the component's version of WASI.
    pub(crate) max_instance_reuse_count: Option<NonZeroU32>,
    pub(crate) max_instance_concurrent_reuse_count: Option<NonZeroU32>,
    pub(crate) logging: Logging,
    /// How it begins.
    pub(crate) live: LiveConfig,
    /// What is allowed and hardly meant, a line each, to be logged.
    pub(crate) doubts: Vec<String>,
}

impl Settings {
    pub(crate) fn new(app: PathBuf, options: Options) -> anyhow::Result<Self> {
        let workers = match options.workers {
            Some(workers) => workers.get(),
            None => workers_for_this_machine(),
        };
        let or_seconds = |span: Option<Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        let request_timeout = or_seconds(options.request_timeout, 30);
        let doubts = doubts::of(&options, workers, request_timeout);
        ensure!(workers <= MAX_WORKERS, "--workers {workers} is over the limit of {MAX_WORKERS}");
        let listen = match options.listen {
            empty if empty.is_empty() => vec![ListenAddr::Tcp("127.0.0.1:8080".into())],
            listen => listen,
        };
        ensure!(
            listen.len() <= MAX_LISTENERS,
            "--listen is given {} times; the limit is {MAX_LISTENERS}",
            listen.len()
        );
        let name = options.name.unwrap_or_else(|| DEFAULT_NAME.into());
        check_name(&name)?;
        let or_bytes = |size: Option<Size>, default| size.map_or(default, |size| size.0);
        // In whole MiB, for people.
        let share = (Shares::of(memory_of_this_machine(), workers).worker >> 20 << 20).max(MIN_MEMORY);
        let max_memory = or_bytes(options.max_memory, share.min(128 << 20));
        let limits = Limits {
            request_timeout,
            stream_timeout: or_seconds(options.stream_timeout, 60),
            header_timeout: or_seconds(options.header_timeout, 10),
            keep_alive_timeout: or_seconds(options.keep_alive_timeout, 75),
            max_in_flight: options.max_in_flight.map_or(256, |number| number.get() as usize),
            max_connections: options.max_connections.map_or(4096, |number| number.get() as usize),
            max_body: or_bytes(options.max_body, 64 << 20),
            max_header_bytes: or_bytes(options.max_header_bytes, 64 << 10) as usize,
            max_headers: options.max_headers.map_or(100, |number| number.get() as usize),
            max_memory: max_memory as usize,
            max_worker_memory: or_bytes(options.max_worker_memory, share.max(max_memory)) as usize,
        };
        limits.check()?;
        let enough = limits.request_timeout + DRAIN_RESERVE;
        let shutdown_delay = or_seconds(options.shutdown_delay, 0);
        let policy = Policy {
            drain_timeout: options.drain_timeout.map_or(enough, |span| span.0),
            shutdown_delay,
            shutdown_timeout: options.shutdown_timeout.map_or_else(
                || default_shutdown_timeout(enough, shutdown_delay, std::process::id() == 1),
                |span| span.0,
            ),
            hang_timeout: or_seconds(options.hang_timeout, 10),
            min_ready: or_seconds(options.min_ready, 1),
            soak: or_seconds(options.soak, 10),
            request_timeout: limits.request_timeout,
            checks_health: options.health_path.is_some(),
            recycle: Recycle {
                max_requests: options.max_worker_requests.map(NonZeroU64::get),
                max_lifetime: options.max_worker_lifetime.map(|span| span.0),
                max_rss: options.max_worker_rss.map(|size| size.0),
            },
        };
        ensure!(policy.hang_timeout >= MIN_HANG_TIMEOUT, "--hang-timeout must be at least {MIN_HANG_TIMEOUT:?}");
        let state_dir = options.state_dir.or_else(paths::default_state);
        let state_dir = state_dir.as_deref().map(files::absolute).transpose()?;
        if options.resume && state_dir.is_none() {
            bail!("this user has no home folder: name the folder to resume from with --state-dir or $STATE_DIRECTORY");
        }
        let lifetime = policy.recycle.max_lifetime.unwrap_or(MIN_LIFETIME);
        ensure!(lifetime >= MIN_LIFETIME, "--max-worker-lifetime must be at least {MIN_LIFETIME:?}");
        let rss = policy.recycle.max_rss.unwrap_or(MIN_RSS);
        ensure!(
            rss >= MIN_RSS,
            "--max-worker-rss {rss}B is less than any worker needs, so workers would be replaced again and again; write a \
             size with its unit, such as 500MiB"
        );
        let format = options.log_format.unwrap_or_default();
        let logging = Logging { format, colour: format == LogFormat::Pretty && colours() };
        Ok(Self {
            app,
            folder: None,
            file: None,
            listen,
            backlog: options.backlog.map_or(1024, |backlog| backlog.get().min(i32::MAX as u32) as i32),
            workers,
            pin_cpus: options.pin_cpus,
            control: control_path(&name, options.control),
            name,
            resume: options.resume,
            watch: options.watch,
            store: match options.store.or_else(paths::default_store) {
                Some(store) => files::absolute(&store)?,
                None => bail!(
                    "this user has no home folder: name a folder for compiled components with --store or $CACHE_DIRECTORY, and \
                     one for the state of the cluster with --state-dir or $STATE_DIRECTORY"
                ),
            },
            state_dir,
            granted: Granted::new(options.env, options.env_inherit, options.dir, options.allow_host)?,
            policy,
            max_error_increase: options.max_error_increase.unwrap_or_default(),
            drain_idle_grace: or_seconds(options.drain_idle_grace, 2),
            health_path: options.health_path,
            limits,
            max_instance_reuse_count: options.max_instance_reuse_count,
            max_instance_concurrent_reuse_count: options.max_instance_concurrent_reuse_count,
            logging,
            live: LiveConfig { log_level: options.log_level.unwrap_or_default() },
            doubts,
        })
    }
}

/// No request is cut within its own time; but process 1 of a container has only what `docker stop` gives it, and would be
/// killed in the middle of its drain without a word.
fn default_shutdown_timeout(enough: Duration, delay: Duration, is_init: bool) -> Duration {
    if is_init { enough.min(CONTAINER_GRACE.saturating_sub(delay).max(Duration::from_secs(1))) } else { enough }
}

/// The name of a cluster that was given none.
pub(crate) const DEFAULT_NAME: &str = "default";

fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with('.');
    ensure!(good, "--name {name:?}: expected up to 64 letters, digits, '-', '_' or '.', not beginning with '.'");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        file::parse(text)
    }

    #[test]
    fn the_file_says_what_the_flags_say() {
        let options = parse(
            r#"
            listen = ["127.0.0.1:0", "unix:/run/app.sock"]
            workers = 3
            pin-cpus = true
            log-level = "debug"
            log-format = "json"
            env-inherit = ["HOME"]
            dir = ["./data::/data:ro"]
            allow-host = ["https://api.example.com"]
            [env]
            GREETING = "hello"
            "#,
        )
        .unwrap();
        assert_eq!(options.listen, ["127.0.0.1:0".parse().unwrap(), "unix:/run/app.sock".parse().unwrap()]);
        assert_eq!((options.workers, options.pin_cpus), (NonZeroU32::new(3), true));
        assert_eq!(
            (options.env_inherit, options.dir),
            (vec!["HOME".into()], vec!["./data::/data:ro".parse().unwrap()])
        );
        assert_eq!(options.allow_host, ["https://api.example.com".parse().unwrap()]);
        assert_eq!(options.env, [("GREETING".into(), "hello".into())]);
        assert_eq!((options.log_level, options.log_format), (Some(LogLevel::Debug), Some(LogFormat::Json)));
    }

    #[test]
    fn mistakes_in_the_file_are_errors() {
        for (text, message) in [
            ("worker = 3", "unknown key `worker`"),
            ("[build]\ncommand = \"make\"", "`component` is missing"),
            ("[build]\ncommand = \"make\"\ncomponent = \"a.wasm\"\ncwd = \".\"", "unknown key `cwd`"),
            ("workers = 0", "1 or more"),
            ("workers = \"two\"", "write workers = 4"),
            ("listen = [\"8080\"]", "expected HOST:PORT"),
            ("[env]\n\"A=B\" = \"c\"", "cannot be the name of a variable"),
            ("log-level = \"loud\"", "`loud` is not one of `off`"),
            ("hang-timeout = \"soon\"", "write 500ms, 30s or 2m"),
            ("hang-timeout = 10", "write hang-timeout = \"30s\""),
            ("max-worker-rss = \"much\"", "write 64KiB"),
            ("max-worker-requests = 0", "1 or more"),
            ("health-path = \"health\"", "begins with /"),
            ("allow-host = [\"api.example.com\"]", "expected a URL"),
            ("dir = [\"data\"]", "expected HOST::GUEST"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = parse("listen = [\"a:1\"]\nworkers = 2\nname = \"file\"\n[env]\nA = \"1\"\nB = \"2\"").unwrap();
        let flags = Options { workers: NonZeroU32::new(8), env: vec![("B".into(), "3".into())], ..Options::default() };
        let merged = flags.or(file);
        assert_eq!(merged.workers, NonZeroU32::new(8));
        assert_eq!(merged.name.as_deref(), Some("file"));
        assert_eq!(merged.listen, ["a:1".parse().unwrap()]);
        assert_eq!(merged.env, [("A".into(), "1".into()), ("B".into(), "3".into())]);
    }

    #[test]
    fn settings_are_checked() {
        let check = |options: Options, message: &str| {
            let error = Settings::new("app.wasm".into(), options).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(Options { workers: NonZeroU32::new(5000), ..Options::default() }, "over the limit");
        check(Options { hang_timeout: "1999ms".parse().ok(), ..Options::default() }, "--hang-timeout");
        check(Options { max_worker_lifetime: "999ms".parse().ok(), ..Options::default() }, "--max-worker-lifetime");
        check(Options { request_timeout: "9ms".parse().ok(), ..Options::default() }, "--request-timeout");
        check(Options { max_header_bytes: "1KiB".parse().ok(), ..Options::default() }, "--max-header-bytes");
        check(Options { max_in_flight: NonZeroU32::new(1001), ..Options::default() }, "--max-in-flight");
        check(Options { max_headers: NonZeroU32::new(70_000), ..Options::default() }, "--max-headers");
        check(Options { max_memory: "5GiB".parse().ok(), ..Options::default() }, "--max-memory");
        check(Options { max_memory: "1".parse().ok(), ..Options::default() }, "--max-memory 1B");
        check(Options { max_worker_rss: "500".parse().ok(), ..Options::default() }, "--max-worker-rss 500B");
        check(Options { max_worker_memory: "1MiB".parse().ok(), ..Options::default() }, "--max-worker-memory");
        check(Options { max_connections: NonZeroU32::new(2_000_000), ..Options::default() }, "--max-connections");
        check(Options { env_inherit: vec!["NO_SUCH_VARIABLE".into()], ..Options::default() }, "NO_SUCH_VARIABLE: ");
        check(Options { dir: vec!["/no/such::/x".parse().unwrap()], ..Options::default() }, "--dir /no/such::/x");
        check(Options { dir: vec!["/dev/null::/x".parse().unwrap()], ..Options::default() }, "not a folder");
        check(Options { name: Some("../x".into()), ..Options::default() }, "--name");
        let listen = vec![ListenAddr::Tcp("a:1".into()); MAX_LISTENERS + 1];
        check(Options { listen, ..Options::default() }, "the limit is");
    }

    #[test]
    fn a_stop_takes_as_long_as_a_request_may_or_as_a_container_has() {
        let check = |enough, delay, is_init, seconds| {
            let [enough, delay] = [enough, delay].map(Duration::from_secs);
            assert_eq!(default_shutdown_timeout(enough, delay, is_init), Duration::from_secs(seconds));
        };
        check(35, 0, false, 35);
        check(35, 20, false, 35);
        check(35, 0, true, 9);
        check(35, 5, true, 4);
        check(35, 60, true, 1);
        check(6, 0, true, 6);
    }

    #[test]
    fn sizes_are_in_bytes() {
        for (text, bytes) in [("64KiB", 65_536), ("10MiB", 10 << 20), ("1kB", 1000), ("1.5 GiB", 3 << 29), ("7", 7)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1KiB", "1 parsec"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn live_configuration_changes_as_a_whole_or_not_at_all() {
        let with = |entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|&(key, value)| (key.into(), value.into())).collect();
            LiveConfig::default().with(&entries)
        };
        assert_eq!(with(&[]), Ok(LiveConfig::default()));
        let changed = with(&[("wasmcluster.log-level", "debug")]).unwrap();
        assert_eq!(changed.entries()["wasmcluster.log-level"], "debug");
        assert!(with(&[("wasmcluster.log-level", "loud")]).unwrap_err().contains("expected off, error"));
        let unknown = with(&[("greeting", "hello"), ("wasmcluster.log-level", "debug")]).unwrap_err();
        assert!(unknown.contains("wasmcluster.log-level"), "{unknown}");
    }
}
