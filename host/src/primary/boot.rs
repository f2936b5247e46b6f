//! From settings to a running cluster: takes the name, binds, has the component compiled, then hands over to the driver.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use tokio::sync::mpsc;

use super::deploy::access_log::AccessLogFile;
use super::deploy::generations::Generations;
use super::deploy::watch::{FollowedImage, Watch};
use super::desk::admin::Administration;
use super::desk::manager::Manager;
use super::desk::socket::Control;
use super::driver::{Driver, MAX_QUEUED};
use super::fleet::builder::{Builder, build_first};
use super::fleet::errands::{PulledComponent, Supply, WantedComponent};
use super::fleet::file_output::FileOutput;
use super::fleet::output::Output;
use super::fleet::process::Deployment;
use super::signals::Signals;
use super::startup::{Shown, Startup};
use crate::build::describe;
use crate::logging::{LogLevel, Volume};
use crate::os::blocking::off_the_loop;
use crate::os::files;
use crate::os::listener::{self, BindError, ListenAddr, Listener};
use crate::os::resources;
use crate::settings::paths;
use crate::settings::{App, Changes, Policy, Settings, SettingsSources};
use crate::tls::certificates::{self, Certificates};
use crate::wire::committed::Committed;
use crate::wire::ids::Generation;
use crate::wire::version::Version;

/// How long a busy address is tried again: the workers of a primary that was killed keep theirs for a second.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// Connections that wait at the admin address.
const ADMIN_BACKLOG: i32 = 128;
/// How long the state may take to be read.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// How long the first compilation may take, and how long the first component may be on its way from a registry.
const COMPILE_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Serves `settings.app` until it is told to stop. An error means that it never served, or cannot any more.
pub(crate) fn serve(settings: Settings, sources: SettingsSources) -> anyhow::Result<()> {
    let signals = Signals::take()?;
    resources::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = signals.listen()?;
        // There are no commands yet, but file systems that hang.
        let asked = settings.clone();
        let beginning = off_the_loop(move || {
            let control = take_name(&asked)?;
            Ok((control, asked.cluster.log_file.as_deref().map(FileOutput::open).transpose()?))
        });
        let (mut control, file) = tokio::select! {
            begun = beginning => begun?,
            stopped = signals.until_stop() => return Ok(stopped?),
        };
        let has_file = file.is_some();
        let (output, volume) = Output::start(settings.cluster.logging, settings.cluster.live.log_level, file)?;
        let served = async {
            let (queries, asked) = mpsc::channel(MAX_QUEUED);
            control.serve(queries, output.kept())?;
            resources::warn_of_surroundings();
            for doubt in &settings.doubts {
                tracing::warn!("{doubt}");
            }
            let Policy { shutdown_delay, shutdown_timeout, .. } = settings.application.policy;
            let manager = Manager::new(shutdown_delay.saturating_add(shutdown_timeout));
            let administration =
                Administration::new(settings.cluster.ready_min, settings.application.policy.hang_timeout);
            let startup = Startup::new(signals, asked, &output, manager, administration);
            run(settings, sources, startup, &output, volume).await
        }
        .await;
        if has_file && let Err(error) = &served {
            // It is said on standard error, too.
            tracing::error!("{error:#}");
        }
        // First, as it ends the answers of those who follow the log, too.
        output.finish();
        control.finish().await;
        served
    })
}

/// From a name to a driver at work; ends early if it is told to.
async fn run(
    mut settings: Settings,
    sources: SettingsSources,
    mut startup: Startup<'_>,
    output: &Output,
    volume: Volume,
) -> anyhow::Result<()> {
    let reading = read_certificates(&settings);
    let Some(certificates) = startup.during(&settings, "reading its certificates", Shown::Here, reading).await? else {
        return Ok(());
    };
    let binding = bind_all(&settings.cluster.listen, settings.cluster.backlog, output);
    let Some(listeners) = startup.during(&settings, "binding its addresses", Shown::ByItself, binding).await? else {
        return Ok(());
    };
    startup.listen = listeners.iter().map(|listener| listener.url().to_owned()).collect();
    if let Some(admin) = settings.cluster.admin.clone() {
        let addresses = [admin];
        let binding = bind_all(&addresses, ADMIN_BACKLOG, output);
        let bound = startup.during(&settings, "binding its admin address", Shown::ByItself, binding).await?;
        let Some(bound) = bound else { return Ok(()) };
        for listener in &bound {
            output.say(LogLevel::Info, format_args!("Admin at {}", listener.url()));
        }
        startup.administration.begin(bound);
    }
    let mut access_log = None;
    if let Some(place) = settings.cluster.access_log.clone() {
        let opening = off_the_loop(move || AccessLogFile::open(place.path));
        let opened = startup.during(&settings, "opening its access log", Shown::Here, opening).await?;
        let Some(opened) = opened else { return Ok(()) };
        access_log = Some(opened);
    }
    let mut rebuild = None;
    if let Some(folder) = settings.app.folder().map(ToOwned::to_owned) {
        let doing = format!("building {}", folder.display());
        output.say(LogLevel::Info, format_args!("Building {}…", folder.display()));
        let building = build_first(
            &folder,
            settings.cluster.watch,
            settings.cluster.logging.format,
            settings.application.secret_variables(),
        );
        let Some(built) = startup.during(&settings, &doing, Shown::ByItself, building).await? else { return Ok(()) };
        output.say(LogLevel::Info, format_args!("{}", describe(&built.component)));
        let folder = Some(files::absolute(&folder)?);
        (settings.app, settings.folder) = (built.component.into(), folder);
        rebuild = built.handover;
    }
    // From here on a change is seen, also one during the first compilation.
    let watch = Watch::start(settings.cluster.watch, settings.app.absolute()?.path(), sources.file());
    let Some(first) = startup.during(&settings, "reading its state", Shown::Here, first(&settings)).await? else {
        return Ok(());
    };
    settings.cluster.live.changed = first.config.clone();
    let mut pulled = None;
    if let Some(image) = first.wanted.image().cloned() {
        let supply = Supply::new(&settings.cluster, &settings.application);
        let pulling = in_time(&settings, "it did not come from the registry", async move { supply.pull(&image).await });
        let doing = format!("pulling {}", first.wanted.source());
        let Some(component) = startup.during(&settings, &doing, Shown::Here, pulling).await? else { return Ok(()) };
        pulled = Some(component);
    }
    let tried = pulled.as_ref().map(|component| component.manifest.clone());
    let doing = format!("compiling {}{}", first.wanted.source(), size_of(first.wanted.source()));
    let compiling = compile_first(&settings, first, pulled);
    let Some(generations) = startup.during(&settings, &doing, Shown::Here, compiling).await? else { return Ok(()) };
    let followed = FollowedImage::new(tried, Supply::new(&settings.cluster, &settings.application));
    if let Some(image) = settings.app.image() {
        watch.follow(image, &followed);
    }
    let builder = Builder::start(rebuild.as_ref(), &settings.application.secret_variables());
    let Startup { signals, asked, events, started, manager, administration, .. } = startup;
    let driver = Driver::new(
        &settings,
        sources,
        generations,
        listeners,
        certificates,
        output,
        volume,
        builder,
        events,
        started,
        administration,
        access_log,
        followed,
    )?;
    driver.run(signals, asked, watch, manager).await
}

/// In brackets, behind a file's name; nothing if it cannot be told.
fn size_of(app: &App) -> String {
    let Some(path) = app.path() else { return String::new() };
    let size = std::fs::metadata(path).map(|metadata| bytesize::ByteSize(metadata.len()).display().iec().to_string());
    size.map_or_else(|_| String::new(), |size| format!(" ({size})"))
}

/// Takes the cluster's name, once there is everything that a start needs of the machine.
fn take_name(settings: &Settings) -> anyhow::Result<Control> {
    let (state, control) = (settings.cluster.state_dir.as_deref(), &settings.cluster.control);
    let itself = "/proc/self/exe";
    std::fs::metadata(itself).with_context(|| {
        format!("cannot start workers from {itself}: /proc is not mounted; run `mount -t proc proc /proc`")
    })?;
    paths::prepare(&settings.cluster.store, state, control)?;
    Control::bind(&settings.cluster.name, control, state)
}

/// None if no listener speaks TLS.
async fn read_certificates(settings: &Settings) -> anyhow::Result<Option<Certificates>> {
    let Some(files) = settings.application.tls.clone() else { return Ok(None) };
    let read = off_the_loop(move || certificates::read(&files, SystemTime::now())).await?;
    for doubt in &read.doubts {
        tracing::warn!("{doubt}");
    }
    Ok(Some(read))
}

/// A name server may be silent, and the folder of a socket on a file system that hangs: that holds up nobody else.
async fn bind_all(addresses: &[ListenAddr], backlog: i32, output: &Output) -> anyhow::Result<Vec<Listener>> {
    let deadline = Instant::now() + BIND_PATIENCE;
    let named = addresses.to_owned();
    let mut listeners = Vec::new();
    for mut binding in off_the_loop(move || Ok(listener::resolve(&named)?)).await? {
        let mut is_told = false;
        let bound = loop {
            let already = listeners;
            let work = move || {
                let bound = binding.bind(&already, backlog);
                Ok((binding, already, bound))
            };
            let bound;
            (binding, listeners, bound) = off_the_loop(work).await?;
            match bound {
                Err(BindError::InUse(address)) if Instant::now() < deadline => {
                    if !is_told {
                        output.say(
                            LogLevel::Warn,
                            format_args!("{address} is in use; trying again for {BIND_PATIENCE:?}"),
                        );
                        is_told = true;
                    }
                    tokio::time::sleep(BIND_AGAIN).await;
                }
                bound => break bound?,
            }
        };
        listeners.extend(bound);
    }
    Ok(listeners)
}

/// Finds out what is deployed first, which may take reading the state.
async fn first(settings: &Settings) -> anyhow::Result<First> {
    let asked = settings.clone();
    match tokio::time::timeout(READ_PATIENCE, off_the_loop(move || first_request(&asked))).await {
        Ok(first) => first,
        Err(_) => {
            let folder = settings.cluster.state_dir.clone().unwrap_or_default();
            bail!(
                "cannot resume: the state folder {} did not answer within {READ_PATIENCE:?}; repair its file system, \
                 choose another with --state-dir, or leave out --resume",
                folder.display()
            )
        }
    }
}

/// Has the component compiled, or found in the store.
async fn compile_first(
    settings: &Settings,
    first: First,
    pulled: Option<PulledComponent>,
) -> anyhow::Result<Generations> {
    let First { generation, wanted, previous, .. } = first;
    let supply = Supply::new(&settings.cluster, &settings.application);
    let component = in_time(settings, "it did not compile", supply.compile(&wanted, pulled)).await?;
    let stated = (settings.application.clone(), settings.table.clone());
    Ok(Generations::new(generation, Deployment::new(&settings.cluster, stated, component)?, previous))
}

async fn in_time<T>(
    settings: &Settings,
    not_done: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(COMPILE_PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => bail!("cannot serve {}: {not_done} within {COMPILE_PATIENCE:?}", settings.app),
    }
}

/// What is deployed first.
struct First {
    generation: Generation,
    wanted: WantedComponent,
    previous: Option<Version>,
    /// What the primary before this one was told by `config set`.
    config: Changes,
}

/// What to deploy first: the file, or with `--resume` what was committed last under this name, if it came from there.
fn first_request(settings: &Settings) -> anyhow::Result<First> {
    let (app, state) = (&settings.app, settings.cluster.state_dir.as_deref());
    if settings.cluster.resume
        && let Some(folder) = state
        && let Some(Committed { generation, app: committed_app, current, previous, config, .. }) =
            Committed::read(folder, &settings.cluster.name)?
    {
        let app = app.absolute()?;
        if !committed_app.is_same(&app) && current.source != app {
            let is_sibling =
                |other: &App| matches!((app.image(), other.image()), (Some(one), Some(other)) if one.is_sibling(other));
            ensure!(
                is_sibling(&current.source),
                "cannot resume: the cluster '{}' was last started with {committed_app}; pass that, or leave out --resume",
                settings.cluster.name
            );
            // Whoever names another tag wants that version.
            tracing::info!(
                "{app} was named, and not {}, which was committed last: serving it as a new version",
                current.source
            );
            let (generation, wanted) = (Generation(generation.0 + 1), WantedComponent::Present(app));
            return Ok(First { generation, wanted, previous: Some(current), config });
        }
        return Ok(First { generation, wanted: WantedComponent::Former(current), previous, config });
    }
    let wanted = WantedComponent::Present(app.clone());
    Ok(First { generation: Generation(1), wanted, previous: None, config: Changes::new() })
}
