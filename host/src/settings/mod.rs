//! What a user asks for: the flags of `serve` and the file that says the same, merged and checked.
//!
//! The command line wins over the file, the file over the defaults. The file's keys are the flags' names.

mod access_log;
mod app;
mod application;
mod cluster;
mod differences;
mod doubts;
mod file;
#[cfg(test)]
mod fuzz;
mod granted;
mod guest_values;
mod limits;
mod live;
mod options;
mod otlp;
pub(crate) mod paths;
mod policy;
mod proxies;
mod registries;
mod schema;
#[cfg(test)]
mod schema_tests;
mod secrets;
mod sources;
mod tls;
mod values;

use std::path::PathBuf;

pub(crate) use access_log::{AccessFormat, AccessLogPlace};
pub(crate) use app::{App, ImageName, is_sha256, looks_like_image, short_digest};
pub(crate) use application::Application;
pub(crate) use cluster::{Cluster, DEFAULT_BACKLOG, DEFAULT_NAME, MAX_WORKERS};
pub(crate) use differences::SettingChange;
pub(crate) use file::OTHER_WORDS;
pub(crate) use granted::Granted;
pub(crate) use guest_values::{Changes, GuestValues};
pub(crate) use limits::*;
pub(crate) use live::{LOG_LEVEL, LiveConfig};
pub(crate) use options::{Options, Recipe};
pub(crate) use otlp::{Otlp, OtlpProtocol};
pub(crate) use policy::{Policy, Recycle};
pub(crate) use proxies::{TrustedProxies, TrustedProxy};
pub(crate) use registries::Registries;
pub(crate) use schema::schema;
pub(crate) use sources::{Reread, SettingsSources};
pub(crate) use tls::{ClientAuth, PairFiles, TlsFiles};
pub(crate) use values::{HealthPath, Percent, Span};

/// Read when no `--config` is given: the one of the folder that is served, or else of the current one.
pub(crate) const DEFAULT_FILE: &str = "wasmcluster.toml";

/// What `serve` runs with: options checked, defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The component, or the folder that it is yet to be built from.
    pub(crate) app: App,
    /// The folder that it was built from, as an absolute path.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) cluster: Cluster,
    pub(crate) application: Application,
    /// What the file says.
    pub(crate) table: toml::Table,
    /// What is allowed and hardly meant, a line each, to be logged.
    pub(crate) doubts: Vec<String>,
}

impl Settings {
    pub(crate) fn new(app: App, options: &Options) -> anyhow::Result<Self> {
        let cluster = Cluster::new(options)?;
        let mut doubts = doubts::of(options, cluster.workers);
        let application = Application::new(options, &cluster, &mut doubts)?;
        Ok(Self { app, folder: None, cluster, application, table: toml::Table::new(), doubts })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::os::listener::MAX_LISTENERS;

    #[test]
    fn settings_are_checked() {
        let check = |options: Options, message: &str| {
            let error = Settings::new("app.wasm".into(), &options).unwrap_err().to_string();
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
        let listen = vec!["a:1".parse().unwrap(); MAX_LISTENERS + 1];
        check(Options { listen, ..Options::default() }, "the limit is");
        check(Options { tls_handshake_timeout: "9ms".parse().ok(), ..Options::default() }, "--tls-handshake-timeout");
        check(Options { max_handshakes: NonZeroU32::new(2_000_000), ..Options::default() }, "--max-handshakes");
    }

    /// Help and reference say it, the code does it.
    #[test]
    fn the_defaults_are_those_of_the_help() {
        let in_force = |options: &Options| format!("{:?}", Settings::new("app.wasm".into(), options).unwrap());
        let flags = Options::augment_args(clap::Command::new("serve"));
        // What others need.
        let usual = ["serve", "--otlp=http://localhost:4318"];
        let options = |arguments: &[&str]| {
            let matches = flags.clone().try_get_matches_from(usual.iter().chain(arguments)).ok()?;
            Options::from_arg_matches(&matches).ok()
        };
        let unsaid = in_force(&options(&[]).unwrap());
        let said = flags.get_arguments().filter_map(|flag| {
            let help = flag.get_help()?.to_string();
            Some((flag.get_long()?.to_owned(), help.rsplit_once("[default: ")?.1.trim_end_matches(']').to_owned()))
        });
        let mut checked = Vec::new();
        for (flag, default) in said {
            // Some defaults depend on the machine or on another flag, and are words.
            let Some(said) = options(&[&format!("--{flag}"), &default]) else { continue };
            if default.contains(' ') || default.starts_with('$') || ["never", "NAME.sock"].contains(&&*default) {
                continue;
            }
            assert_eq!(in_force(&said), unsaid, "--{flag} {default}");
            checked.push(flag);
        }
        assert!(checked.len() >= 18, "{checked:?}");
    }
}
