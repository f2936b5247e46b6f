//! The flags of `serve` and the keys of the configuration file, which are the same: one field each, with its help, its form
//! and the default as the help says it.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::otlp::OtlpUrl;
use super::secrets::{SecretPlace, table as secrets};
use super::values::{HealthPath, Percent, Size, Span, count, parse_setting, parse_variable, settings, variables};
use super::{AccessFormat, ClientAuth, TrustedProxy};
use crate::grants::{AllowConnect, AllowHost, DirGrant, StoreGrant, StorePlace};
use crate::logging::{LogFormat, LogLevel};
use crate::os::listener::ListenAddr;

/// Headings of `serve --help`.
const CLUSTER: &str = "Cluster";
const TLS: &str = "TLS";
const GRANTS: &str = "What guests may use";
const TIMEOUTS: &str = "Timeouts";
const LIMITS: &str = "Limits";
const INSTANCES: &str = "Instances";
const DRAIN: &str = "Drain and stop";
const VERSIONS: &str = "Health and new versions";
const RECYCLING: &str = "Replacement of old workers";
const LOGGING: &str = "Logging";

/// What may be said on the command line, in the file, or nowhere.
trait Merge {
    /// This, unless it is unsaid.
    fn or(self, other: Self) -> Self;

    fn is_said(&self) -> bool;
}

impl<T> Merge for Option<T> {
    fn or(self, other: Self) -> Self {
        self.or(other)
    }

    fn is_said(&self) -> bool {
        self.is_some()
    }
}

impl<T> Merge for Vec<T> {
    fn or(self, other: Self) -> Self {
        if self.is_empty() { other } else { self }
    }

    fn is_said(&self) -> bool {
        !self.is_empty()
    }
}

impl Merge for bool {
    fn or(self, other: Self) -> Self {
        self || other
    }

    fn is_said(&self) -> bool {
        *self
    }
}

/// Defines the options, so that a new one is merged without being named a second time.
macro_rules! options {
    ($(#[$of_all:meta])* pub(crate) struct Options { $($(#[$of_one:meta])* pub(crate) $name:ident: $form:ty,)* }) => {
        $(#[$of_all])*
        pub(crate) struct Options { $($(#[$of_one])* pub(crate) $name: $form,)* }

        impl Options {
            fn first_said(self, other: Self) -> Self {
                Self { $($name: Merge::or(self.$name, other.$name),)* }
            }

            /// The fields that say something.
            pub(super) fn said(&self) -> Vec<&'static str> {
                let fields = [$((stringify!($name), Merge::is_said(&self.$name)),)*];
                fields.into_iter().filter(|(_, is_said)| *is_said).map(|(name, _)| name).collect()
            }
        }
    };
}

options! {
    /// Everything that flags and the file can say; `None` and empty mean unsaid.
    #[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
    pub(crate) struct Options {
        /// Address to listen on: HOST:PORT, [IPV6]:PORT, https://HOST:PORT or unix:PATH; can be repeated [default: 127.0.0.1:8080, or what systemd passes on]
        ///
        /// Port 0 picks a free port. 127.0.0.1 is reachable from this machine only, 0.0.0.0 and [::] from everywhere. https://
        /// needs --tls-cert and --tls-key. systemd:NAME is the socket that systemd passes on by that name. With
        /// ?proxy-protocol, as in 0.0.0.0:80?proxy-protocol, each connection must begin with the PROXY protocol.
        #[arg(long, value_name = "ADDR", help_heading = CLUSTER)]
        pub(crate) listen: Vec<ListenAddr>,

        /// Network of proxies that may say who the client is, with x-forwarded-for and the like; can be repeated
        ///
        /// For example 10.0.0.0/8, 2001:db8::/32, an address, or unix for everybody who connects to a Unix socket. From all
        /// others these headers are removed, and the server sets them.
        #[arg(long, value_name = "NETWORK", help_heading = CLUSTER)]
        pub(crate) trust_proxy: Vec<TrustedProxy>,

        /// Number of worker processes [default: the CPUs this process may use, or fewer where memory is short]
        #[arg(long, short, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = CLUSTER)]
        pub(crate) workers: Option<NonZeroU32>,

        /// Pin each worker to one CPU
        ///
        /// This keeps caches warm on a machine with little else to do. A pinned worker cannot move away from other load on
        /// its CPU, so do not run more workers than CPUs.
        #[arg(long, help_heading = CLUSTER)]
        pub(crate) pin_cpus: bool,

        /// Connections that the kernel queues per address until a worker accepts them [default: 1024]
        ///
        /// The kernel caps it at net.core.somaxconn.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = CLUSTER)]
        pub(crate) backlog: Option<NonZeroU32>,

        /// Name of this cluster, for the commands that talk to it [default: default]
        #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
        pub(crate) name: Option<String>,

        /// Path of the control socket [default: $WASMCLUSTER_CONTROL, or NAME.sock in the user's runtime folder]
        #[arg(long, value_name = "PATH", help_heading = CLUSTER)]
        pub(crate) control: Option<PathBuf>,

        /// Address for probes, metrics and the dashboard: HOST:PORT, [IPV6]:PORT or unix:PATH
        ///
        /// It answers /livez, /readyz, /metrics, /status and /events, and shows a page at /. Whoever reaches it sees all of
        /// that, so choose an address that only you and your monitoring reach.
        #[arg(long, value_name = "ADDR", help_heading = CLUSTER)]
        pub(crate) admin: Option<ListenAddr>,

        /// Workers that must be ready for /readyz of --admin to say so [default: 1]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = CLUSTER)]
        pub(crate) ready_min: Option<NonZeroU32>,

        /// Folder for compiled components [default: $CACHE_DIRECTORY, or wasmcluster in $XDG_CACHE_HOME or ~/.cache]
        #[arg(long, value_name = "DIR", help_heading = CLUSTER)]
        pub(crate) store: Option<PathBuf>,

        /// Folder for state that outlives the cluster [default: $STATE_DIRECTORY, or wasmcluster in $XDG_STATE_HOME or ~/.local/state]
        ///
        /// It records which version was committed last, for --resume.
        #[arg(long, value_name = "DIR", help_heading = CLUSTER)]
        pub(crate) state_dir: Option<PathBuf>,

        /// Certificates to trust of registries that oci:// names, besides those that the machine trusts, as PEM
        #[arg(long, value_name = "FILE", help_heading = CLUSTER)]
        pub(crate) registry_ca: Option<PathBuf>,

        /// Registry to speak to in clear text, as HOST or HOST:PORT; can be repeated
        #[arg(long, value_name = "HOST", help_heading = CLUSTER)]
        pub(crate) registry_plain_http: Vec<String>,

        /// Certificate chain for https listeners, as PEM with the server's own certificate first; can be repeated
        ///
        /// A client gets the certificate of the name that it asks for, and the first if there is none of that name. The files
        /// are read again with every reload.
        #[arg(long, value_name = "FILE", help_heading = TLS)]
        pub(crate) tls_cert: Vec<PathBuf>,

        /// Private key of a certificate, as PEM, in the order of --tls-cert; can be repeated
        #[arg(long, value_name = "FILE", help_heading = TLS)]
        pub(crate) tls_key: Vec<PathBuf>,

        /// Certificates that sign those of clients, as PEM: asks clients for a certificate
        ///
        /// Guests are told whose it is by the headers client-cert, x-client-cert-subject and x-client-cert-sha256.
        #[arg(long, value_name = "FILE", help_heading = TLS)]
        pub(crate) tls_client_ca: Option<PathBuf>,

        /// Whether clients need a certificate, [default: required with --tls-client-ca]
        #[arg(long, value_name = "WHETHER", help_heading = TLS)]
        pub(crate) tls_client_auth: Option<ClientAuth>,

        /// Environment variable for guests; can be repeated
        ///
        /// In the configuration file, it is the table [env].
        #[arg(long, value_name = "K=V", value_parser = parse_variable, help_heading = GRANTS)]
        #[serde(deserialize_with = "variables")]
        pub(crate) env: Vec<(String, String)>,

        /// Value for guests by wasi:config, which `wasmcluster config set` changes while the cluster runs; can be repeated
        ///
        /// In the configuration file, it is the table [config].
        #[arg(long, value_name = "K=V", value_parser = parse_setting, help_heading = GRANTS)]
        #[serde(rename = "config", deserialize_with = "settings")]
        pub(crate) set: Vec<(String, String)>,

        /// Secret for guests by wasi:config, from a file or a variable, and shown to nobody else; can be repeated
        ///
        /// SOURCE is file:PATH, env:NAME, or credential:NAME for systemd's credentials. Of a folder, each file is a secret:
        /// db=file:/run/secrets/db has db.user for /run/secrets/db/user. They are read again with every reload and rollback.
        /// In the configuration file, it is the table [secrets].
        #[arg(long, value_name = "K=SOURCE", help_heading = GRANTS)]
        #[serde(rename = "secrets", deserialize_with = "secrets")]
        pub(crate) set_secret: Vec<SecretPlace>,

        /// Environment variable to pass on from this process to guests; can be repeated
        #[arg(long, value_name = "K", help_heading = GRANTS)]
        pub(crate) env_inherit: Vec<String>,

        /// Folder HOST that guests may open as GUEST; :ro makes it read-only; can be repeated
        ///
        /// For example --dir ./data::/data, or --dir ./static::/static:ro.
        #[arg(long, value_name = "HOST::GUEST[:ro]", help_heading = GRANTS)]
        pub(crate) dir: Vec<DirGrant>,

        /// Host that guests may send requests to; can be repeated
        ///
        /// For example https://api.example.com, https://*.example.com for every name below it, http://10.1.2.3:8080 for
        /// an address, http://10.0.0.0:8080/8 for a network. Port * stands for any port.
        #[arg(long, value_name = "URL", help_heading = GRANTS)]
        pub(crate) allow_host: Vec<AllowHost>,

        /// Key-value store that guests may open by this name; can be repeated
        ///
        /// URL is file:PATH, a folder that all workers share and that outlives them; redis://HOST:PORT/DB, rediss:// or
        /// unix:PATH for Redis and Valkey; or memory:, which each worker has for itself, as long as it lives. The store `default` is there without a flag, in the state folder.
        #[arg(long, value_name = "NAME=URL", help_heading = GRANTS)]
        pub(crate) kv: Vec<StoreGrant>,

        /// Host and port that guests may open TCP connections to; can be repeated
        ///
        /// For example db.example.com:5432, *.example.com:5432 for every name below it, 10.1.2.3:5432 for an address,
        /// 10.0.0.0:5432/8 for a network. Port * stands for any port. The name can then be looked up too.
        #[arg(long, value_name = "HOST:PORT", help_heading = GRANTS)]
        pub(crate) allow_connect: Vec<AllowConnect>,

        /// Longest time from a request's headers to the headers of its response; past it, 504 [default: 30s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) request_timeout: Option<Span>,

        /// Longest time without progress while a response body is sent; past it, the connection is cut [default: 60s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) stream_timeout: Option<Span>,

        /// Bytes per second that a client must send or take while the server waits for it; 0 for no minimum [default: 1B]
        ///
        /// A slower client is cut once the server has waited for it as long as --stream-timeout in all. Each byte that it
        /// sends or takes gives time back.
        #[arg(long, value_name = "SIZE", help_heading = TIMEOUTS)]
        pub(crate) min_rate: Option<Size>,

        /// Longest time a client may take to send a request's headers; past it, 408 [default: 10s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) header_timeout: Option<Span>,

        /// Longest time a connection may be idle before it is closed [default: 75s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) keep_alive_timeout: Option<Span>,

        /// Longest time a WebSocket may be silent, its client not even answering pings, before it is closed [default: 60s]
        ///
        /// The client is sent a ping after half of that time.
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) websocket_timeout: Option<Span>,

        /// Longest time a client may take for its TLS handshake; past it, the connection is closed [default: 10s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) tls_handshake_timeout: Option<Span>,

        /// Longest time a key-value store may take to answer; past it, the guest gets an error [default: 5s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) kv_timeout: Option<Span>,

        /// Longest time without a heartbeat before a worker is killed and replaced [default: 10s]
        #[arg(long, value_name = "TIME", help_heading = TIMEOUTS)]
        pub(crate) hang_timeout: Option<Span>,

        /// Requests that a worker handles at the same time [default: 256]
        ///
        /// As many again may wait; more get 503.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_in_flight: Option<NonZeroU32>,

        /// Connections that a worker keeps open [default: 4096]
        ///
        /// When one more arrives, the connection that has been idle longest is closed.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_connections: Option<NonZeroU32>,

        /// TLS handshakes that a worker is in at the same time; more wait [default: 64]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_handshakes: Option<NonZeroU32>,

        /// Requests that an HTTP/2 connection may have open at the same time [default: 128]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_streams: Option<NonZeroU32>,

        /// WebSockets that a worker keeps open; more get 503 [default: 512, or half of --max-connections]
        ///
        /// A WebSocket does not count as a request in flight. Each has an instance of its own, unless instances of WASI 0.3
        /// may serve several requests at the same time.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_websockets: Option<NonZeroU32>,

        /// TCP connections that the guests of a worker have open (--allow-connect); more are refused [default: 256]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_sockets: Option<NonZeroU32>,

        /// Largest message that a client may send on a WebSocket; a larger one closes it with code 1009 [default: 1MiB]
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) max_websocket_message: Option<Size>,

        /// Requests after which a connection is closed, so that clients spread over all workers again [default: 10000]
        ///
        /// It is closed without failing a request, as in a drain. Each connection draws its own number, up to a fifth
        /// lower.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, help_heading = LIMITS)]
        pub(crate) max_connection_requests: Option<NonZeroU64>,

        /// Age at which a connection is closed, so that clients spread over all workers again [default: 1h]
        ///
        /// Requests in progress are finished first. Each connection draws its own age, up to a fifth lower.
        #[arg(long, value_name = "TIME", help_heading = LIMITS)]
        pub(crate) max_connection_age: Option<Span>,

        /// Largest body of a request; a larger one gets 413 [default: 64MiB]
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) max_body: Option<Size>,

        /// Largest size of a request's headers; more get 431 [default: 64KiB]
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) max_header_bytes: Option<Size>,

        /// Largest number of header fields in a request; more get 431 [default: 100]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = LIMITS)]
        pub(crate) max_headers: Option<NonZeroU32>,

        /// Largest value in a key-value store [default: 1MiB]
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) kv_max_value: Option<Size>,

        /// Size limit of each key-value store; in a store that is full, values can only be deleted [default: 1GiB]
        ///
        /// A store that is larger already keeps what it has. A memory: store has this limit in each worker.
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) kv_max_size: Option<Size>,

        /// Memory limit of one instance [default: 128MiB, or less where a worker has less]
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) max_memory: Option<Size>,

        /// Memory limit of all instances of a worker together [default: its share of the machine's memory, or of the control group's]
        ///
        /// The default is 80 % of the memory of the machine or of the control group, less the compiler's share, divided by the
        /// number of workers plus one.
        #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
        pub(crate) max_worker_memory: Option<Size>,

        /// Start instances as the component is, and not from a snapshot
        ///
        /// A component that has work to do before its first request, as an axum router, does it once, when it is compiled,
        /// and its instances start from there. With this, what it exports as `wizer-initialize` is not called. `wasmcluster
        /// inspect` tries it, without a host, and tells what comes of it.
        #[arg(long, help_heading = INSTANCES)]
        pub(crate) no_snapshot: bool,

        /// Requests that an instance serves before it is dropped [default: 1 with WASI 0.2, 128 with 0.3]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = INSTANCES)]
        pub(crate) max_instance_reuse_count: Option<NonZeroU32>,

        /// Requests that an instance serves at the same time, with WASI 0.3 [default: 1]
        ///
        /// A trap in one of them ends all of them, and while one computes the others wait.
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU32>, help_heading = INSTANCES)]
        pub(crate) max_instance_concurrent_reuse_count: Option<NonZeroU32>,

        /// Time a draining worker has to finish its requests before it cuts them [default: 5s more than
        /// --request-timeout]
        #[arg(long, value_name = "TIME", help_heading = DRAIN)]
        pub(crate) drain_timeout: Option<Span>,

        /// Time workers have to finish their requests when the cluster stops [default: 5s more than
        /// --request-timeout; 9s as process 1 of a container]
        ///
        /// Requests that are left then are cut, and the log says how many. If Docker or Kubernetes kills the cluster earlier,
        /// nothing is logged: give `docker stop` or Kubernetes a grace period longer than this plus --shutdown-delay.
        #[arg(long, value_name = "TIME", help_heading = DRAIN)]
        pub(crate) shutdown_timeout: Option<Span>,

        /// Time to keep serving after the cluster was told to stop, so that load balancers notice [default: 0s]
        #[arg(long, value_name = "TIME", help_heading = DRAIN)]
        pub(crate) shutdown_delay: Option<Span>,

        /// Time idle connections stay open after a drain began, for requests already on their way [default: 2s]
        #[arg(long, value_name = "TIME", help_heading = DRAIN)]
        pub(crate) drain_idle_grace: Option<Span>,

        /// Path of the health check: a worker is ready once its component answers a GET with 2xx [default: no check]
        #[arg(long, value_name = "PATH", help_heading = VERSIONS)]
        pub(crate) health_path: Option<HealthPath>,

        /// Time the first worker of a new version must stay healthy before it may serve [default: 1s]
        #[arg(long, value_name = "TIME", help_heading = VERSIONS)]
        pub(crate) min_ready: Option<Span>,

        /// Time a new version must do well in all workers before it is committed [default: 10s]
        #[arg(long, value_name = "TIME", help_heading = VERSIONS)]
        pub(crate) soak: Option<Span>,

        /// Percentage points by which the error rate may rise before a new version is rolled back [default: 5]
        ///
        /// The new version's error rate (5xx, traps) is compared with that of the old version's latest responses, once the new
        /// version has given 20 responses. 100 never rolls back.
        #[arg(long, value_name = "PERCENT", help_heading = VERSIONS)]
        pub(crate) max_error_increase: Option<Percent>,

        /// Reload when the component's file changes; build a folder again when its sources change
        ///
        /// For a folder, --min-ready and --soak are 0s unless they are given, so that a rebuild shows at once.
        #[arg(long, help_heading = VERSIONS)]
        pub(crate) watch: bool,

        /// Start the version that was committed last under this name, even if the file has changed since
        #[arg(long, help_heading = VERSIONS)]
        pub(crate) resume: bool,

        /// Replace a worker after about this many requests [default: never]
        #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, help_heading = RECYCLING)]
        pub(crate) max_worker_requests: Option<NonZeroU64>,

        /// Replace a worker at about this age [default: never]
        #[arg(long, value_name = "TIME", help_heading = RECYCLING)]
        pub(crate) max_worker_lifetime: Option<Span>,

        /// Replace a worker when its resident memory has grown to about this size [default: never]
        #[arg(long, value_name = "SIZE", help_heading = RECYCLING)]
        pub(crate) max_worker_rss: Option<Size>,

        /// File to which a line is written for each request, or - for standard output
        ///
        /// It is opened again on SIGUSR1, and when it is renamed or removed, as logrotate does. Queries are left out, as there may
        /// be secrets in them.
        #[arg(long, value_name = "FILE", help_heading = LOGGING)]
        pub(crate) access_log: Option<PathBuf>,

        /// Form of these lines [default: combined, or json with --log-format json]
        #[arg(long, value_name = "FORMAT", help_heading = LOGGING)]
        pub(crate) access_log_format: Option<AccessFormat>,

        /// Tell clients in a Server-Timing field how long their request waited and how long its guest took
        #[arg(long, help_heading = LOGGING)]
        pub(crate) server_timing: bool,

        /// File to which all lines go: the log's, and those that guests print [default: standard output and error]
        ///
        /// It is opened again on SIGUSR1, and when it is renamed or removed, as logrotate does. Where the cluster serves is said on
        /// standard error all the same.
        #[arg(long, value_name = "FILE", help_heading = LOGGING)]
        pub(crate) log_file: Option<PathBuf>,

        /// Collector of traces, by OTLP: http://HOST:4318 or grpc://HOST:4317; https and grpcs over TLS
        ///
        /// Requests that are sampled become spans, and so do their guests' outbound requests and what guests tell by wasi:otel.
        /// Trace context goes in and out as W3C's traceparent. A process of its own sends them; no request waits for it.
        #[arg(long, value_name = "URL", help_heading = LOGGING)]
        pub(crate) otlp: Option<OtlpUrl>,

        /// Header field for the collector, as in authorization=file:PATH, or from env:NAME or credential:NAME; can be repeated
        #[arg(long, value_name = "NAME=SOURCE", help_heading = LOGGING)]
        pub(crate) otlp_header: Vec<SecretPlace>,

        /// Percentage of requests that are traced where their client has not decided that [default: 1]
        #[arg(long, value_name = "PERCENT", help_heading = LOGGING)]
        pub(crate) trace_sample: Option<Percent>,

        /// Log level [default: info]
        #[arg(long, value_name = "LEVEL", help_heading = LOGGING)]
        pub(crate) log_level: Option<LogLevel>,

        /// Log format [default: pretty]
        #[arg(long, value_name = "FORMAT", help_heading = LOGGING)]
        pub(crate) log_format: Option<LogFormat>,

        /// Only in the file, and for the folder that it is in: the table [build]
        #[arg(skip)]
        pub(crate) build: Option<Recipe>,
    }
}

/// How the component of a folder is made by other means than cargo.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Recipe {
    /// For `sh`, in the folder.
    pub(crate) command: String,
    /// What the command makes, as a path in the folder.
    pub(crate) component: PathBuf,
}

impl Options {
    /// Whether they lead to what nobody else may see.
    pub(super) fn have_secrets(&self) -> bool {
        let has_password =
            |grant: &StoreGrant| matches!(&grant.place, StorePlace::Redis(place) if place.has_password());
        !self.set_secret.is_empty()
            || !self.otlp_header.is_empty()
            || !self.tls_key.is_empty()
            || self.kv.iter().any(has_password)
    }

    /// These options without what they lead to that nobody else may see.
    pub(super) fn without_secrets(mut self) -> Self {
        self.set_secret.clear();
        self.otlp_header.clear();
        self.kv.retain(|grant| !matches!(&grant.place, StorePlace::Redis(place) if place.password_file.is_some()));
        self
    }

    /// These options for somebody who changes the sources and wants to see what comes of it: new versions are served at
    /// once, unless it is said otherwise.
    pub(crate) fn for_development(self) -> Self {
        let at_once = Some(Span(Duration::ZERO));
        Self { min_ready: self.min_ready.or(at_once), soak: self.soak.or(at_once), ..self }
    }

    /// These options, and from `other` what they leave unsaid; environment variables and values for guests are merged by name.
    pub(crate) fn or(self, other: Self) -> Self {
        let (env, set) = (by_name(&self.env, &other.env), by_name(&self.set, &other.set));
        let says = |key: &str| self.set_secret.iter().any(|secret| secret.key == key);
        let others = other.set_secret.iter().filter(|secret| !says(&secret.key));
        let set_secret = self.set_secret.iter().chain(others).cloned().collect();
        Self { env, set, set_secret, ..self.first_said(other) }
    }
}

/// All of both; `first` wins.
fn by_name(first: &[(String, String)], other: &[(String, String)]) -> Vec<(String, String)> {
    let all: BTreeMap<String, String> = other.iter().chain(first).cloned().collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        file::parse(text)
    }

    #[test]
    fn the_file_says_what_the_flags_say() {
        let options = parse(
            r#"
            listen = ["127.0.0.1:0", "unix:/run/app.sock"]
            workers = 3
            pin-cpus = true
            no-snapshot = true
            log-level = "debug"
            log-format = "json"
            env-inherit = ["HOME"]
            dir = ["./data::/data:ro"]
            allow-host = ["https://api.example.com"]
            [env]
            GREETING = "hello"
            "#,
        )
        .unwrap();
        assert_eq!(options.listen, ["127.0.0.1:0".parse().unwrap(), "unix:/run/app.sock".parse().unwrap()]);
        assert_eq!((options.workers, options.pin_cpus), (NonZeroU32::new(3), true));
        assert_eq!(
            (options.env_inherit, options.dir),
            (vec!["HOME".into()], vec!["./data::/data:ro".parse().unwrap()])
        );
        assert_eq!(options.allow_host, ["https://api.example.com".parse().unwrap()]);
        assert_eq!(options.env, [("GREETING".into(), "hello".into())]);
        assert_eq!((options.log_level, options.log_format), (Some(LogLevel::Debug), Some(LogFormat::Json)));
    }

    #[test]
    fn mistakes_in_the_file_are_errors() {
        for (text, message) in [
            ("worker = 3", "unknown key `worker`"),
            ("[build]\ncommand = \"make\"", "`component` is missing"),
            ("[build]\ncommand = \"make\"\ncomponent = \"a.wasm\"\ncwd = \".\"", "unknown key `cwd`"),
            ("workers = 0", "1 or more"),
            ("workers = \"two\"", "write workers = 4"),
            ("listen = [\"8080\"]", "expected HOST:PORT"),
            ("[env]\n\"A=B\" = \"c\"", "is not a valid name for a variable"),
            ("log-level = \"loud\"", "`loud` is not one of `off`"),
            ("hang-timeout = \"soon\"", "write 500ms, 30s or 2m"),
            ("hang-timeout = 10", "write hang-timeout = \"30s\""),
            ("max-worker-rss = \"much\"", "write 64KiB"),
            ("max-worker-requests = 0", "1 or more"),
            ("health-path = \"health\"", "begins with /"),
            ("allow-host = [\"api.example.com\"]", "expected a URL"),
            ("dir = [\"data\"]", "expected HOST::GUEST"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = parse("listen = [\"a:1\"]\nworkers = 2\nname = \"file\"\n[env]\nA = \"1\"\nB = \"2\"").unwrap();
        let flags = Options { workers: NonZeroU32::new(8), env: vec![("B".into(), "3".into())], ..Options::default() };
        let merged = flags.or(file);
        assert_eq!(merged.workers, NonZeroU32::new(8));
        assert_eq!(merged.name.as_deref(), Some("file"));
        assert_eq!(merged.listen, ["a:1".parse().unwrap()]);
        assert_eq!(merged.env, [("A".into(), "1".into()), ("B".into(), "3".into())]);
    }
}
