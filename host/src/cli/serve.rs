//! `wasmcluster serve`: reads the settings from flags and file, then runs the primary.

use std::path::PathBuf;

use super::args::ServeArgs;
use super::exit::Failure;
use crate::build::{NoPlan, Plan};
use crate::settings::{Options, Settings, SettingsFile};
use crate::{logging, primary};

/// Serves until the cluster is told to stop.
pub(super) fn serve(args: ServeArgs) -> Result<(), Failure> {
    if std::process::id() == 1 {
        // The kernel drops signals that process 1 does not handle. Blocked, they wait until the primary handles them.
        primary::hold_signals()?;
    }
    logging::speak(args.options.log_format.unwrap_or_default());
    let settings = settings(args).map_err(Failure::Usage)?;
    logging::speak(settings.cluster.logging.format);
    if settings.application.app.is_dir() {
        // A folder that cannot be built is a usage error, found before anything is started.
        Plan::read(&settings.application.app)?;
    }
    primary::serve(settings).map_err(Failure::Error)
}

/// Merges the flags with the configuration file.
pub(super) fn settings(args: ServeArgs) -> anyhow::Result<Settings> {
    let app = app_or_project(args.app)?;
    let (options, file) = match &args.config {
        Some(file) => (Options::from_file(file)?, SettingsFile::at(file)?),
        None => (Options::from_default_file(&app)?, SettingsFile::default_for(&app)?),
    };
    let options = args.options.or(options);
    let is_development = options.watch && app.is_dir();
    let options = if is_development { options.for_development() } else { options };
    let settings = Settings::new(app, &options);
    let settings = settings.map_err(|error| file.locate(error))?;
    Ok(Settings { file: Some(file), ..settings })
}

/// The APP argument, or the current folder if that can be built.
pub(super) fn app_or_project(app: Option<PathBuf>) -> anyhow::Result<PathBuf> {
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
