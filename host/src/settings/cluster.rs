//! The settings of a cluster: where it listens, how many workers it keeps, where it keeps what. They stay as they were at
//! the start, whatever it serves.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::options::Options;
use super::paths::{self, control_path};
use super::{AccessLogPlace, LiveConfig, Otlp, Registries};
use crate::logging::{LogFormat, Logging, colours};
use crate::os::files;
use crate::os::listener::{Entrance, ListenAddr, MAX_LISTENERS, PASSED, Security};
use crate::os::resources::workers_for_this_machine;
use crate::os::service_manager::has_passed_sockets;

/// More workers than any machine has cores are a typing error.
pub(crate) const MAX_WORKERS: u32 = 1024;
/// The name of a cluster that was given none.
pub(crate) const DEFAULT_NAME: &str = "default";
const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";
/// Connections that the kernel queues for each address.
pub(crate) const DEFAULT_BACKLOG: i32 = 1024;

/// The settings of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) listen: Vec<ListenAddr>,
    /// For probes, metrics and the dashboard; none if nobody asked for it.
    pub(crate) admin: Option<ListenAddr>,
    /// Workers that must be ready for the cluster to be.
    pub(crate) ready_min: u32,
    pub(crate) backlog: i32,
    pub(crate) workers: u32,
    pub(crate) pin_cpus: bool,
    pub(crate) name: String,
    pub(crate) control: PathBuf,
    pub(crate) store: PathBuf,
    /// Where components are pulled from that are not in files.
    pub(crate) registries: Registries,
    /// None if there is no place for it: then nothing is kept.
    pub(crate) state_dir: Option<PathBuf>,
    /// Start the version that was committed last, not the file as it is now.
    pub(crate) resume: bool,
    /// Reload when the file changes.
    pub(crate) watch: bool,
    pub(crate) logging: Logging,
    /// An absolute path; lines go to standard output and error if there is none.
    pub(crate) log_file: Option<PathBuf>,
    /// None if nobody asked for it.
    pub(crate) access_log: Option<AccessLogPlace>,
    /// Where traces go; likewise.
    pub(crate) otlp: Option<Otlp>,
    /// How it begins.
    pub(crate) live: LiveConfig,
}

impl Cluster {
    pub(crate) fn new(options: &Options) -> anyhow::Result<Self> {
        let workers = options.workers.map_or_else(workers_for_this_machine, |workers| workers.get());
        ensure!(workers <= MAX_WORKERS, "--workers {workers} is over the limit of {MAX_WORKERS}");
        let mut listen = options.listen.clone();
        if listen.is_empty() {
            // Who passes sockets on has no other address in mind.
            let address = if has_passed_sockets() { PASSED } else { DEFAULT_ADDRESS };
            listen.push(address.parse().map_err(anyhow::Error::msg)?);
        }
        ensure!(
            listen.len() <= MAX_LISTENERS,
            "--listen is given {} times; the limit is {MAX_LISTENERS}",
            listen.len()
        );
        let name = options.name.clone().unwrap_or_else(|| DEFAULT_NAME.into());
        check_name(&name)?;
        let state_dir = state_dir(options)?;
        let format = options.log_format.unwrap_or_default();
        let ready_min = options.ready_min.map_or(1, NonZeroU32::get);
        ensure!(ready_min <= workers, "--ready-min {ready_min} is more than --workers {workers}");
        Ok(Self {
            listen,
            admin: options.admin.clone().map(admin).transpose()?,
            ready_min,
            backlog: options.backlog.map_or(DEFAULT_BACKLOG, |backlog| backlog.get().min(i32::MAX as u32) as i32),
            workers,
            pin_cpus: options.pin_cpus,
            control: control_path(&name, options.control.clone()),
            name,
            store: store(options)?,
            registries: Registries::new(options.registry_ca.clone(), options.registry_plain_http.clone())?,
            state_dir,
            resume: options.resume,
            watch: options.watch,
            access_log: AccessLogPlace::new(options, format)?,
            otlp: otlp(options)?,
            logging: Logging { format, colour: format == LogFormat::Pretty && options.log_file.is_none() && colours() },
            log_file: options.log_file.as_deref().map(log_file).transpose()?,
            live: LiveConfig { log_level: options.log_level.unwrap_or_default(), ..LiveConfig::default() },
        })
    }

    /// The folder of the key-value store that guests have without a flag.
    pub(super) fn default_store(&self) -> Option<PathBuf> {
        Some(self.state_dir.as_ref()?.join(format!("{}.kv", self.name)).join("default"))
    }
}

/// Who probes it speaks plain HTTP, and comes from where only friends do.
fn admin(address: ListenAddr) -> anyhow::Result<ListenAddr> {
    ensure!(
        address.entrance == Entrance { security: Security::Clear, takes_proxy: false },
        "--admin {address}: expected HOST:PORT, [IPV6]:PORT or unix:PATH; the admin address speaks plain HTTP"
    );
    Ok(address)
}

/// None if nobody asked for traces.
fn otlp(options: &Options) -> anyhow::Result<Option<Otlp>> {
    let needs = |flag: &str, is_said: bool| {
        ensure!(!is_said || options.otlp.is_some(), "{flag} needs a collector of traces; add --otlp URL");
        Ok(())
    };
    needs("--trace-sample", options.trace_sample.is_some())?;
    needs("--otlp-header", !options.otlp_header.is_empty())?;
    options.otlp.clone().map(|url| Otlp::new(url, &options.otlp_header)).transpose()
}

fn log_file(path: &Path) -> anyhow::Result<PathBuf> {
    ensure!(
        path != Path::new("-"),
        "--log-file - is no file; without --log-file, lines go to standard output and error"
    );
    Ok(files::absolute(path)?)
}

pub(super) fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with('.');
    ensure!(good, "--name {name:?}: expected up to 64 letters, digits, '-', '_' or '.', not beginning with '.'");
    Ok(())
}

fn state_dir(options: &Options) -> anyhow::Result<Option<PathBuf>> {
    let folder = options.state_dir.clone().or_else(paths::default_state);
    if options.resume && folder.is_none() {
        bail!("this user has no home folder: name the folder to resume from with --state-dir or $STATE_DIRECTORY");
    }
    Ok(folder.as_deref().map(files::absolute).transpose()?)
}

fn store(options: &Options) -> anyhow::Result<PathBuf> {
    match options.store.clone().or_else(paths::default_store) {
        Some(folder) => Ok(files::absolute(&folder)?),
        None => bail!(
            "this user has no home folder: name a folder for compiled components with --store or $CACHE_DIRECTORY, and \
             one for the state of the cluster with --state-dir or $STATE_DIRECTORY"
        ),
    }
}
