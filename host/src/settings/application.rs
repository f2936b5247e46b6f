//! The settings of what is served: what its guests may use, within which limits, and how its workers are supervised. They
//! belong to a generation, as its component does: a reload reads them again, and a rollback brings them back.

use std::num::NonZeroU32;
use std::time::Duration;

use super::guest_values::GuestValues;
use super::options::Options;
use super::secrets::{self, SecretPlace};
use super::values::{HealthPath, Percent, or_seconds};
use super::{Cluster, Granted, Limits, Policy, TlsFiles, TrustedProxies};
use crate::os::resources;

/// The settings of what is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Application {
    pub(crate) granted: Granted,
    /// What guests are configured with.
    pub(crate) values: GuestValues,
    /// Where the secrets among these come from.
    secrets: Vec<SecretPlace>,
    /// Variables that are secrets, and not the guests'.
    hidden_variables: Vec<String>,
    pub(crate) limits: Limits,
    /// Whom to believe what they say of clients.
    pub(crate) trusted_proxies: TrustedProxies,
    /// None if no listener speaks TLS.
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) policy: Policy,
    /// By how much the share of errors of a new version may be above the old version's.
    pub(crate) max_error_increase: Percent,
    pub(crate) health_path: Option<HealthPath>,
    pub(crate) drain_idle_grace: Duration,
    /// Whether clients are told how long what took.
    pub(crate) server_timing: bool,
    /// Share of requests that are traced.
    pub(crate) trace_sample: Percent,
    /// Whether instances start from a snapshot, if the component can have one.
    snapshot: bool,
    /// None is what is usual for the component's version of WASI.
    pub(crate) max_instance_reuse_count: Option<NonZeroU32>,
    pub(crate) max_instance_concurrent_reuse_count: u32,
}

impl Application {
    /// What is served by this cluster. What is allowed and hardly meant is added to `doubts`.
    pub(super) fn new(options: &Options, cluster: &Cluster, doubts: &mut Vec<String>) -> anyhow::Result<Self> {
        // Before there is anything that one would show.
        if options.have_secrets() {
            resources::forbid_core_dumps();
        }
        let mut limits = Limits::new(options, cluster.workers)?;
        doubts.extend(resources::keep_within_descriptors(&mut limits.max_connections));
        doubts.extend(options.set_secret.iter().filter_map(SecretPlace::doubt));
        let trusted_proxies: TrustedProxies = options.trust_proxy.clone().into();
        let proxied = cluster.listen.iter().find(|address| address.entrance.takes_proxy);
        if let Some(address) = proxied.filter(|_| trusted_proxies.is_empty()) {
            anyhow::bail!(
                "--listen {address} takes connections from trusted proxies alone; name them with --trust-proxy NETWORK"
            );
        }
        Ok(Self {
            granted: Granted::new(options, cluster.default_store())?,
            values: GuestValues::new(&options.set, secrets::read(&options.set_secret)?).map_err(anyhow::Error::msg)?,
            secrets: options.set_secret.clone(),
            hidden_variables: options.otlp_header.iter().filter_map(SecretPlace::variable).map(Into::into).collect(),
            limits,
            trusted_proxies,
            tls: TlsFiles::new(options, &cluster.listen)?,
            policy: Policy::new(options)?,
            max_error_increase: options.max_error_increase.unwrap_or_default(),
            health_path: options.health_path.clone(),
            drain_idle_grace: or_seconds(options.drain_idle_grace, 2),
            server_timing: options.server_timing,
            trace_sample: options.trace_sample.unwrap_or(Percent::ONE),
            snapshot: !options.no_snapshot,
            max_instance_reuse_count: options.max_instance_reuse_count,
            max_instance_concurrent_reuse_count: options.max_instance_concurrent_reuse_count.map_or(1, NonZeroU32::get),
        })
    }

    /// The same, with secrets as they are now.
    pub(crate) fn with_fresh_secrets(&self) -> anyhow::Result<Self> {
        let values = self.values.with_secrets(secrets::read(&self.secrets)?);
        values.check(&super::Changes::new()).map_err(anyhow::Error::msg)?;
        Ok(Self { values, granted: self.granted.with_fresh_passwords()?, ..self.clone() })
    }

    /// What a snapshot that instances start from may have, in bytes: what they may. None if they start without one.
    pub(crate) fn snapshot_memory(&self) -> Option<u64> {
        self.snapshot.then_some(self.limits.max_memory as u64)
    }

    /// Whether some of it is read from where it may be another by now.
    pub(crate) fn has_secrets(&self) -> bool {
        !self.secrets.is_empty() || self.granted.has_password_files()
    }

    /// The variables of this process that are secrets.
    pub(crate) fn secret_variables(&self) -> Vec<String> {
        let of_guests = self.secrets.iter().filter_map(SecretPlace::variable).map(ToOwned::to_owned);
        of_guests.chain(self.hidden_variables.iter().cloned()).collect()
    }
}
