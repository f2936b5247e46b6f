//! What a worker runs with, as a sealed file that all workers of a generation read.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::version::{Compiled, WasiHttp};
use crate::logging::Logging;
use crate::os::memfd;
use crate::settings::{
    AccessFormat, Application, Cluster, Granted, GuestValues, HealthPath, Limits, Percent, TrustedProxies,
};

/// Largest settings that a primary hands to a worker, in bytes: mostly the guests' environment.
const MAX_SETTINGS: u64 = 4 * 1024 * 1024;

/// How many requests share an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reuse {
    /// All that it serves before it is dropped.
    pub(crate) uses: u32,
    /// Of these at the same time; only with WASI 0.3.
    pub(crate) seats: u32,
}

impl Reuse {
    fn new(application: &Application, component: &Compiled) -> Self {
        if component.can_hold_back {
            return Self { uses: 1, seats: 1 };
        }
        let uses = application.max_instance_reuse_count.map_or(component.http.usual_reuse(), NonZeroU32::get);
        let seats = match component.http {
            WasiHttp::V0_2 => 1,
            WasiHttp::V0_3 => application.max_instance_concurrent_reuse_count,
        };
        Self { uses, seats }
    }
}

/// What a worker runs with. A generation's workers all read the same sealed file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerSettings {
    pub(crate) http: WasiHttp,
    pub(crate) granted: Granted,
    /// What guests are configured with.
    pub(crate) values: GuestValues,
    pub(crate) drain_timeout: Duration,
    pub(crate) drain_idle_grace: Duration,
    pub(crate) health_path: Option<HealthPath>,
    pub(crate) limits: Limits,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) reuse: Reuse,
    pub(crate) pin_cpus: bool,
    pub(crate) logging: Logging,
    /// How lines of the access log look, if there is one.
    pub(crate) access_format: Option<AccessFormat>,
    /// Whether clients are told how long what took.
    pub(crate) server_timing: bool,
    /// Share of requests that are traced where their client has not decided that.
    pub(crate) trace_sample: Percent,
}

impl WorkerSettings {
    /// What the workers of a component go by.
    pub(crate) fn new(cluster: &Cluster, application: &Application, component: &Compiled) -> Self {
        Self {
            http: component.http,
            granted: application.granted.clone(),
            values: application.values.clone(),
            drain_timeout: application.policy.drain_timeout,
            drain_idle_grace: application.drain_idle_grace,
            health_path: application.health_path.clone(),
            limits: application.limits,
            trusted_proxies: application.trusted_proxies.clone(),
            reuse: Reuse::new(application, component),
            pin_cpus: cluster.pin_cpus,
            logging: cluster.logging,
            access_format: cluster.access_log.as_ref().map(|place| place.format),
            server_timing: application.server_timing,
            trace_sample: application.trace_sample,
        }
    }

    /// As a sealed file, to be handed to every worker of a generation.
    pub(crate) fn write(&self) -> anyhow::Result<OwnedFd> {
        let bytes = serde_json::to_vec(self)?;
        ensure!(
            bytes.len() as u64 <= MAX_SETTINGS,
            "what guests are granted and configured with takes more than {MAX_SETTINGS} bytes"
        );
        Ok(memfd::constant(c"wasmcluster-settings", &*bytes)?)
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(fd: &OwnedFd) -> anyhow::Result<Self> {
        Ok(serde_json::from_slice(&memfd::read(fd, MAX_SETTINGS)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::LogFormat;

    #[test]
    fn worker_settings_survive_the_way() {
        let settings = WorkerSettings {
            http: WasiHttp::V0_3,
            granted: Granted {
                env: vec![("A".into(), "ä\n".into())],
                dirs: vec!["/srv::/data:ro".parse().unwrap()],
                hosts: vec!["https://*.example.com".parse().unwrap()].into(),
                stores: [("default".into(), "file:/var/kv".parse().unwrap())].into(),
                connections: vec!["*.example.com:5432".parse().unwrap()].into(),
            },
            values: GuestValues::default(),
            drain_timeout: Duration::from_secs(35),
            drain_idle_grace: Duration::from_millis(1500),
            health_path: "/health?deep=1".parse().ok(),
            limits: Limits {
                request_timeout: Duration::from_secs(1),
                stream_timeout: Duration::from_secs(2),
                min_rate: 15,
                header_timeout: Duration::from_secs(8),
                keep_alive_timeout: Duration::from_secs(9),
                max_in_flight: 7,
                max_connections: 10,
                tls_handshake_timeout: Duration::from_secs(13),
                max_handshakes: 14,
                max_websockets: 15,
                max_sockets: 19,
                max_websocket_message: 16,
                websocket_timeout: Duration::from_secs(17),
                max_streams: 12,
                max_connection_requests: 13,
                max_connection_age: Duration::from_secs(14),
                kv_max_value: 18,
                kv_max_size: 19,
                kv_timeout: Duration::from_secs(20),
                max_body: 3,
                max_header_bytes: 4,
                max_headers: 5,
                max_memory: 6,
                max_worker_memory: 11,
            },
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "unix".parse().unwrap()].into(),
            reuse: Reuse { uses: 12, seats: 3 },
            pin_cpus: true,
            logging: Logging { format: LogFormat::Json, colour: false },
            access_format: Some(AccessFormat::Combined),
            server_timing: true,
            trace_sample: Percent::default(),
        };
        let fd = settings.write().unwrap();
        for _ in 0..2 {
            let read = WorkerSettings::read(&fd.try_clone().unwrap()).unwrap();
            assert_eq!((read.http, read.granted), (settings.http, settings.granted.clone()));
            assert_eq!((read.drain_idle_grace, read.pin_cpus), (settings.drain_idle_grace, true));
            assert_eq!((read.health_path, read.limits), (settings.health_path.clone(), settings.limits));
            assert_eq!((read.drain_timeout, read.reuse), (settings.drain_timeout, settings.reuse));
            assert_eq!(
                (read.trusted_proxies, read.values),
                (settings.trusted_proxies.clone(), settings.values.clone())
            );
            assert_eq!((read.logging.format, read.logging.colour), (LogFormat::Json, false));
            assert_eq!(read.access_format, settings.access_format);
        }
    }
}
