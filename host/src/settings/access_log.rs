//! Where a line is written for each request, and how it looks.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::options::Options;
use crate::logging::LogFormat;
use crate::os::files;

/// `--access-log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccessFormat {
    /// Apache's Common Log Format.
    Common,
    /// The same with referer and user agent, as Apache and nginx have it.
    Combined,
    /// A JSON object, with all that is known of the request.
    Json,
}

/// `--access-log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessLogPlace {
    /// An absolute path; none is standard output.
    pub(crate) path: Option<PathBuf>,
    pub(crate) format: AccessFormat,
}

impl AccessLogPlace {
    /// None if nobody asked for it.
    pub(super) fn new(options: &Options, format: LogFormat) -> anyhow::Result<Option<Self>> {
        ensure!(
            options.access_log.is_some() || options.access_log_format.is_none(),
            "--access-log-format needs a file; add --access-log FILE, or - for standard output"
        );
        let Some(path) = &options.access_log else { return Ok(None) };
        let usual = if format == LogFormat::Json { AccessFormat::Json } else { AccessFormat::Combined };
        let path = (path != Path::new("-")).then(|| files::absolute(path)).transpose()?;
        Ok(Some(Self { path, format: options.access_log_format.unwrap_or(usual) }))
    }
}
