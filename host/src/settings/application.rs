//! The settings of what is served: the component, what its guests may use, and within which limits.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::options::Options;
use super::values::{HealthPath, or_seconds};
use super::{Granted, Limits, TrustedProxies};

/// The settings of what is served.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    /// The component, or the folder that it is yet to be built from.
    pub(crate) app: PathBuf,
    /// The folder that it was built from, as an absolute path.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) granted: Granted,
    pub(crate) limits: Limits,
    /// Whom to believe what they say of clients.
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) health_path: Option<HealthPath>,
    pub(crate) drain_idle_grace: Duration,
    /// None is what is usual for the component's version of WASI.
    pub(crate) max_instance_reuse_count: Option<NonZeroU32>,
    pub(crate) max_instance_concurrent_reuse_count: u32,
}

impl Application {
    /// What `app` runs with, in a cluster of so many workers whose default key-value store has a place of its own.
    pub(super) fn new(
        app: PathBuf,
        options: &Options,
        workers: u32,
        default_store: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            app,
            folder: None,
            limits: Limits::new(options, workers)?,
            granted: Granted::new(options, default_store)?,
            trusted_proxies: options.trust_proxy.clone().into(),
            health_path: options.health_path.clone(),
            drain_idle_grace: or_seconds(options.drain_idle_grace, 2),
            max_instance_reuse_count: options.max_instance_reuse_count,
            max_instance_concurrent_reuse_count: options.max_instance_concurrent_reuse_count.map_or(1, NonZeroU32::get),
        })
    }
}
