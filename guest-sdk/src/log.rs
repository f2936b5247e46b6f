//! Logging through the [`log`](https://docs.rs/log) crate, and through `tracing` with its feature `log`, to stderr. With the feature
//! `tracing` of this crate, [`trace`](crate::trace) does that and more.
//!
//! Call [`init`] at the start of the guest. Each record is one line, `LEVEL target: message`, to which the server adds the
//! worker that wrote it.

use std::io::Write as _;
use std::sync::OnceLock;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= wanted()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            print(record.level().as_str(), record.target(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Writes a record as one line.
pub(crate) fn print(level: &str, target: &str, text: &str) {
    let line = format!("{level:5} {target}: {text}").replace(['\n', '\r'], " ");
    // There is nobody left to tell that stderr is closed.
    let _ = std::io::stderr().write_all((line + "\n").as_bytes());
}

/// The environment is asked when something is first logged: a request that logs nothing does not pay for it.
pub(crate) fn wanted() -> LevelFilter {
    static WANTED: OnceLock<LevelFilter> = OnceLock::new();
    *WANTED.get_or_init(|| {
        std::env::var("LOG_LEVEL").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::Info)
    })
}

/// Sends records to stderr from now on, unless another logger is set. The guest's environment variable `LOG_LEVEL` says
/// which: `error`, `warn`, `info` (the default), `debug`, `trace` or `off`.
///
/// ```
/// # use wasmcluster_guest::{Request, testing};
/// async fn handle(request: Request) -> &'static str {
///     wasmcluster_guest::log::init();
///     log::info!("asked for {}", request.uri().path());
///     "done"
/// }
/// # assert_eq!(testing::call(handle, Request::default()).text(), "done");
/// ```
///
/// `wasmcluster serve --env LOG_LEVEL=debug app.wasm` shows more.
pub fn init() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}
