//! `wasmcluster serve`: reads the settings from flags and file, then runs the primary.

use std::path::Path;

use super::args::ServeArgs;
use super::exit::Failure;
use crate::build::{NoPlan, Plan};
use crate::settings::{App, SettingsSources};
use crate::{logging, primary};

/// Serves until the cluster is told to stop.
pub(super) fn serve(args: ServeArgs) -> Result<(), Failure> {
    if std::process::id() == 1 {
        // The kernel drops signals that process 1 does not handle. Blocked, they wait until the primary handles them.
        primary::hold_signals()?;
    }
    logging::speak(args.options.log_format.unwrap_or_default());
    let sources = sources(args).map_err(Failure::Usage)?;
    let settings = sources.read().map_err(Failure::Usage)?;
    logging::speak(settings.cluster.logging.format);
    if let Some(folder) = settings.app.folder() {
        // A folder that cannot be built is a usage error, found before anything is started.
        Plan::read(folder)?;
    }
    primary::serve(settings, sources).map_err(Failure::Error)
}

/// The flags, and the configuration file that belongs to them.
pub(super) fn sources(args: ServeArgs) -> anyhow::Result<SettingsSources> {
    let app = app_or_project(args.app)?;
    Ok(SettingsSources::new(app, args.options, args.config.as_deref())?)
}

/// The APP argument, or the current folder if that can be built.
pub(super) fn app_or_project(app: Option<App>) -> anyhow::Result<App> {
    let Some(app) = app else {
        let here = Path::new(".");
        return match Plan::read(here) {
            Ok(_) => Ok(here.to_owned().into()),
            Err(NoPlan::File(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!(
                "name the component to use: a .wasm file, the folder of a project, or oci://HOST/REPOSITORY:TAG. The \
                 current folder is not a project: it has neither a Cargo.toml nor a wasmcluster.toml with a [build] \
                 section"
            )),
        };
    };
    Ok(app)
}
