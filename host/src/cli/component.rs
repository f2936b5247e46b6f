//! The component that a command is to work on: read, or built from a folder, or pulled from a registry.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::build::build_folder;
use super::exit::Failure;
use crate::component::compiler;
use crate::component::surface::to_binary;
use crate::os::resources::{self, BoundedMemory};
use crate::registry::{self, NoComponent, Pulled};
use crate::settings::{App, ImageName, Registries};

/// What takes longer than this is told on a terminal.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// The last second of the year 9999, which is the last that can be written.
const LATEST: u64 = 253_402_300_799;

/// A component, and where it is from.
pub(super) struct Component {
    /// In binary form.
    pub(super) bytes: Vec<u8>,
    /// The file, or the name in a registry.
    pub(super) source: App,
    /// Of one from a registry, the digest of its manifest.
    pub(super) manifest: Option<String>,
}

impl Component {
    /// What APP names. A folder that cannot be built fails in its own words, all else with what is `tried`.
    pub(super) fn obtain(app: App, registries: &Registries, tried: &str) -> Result<Self, Failure> {
        let failed = |error: anyhow::Error, app: &App| Failure::Refused(error.context(format!("cannot {tried} {app}")));
        let app = match app.folder() {
            Some(folder) => {
                let component = build_folder(folder).map_err(|failure| match failure {
                    Failure::Error(error) => Failure::Refused(error),
                    other => other,
                })?;
                component.into()
            }
            None => app,
        };
        match &app {
            App::Path(path) => {
                let bytes = compiler::read(path).map_err(|error| failed(error, &app))?;
                Ok(Self { bytes, source: app, manifest: None })
            }
            App::Image(image) => {
                let Pulled { bytes, manifest } =
                    pull(image, registries).map_err(|error| match error.is::<NoComponent>() {
                        true => Failure::Refused(error),
                        false => Failure::Error(error),
                    })?;
                let bytes = to_binary(&bytes).map_err(|error| failed(error.into(), &app))?.into_owned();
                Ok(Self { bytes, source: app, manifest: Some(manifest) })
            }
        }
    }

    /// The file that it was read from.
    pub(super) fn path(&self) -> Option<&Path> {
        self.source.path()
    }
}

fn pull(image: &ImageName, registries: &Registries) -> anyhow::Result<Pulled> {
    converse(&format!("pulling {image}"), registry::pull(image, registries, |_| None))
}

/// Waits for what a registry is asked for, which is told on a terminal if it takes long.
pub(super) fn converse<T>(doing: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let _bounded = BoundedMemory::for_registry();
    // There are passwords.
    resources::forbid_core_dumps();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        if let Ok(done) = tokio::time::timeout(TELL_AFTER, &mut work).await {
            return done;
        }
        let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a template of ours");
        bar.set_style(style);
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        let done = work.await;
        bar.finish_and_clear();
        done
    });
    // A helper that hangs in a thread is not waited for.
    runtime.shutdown_background();
    done
}

/// When a component was made: what SOURCE_DATE_EPOCH says, in seconds since 1970, or else its file.
pub(super) fn made(path: Option<&Path>) -> anyhow::Result<SystemTime> {
    if let Some(seconds) = std::env::var_os("SOURCE_DATE_EPOCH") {
        let seconds = seconds.to_str().and_then(|seconds| seconds.parse().ok()).filter(|&seconds| seconds <= LATEST);
        let seconds = seconds.context("SOURCE_DATE_EPOCH is not a number of seconds since 1970")?;
        return Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    }
    let modified = path.and_then(|path| path.metadata().ok()?.modified().ok());
    let since = modified.unwrap_or_else(SystemTime::now).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + since.min(Duration::from_secs(LATEST)))
}
